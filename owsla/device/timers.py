"""Who waits until when: one deadline each, set and cleared at will, for as many as there are. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

Waiter = TypeVar("Waiter", bound=Hashable)

SLACK: Final = 64
"""Deadlines that were given up and are still in the heap, beside as many as there are valid ones, before it is made anew."""


class Timers(Generic[Waiter]):
    """Deadlines, by who waits. Nobody who does not wait any more is kept alive by it."""

    __slots__ = ("_deadlines", "_heap", "_next", "_waiters")

    def __init__(self) -> None:
        self._deadlines: dict[Waiter, tuple[float, int]] = {}
        self._waiters: dict[int, Waiter] = {}
        self._heap: list[tuple[float, int]] = []
        self._next = 0

    def set(self, waiter: Waiter, when: float) -> None:
        """It waits until then, and no longer for what it waited for before."""
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
        """It does not wait."""
        deadline = self._deadlines.pop(waiter, None)
        if deadline is not None:
            del self._waiters[deadline[1]]

    def due(self, now: float) -> Iterator[Waiter]:
        """Those whose deadline has come, in the order of their deadlines. They wait no more."""
        while self._heap and self._heap[0][0] <= now:
            waiter = self._waiters.get(heapq.heappop(self._heap)[1])
            if waiter is not None:
                self.clear(waiter)
                yield waiter

    def __len__(self) -> int:
        return len(self._deadlines)
