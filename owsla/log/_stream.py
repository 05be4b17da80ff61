"""Lines on a file descriptor, such as standard output, and the log observer that writes them."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping

from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from ._formats import Format, text_lines


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Return whether a file descriptor is connected to the systemd journal: systemd.exec(5), `$JOURNAL_STREAM`."""
    device, colon, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    if not colon:
        return False
    try:
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


class LineStream:
    """File descriptor that several threads write lines to, each of them whole."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        """Held during a write. In a pipe, a line of another thread could otherwise come between two parts of a line."""
        self._torn = False
        """True while the last write ended in the middle of a line."""

    def write(self, lines: str) -> None:
        """Write lines, each with its end. Block until they are written, or raise `OSError`.

        If only a part could be written, as on a full disk, the next write begins a new line.
        """
        with self._lock:
            if self._torn:
                lines = "\n" + lines
            data = lines.encode("utf-8", "backslashreplace")
            written = 0
            try:
                while written < len(data):
                    written += self._write(data[written:])
            except OSError:
                if written:
                    self._torn = data[written - 1] != 0x0A
                raise
            self._torn = False

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another program that shares the open file has made it non-blocking
            select.select([], [self._descriptor], [])
            return 0


@implementer(ILogObserver)
class StreamObserver:
    """Log observer that writes to a stream. It blocks until the lines are written, and may raise `OSError`."""

    def __init__(self, stream: LineStream, format: Format = text_lines) -> None:
        self._stream = stream
        self._format = format

    def __call__(self, event: LogEvent) -> None:
        self._stream.write(self._format(event))
