"""A histogram that costs a binary search for each value. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds for waits: RabbitMQ on the same machine confirms within a millisecond, one that replicates to slow disks takes
tenths of a second, and 30 s is the longest back-off of a lost connection."""


class Histogram:
    """Counts durations by how long they were."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds`: the buckets' upper ends in seconds, ascending, each included in its bucket."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """Of everything observed, in seconds."""

    def observe(self, seconds: float) -> None:
        """Count one. A clock that was set back can make it negative, and then it is 0."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Each bound, and how many were not above it; the last bound is infinite, and so counts all."""
        return zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True)
