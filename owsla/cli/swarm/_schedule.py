"""The schedule of lines at a given rate."""

from __future__ import annotations


class Schedule:
    """Times at which lines are due, evenly from a start on. Times are in nanoseconds."""

    __slots__ = ("_burst", "_interval", "_sent", "_start", "total")

    def __init__(self, start: int, rate: float, seconds: float, burst: int = 1) -> None:
        """The lines of a `burst` are due together, at the time of the first one."""
        self._burst = burst
        self._start = start
        self._interval = 1e9 / rate
        self.total = int(rate * seconds)
        self._sent = 0

    def due(self, now: int) -> int:
        """Return the number of lines that are due and not sent yet."""
        bursts = int((now - self._start) / (self._interval * self._burst)) + 1
        return min(self.total, bursts * self._burst) - self._sent

    @property
    def finished(self) -> bool:
        """Return whether all lines are sent."""
        return self._sent >= self.total

    @property
    def next(self) -> int:
        """Time at which the next line is due, possibly in the past."""
        return self._start + int(self._sent // self._burst * self._burst * self._interval)

    def take(self, lines: int = 1) -> int:
        """Return the time at which the next line is due, and count that many lines of its burst as sent."""
        due = self.next
        self._sent += lines
        return due
