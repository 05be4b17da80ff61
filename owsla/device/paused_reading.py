"""Connections that are not read for a while: their number, their hang-ups, and the time at which a rate limit allows more."""

from __future__ import annotations

import heapq

from .connections import Connection, guard
from .hangup import HangupWatch


class PausedReading:
    """Keeps account of the connections whose reading is paused.

    A reactor reports no hang-up of a socket that it does not read, so paused sockets are given to `HangupWatch`. A transport
    without a descriptor of its own (`fileno()` below 0) is not watched.
    """

    def __init__(self, hangups: HangupWatch | None) -> None:
        self._hangups = hangups
        self._rated: list[tuple[float, int, Connection]] = []
        self._rated_count = 0
        self.count = 0
        """Number of connections whose reading is paused, for any reason."""

    def paused(self, connection: Connection) -> None:
        """Count a connection whose reading is paused, and watch it for hang-ups."""
        self.count += 1
        if self._hangups is not None and connection.transport.fileno() >= 0:
            self._hangups.watch(connection.transport)

    def resumed(self, connection: Connection) -> None:
        """Stop counting a connection that is read again, or is closed."""
        self.count -= 1
        transport = connection.transport
        if self._hangups is not None and transport is not None and transport.fileno() >= 0:
            self._hangups.unwatch(transport)

    def rate_limited(self, connection: Connection, until: float) -> None:
        """Have a connection that exceeds the rate limit read again at a time."""
        self._rated_count += 1  # keeps the heap from comparing connections
        heapq.heappush(self._rated, (until, self._rated_count, connection))

    def rate_changed(self) -> None:
        """Read all connections again that wait under a rate limit which has changed."""
        rated, self._rated = self._rated, []
        for _, _, connection in sorted(rated):
            guard(connection, connection.rate_changed)

    def tick(self, now: float) -> None:
        """Resume the connections that may send again under the rate limit."""
        while self._rated and self._rated[0][0] <= now:
            connection = heapq.heappop(self._rated)[2]
            guard(connection, connection.rate_allowed)
