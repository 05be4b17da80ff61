"""How many connections each worker has, where all of them see it: so that a new one goes to whoever has fewest.

All workers are woken when a device connects, and the quickest one takes it; left to themselves some are always quicker. So a
worker that has more than the one with fewest leaves the others a moment before it takes any.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

ABSENT: Final = 0xFFFFFFFF
"""In place of a number: there is no such worker now."""

SLACK: Final = 1 / 64
"""What one may have more than the one with fewest, of what that has, and not stand back: what nobody would notice."""

_SIZE: Final = 4


def stands_back(mine: int, least: int) -> bool:
    """Whether a worker with so many connections leaves the next one to others, of whom one has only `least`. Pure."""
    return mine > least + 1 + int(least * SLACK)


class Loads:
    """One number for each worker, in memory that is shared through a descriptor. Nothing is locked: they are hints."""

    def __init__(self, descriptor: int, count: int) -> None:
        """`count` workers; `descriptor` is that of `create`."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, count * _SIZE)
        self._numbers = memoryview(self._memory).cast("I")

    @classmethod
    def create(cls, count: int) -> Loads:
        """Shared memory for so many workers, none of which is there."""
        descriptor = os.memfd_create("owsla-loads", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, count * _SIZE)
        loads = cls(descriptor, count)
        for number in range(count):
            loads.absent(number + 1)
        return loads

    def absent(self, worker: int) -> None:
        """This worker (they count from 1) is gone: nobody waits for it to take anything."""
        self._numbers[worker - 1] = ABSENT

    def share(self, worker: int) -> Share:
        """This worker's part."""
        return Share(self._numbers, worker - 1)

    @property
    def all(self) -> list[int]:
        """All numbers."""
        return list(self._numbers)


class Share:
    """One worker's number, and what the others' mean for it."""

    __slots__ = ("_index", "_numbers")

    def __init__(self, numbers: memoryview[int], index: int) -> None:
        self._numbers = numbers
        self._index = index

    def tell(self, connections: int) -> None:
        """It has so many."""
        self._numbers[self._index] = connections

    def stands_back(self, connections: int) -> bool:
        """Whether it leaves the next one to others, having so many."""
        return stands_back(connections, min(self._numbers))
