"""Deadlines of many waiters, one for each, which can be set and cleared at any time. Pure.

A heap holds the deadlines. A cleared deadline stays in the heap until its time comes, or until the heap is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

Waiter = TypeVar("Waiter", bound=Hashable)

SLACK: Final = 64
"""Cleared deadlines that may be in the heap, beyond the number of valid ones, before the heap is rebuilt."""


class Deadlines(Generic[Waiter]):
    """Deadlines by waiter. A waiter without a deadline is not referenced."""

    __slots__ = ("_deadlines", "_heap", "_next", "_waiters")

    def __init__(self) -> None:
        self._deadlines: dict[Waiter, tuple[float, int]] = {}
        self._waiters: dict[int, Waiter] = {}
        self._heap: list[tuple[float, int]] = []
        self._next = 0

    def set(self, waiter: Waiter, when: float) -> None:
        """Set the deadline of a waiter. It replaces an earlier one."""
        self.clear(waiter)
        self._next += 1
        deadline = when, self._next
        self._deadlines[waiter] = deadline
        self._waiters[self._next] = waiter
        if len(self._heap) >= 2 * len(self._deadlines) + SLACK:
            self._heap = list(self._deadlines.values())
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, deadline)

    def clear(self, waiter: Waiter) -> None:
        """Clear the deadline of a waiter, if it has one."""
        deadline = self._deadlines.pop(waiter, None)
        if deadline is not None:
            del self._waiters[deadline[1]]

    def due(self, now: float) -> Iterator[Waiter]:
        """Yield the waiters whose deadline has passed, in the order of the deadlines, and clear these deadlines."""
        while self._heap and self._heap[0][0] <= now:
            waiter = self._waiters.get(heapq.heappop(self._heap)[1])
            if waiter is not None:
                self.clear(waiter)
                yield waiter

    def __len__(self) -> int:
        return len(self._deadlines)
