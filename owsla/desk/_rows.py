"""Rows: open connections as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from ..device.connections import Connection
from ..device.slow_devices import SlowDevices
from ..interfaces import Clock
from ..routing import node_of
from ._types import JSON

STEP: Final = 0.1
"""Seconds by which the clock of the reactor and the time since the epoch may drift before times are converted anew. A smaller
difference would change the times of all rows by a millisecond now and then."""

Value: TypeAlias = int | str
"""A value that rows are sorted by. Unknown is -1, or an empty text."""


class Rows:
    """Makes the rows of connections, and the values that they are sorted by."""

    def __init__(self, clock: Clock, now: Callable[[], float], slow: SlowDevices) -> None:
        """`now()` returns the time in seconds since the epoch."""
        self._clock = clock
        self._now = now
        self._slow = slow
        self._offset = now() - clock.seconds()
        self.values: Final[Mapping[str, Callable[[Connection], Value]]] = {
            "since": self._since,
            "device_id": lambda connection: connection.device_id or "",
            "connection_id": lambda connection: connection.connection_id.decode(),
            "peer": lambda connection: str(connection.transport.peer),
            "lines_in": lambda connection: connection.lines_in,
            "lines_out": lambda connection: connection.lines_out,
            "bytes_in": lambda connection: connection.bytes_in,
            "bytes_out": lambda connection: connection.bytes_out,
            "last_in": lambda connection: _sortable(connection.last_in),
            "last_out": lambda connection: _sortable(connection.last_out),
            "waiting": lambda connection: connection.waiting,
            "held": lambda connection: connection.held,
        }
        """Functions from a connection to the value of a column that rows are sorted by."""

    def row(self, connection: Connection) -> JSON:
        """Return the row of a connection, which must not have been lost."""
        transport = connection.transport
        slow_since = self._slow.since(connection)
        return {
            "connection_id": connection.connection_id.decode(),
            "device_id": connection.device_id,
            "node": node_of(connection.connection_id).decode(),
            "worker": None,
            "peer": transport.peer,
            "door": connection.factory.door,
            "tls": transport.tls_version or None,
            "since": self._since(connection),
            "lines_in": connection.lines_in,
            "lines_out": connection.lines_out,
            "bytes_in": connection.bytes_in,
            "bytes_out": connection.bytes_out,
            "last_in": _milliseconds(connection.last_in),
            "last_out": _milliseconds(connection.last_out),
            "paused": list(connection.pauses),
            "slow_since": None if slow_since is None else self._epoch(slow_since),
            "waiting": connection.waiting,
            "waiting_bytes": connection.waiting_bytes,
            "held": connection.held,
            "closing": connection.close_reason,
        }

    def adjust(self) -> None:
        """Follow the time since the epoch, before the rows of an answer are made."""
        offset = self._now() - self._clock.seconds()
        if abs(offset - self._offset) > STEP:
            self._offset = offset

    def _since(self, connection: Connection) -> int:
        return self._epoch(connection.opened or 0.0)

    def _epoch(self, seconds: float) -> int:
        """Return a time by the clock of the reactor in milliseconds since the epoch."""
        return int((seconds + self._offset) * 1000)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _sortable(seconds: float | None) -> int:
    return -1 if seconds is None else int(seconds * 1000)
