"""How many connections there may be, and in which state they are. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)


class Admission(Generic[Connection]):
    """Counts connections from accepted to closed, and says whether one more may be accepted.

    A connection that has not said anything takes a place among the connections, but none among the handshakes: a health check
    or a stalled device must not keep others from theirs.
    """

    __slots__ = ("_handshaking", "_silent", "max_connections", "max_handshakes", "open")

    def __init__(self, max_connections: int, max_handshakes: int) -> None:
        self.max_connections = max_connections
        self.max_handshakes = max_handshakes
        # Both in the order of their coming, with the time by which they have to be done.
        self._silent: dict[Connection, float] = {}
        self._handshaking: dict[Connection, float] = {}
        self.open = 0
        """Connections whose handshake is complete."""

    @property
    def connections(self) -> int:
        """All of them."""
        return self.open + len(self._silent) + len(self._handshaking)

    @property
    def handshaking(self) -> int:
        """Those that have begun their handshake."""
        return len(self._handshaking)

    @property
    def room(self) -> int:
        """How many more may be accepted now; 0 or less: none."""
        return min(self.max_connections - self.connections, self.max_handshakes - len(self._handshaking))

    def accepted(self, connection: Connection, deadline: float) -> None:
        """It is there, and has to have completed its handshake by `deadline`."""
        self._silent[connection] = deadline

    def spoke(self, connection: Connection) -> None:
        """Its first bytes came."""
        self._handshaking[connection] = self._silent.pop(connection)

    def secured(self, connection: Connection) -> None:
        """Its handshake is complete."""
        del self._handshaking[connection]
        self.open += 1

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        if connection in self._silent:
            del self._silent[connection]
        elif connection in self._handshaking:
            del self._handshaking[connection]
        else:
            self.open -= 1

    def overdue(self, now: float) -> Iterator[Connection]:
        """Those whose deadline has passed."""
        for waiting in (self._silent, self._handshaking):
            late = []
            for connection, deadline in waiting.items():
                if deadline > now and waiting is self._silent:
                    break  # they came in order; those that spoke did not speak in order
                if deadline <= now:
                    late.append(connection)
            yield from late
