"""Admission of connections: limits, states, and the order of handshakes. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)

SILENT_SHARE: Final = 4
"""Limit on silent connections per allowed concurrent handshake. With the defaults it is 2,048, which take 2 MB. If a thousand
silent connections per second arrive, each has two seconds to send its ClientHello. Most devices have sent it before they are
accepted (`DEFER_ACCEPT` of the port)."""

OVERLOADED_SHARE: Final = 0.5
"""Share of peers that are gone before their turn from which on the process is overloaded."""

RECOVERED_SHARE: Final = 0.125
"""Share of peers that are gone before their turn at which the process is no longer overloaded, once no connection waits."""

OVERLOADED_OF: Final = 32
"""Peers in the moving mean that is this share."""

OVERLOADED_QUEUE: Final = 64
"""Limit on waiting connections of an overloaded process, and on those in the accept queue of the kernel. 64 handshakes with an
RSA key of 2048 bits take 0.1 s of CPU."""

STALLED: Final = 1.0
"""Minimum seconds before a handshake counts as stalled."""

STALLED_TIMES: Final = 4.0
"""Multiple of the usual duration after which a handshake counts as stalled. Small devices on slow networks all take seconds."""

STALLED_AT_FIRST: Final = 5.0
"""Seconds before a handshake counts as stalled while the usual duration is unknown."""

USUAL_OF: Final = 16
"""Handshakes in the moving mean that is the usual duration."""

REPORT_INTERVAL: Final = 10.0
"""Seconds between two reports of a counter."""


class Admission(Generic[Connection]):
    """States of all connections from accepted to closed, and the decisions on accepting and starting handshakes.

    States: *silent* until the ClientHello has arrived, *waiting* for a handshake slot, *handshaking* in a slot, *open*. Without
    TLS a silent connection becomes an open one. Silent connections use no slot and cannot keep devices out: health checks,
    stalled devices and attackers have a limit of their own. At that limit, or at the limit on connections, the connection that
    has been silent longest is closed for the next one (`crowded`, `oldest`).

    Waiting connections are served in order of arrival (FIFO). When a peer turns out to be gone at its turn (`gave_up`), the
    newest is served first until none waits (adaptive LIFO). With FIFO under overload, each peer would be served just when it
    gives up, and no device would ever connect.

    LIFO does not help in the accept queue of the kernel, which is FIFO. When most peers are gone before their turn, there is
    more in the queues than the peers are patient. Such a process is `overloaded`: only `OVERLOADED_QUEUE` connections wait
    here, and as many in the kernel. It drops the packets of the others, which costs next to nothing, and their systems send
    them again. So the connections that are accepted are young.

    A stalled handshake keeps its slot while there are free ones. When all are in use and connections wait, the oldest handshake
    is closed if it takes much longer than recent ones (`stalled`).
    """

    __slots__ = (
        "_gone",
        "_handshaking",
        "_impatient",
        "_silent",
        "_usual",
        "connections",
        "max_connections",
        "max_handshakes",
        "max_silent",
        "overloaded",
        "queue",
    )

    def __init__(self, max_connections: int, max_handshakes: int) -> None:
        self.max_connections = max_connections
        self.max_handshakes = max_handshakes
        self.max_silent = _max_silent(max_connections, max_handshakes)
        """Limit on silent connections, at most half of `max_connections`. The same limit applies to waiting connections."""
        # Ordered by accept, by arrival of the ClientHello, and by start of the handshake, which is the value of the last.
        self._silent: dict[Connection, None] = {}
        self.queue: Final[dict[Connection, None]] = {}
        """Connections that wait for a handshake slot. Others may read it."""
        self._handshaking: dict[Connection, float] = {}
        self._impatient = False
        self._gone = 0.0  # moving mean: the share of peers that were gone before their turn
        self._usual = STALLED_AT_FIRST / STALLED_TIMES  # moving mean of the duration of handshakes, in seconds
        self.connections = 0
        """Number of all connections."""
        self.overloaded = False
        """True while the queues are kept short, since most peers were gone before their turn."""

    def configure(self, max_connections: int, max_handshakes: int) -> None:
        """Change the limits. With more connections or handshakes than they allow, all stay, and none is added until there is
        room.
        """
        self.max_connections = max_connections
        self.max_handshakes = max_handshakes
        self.max_silent = _max_silent(max_connections, max_handshakes)

    @property
    def open(self) -> int:
        """Number of connections with a completed handshake."""
        return self.connections - len(self._silent) - len(self.queue) - len(self._handshaking)

    @property
    def handshaking(self) -> int:
        """Number of connections in their handshake."""
        return len(self._handshaking)

    @property
    def waiting(self) -> int:
        """Number of connections that wait for a handshake slot."""
        return len(self.queue)

    @property
    def spoken(self) -> int:
        """Number of connections that are not silent."""
        return self.connections - len(self._silent)

    @property
    def full(self) -> bool:
        """True at the limit on connections. Silent ones do not count, because they would be closed for others."""
        return self.spoken >= self.max_connections

    @property
    def room(self) -> int:
        """Number of connections worth accepting now; none if not positive. Others wait in the accept queue of the kernel."""
        waiting = min(OVERLOADED_QUEUE, self.max_silent) if self.overloaded else self.max_silent
        waiting -= len(self.queue)
        places = self.max_connections - self.connections + len(self._silent)
        return waiting if waiting < places else places

    @property
    def places(self) -> int:
        """Number of connections that need no handshake and are worth accepting now; none if not positive."""
        return self.max_connections - self.spoken

    @property
    def crowded(self) -> bool:
        """True if a silent connection must be closed before the next one is accepted."""
        return len(self._silent) >= self.max_silent or self.connections >= self.max_connections

    @property
    def oldest(self) -> Connection | None:
        """Connection that has been silent longest, or `None`."""
        return next(iter(self._silent), None)

    def accepted(self, connection: Connection) -> None:
        """Add an accepted connection."""
        self.connections += 1
        self._silent[connection] = None

    def spoke(self, connection: Connection) -> None:
        """Move a connection to the waiting ones: its ClientHello has arrived."""
        self.queue[connection] = self._silent.pop(connection)

    def next_turn(self, now: float) -> Connection | None:
        """Take a slot for the next waiting connection and return it; `None` if none waits or no slot is free."""
        if not self.queue or len(self._handshaking) >= self.max_handshakes:
            return None
        if self._impatient:
            connection, _ = self.queue.popitem()
        else:
            connection = next(iter(self.queue))
            del self.queue[connection]
        self._handshaking[connection] = now
        if not self.queue:
            self._impatient = False
            if self._gone <= RECOVERED_SHARE:
                self.overloaded = False
        return connection

    def gave_up(self) -> None:
        """Note that a peer has gone before its turn: serve the newest first from now on."""
        self._impatient = True
        self._gone += (1.0 - self._gone) / OVERLOADED_OF
        if self._gone >= OVERLOADED_SHARE:
            self.overloaded = True

    def those_waiting(self) -> list[Connection]:
        """Return the waiting connections."""
        return list(self.queue)

    def stalled(self, now: float) -> Connection | None:
        """Return the oldest handshake if others wait for a slot and it takes much longer than usual; else `None`."""
        if not self.queue or len(self._handshaking) < self.max_handshakes:
            return None
        connection, since = next(iter(self._handshaking.items()))
        return connection if now - since >= max(STALLED, STALLED_TIMES * self._usual) else None

    def secured(self, connection: Connection, now: float) -> None:
        """Move a connection to the open ones: its handshake is complete."""
        since = self._handshaking.pop(connection)
        self._usual += (now - since - self._usual) / USUAL_OF
        self._gone -= self._gone / OVERLOADED_OF

    def opened(self, connection: Connection) -> None:
        """Move a silent connection to the open ones: it needs no handshake."""
        del self._silent[connection]

    def lost(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.connections -= 1
        if connection in self._handshaking:
            del self._handshaking[connection]
        elif connection in self._silent:
            del self._silent[connection]
        elif connection in self.queue:
            del self.queue[connection]
            self.gave_up()


class PortAdmission(Generic[Connection]):
    """Admission of the connections of one port, which has a limit of its own on connections.

    What `Admission` decides for the process holds, too. At the limit of the port its own connection that has been silent
    longest is closed for the next one, so that a port cannot take the places of the others.
    """

    __slots__ = ("_handshakes", "_pending", "_silent", "connections", "max_connections", "process")

    def __init__(self, process: Admission[Connection], max_connections: int, *, handshakes: bool = True) -> None:
        """With `handshakes` false, connections need none: those that wait for theirs at other ports do not hold them up."""
        self._handshakes = handshakes
        self.process = process
        """Admission of the connections of all ports."""
        self.max_connections = max_connections
        """Limit on connections of this port."""
        self.connections = 0
        """Number of connections of this port."""
        self._pending: dict[Connection, float] = {}
        """Time of accepting of each connection whose handshake is not complete, in this order."""
        self._silent: dict[Connection, None] = {}

    def configure(self, max_connections: int) -> None:
        """Change the limit. With more connections than it allows, all stay."""
        self.max_connections = max_connections

    @property
    def silent(self) -> tuple[Connection, ...]:
        """The silent connections of this port."""
        return tuple(self._silent)

    @property
    def silent_limit(self) -> int:
        """Limit that makes this port `crowded`: its own one on connections, or that of the process on silent ones."""
        own = self.connections >= self.max_connections and not self.process.crowded
        return self.max_connections if own else self.process.max_silent

    @property
    def spoken(self) -> int:
        """Number of connections of this port that are not silent."""
        return self.connections - len(self._silent)

    @property
    def full(self) -> bool:
        """True at the limit on connections, of this port or of the process. Silent ones do not count."""
        return self.at_own_limit or self.process.full

    @property
    def at_own_limit(self) -> bool:
        """True at the limit on connections of this port. Silent ones do not count."""
        return self.spoken >= self.max_connections

    @property
    def room(self) -> int:
        """Number of connections worth accepting now; none if not positive."""
        room = self.process.room if self._handshakes else self.process.places
        places = self.max_connections - self.connections + len(self._silent)
        return room if room < places else places

    @property
    def crowded(self) -> bool:
        """True if a silent connection must be closed before the next one is accepted."""
        return self.connections >= self.max_connections or self.process.crowded

    @property
    def occupied(self) -> bool:
        """True if connections have all places of this port, or of the process. Silent ones count."""
        return self.connections >= self.max_connections or self.process.connections >= self.process.max_connections

    @property
    def oldest(self) -> Connection | None:
        """Connection to close for the next one: the one that has been silent longest, or `None`."""
        return next(iter(self._silent), None) if self.connections >= self.max_connections else self.process.oldest

    def accepted(self, connection: Connection, now: float) -> None:
        """Add an accepted connection."""
        self.connections += 1
        self._pending[connection] = now
        self._silent[connection] = None
        self.process.accepted(connection)

    def spoke(self, connection: Connection) -> None:
        """Move a connection to the waiting ones: its ClientHello has arrived."""
        del self._silent[connection]
        self.process.spoke(connection)

    def secured(self, connection: Connection, now: float) -> None:
        """Move a connection to the open ones: its handshake is complete."""
        del self._pending[connection]
        self.process.secured(connection, now)

    def opened(self, connection: Connection) -> None:
        """Move a silent connection to the open ones: it needs no handshake."""
        del self._pending[connection]
        del self._silent[connection]
        self.process.opened(connection)

    def lost(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.connections -= 1
        if self._pending.pop(connection, None) is not None:
            self._silent.pop(connection, None)
        self.process.lost(connection)

    def overdue(self, now: float, timeout: float) -> list[Connection]:
        """Return the connections whose handshake is not complete and that were accepted `timeout` seconds ago or earlier."""
        late = []
        for connection, accepted in self._pending.items():
            if accepted + timeout > now:
                break
            late.append(connection)
        return late


def _max_silent(max_connections: int, max_handshakes: int) -> int:
    return max(1, min(SILENT_SHARE * max_handshakes, max_connections // 2))


class Tally:
    """A counter that is reported at once, and then at intervals."""

    __slots__ = ("_interval", "_next", "_reported", "count")

    def __init__(self, interval: float = REPORT_INTERVAL) -> None:
        """`interval` is the minimum time in seconds between two reports."""
        self.count = 0
        """Total of occurrences."""
        self._interval = interval
        self._reported = 0
        self._next = float("-inf")

    def add(self) -> None:
        """Count one occurrence."""
        self.count += 1

    def due(self, now: float, *, last: bool = False) -> int:
        """Return the number of occurrences to report now; 0 if there are none or it is too early. `last`: report all."""
        new = self.count - self._reported
        if not new or (now < self._next and not last):
            return 0
        self._reported = self.count
        self._next = now + self._interval
        return new
