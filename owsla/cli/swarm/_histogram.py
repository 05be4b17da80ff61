"""Histograms of durations in bounded memory, with buckets as in HdrHistogram.

Each doubling of the value has `HALF` buckets of the same width, so the error is at most 1/128 of the value whatever its size.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

HALF: Final = 128
"""Number of buckets for each doubling: a value is known to 1/128, or to a microsecond if that is more."""
_BITS: Final = HALF.bit_length()
DOUBLINGS: Final = 25
LARGEST: Final = (HALF << DOUBLINGS) * 2 - 1
"""Largest value in microseconds: two hours and 23 minutes. Longer durations count as this one."""


def bucket(value: int) -> int:
    """Return the number of the bucket of a value in microseconds."""
    shift = value.bit_length() - _BITS
    return value if shift <= 0 else shift * HALF + (value >> shift)


def bounds(number: int) -> tuple[int, int]:
    """Return the lowest value of a bucket, and the lowest value above it."""
    shift = max(number // HALF - 1, 0)
    low = (number - shift * HALF) << shift
    return low, low + (1 << shift)


class LatencyHistogram:
    """Counts of durations in microseconds. It takes 27 KB, for any number of values."""

    __slots__ = ("_counts", "count", "largest", "total")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (bucket(LARGEST) + 1)))
        self.count = 0
        """Number of values."""
        self.total = 0
        """Sum of the values."""
        self.largest = 0
        """Largest value, exactly."""

    def add(self, value: int) -> None:
        """Count a value. A negative value counts as 0."""
        if value < 0:
            value = 0
        shift = value.bit_length() - _BITS
        if shift > DOUBLINGS:
            value, shift = LARGEST, DOUBLINGS
        # As `bucket`, without its call: this runs for each answer.
        self._counts[value if shift <= 0 else shift * HALF + (value >> shift)] += 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def percentile(self, percent: float) -> int | None:
        """Return a percentile, rounded up to the end of its bucket; `None` without values."""
        if not self.count:
            return None
        wanted = max(1.0, self.count * percent / 100)
        seen = 0
        for number, count in self._filled():
            seen += count
            # The product can exceed the whole number that it stands for by a rounding error.
            if seen >= wanted - 1e-6:
                return min(bounds(number)[1] - 1, self.largest)
        return self.largest

    def mean(self) -> float | None:
        """Return the mean, or `None` without values."""
        return self.total / self.count if self.count else None

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over the buckets that are not empty, in rising order: lowest value, lowest value above, count."""
        for number, count in self._filled():
            low, high = bounds(number)
            yield low, high, count

    def _filled(self) -> Iterator[tuple[int, int]]:
        return ((number, count) for number, count in enumerate(self._counts) if count)

    def merge(self, other: LatencyHistogram) -> None:
        """Add the values of another histogram."""
        for number, count in other._filled():
            self._counts[number] += count
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def dump(self) -> list[int]:
        """Return the histogram as numbers for JSON: total, largest, then the number and the count of each bucket."""
        return [self.total, self.largest, *(number for pair in self._filled() for number in pair)]

    @classmethod
    def load(cls, numbers: Iterable[int]) -> LatencyHistogram:
        """Make a histogram from the result of `dump`. Raise `ValueError` or `IndexError` for anything else."""
        self = cls()
        given = iter(numbers)
        self.total, self.largest = next(given, 0), next(given, 0)
        for number, count in zip(given, given, strict=True):
            self._counts[number] = count
            self.count += count
        return self
