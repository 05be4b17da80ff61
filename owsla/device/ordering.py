"""Order of the numbered messages to one device. Pure.

A back end numbers its messages to a connection 0, 1, 2 … (`to_device_seq`). They may arrive out of order, twice, or not at all:
several consumers deliver them, RabbitMQ redelivers them, or they come over another node. Each number is released once and in
order.

For each connection a number is in one of these states:

- **Released**: below `expected` and not skipped. If it arrives again it is a duplicate.
- **Expected**: the next number to release. It is missing while higher numbers are held.
- **Held**: above `expected`, arrived already, and waiting for a missing number.
- **Skipped**: below `expected`, never released. The caller bounds how long and with how many held messages it waits for a
missing
  number; after that it calls `skip`. A skipped number that arrives afterwards is late.
- **Unknown**: above `expected`, not arrived.

`expected` decreases only in `rewind`, which takes back messages that were released and could not be written.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

SKIPS_REMEMBERED: Final = 4096
"""Maximum number of ranges of skipped numbers remembered for a connection. They take at most 64 KB, as much as its write
buffer. A number below the oldest remembered range counts as late: one undeliverable record too many is better than one too
few."""


class Arrival(Enum):
    """State of a message number at the time of its arrival."""

    NEXT = "it is its turn"
    HELD = "something before it is missing"
    DUPLICATE = "it was sent, or is held, already"
    LATE = "it was skipped"


class Ordering(Generic[Item]):
    """Numbered messages of one connection: the expected number, the held messages and the skipped ranges."""

    __slots__ = ("_floor", "_held", "_skipped", "expected")

    def __init__(self, expected: int = 0) -> None:
        """`expected` is the next number to release."""
        self.expected = expected
        self._held: dict[int, tuple[float, Item]] = {}
        self._skipped: array[int] | None = None  # start and stop of each range, ascending
        self._floor = 0

    def arrive(self, seq: int, item: Item, now: float) -> Arrival:
        """Classify a message that arrived, and keep it if the result is `HELD`.

        After `NEXT` the caller delivers the message, and then those that `take` returns. After `DUPLICATE` and `LATE` the
        caller disposes of it.
        """
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
        """Return whether a number was released and not skipped."""
        return seq < self.expected and not self._was_skipped(seq)

    def _was_skipped(self, seq: int) -> bool:
        # The array alternates starts and stops, so an odd number of bounds at or below `seq` means that it is inside a range.
        return seq < self._floor or (self._skipped is not None and bisect_right(self._skipped, seq) % 2 == 1)

    def take(self) -> list[Item]:
        """Remove and return, in order, the held messages that no missing number precedes."""
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
        """Number of held messages."""
        return len(self._held)

    @property
    def missed_since(self) -> float | None:
        """Arrival time of the earliest held message, from which the wait for the expected number counts; `None` without one."""
        return min((now for now, _ in self._held.values()), default=None)

    def skip(self) -> range:
        """Skip the missing numbers before the lowest held one, and return their range. Call `take` afterwards."""
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
        """Drop and return the held messages for which `gone` is true: RabbitMQ redelivers those of a cancelled consumer.

        The expected number does not change.
        """
        dropped = [item for _, item in self._held.values() if gone(item)]
        if dropped:
            self._held = {seq: held for seq, held in self._held.items() if not gone(held[1])}
        return dropped

    def rewind(self, seq: int, items: Iterable[tuple[int, Item]], now: float) -> None:
        """Take back the numbers from `seq` on, which were released and not written.

        `seq` itself will be redelivered and becomes the expected number. `items` are held until it arrives.
        """
        self.expected = min(self.expected, seq)
        if self._skipped:
            del self._skipped[bisect_right(self._skipped, seq) :]  # still missing: waited for again
        for number, item in items:
            self._held[number] = (now, item)

    def compact(self, ranges: int) -> None:
        """Keep only the last `ranges` ranges of skipped numbers, to save memory. Numbers below them count as skipped from then
        on."""
        skipped = self._skipped
        if skipped is not None and len(skipped) > 2 * ranges:
            self._floor = max(self._floor, skipped[-2 * ranges - 1])
            self._skipped = skipped[-2 * ranges :]
        self._held = dict(self._held)  # a dict from which items were removed keeps its size

    def clear(self) -> list[Item]:
        """Drop and return all held messages of a closed connection, in the order of their numbers."""
        items = [self._held[seq][1] for seq in sorted(self._held)]
        self._held = {}
        return items


class PausableClock:
    """Clock that can be paused: while no message can arrive, the wait for a missing one must not time out."""

    __slots__ = ("_now", "_offset", "_paused_at")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offset = 0.0
        self._paused_at: float | None = None

    def __call__(self) -> float:
        """Return the time in seconds, without the periods in which the clock was paused."""
        return (self._now() if self._paused_at is None else self._paused_at) - self._offset

    @property
    def paused(self) -> bool:
        """True while the clock is paused."""
        return self._paused_at is not None

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = self._now()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._offset += self._now() - self._paused_at
            self._paused_at = None
