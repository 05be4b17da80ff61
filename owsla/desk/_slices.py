"""Work over many connections in slices: other work of the reactor is done between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import Cooperator, TaskStopped
from twisted.python.failure import Failure

from ..device.sliced_check import SLICE
from ..interfaces import Clock

CHUNK: Final = 32
"""Connections that are looked at between two readings of the clock: some 50 microseconds."""

Item = TypeVar("Item")


class Slices:
    """Runs iterators step by step, one after the other, for `SLICE` seconds of a reactor turn.

    If they took turns, each would take as long as all together, and keep its memory for that time.
    """

    def __init__(self, clock: Clock) -> None:
        def slice_ends() -> Callable[[], bool]:
            end = clock.seconds() + SLICE
            return lambda: clock.seconds() >= end

        self._cooperator = Cooperator(slice_ends, lambda call: clock.callLater(0, call))
        self._turn = DeferredLock()

    def run(self, steps: Iterator[None]) -> Deferred[None]:
        """Run an iterator to its end. The Deferred fails with its exception. Cancelling it ends the iterator."""
        return self._turn.run(self._run, steps)

    def _run(self, steps: Iterator[None]) -> Deferred[None]:
        task = self._cooperator.cooperate(steps)
        done: Deferred[None] = Deferred(lambda _: task.stop())

        def failed(failure: Failure) -> None:
            if failure.check(TaskStopped) is None:  # otherwise `done` is being cancelled
                done.errback(failure)

        task.whenDone().addCallbacks(lambda _: done.callback(None), failed)
        return done


def chunks(items: Iterable[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
