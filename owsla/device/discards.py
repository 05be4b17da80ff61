"""Account of the lines that were lost because their device left while the window was full."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

LOG_INTERVAL: Final = 10.0
"""Least seconds between two warnings."""


class Discards:
    """Counts discarded lines and unread bytes, and logs them at intervals."""

    _log = Logger(namespace="owsla")

    def __init__(self) -> None:
        self.lines = 0
        """Number of lines that were read and discarded so far."""
        self.unread = 0
        """Number of bytes that were never read from closed connections so far, TLS records included."""
        self._taken = (0, 0)
        self._due = 0.0

    def add(self, lines: int, unread: int) -> None:
        """Count discarded lines, and bytes that were not read."""
        self.lines += lines
        self.unread += unread

    def take_discards(self) -> tuple[int, int]:
        """Return the discarded lines and unread bytes since the last call."""
        lines, unread = self._taken
        self._taken = (self.lines, self.unread)
        return self.lines - lines, self.unread - unread

    def tick(self, now: float) -> None:
        """Log what was discarded since the last warning."""
        if now < self._due:
            return
        self._due = now + LOG_INTERVAL
        lines, unread = self.take_discards()
        if lines or unread:
            self._log.warn(
                "Discarded {lines} lines and {unread} unread bytes of devices that closed their connections while lines could "
                "not be published: the window was full. Raise --window and --window-bytes to keep more",
                lines=lines,
                unread=unread,
            )
