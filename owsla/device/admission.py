"""How many connections there may be, in which state they are, and whose turn it is. Pure."""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)

SILENT_SHARE: Final = 4
"""Silent connections at most, for each handshake that may be under way. With the defaults they are 2,048: when a thousand a
second come and say nothing, each has two seconds for its first words (a device has mostly said them when it is accepted, see
the listener's DEFER_ACCEPT), and all of them together take 2 MB."""

STALLED: Final = 1.0
"""Seconds, at the least, that a handshake has from its beginning before it makes way for others."""

STALLED_TIMES: Final = 4.0
"""How many times as long as usual it has. Small devices and slow networks take seconds, and all of them alike."""

STALLED_AT_FIRST: Final = 5.0
"""Seconds that it has while nothing is known of how long handshakes take."""

USUAL_OF: Final = 16
"""Handshakes whose mean (a moving one) is what is usual."""

OFTEN: Final = 10.0
"""Seconds between two reports of what comes by the thousand in an attack."""


class Admission(Generic[Connection]):
    """Counts connections from accepted to closed, and says whether one more may be accepted, and whose handshake is next.

    A connection is silent until its ClientHello is there. Then it waits for its turn, and has a place among the handshakes
    from its turn on. A silent connection takes no such place, and keeps nobody out: health checks, stalled devices and
    attackers have a pool of their own. When that is full, or when there are as many connections as may be, the one that was
    silent for longest makes way for the next (`crowded`, `oldest`).

    First come, first served, as long as devices have the patience for it. Once a peer is found gone at its turn (`gave_up`),
    the newest is served first until nobody waits (adaptive LIFO). In the order of coming each would be served when it is about
    to leave, and nobody would get in.

    A handshake whose peer says nothing more keeps its place while there are others. When all are taken and others wait, the
    oldest one goes if it takes much longer than those of late (`stalled`).
    """

    __slots__ = (
        "_handshaking",
        "_impatient",
        "_silent",
        "_usual",
        "_waiting",
        "max_connections",
        "max_handshakes",
        "max_silent",
        "open",
    )

    def __init__(self, max_connections: int, max_handshakes: int) -> None:
        self.max_connections = max_connections
        self.max_handshakes = max_handshakes
        self.max_silent = max(1, min(SILENT_SHARE * max_handshakes, max_connections // 2))
        """Silent connections at a time: more than handshakes, as long as that leaves half of the connections to devices. As
        many may wait for their handshake."""
        # Each with the time by which they have to be done. In the order of their coming, speaking, and beginning.
        self._silent: dict[Connection, float] = {}
        self._waiting: dict[Connection, float] = {}
        self._handshaking: dict[Connection, tuple[float, float]] = {}  # and since when
        self._impatient = False
        self._usual = STALLED_AT_FIRST / STALLED_TIMES  # seconds that a handshake takes
        self.open = 0
        """Connections whose handshake is complete."""

    @property
    def connections(self) -> int:
        """All of them."""
        return self.open + len(self._silent) + len(self._waiting) + len(self._handshaking)

    @property
    def handshaking(self) -> int:
        """Those whose handshake is under way."""
        return len(self._handshaking)

    @property
    def waiting(self) -> int:
        """Those that wait for a place to begin their handshake."""
        return len(self._waiting)

    @property
    def spoken(self) -> int:
        """Those that have said something: devices, most likely."""
        return self.open + len(self._waiting) + len(self._handshaking)

    @property
    def full(self) -> bool:
        """Whether there are as many as may be. The silent ones would make way, and do not count."""
        return self.spoken >= self.max_connections

    @property
    def room(self) -> int:
        """How many more there is a use in accepting now; 0 or less: none. The rest waits in the system's queue."""
        return min(self.max_silent - len(self._waiting), self.max_connections - self.spoken)

    @property
    def crowded(self) -> bool:
        """Whether the next one can only be accepted in the place of a silent one."""
        return len(self._silent) >= self.max_silent or self.connections >= self.max_connections

    @property
    def oldest(self) -> Connection | None:
        """The one that has been silent for longest."""
        return next(iter(self._silent), None)

    def accepted(self, connection: Connection, deadline: float) -> None:
        """It is there, and has to have completed its handshake by `deadline`."""
        self._silent[connection] = deadline

    def spoke(self, connection: Connection) -> None:
        """Its hello is there: it waits for its turn."""
        self._waiting[connection] = self._silent.pop(connection)

    def next_turn(self, now: float) -> Connection | None:
        """The next one whose handshake may begin, of those that wait. The place is its own from now on."""
        if not self._waiting or len(self._handshaking) >= self.max_handshakes:
            return None
        if self._impatient:
            connection, deadline = self._waiting.popitem()
        else:
            connection = next(iter(self._waiting))
            deadline = self._waiting.pop(connection)
        self._handshaking[connection] = deadline, now
        if not self._waiting:
            self._impatient = False
        return connection

    def gave_up(self) -> None:
        """One that waited was gone before its turn, or at it."""
        self._impatient = True

    def those_waiting(self) -> list[Connection]:
        """The connections that wait for their turn."""
        return list(self._waiting)

    def stalled(self, now: float) -> Connection | None:
        """The oldest handshake, if others wait for its place and it takes much longer than handshakes usually do."""
        if not self._waiting or len(self._handshaking) < self.max_handshakes:
            return None
        connection, (_, since) = next(iter(self._handshaking.items()))
        return connection if now - since >= max(STALLED, STALLED_TIMES * self._usual) else None

    def secured(self, connection: Connection, now: float) -> None:
        """Its handshake is complete."""
        _, since = self._handshaking.pop(connection)
        self._usual += (now - since - self._usual) / USUAL_OF
        self.open += 1

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        if (
            self._handshaking.pop(connection, None) is None
            and self._silent.pop(connection, None) is None
            and self._waiting.pop(connection, None) is None
        ):
            self.open -= 1

    def overdue(self, now: float) -> Iterator[Connection]:
        """Those whose deadline has passed."""
        late = []
        for connection, deadline in self._silent.items():
            if deadline > now:
                break  # they came in order; those that spoke did not speak in order
            late.append(connection)
        late += [connection for connection, deadline in self._waiting.items() if deadline <= now]
        late += [connection for connection, (deadline, _) in self._handshaking.items() if deadline <= now]
        yield from late


class Sources:
    """How many connections there are from each source address, and whether there may be one more.

    An address that has none is not remembered.
    """

    __slots__ = ("_connections", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Connections at a time from one address."""
        self._connections: dict[str, int] = {}

    def enter(self, host: str) -> bool:
        """One more comes from there: whether it may stay. Then it is counted until it leaves."""
        source = source_of(host)
        count = self._connections.get(source, 0)
        if count >= self.limit:
            return False
        self._connections[source] = count + 1
        return True

    def leave(self, host: str) -> None:
        """One that was let in is closed."""
        source = source_of(host)
        count = self._connections[source] - 1
        if count:
            self._connections[source] = count
        else:
            del self._connections[source]

    def __len__(self) -> int:
        """How many addresses there are."""
        return len(self._connections)


def source_of(host: str) -> str:
    """What counts as one source: an IPv4 address, or a /64 network of IPv6.

    A single subscriber of IPv6 has a /64 at least (RFC 6177) and can speak from any address in it. On the local link, which is
    one such network for everybody, it is the address itself.
    """
    if ":" not in host:
        return host
    host = host.partition("%")[0]  # without the interface
    packed = socket.inet_pton(socket.AF_INET6, host)
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return host
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


_MAPPED: Final = bytes(10) + b"\xff\xff"
"""How an IPv4 address begins that is written as an IPv6 one (RFC 4291, 2.5.5.2)."""


class Tally:
    """Counts what an attack brings by the thousand, and says when to tell of it: soon, and then every `OFTEN` seconds."""

    __slots__ = ("_next", "_told", "count")

    def __init__(self) -> None:
        self.count = 0
        """So many so far."""
        self._told = 0
        self._next = float("-inf")

    def add(self) -> None:
        """Count one occurrence."""
        self.count += 1

    def due(self, now: float, *, last: bool = False) -> int:
        """How many there are to tell of now; 0: none, or it is too soon. `last`: there is no later."""
        new = self.count - self._told
        if not new or (now < self._next and not last):
            return 0
        self._told = self.count
        self._next = now + OFTEN
        return new
