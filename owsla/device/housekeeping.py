"""Periodic work on behalf of all connections. No connection has a timer of its own.

A timer for each connection would cost 200 bytes and, reset by each line, more than publishing the line. Instead collaborators
keep small collections of the connections that wait for a time, and look at these ten times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ..interfaces import Clock, LineSink
from .connections import Connection, guard

TICK: Final = 0.1
"""Seconds between two calls of `Housekeeping.tick`."""

LOOKS: Final = 8
"""Checks of a connection in an idle time-out, each of a share of the connections."""


class IdleCheck:
    """Closes connections of a door without a line in either direction for the idle time-out.

    A line costs nothing for it: the check compares the number of lines with the number at the last check.
    """

    def __init__(self, connections: Iterable[Connection], sink: LineSink, timeout: float) -> None:
        """`timeout` is in seconds; 0 disables the check."""
        self._connections = connections
        self._sink = sink
        self._timeout = timeout
        self._to_check: list[Connection] = []
        self._share = 1
        self._not_before = 0.0

    def configure(self, timeout: float) -> None:
        """Change the time-out. It applies to all connections, counted from their last line."""
        if timeout != self._timeout:
            self._timeout = timeout
            self._to_check = []

    def check(self, now: float) -> None:
        """Check a share of the connections. To be called once a second."""
        if not self._sink.accepting:
            # Devices are quiet because they are not read. Their time starts again when they are.
            self._not_before = now
            return
        if not self._timeout:
            return
        if not self._to_check:
            self._to_check = list(self._connections)
            self._share = 1 + int(len(self._to_check) / max(1.0, self._timeout / LOOKS))
        share, self._to_check = self._to_check[: self._share], self._to_check[self._share :]
        for connection in share:
            guard(connection, connection.check_idle, now, self._not_before, self._timeout)


class Housekeeping:
    """Calls the periodic work of `DeviceServices`, and the idle checks of all doors."""

    def __init__(self, clock: Clock, ticks: Sequence[Callable[[float], None]]) -> None:
        self._clock = clock
        self._ticks = ticks
        self._idle_checks: list[IdleCheck] = []

    def check_idle(self, check: IdleCheck) -> None:
        """Call the idle check of a door in each sweep."""
        self._idle_checks.append(check)

    def tick(self) -> None:
        """Do what is due. To be called every `TICK` seconds."""
        now = self._clock.seconds()
        for tick in self._ticks:
            tick(now)

    def sweep(self) -> None:
        """Check a share of the connections of each door for idleness. To be called once a second."""
        now = self._clock.seconds()
        for idle in self._idle_checks:
            idle.check(now)
