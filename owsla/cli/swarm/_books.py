"""What was said and what was answered: pure, and the only place that decides what an answer is."""

from __future__ import annotations


class Tally:
    """What all books of a process add up to."""

    __slots__ = ("answers", "disordered", "duplicates", "strange")

    def __init__(self) -> None:
        self.answers = 0
        """Lines that were answered, each counted once."""
        self.duplicates = 0
        """Answers to a line that had been answered."""
        self.disordered = 0
        """Answers that came after the answer to a later line of the same device."""
        self.strange = 0
        """Lines that answer nothing that this device has said."""


class Book:
    """The lines of one device that wait for their answers."""

    __slots__ = ("_newest", "_tally", "said", "waiting")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.said = 0
        """Lines said, which is the number of the next."""
        self.waiting: dict[int, tuple[int, int]] = {}
        """By number: when a line was due, and when it was written (nanoseconds)."""
        self._newest = -1

    def say(self, due: int, written: int) -> None:
        """The next line is said."""
        self.waiting[self.said] = (due, written)
        self.said += 1

    def hear(self, n: int) -> tuple[int, int] | None:
        """The answer to line `n` is there: when that was due and written, or `None` where there is nothing to measure."""
        tally = self._tally
        times = self.waiting.pop(n, None)
        if times is None:
            if n < self.said:
                tally.duplicates += 1
            else:
                tally.strange += 1
            return None
        tally.answers += 1
        if n < self._newest:
            tally.disordered += 1
        else:
            self._newest = n
        return times


class Pace:
    """When lines are due: evenly, from a beginning on. Times are in nanoseconds."""

    __slots__ = ("_interval", "_start", "said", "total")

    def __init__(self, start: int, rate: float, seconds: float) -> None:
        self._start = start
        self._interval = 1e9 / rate
        self.total = int(rate * seconds)
        self.said = 0

    def due(self, now: int) -> int:
        """How many lines should have been said and were not."""
        return min(self.total, int((now - self._start) / self._interval) + 1) - self.said

    @property
    def next(self) -> int:
        """When the next line is due, which may be past."""
        return self._start + int(self.said * self._interval)
