"""Open device connections: their ids, their registry, their supervisor, and the counters that outlive them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Final, Protocol

from twisted.python.failure import Failure

from ..letter import DeliverySource, Letter
from ..routing import ConnectionIds, Registry
from ..supervision import DynamicSupervisor

RECEIVED: Final = "received"
"""Key of the bytes read from devices, delimiters included."""
SENT: Final = "sent"
"""Key of the bytes of lines written to devices, without delimiters."""
LINES_SENT: Final = "lines sent"
"""Key of the lines written to devices."""


class Connection(Hashable, Protocol):
    """A device connection, as the rest of the node uses it: `protocol.DeviceProtocol`."""

    factory: Any
    """Factory of the door through which the connection came."""
    connection_id: bytes
    device_id: str | None
    template: Any
    seq: int
    lines_out: int
    bytes_in: int
    bytes_out: int
    last_in: float | None
    """Time of the last line from the device in seconds since the epoch, or `None`."""
    last_out: float | None
    """Time of the last line to the device in seconds since the epoch, or `None`."""
    opened: float | None
    """Time at which the handshake was complete, by the clock of the reactor."""
    since: int
    """Time at which the device was identified, by the hybrid clock of `claims`, in milliseconds since the epoch; or 0."""
    identified: float
    """The same time by the clock of the reactor, in seconds."""
    transport: Any

    @property
    def traceparent(self) -> str | None:
        """Traceparent of the last line of the connection that had one, or `None`."""

    @property
    def lines_in(self) -> int:
        """Number of lines from the device."""

    @property
    def paused(self) -> bool:
        """True while the device is not read."""

    @property
    def pauses(self) -> tuple[str, ...]:
        """Reasons for which the device is not read now: `broker`, `share`, `rate`, `draining`."""

    @property
    def unpublished(self) -> int:
        """Number of bytes that were read and not published yet, those of an incomplete line included."""

    @property
    def held_back(self) -> bool:
        """True while a dialect holds back the lines of the device."""

    @property
    def unconfirmed(self) -> int | None:
        """Number of published lines that the broker has not confirmed; `None` if nobody counts them."""

    @property
    def slow(self) -> bool:
        """True while the socket takes no more."""

    @property
    def waiting(self) -> int:
        """Number of messages that wait for the socket."""

    @property
    def waiting_bytes(self) -> int:
        """Size in bytes of the messages that wait for the socket."""

    @property
    def held(self) -> int:
        """Number of messages that wait for a missing sequence number."""

    @property
    def missing(self) -> int | None:
        """Missing sequence number for which messages wait, or `None`."""

    @property
    def missing_since(self) -> float | None:
        """Time at which the next sequence number was first missed, by the gap clock."""

    @property
    def closing(self) -> bool:
        """True once the connection is closed or closes."""

    @property
    def close_reason(self) -> str | None:
        """Reason for which the connection closes, or `None`."""

    @property
    def backlog(self) -> bool:
        """True while something still has to be written to the device."""

    @property
    def acknowledges(self) -> bool:
        """True if the device is told which of its lines are safe."""

    def body_fault(self, body: bytes) -> str | None: ...

    def send(
        self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None
    ) -> None: ...

    def post(self, letter: Letter) -> None: ...

    def skip_gap(self) -> None: ...

    def rate_allowed(self) -> None: ...

    def rate_changed(self) -> None: ...

    def forget(self, source: DeliverySource) -> None: ...

    def check_idle(self, now: float, not_before: float, timeout: float) -> None: ...

    def drain(self) -> None: ...

    def claim(self, since: int, identified: float) -> None: ...

    def close(self, reason: str) -> None: ...

    def close_slow(self, why: str) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def stop(self) -> None: ...

    def stall(self) -> None: ...

    def resume(self) -> None: ...

    def confirmed(self, seq: int) -> None: ...

    def reject(self, reason: str) -> None: ...


class Connections:
    """Registers and supervises the open connections of a node, and counts their traffic.

    `traffic` is a mapping of counters that connections add to. A mapping instead of a method saves a call for each read.
    """

    def __init__(self, ids: ConnectionIds, registry: Registry[Connection], supervisor: DynamicSupervisor[Connection]) -> None:
        self.new_id: Final = ids.new
        """Function that returns the id of a new connection."""
        self._registry = registry
        self._supervisor = supervisor
        self.traffic: Final = {RECEIVED: 0, SENT: 0, LINES_SENT: 0}
        """Bytes so far, by direction, and lines to devices."""

    @property
    def running(self) -> bool:
        """True while connections can be added."""
        return bool(self._supervisor.running)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._registry)

    def add(self, connection: Connection) -> None:
        """Register a connection whose TLS handshake is complete, and supervise it."""
        self._registry.add(connection.connection_id, connection)
        self._supervisor.start_child(connection)

    def remove(self, connection: Connection, failure: Failure | None) -> None:
        """Remove a closed connection. `failure` is the exception of our own code that closed it, if any."""
        self._registry.remove(connection.connection_id)
        self._supervisor.ended(connection, failure)

    def failed(self, connection: Connection, failure: Failure) -> None:
        """Report an exception of our own code, or of the dialect, on behalf of a connection that is closed already."""
        self._supervisor.ended(connection, failure)


class ConnectionsOf:
    """The open connections that came through one door."""

    def __init__(self, connections: Iterable[Connection], factory: object) -> None:
        """`connections` yields the open connections of all doors each time; `factory` is that of the door."""
        self._connections = connections
        self._factory = factory

    def __iter__(self) -> Iterator[Connection]:
        factory = self._factory
        return (connection for connection in self._connections if connection.factory is factory)


def guard(connection: Connection, action: Callable[..., object], *args: object) -> None:
    """Call an action for one connection. An exception closes this connection, and not the service that looks after all."""
    try:
        action(*args)
    except Exception:
        connection.failed(Failure())
