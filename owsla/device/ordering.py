"""The order of numbered messages towards one device. Pure.

A back end numbers its messages to a connection 0, 1, 2 … (`to_device_seq`). They may come in any order, twice, or not at all:
from several consumers, after a redelivery, over another node. Each is given out once and in order. What is missing is waited
for, a bounded time and with a bounded number of messages held meanwhile; then it is skipped, and is late when it comes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

SKIPS_REMEMBERED: Final = 4096
"""Ranges of skipped numbers that are remembered for a connection. They take 64 KB at most, as much as its write buffer.
A number below all of them counts as late: one record too many is better than one too few."""


class Arrival(Enum):
    """What a number means when it comes."""

    NEXT = "it is its turn"
    HELD = "something before it is missing"
    DUPLICATE = "it was sent, or is held, already"
    LATE = "it was skipped"


class Ordering(Generic[Item]):
    """The numbered messages of one connection: which is next, which are held, which were skipped."""

    __slots__ = ("_floor", "_held", "_skipped", "expected")

    def __init__(self, expected: int = 0) -> None:
        """`expected` is the number that is next."""
        self.expected = expected
        self._held: dict[int, tuple[float, Item]] = {}
        self._skipped: array[int] | None = None  # start and stop of each range, ascending
        self._floor = 0

    def arrive(self, seq: int, item: Item, now: float) -> Arrival:
        """A message came. `NEXT`: give it out, and then what `take` has; `HELD`: it is kept; otherwise it is the caller's."""
        if seq == self.expected:
            self.expected += 1
            return Arrival.NEXT
        if seq < self.expected:
            return Arrival.LATE if self._was_skipped(seq) else Arrival.DUPLICATE
        if seq in self._held:
            return Arrival.DUPLICATE
        self._held[seq] = (now, item)
        return Arrival.HELD

    def written(self, seq: int) -> bool:
        """Return whether a number was given out, and not skipped."""
        return seq < self.expected and not self._was_skipped(seq)

    def _was_skipped(self, seq: int) -> bool:
        # Behind a start and before its stop there is an odd number of bounds.
        return seq < self._floor or (self._skipped is not None and bisect_right(self._skipped, seq) % 2 == 1)

    def take(self) -> list[Item]:
        """What is held and whose turn it is now, in order."""
        ready = []
        while self._held:
            held = self._held.pop(self.expected, None)
            if held is None:
                break
            self.expected += 1
            ready.append(held[1])
        return ready

    @property
    def held(self) -> int:
        """How many messages are held."""
        return len(self._held)

    @property
    def missed_since(self) -> float | None:
        """When the number that is next was first missed: when the first one behind it came. `None` where none is held."""
        return min((now for now, _ in self._held.values()), default=None)

    def skip(self) -> range:
        """Give up waiting: go on at the lowest number held. What is skipped by that; `take` has what follows."""
        missing = range(self.expected, min(self._held))
        self.expected = missing.stop
        skipped = self._skipped
        if skipped is None:
            skipped = self._skipped = array("q")
        if skipped and skipped[-1] == missing.start:
            skipped[-1] = missing.stop
        else:
            skipped.extend((missing.start, missing.stop))
            if len(skipped) > 2 * SKIPS_REMEMBERED:
                self._floor = max(self._floor, skipped[1])
                del skipped[:2]
        return missing

    def forget(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Drop what is held and comes again, for its consumer is gone: what that was. The expected number stays."""
        dropped = [item for _, item in self._held.values() if gone(item)]
        if dropped:
            self._held = {seq: held for seq, held in self._held.items() if not gone(held[1])}
        return dropped

    def rewind(self, seq: int, items: Iterable[tuple[int, Item]], now: float) -> None:
        """Numbers from `seq` on were given out and not used after all: that one comes again, and these are held for it."""
        self.expected = min(self.expected, seq)
        if self._skipped:
            del self._skipped[bisect_right(self._skipped, seq) :]  # what is still missing is waited for once more
        for number, item in items:
            self._held[number] = (now, item)

    def compact(self, ranges: int) -> None:
        """Keep the last ranges of skipped numbers only. A number below them counts as skipped from then on."""
        skipped = self._skipped
        if skipped is not None and len(skipped) > 2 * ranges:
            self._floor = max(self._floor, skipped[-2 * ranges - 1])
            self._skipped = skipped[-2 * ranges :]
        self._held = dict(self._held)  # a dict from which items were removed keeps its size

    def clear(self) -> list[Item]:
        """Drop and return all that is held, in the order of their numbers: the connection is closed."""
        items = [self._held[seq][1] for seq in sorted(self._held)]
        self._held = {}
        return items


class PausableClock:
    """Time that stands still now and then: while no messages can come, none is missed."""

    __slots__ = ("_now", "_offset", "_paused_at")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offset = 0.0
        self._paused_at: float | None = None

    def __call__(self) -> float:
        """Seconds, those not counted in which it stood still."""
        return (self._now() if self._paused_at is None else self._paused_at) - self._offset

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._paused_at is not None

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = self._now()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._offset += self._now() - self._paused_at
            self._paused_at = None
