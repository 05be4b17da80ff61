"""Connections by device id: the address of each device, `--on-duplicate replace`, and `--max-flaps`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from ..events import DeviceContested, DeviceHeldOff, DeviceReplaced, Event
from ..interfaces import Clock
from ..routing import node_of
from ..tls.refusal import Refusal
from .claims import Claim, DueClaims, HybridClock, settle
from .connections import Connection, guard
from .flaps import HELD_OFF, FlapLimit
from .replaced_connections import ReplacedConnections


class IdentifiedDevices:
    """Index of the connections of each device id, the newest first. Closes connections that newer ones replace, in this node or
    another one. Holds devices off that flap.

    The index costs a device 53 bytes, one entry of a dictionary for its newest connection, and a microsecond when it connects.
    Only a device with several connections has a dictionary of the earlier ones. A claim that is announced costs 4 microseconds.
    """

    def __init__(
        self,
        clock: Clock,
        now: Callable[[], float],
        emit: Callable[[Event], None],
        replace: bool,
        max_flaps: int | None = None,
    ) -> None:
        """`now()` returns the time in seconds since the epoch. With `replace` false all connections of a device stay."""
        self._clock = clock
        self._now = now
        self._emit = emit
        self._newest: dict[str, Connection] = {}
        self._earlier: dict[str, dict[Connection, None]] = {}  # earlier connections of a device, the oldest first
        self._replaced: ReplacedConnections[Connection] = ReplacedConnections()
        self._hybrid = HybridClock()
        self._due = DueClaims()
        self._announce: Callable[[Sequence[Claim]], bool] | None = None
        self.replace = replace
        """True if a new connection of a device replaces its previous one."""
        self.flaps = FlapLimit(max_flaps)
        self.refused = 0
        """Number of connections that were closed so far, since their device was held off."""

    def configure(self, replace: bool) -> None:
        """Change whether a new connection of a device replaces its previous one.

        All open connections stay. The newest of a device is the one that its next connection replaces.
        """
        self.replace = replace
        if not replace:
            self._due.clear()

    def announce_with(self, announce: Callable[[Sequence[Claim]], bool]) -> None:
        """Announce claims to other nodes with a function. It is called with the claims of one message, and returns whether they
        have gone. Otherwise they are announced later.
        """
        self._announce = announce

    # -- the index -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        """Iterate over the device ids with an open connection, as they are now."""
        return iter(list(self._newest))

    def __len__(self) -> int:
        """Return the number of device ids with an open connection."""
        return len(self._newest)

    def find(self, device_id: str) -> Connection | None:
        """Return the newest open connection of a device that is not being closed, or `None`."""
        connection = self._newest.get(device_id)
        if connection is None or not connection.closing:
            return connection
        return next((each for each in reversed(self._earlier.get(device_id, {})) if not each.closing), None)

    def connections_of(self, device_id: str) -> list[Connection]:
        """Return the open connections of a device, those that are being closed included, the oldest first."""
        newest = self._newest.get(device_id)
        return [] if newest is None else [*self._earlier.get(device_id, {}), newest]

    def others_of(self, connection: Connection) -> int:
        """Return the number of other connections of the same device; 0 for one that is not in the index."""
        device_id = connection.device_id
        if device_id is None:
            return 0
        earlier = self._earlier.get(device_id, {})
        return len(earlier) if self._newest.get(device_id) is connection or connection in earlier else 0

    def claim_of(self, device_id: str) -> Claim | None:
        """Return the claim of the newest open connection of a device, or `None`."""
        connection = self.find(device_id)
        return None if connection is None else self._claim(device_id, connection)

    def _claim(self, device_id: str, connection: Connection) -> Claim:
        age = self._clock.seconds() - connection.identified
        return Claim(
            device_id, connection.connection_id.decode(), connection.since, max(0, int(age * 1000)), connection.factory.door
        )

    def add(self, connection: Connection, identified: float) -> None:
        """Register a connection whose device was identified just now: it is the newest of its device.

        `identified` is the time by the clock of the reactor: as an argument, since the number of `opened` needs no more memory.
        """
        device_id = connection.device_id
        if device_id is None:
            return
        previous = self._newest.get(device_id)
        before = 0 if previous is None else previous.since
        connection.claim(self._hybrid.since(device_id, self._now(), before), identified)
        if previous is not None:
            self._earlier.setdefault(device_id, {})[previous] = None
        self._newest[device_id] = connection
        if self.replace and self._announce is not None:
            self._due.add(device_id)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that is closed, or whose device id changes. Its device has the address of its previous one."""
        device_id = connection.device_id
        if device_id is None:
            return
        earlier = self._earlier.get(device_id)
        if self._newest.get(device_id) is connection:
            if earlier is None:
                del self._newest[device_id]
                return
            self._newest[device_id] = earlier.popitem()[0]
        elif earlier is not None:
            earlier.pop(connection, None)
        if not earlier:
            self._earlier.pop(device_id, None)

    # -- replacing -------------------------------------------------------------------------------------------------------

    def replace_previous(self, connection: Connection, peer: str) -> None:
        """With `--on-duplicate replace`, close the connection of its device that was the newest before this one."""
        device_id = connection.device_id
        if not self.replace or device_id is None:
            return
        earlier = self._earlier.get(device_id)
        if not earlier or self._newest.get(device_id) is not connection:
            return
        previous = next(reversed(earlier))
        if not previous.closing:
            self._replace(device_id, previous, connection.connection_id.decode(), connection.factory.door, peer)

    def _replace(self, device_id: str, previous: Connection, by: str, door: str, peer: str) -> None:
        """Close a connection for a newer one, at once or, if its device id is contested, later. It is no address any more."""
        self.remove(previous)
        self._emit(DeviceReplaced(previous.connection_id.decode(), device_id, by, door, previous.traceparent))
        closing, replacements = self._replaced.replaced(device_id, previous, self._clock.seconds())
        if replacements:
            self._emit(DeviceContested(device_id, replacements, (previous.transport.peer, peer)))
        for each in closing:
            guard(each, each.close, "replaced")

    def heard(self, claims: Iterable[Claim]) -> None:
        """Process claims that another node has announced.

        With `--on-duplicate replace` close connections here that are older, and announce those again that are newer.
        """
        if not self.replace:
            return
        now = self._now()
        for theirs in claims:
            self._hybrid.heard(theirs, now)
            connection = self.find(theirs.device_id)
            # Connections of one node are settled when they are added; what is heard of them is an echo of this node.
            if connection is None or node_of(connection.connection_id).decode() == theirs.connection_id[:8]:
                continue
            mine = self._claim(theirs.device_id, connection)
            since = settle(mine, theirs)
            if since is None:
                self._replace_all(theirs)
            else:
                if since != mine.since:
                    connection.claim(since, connection.identified)
                self._due.add(theirs.device_id)

    def _replace_all(self, theirs: Claim) -> None:
        """Close all connections of a device for one of another node: after a reload it may have several here."""
        node = f"node {theirs.connection_id[:8]}"
        while (mine := self.find(theirs.device_id)) is not None:
            self._replace(theirs.device_id, mine, theirs.connection_id, theirs.door, node)

    def announce_all(self) -> None:
        """Announce the claims of all devices again: claims, from here or to here, may have been lost meanwhile."""
        if self.replace:
            self._due.announce_all(self._newest)

    # -- holding off -----------------------------------------------------------------------------------------------------

    def held_off(self, device_id: str, peer: str, door: str) -> Refusal | None:
        """Count a connection of a device. Return the reason for refusing it if the device is held off, or else `None`."""
        connections = self.flaps.enter(device_id, self._clock.seconds())
        if connections is None:
            return None
        self.refused += 1
        if connections:
            self._emit(DeviceHeldOff(device_id, connections, HELD_OFF, peer, door))
        return Refusal("the device is held off", reported=True)

    def held_off_for(self, device_id: str) -> float:
        """Return the number of seconds for which all connections of a device are still refused, or 0."""
        return self.flaps.remaining(device_id, self._clock.seconds())

    def tick(self, now: float) -> None:
        """Close the replaced connections of contested device ids whose time is over, and announce the claims that are due."""
        if self._replaced:
            for connection in self._replaced.due(now):
                guard(connection, connection.close, "replaced")
        if self._due and self._announce is not None:
            batches = self._due.take()
            for number, device_ids in enumerate(batches):
                claims = [claim for claim in map(self.claim_of, device_ids) if claim is not None]
                if claims and not self._announce(claims):
                    for device_id in chain.from_iterable(batches[number:]):
                        if device_id in self._newest:
                            self._due.add(device_id)
                    break
