"""Answers matched to the lines of a device: pure, and the only place that decides what a line from the gateway means."""

from __future__ import annotations


class AnswerCounts:
    """Counts of the answers to all devices of a process."""

    __slots__ = ("answers", "disordered", "duplicates", "strange")

    def __init__(self) -> None:
        self.answers = 0
        """Number of lines that were answered, each counted once."""
        self.duplicates = 0
        """Number of answers to a line that had been answered before."""
        self.disordered = 0
        """Number of answers that came after the answer to a later line of the same device."""
        self.strange = 0
        """Number of lines that match no line of their device."""


class AnswerMatcher:
    """The lines of one device that wait for their answers."""

    __slots__ = ("_counts", "_newest", "outstanding", "said")

    def __init__(self, counts: AnswerCounts) -> None:
        self._counts = counts
        self.said = 0
        """Number of lines sent, which is the number of the next one."""
        self.outstanding: dict[int, tuple[int, int]] = {}
        """Times at which a line was due and written, in nanoseconds, by the number of the line."""
        self._newest = -1

    def sent(self, due: int, written: int) -> None:
        """Register the next line."""
        self.outstanding[self.said] = (due, written)
        self.said += 1

    def sent_without_answer(self, lines: int) -> None:
        """Count the next lines, for which no answer is expected."""
        self.said += lines

    def answered(self, n: int) -> tuple[int, int] | None:
        """Count the answer to line `n`. Return when the line was due and written, or `None` if there is nothing to measure."""
        counts = self._counts
        times = self.outstanding.pop(n, None)
        if times is None:
            if n < self.said:
                counts.duplicates += 1
            else:
                counts.strange += 1
            return None
        counts.answers += 1
        if n < self._newest:
            counts.disordered += 1
        else:
            self._newest = n
        return times
