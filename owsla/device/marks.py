"""Which lines of a device's are dealt with, where its dialect does not publish one for each. Pure.

A line is dealt with when all is confirmed that had been published by the time the dialect was through with it. Where it
published each line this is that line; where it answered itself, this is whatever came before.
"""

from __future__ import annotations

from collections import deque


class Marks:
    """Counts lines received, and how many of them are safe, given how many published ones are.

    It keeps a pair of numbers for a published line that is not confirmed, and nothing once all are.
    """

    __slots__ = ("_marks", "received", "safe")

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        self.received = 0
        """Lines so far."""
        self.safe = 0
        """So many of them, from the first on, are dealt with."""

    def add(self, published: int, confirmed: int) -> None:
        """One more line was received. By now `published` lines were, and of these the first `confirmed` are safe."""
        self.received += 1
        marks = self._marks
        if published <= confirmed:
            marks.clear()
            self.safe = self.received
        elif marks and marks[-1][0] == published:
            marks[-1] = published, self.received
        else:
            marks.append((published, self.received))

    def confirm(self, confirmed: int) -> None:
        """The first `confirmed` of the published lines are safe."""
        marks = self._marks
        while marks and marks[0][0] <= confirmed:
            self.safe = marks.popleft()[1]

    def __len__(self) -> int:
        return len(self._marks)
