"""Connection counts of the workers in shared memory, so that a new connection goes to a worker with few.

The kernel wakes all workers when a device connects, and the quickest one accepts it. Some workers are always quicker. Therefore
a worker that has more connections than the least loaded one waits a moment before it accepts any.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

ABSENT: Final = 0xFFFFFFFF
"""Count of a worker that does not run."""

SLACK: Final = 1 / 64
"""Part by which the count of a worker may exceed the least count before it waits. Such a difference is not noticeable."""

_SIZE: Final = 4


def stands_back(mine: int, least: int) -> bool:
    """Return whether a worker with `mine` connections leaves the next one to a worker with `least`. Pure."""
    return mine > least + 1 + int(least * SLACK)


class Loads:
    """Connection counts of all workers, in memory that is shared through a descriptor. Without locks, because they are hints.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        """`count` is the number of workers, and `descriptor` that of an object from `create`."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, count * _SIZE)
        self._numbers = memoryview(self._memory).cast("I")

    @classmethod
    def create(cls, count: int) -> Loads:
        """Make shared memory for `count` workers, all absent."""
        descriptor = os.memfd_create("owsla-loads", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, count * _SIZE)
        loads = cls(descriptor, count)
        for number in range(count):
            loads.absent(number + 1)
        return loads

    def absent(self, worker: int) -> None:
        """Note that a worker, counted from 1, does not run: the others leave no connection to it."""
        self._numbers[worker - 1] = ABSENT

    def of(self, worker: int) -> WorkerLoad:
        """Return the count of one worker, counted from 1."""
        return WorkerLoad(self._numbers, worker - 1)

    @property
    def all(self) -> list[int]:
        """Counts of all workers, in order."""
        return list(self._numbers)


class WorkerLoad:
    """Connection count of one worker, which compares it with the others."""

    __slots__ = ("_index", "_numbers")

    def __init__(self, numbers: memoryview[int], index: int) -> None:
        self._numbers = numbers
        self._index = index

    def tell(self, connections: int) -> None:
        """Publish the number of connections that this worker has."""
        self._numbers[self._index] = connections

    def stands_back(self, connections: int) -> bool:
        """Return whether a worker with this number of connections leaves the next one to others."""
        return stands_back(connections, min(self._numbers))
