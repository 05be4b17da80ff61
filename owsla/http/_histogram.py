"""A histogram that needs one binary search per value. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds. RabbitMQ on the same machine confirms within a millisecond; a replicated queue on slow disks takes
tenths of a second; the longest back-off after a lost connection is 30 s."""


class Histogram:
    """Counts of durations per bucket."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds`: inclusive upper bounds of the buckets in seconds, ascending."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """Sum of all observed durations in seconds."""

    def observe(self, seconds: float) -> None:
        """Count a duration. A negative one (the clock was set back) counts as 0."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of durations in each bucket; those above the last bound come last."""
        return tuple(self._counts)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield each upper bound with its cumulative count. The last bound is infinity."""
        return zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True)


def quantile(q: float, counts: Sequence[int], bounds: Sequence[float] = SECONDS) -> float | None:
    """Estimate a quantile of the durations in some buckets; `None` if there are none.

    `counts` has the durations per bucket, and those above the last bound at the end. As in `histogram_quantile` of Prometheus,
    durations are taken as evenly spread within their bucket, and those above the last bound as equal to it.
    """
    rank = q * sum(counts)
    if rank <= 0:
        return None
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if rank <= count:
            return lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return lower
