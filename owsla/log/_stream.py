"""Log observer for a file descriptor, such as standard output."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Final

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEventAsClassicLogText
from zope.interface import implementer

from ._text import with_traceback

PRIORITIES: Final = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}
"""Priorities of syslog: sd-daemon(3)."""


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


@implementer(ILogObserver)
class StreamObserver:
    """Log observer that writes lines to a file descriptor. It blocks until they are written, and may raise `OSError`."""

    def __init__(self, descriptor: int, *, journal: bool = False) -> None:
        """`journal`: begin lines with a priority, and leave out the time, which the journal adds."""
        self._descriptor = descriptor
        self._format = _journal_lines if journal else _line
        self._torn = False
        """True while the last write ended in the middle of a line."""

    def __call__(self, event: LogEvent) -> None:
        text = self._format(event)
        if self._torn:
            text = "\n" + text
        data = text.encode("utf-8", "backslashreplace")
        written = 0
        try:
            while written < len(data):
                written += self._write(data[written:])
        except OSError:
            if written:  # a full disk takes a part of a line before it reports the error
                self._torn = data[written - 1] != 0x0A
            raise
        self._torn = False

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another program that shares the open file has made it non-blocking
            select.select([], [self._descriptor], [])
            return 0


def _line(event: LogEvent) -> str:
    """Return the lines of an event in twistd's format."""
    # Without the failure: the traceback is in the text, and Twisted would append it again.
    plain = {key: value for key, value in event.items() if key != "log_failure"}
    return formatEventAsClassicLogText({**plain, "log_format": "{text}", "text": with_traceback(event)}) or ""


def _journal_lines(event: LogEvent) -> str:
    """Return the lines of an event for the journal, where each line is an entry with a priority of its own."""
    priority = PRIORITIES.get(event.get("log_level"), 6)
    # The name of the program is not needed: the journal has an identifier for each unit (`SyslogIdentifier=`).
    part = str(event.get("log_namespace", "")).removeprefix("owsla").lstrip(".")
    first, *more = with_traceback(event).split("\n")
    lines = [f"[{part}] {first}" if part else first, *(f"\t{line}" for line in more)]
    return "".join(f"<{priority}>{line}\n" for line in lines)
