"""Admission of connections: limits, states, and the order of handshakes. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)

SILENT_SHARE: Final = 4
"""Limit on silent connections per allowed concurrent handshake. With the defaults it is 2,048, which take 2 MB. If a thousand
silent connections per second arrive, each has two seconds to send its ClientHello. Most devices have sent it before they are
accepted (`DEFER_ACCEPT` of the port)."""

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

    States: *silent* until the ClientHello has arrived, *waiting* for a handshake slot, *handshaking* in a slot, *open*. Silent
    connections use no slot and cannot keep devices out: health checks, stalled devices and attackers have a limit of their own.
    At that limit, or at the limit on connections, the connection that has been silent longest is closed for the next one
    (`crowded`, `oldest`).

    Waiting connections are served in order of arrival (FIFO). When a peer turns out to be gone at its turn (`gave_up`), the
    newest is served first until none waits (adaptive LIFO). With FIFO under overload, each peer would be served just when it
    gives up, and no device would ever connect.

    A stalled handshake keeps its slot while there are free ones. When all are in use and connections wait, the oldest handshake
    is closed if it takes much longer than recent ones (`stalled`).
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
        self.max_silent = _max_silent(max_connections, max_handshakes)
        """Limit on silent connections, at most half of `max_connections`. The same limit applies to waiting connections."""
        # With the deadlines of their handshakes; ordered by accept, by arrival of the ClientHello, and by start of the
        # handshake.
        self._silent: dict[Connection, float] = {}
        self._waiting: dict[Connection, float] = {}
        self._handshaking: dict[Connection, tuple[float, float]] = {}  # deadline and start
        self._impatient = False
        self._usual = STALLED_AT_FIRST / STALLED_TIMES  # moving mean of the duration of handshakes, in seconds
        self.open = 0
        """Number of connections with a completed handshake."""

    def configure(self, max_connections: int, max_handshakes: int) -> None:
        """Change the limits. With more connections or handshakes than they allow, all stay, and none is added until there is
        room.
        """
        self.max_connections = max_connections
        self.max_handshakes = max_handshakes
        self.max_silent = _max_silent(max_connections, max_handshakes)

    def postpone(self, seconds: float) -> None:
        """Move the deadlines of all handshakes; to earlier times if negative."""
        # All by the same time, since the silent connections are in the order of their deadlines.
        self._silent = {connection: deadline + seconds for connection, deadline in self._silent.items()}
        self._waiting = {connection: deadline + seconds for connection, deadline in self._waiting.items()}
        self._handshaking = {
            connection: (deadline + seconds, since) for connection, (deadline, since) in self._handshaking.items()
        }

    def handshakes(self) -> Iterator[Connection]:
        """Yield the connections whose handshake is not complete."""
        yield from self._silent
        yield from self._waiting
        yield from self._handshaking

    @property
    def connections(self) -> int:
        """Number of all connections."""
        return self.open + len(self._silent) + len(self._waiting) + len(self._handshaking)

    @property
    def handshaking(self) -> int:
        """Number of connections in their handshake."""
        return len(self._handshaking)

    @property
    def waiting(self) -> int:
        """Number of connections that wait for a handshake slot."""
        return len(self._waiting)

    @property
    def spoken(self) -> int:
        """Number of connections that are not silent."""
        return self.open + len(self._waiting) + len(self._handshaking)

    @property
    def full(self) -> bool:
        """True at the limit on connections. Silent ones do not count, because they would be closed for others."""
        return self.spoken >= self.max_connections

    @property
    def room(self) -> int:
        """Number of connections worth accepting now; none if not positive. Others wait in the accept queue of the kernel."""
        return min(self.max_silent - len(self._waiting), self.max_connections - self.spoken)

    @property
    def crowded(self) -> bool:
        """True if a silent connection must be closed before the next one is accepted."""
        return len(self._silent) >= self.max_silent or self.connections >= self.max_connections

    @property
    def oldest(self) -> Connection | None:
        """Connection that has been silent longest, or `None`."""
        return next(iter(self._silent), None)

    def accepted(self, connection: Connection, deadline: float) -> None:
        """Add an accepted connection, with the deadline of its handshake."""
        self._silent[connection] = deadline

    def spoke(self, connection: Connection) -> None:
        """Move a connection to the waiting ones: its ClientHello has arrived."""
        self._waiting[connection] = self._silent.pop(connection)

    def next_turn(self, now: float) -> Connection | None:
        """Take a slot for the next waiting connection and return it; `None` if none waits or no slot is free."""
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
        """Note that a waiting peer has gone: serve the newest first from now on."""
        self._impatient = True

    def those_waiting(self) -> list[Connection]:
        """Return the waiting connections."""
        return list(self._waiting)

    def stalled(self, now: float) -> Connection | None:
        """Return the oldest handshake if others wait for a slot and it takes much longer than usual; else `None`."""
        if not self._waiting or len(self._handshaking) < self.max_handshakes:
            return None
        connection, (_, since) = next(iter(self._handshaking.items()))
        return connection if now - since >= max(STALLED, STALLED_TIMES * self._usual) else None

    def secured(self, connection: Connection, now: float) -> None:
        """Move a connection to the open ones: its handshake is complete."""
        _, since = self._handshaking.pop(connection)
        self._usual += (now - since - self._usual) / USUAL_OF
        self.open += 1

    def lost(self, connection: Connection) -> None:
        """Remove a closed connection."""
        if (
            self._handshaking.pop(connection, None) is None
            and self._silent.pop(connection, None) is None
            and self._waiting.pop(connection, None) is None
        ):
            self.open -= 1

    def overdue(self, now: float) -> Iterator[Connection]:
        """Yield the connections whose deadline has passed."""
        late = []
        for connection, deadline in self._silent.items():
            if deadline > now:
                break  # silent ones are ordered by deadline; the others are not
            late.append(connection)
        late += [connection for connection, deadline in self._waiting.items() if deadline <= now]
        late += [connection for connection, (deadline, _) in self._handshaking.items() if deadline <= now]
        yield from late


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
