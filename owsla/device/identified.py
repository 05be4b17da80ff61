"""Connections by device id, for `--on-duplicate replace` and `--max-flaps`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..events import DeviceContested, DeviceHeldOff, DeviceReplaced, Event
from ..interfaces import Clock
from ..tls.refusal import Refusal
from .connections import Connection, guard
from .flaps import HELD_OFF, FlapLimit
from .replaced_connections import ReplacedConnections


class IdentifiedDevices:
    """Keeps the newest connection of each device id, and closes the one that it replaces. Holds devices off that flap."""

    def __init__(
        self, clock: Clock, emit: Callable[[Event], None], replace: bool, max_flaps: int | None = None
    ) -> None:
        """With `replace` false nothing is kept: all connections of a device stay."""
        self._clock = clock
        self._emit = emit
        self._newest: dict[str, Connection] | None = {} if replace else None
        self._replaced: ReplacedConnections[Connection] = ReplacedConnections()
        self.flaps = FlapLimit(max_flaps)
        self.refused = 0
        """Number of connections that were closed so far, since their device was held off."""

    def configure(self, replace: bool, connections: Iterable[Connection]) -> None:
        """Change whether a new connection of a device replaces its previous one.

        `connections` are the open ones, the oldest first. All of them stay, and the newest of a device is the one that its next
        connection replaces.
        """
        if replace == (self._newest is not None):
            return
        self._newest = None
        if replace:
            self._newest = {each.device_id: each for each in connections if each.device_id is not None and not each.closing}

    def held_off(self, device_id: str, peer: str, door: str) -> Refusal | None:
        """Count a connection of a device. Return the reason for refusing it if the device is held off, or else `None`."""
        connections = self.flaps.enter(device_id, self._clock.seconds())
        if connections is None:
            return None
        self.refused += 1
        if connections:
            self._emit(DeviceHeldOff(device_id, connections, HELD_OFF, peer, door))
        return Refusal("the device is held off", reported=True)

    def add(self, connection: Connection, peer: str) -> None:
        """Register an identified connection, and close the previous one of its device."""
        newest, device_id = self._newest, connection.device_id
        if newest is None or device_id is None:
            return
        previous = newest.get(device_id)
        newest[device_id] = connection
        if previous is None or previous is connection or previous.closing:
            return
        by, door = connection.connection_id.decode(), connection.factory.door
        self._emit(DeviceReplaced(previous.connection_id.decode(), device_id, by, door))
        closing, replacements = self._replaced.replaced(device_id, previous, self._clock.seconds())
        if replacements:
            self._emit(DeviceContested(device_id, replacements, (previous.transport.peer, peer)))
        for each in closing:
            each.close("replaced")

    def remove(self, connection: Connection) -> None:
        """Remove a connection that is closed, or whose device id changes."""
        newest, device_id = self._newest, connection.device_id
        if newest and device_id is not None and newest.get(device_id) is connection:
            del newest[device_id]

    def tick(self, now: float) -> None:
        """Close the replaced connections of contested device ids whose time is over."""
        if self._replaced:
            for connection in self._replaced.due(now):
                guard(connection, connection.close, "replaced")
