"""Log observer for the file of `twistd --logfile`, in a format that is not twistd's own."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

from ._formats import Format


class WholeLinesFile(LogFile):
    """Log file of Twisted, rotated by its size, that never keeps a part of a line."""

    def write(self, data: bytes) -> None:
        """Write lines. If that fails halfway, as on a full disk, remove the part that was written, and raise `OSError`."""
        if self.shouldRotate():
            self.flush()
            self.rotate()
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])  # the file is not buffered
        except OSError:
            if written:
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise
        self.size += written


@implementer(ILogObserver)
class FileObserver:
    """Log observer that writes to a file. It blocks until the lines are written, and may raise `OSError`."""

    def __init__(self, file: LogFile, format: Format) -> None:
        self._file = file
        self._format = format
        self._rotate = False

    def __call__(self, event: LogEvent) -> None:
        if self._rotate:
            self._rotate = False
            self._file.rotate()
        self._file.write(self._format(event).encode("utf-8", "backslashreplace"))

    def rotate(self) -> None:
        """Rotate the file before the next line. May be called from any thread, and by a signal handler."""
        self._rotate = True
