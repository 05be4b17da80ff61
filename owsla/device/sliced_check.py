"""Checks of all connections, a slice of them in each turn of the reactor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ..interfaces import Clock, DelayedCall
from .connections import Connection, guard

SLICE: Final = 0.005
"""Seconds of a reactor turn that a check takes. The other devices are served between two slices."""


class SlicedCheck:
    """A check of many connections, which closes some of them. A new check ends the one in progress."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next: DelayedCall | None = None
        self._closed = 0

    def begin(
        self, connections: Iterable[Connection], close: Callable[[Connection], bool], done: Callable[[int], object]
    ) -> None:
        """Check connections: those that are open now, although others come and go meanwhile.

        `close` closes a connection that it finds fault with, and returns whether it has. `done` is called at the end, with the
        number of connections that were closed since it was last called.
        """
        self.stop()
        self._slice(iter(list(connections)), close, done)

    def stop(self) -> None:
        """End a check that is in progress."""
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _slice(
        self, connections: Iterator[Connection], close: Callable[[Connection], bool], done: Callable[[int], object]
    ) -> None:
        end = self._clock.seconds() + SLICE
        for connection in connections:
            guard(connection, self._check, connection, close)
            if self._clock.seconds() >= end:
                self._next = self._clock.callLater(0, self._slice, connections, close, done)
                return
        closed, self._closed = self._closed, 0
        done(closed)

    def _check(self, connection: Connection, close: Callable[[Connection], bool]) -> None:
        if not connection.closing and connection.transport is not None:
            self._closed += close(connection)
