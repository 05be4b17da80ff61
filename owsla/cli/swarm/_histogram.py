"""How long things took, in bounded memory whatever their number: buckets as in HdrHistogram."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

HALF: Final = 128
"""Buckets for each doubling: a value is known to 1/128 of itself, or to a microsecond where that is more."""
_BITS: Final = HALF.bit_length()
DOUBLINGS: Final = 25
LARGEST: Final = (HALF << DOUBLINGS) * 2 - 1
"""Microseconds: two hours and 23 minutes. What took longer counts as this."""


def bucket(value: int) -> int:
    """The number of the bucket that a value (microseconds) belongs to."""
    shift = value.bit_length() - _BITS
    return value if shift <= 0 else shift * HALF + (value >> shift)


def bounds(number: int) -> tuple[int, int]:
    """The values of a bucket: the lowest, and the first that is above all of them."""
    shift = max(number // HALF - 1, 0)
    low = (number - shift * HALF) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts of values in microseconds. Some 27 KB, and as much for a thousand million values."""

    __slots__ = ("_counts", "count", "largest", "total")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (bucket(LARGEST) + 1)))
        self.count = 0
        self.total = 0
        self.largest = 0
        """The largest value, exactly."""

    def add(self, value: int) -> None:
        """Count a value. A negative one, of a clock that went back, counts as 0."""
        if value < 0:
            value = 0
        shift = value.bit_length() - _BITS
        if shift > DOUBLINGS:
            value, shift = LARGEST, DOUBLINGS
        self._counts[value if shift <= 0 else shift * HALF + (value >> shift)] += 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def percentile(self, percent: float) -> int | None:
        """The value that so many percent of all are at most, rounded up to its bucket's end; `None` where there are none."""
        if not self.count:
            return None
        wanted = max(1.0, self.count * percent / 100)
        seen = 0
        for number, count in self._filled():
            seen += count
            # A sum of thousandths may come out a hair above the whole number that it is.
            if seen >= wanted - 1e-6:
                return min(bounds(number)[1] - 1, self.largest)
        return self.largest

    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """What is not empty, in rising order: lowest value, first value above, count."""
        for number, count in self._filled():
            low, high = bounds(number)
            yield low, high, count

    def _filled(self) -> Iterator[tuple[int, int]]:
        return ((number, count) for number, count in enumerate(self._counts) if count)

    def merge(self, other: Histogram) -> None:
        """Add what another one counted."""
        for number, count in other._filled():
            self._counts[number] += count
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def dump(self) -> list[int]:
        """As numbers for JSON: total, largest, then pairs of a bucket's number and count."""
        return [self.total, self.largest, *(number for pair in self._filled() for number in pair)]

    @classmethod
    def load(cls, numbers: Iterable[int]) -> Histogram:
        """What `dump` gave. `ValueError` and `IndexError` where it is none."""
        self = cls()
        given = iter(numbers)
        self.total, self.largest = next(given, 0), next(given, 0)
        for number, count in zip(given, given, strict=True):
            self._counts[number] = count
            self.count += count
        return self
