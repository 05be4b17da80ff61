"""Count of the settled lines of a device whose dialect does not publish exactly one line for each line received. Pure.

A received line is settled when the broker has confirmed every line that had been published by the time the dialect returned
from it. If the dialect published the line, that includes the line itself. If the dialect answered the line without publishing,
the line is settled with the lines published before it.
"""

from __future__ import annotations

from collections import deque


class SettledLines:
    """Numbers of received and of settled lines, computed from the number of confirmed ones.

    One pair of numbers is kept for each published line that is not confirmed, and none once all are confirmed.
    """

    __slots__ = ("_unsettled", "received", "settled")

    def __init__(self) -> None:
        # For each number of published lines, ascending: the received lines that are settled once that number is confirmed.
        self._unsettled: deque[tuple[int, int]] = deque()
        self.received = 0
        """Number of lines received."""
        self.settled = 0
        """Number of settled lines. Lines are settled in the order in which they were received."""

    def add(self, published: int, confirmed: int) -> None:
        """Count a received line. `published` lines have been published so far, and the first `confirmed` are confirmed."""
        self.received += 1
        unsettled = self._unsettled
        if published <= confirmed:
            unsettled.clear()
            self.settled = self.received
        elif unsettled and unsettled[-1][0] == published:
            unsettled[-1] = published, self.received
        else:
            unsettled.append((published, self.received))

    def confirm(self, confirmed: int) -> None:
        """Settle the lines that needed no more than the first `confirmed` published lines."""
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= confirmed:
            self.settled = unsettled.popleft()[1]

    def __len__(self) -> int:
        return len(self._unsettled)
