"""Factory of device protocols, and all that the connections of a node share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.python.failure import Failure

from ..events import DeviceConnected, Event
from ..interfaces import Clock, Courier, LineSink
from ..letter import Letter
from ..runtime.end_of_turn import EndOfTurn
from .connections import RECEIVED, SENT, Connection, Connections
from .deadlines import Deadlines
from .deliveries import Deliveries
from .discards import Discards
from .hangup import HangupWatch
from .housekeeping import Housekeeping, IdleCheck
from .identified import IdentifiedDevices
from .ordering import Ordering
from .paused_reading import PausedReading
from .reordering import ReorderLimits
from .settings import DeviceSettings
from .slow_devices import SlowDevices


@dataclass(frozen=True, slots=True)
class DeviceRuntime:
    """Time, the end of the reactor turn, and the receiver of events."""

    clock: Clock
    turn: EndOfTurn
    emit: Callable[[Event], None]
    now: Callable[[], float]
    """Function that returns the time in seconds since the epoch."""


class TimedOut(Hashable, Protocol):
    """A connection whose dialect may set a time-out."""

    def timed_out(self) -> None: ...


class DeviceTotals:
    """Counters of all device connections, for metrics."""

    def __init__(self, factory: DeviceFactory) -> None:
        self._factory = factory

    @property
    def paused_connections(self) -> int:
        """Number of connections that are not read now."""
        return self._factory.reading.count

    @property
    def duplicates(self) -> int:
        """Number of messages with a sequence number that was used before."""
        return self._factory.deliveries.duplicates

    @property
    def skips(self) -> int:
        """Number of sequence numbers that were skipped."""
        return self._factory.reordering.skips

    @property
    def bytes_in(self) -> int:
        """Number of bytes read from devices, delimiters included."""
        return self._factory.traffic[RECEIVED]

    @property
    def bytes_out(self) -> int:
        """Number of bytes of lines written to devices, without delimiters."""
        return self._factory.traffic[SENT]

    @property
    def lines_out(self) -> int:
        """Number of lines written to devices. Reading it visits every connection."""
        return self._factory.connections.lines_out

    @property
    def discarded_lines(self) -> int:
        """Number of lines discarded of devices that left while the window was full."""
        return self._factory.discards.lines

    @property
    def discarded_bytes(self) -> int:
        """Number of bytes that were never read of such devices, TLS records included."""
        return self._factory.discards.unread


class DeviceFactory(ServerFactory):
    """Builds the protocol of each device connection, and holds what the connections share.

    Protocols read its attributes. Each job that concerns more than one connection is a collaborator of its own.
    """

    noisy = False

    def __init__(
        self,
        runtime: DeviceRuntime,
        settings: DeviceSettings,
        connections: Connections,
        sink: LineSink,
        courier: Courier,
        protocol: Callable[[Any, bytes], Any],
        identify: Callable[[SSL.Connection], str | None] | None = None,
        hangups: HangupWatch | None = None,
    ) -> None:
        """Create a factory.

        `protocol(factory, connection_id)` makes a protocol: `DeviceProtocol`, or what `dialect_protocol.speaking` returns.
        `identify` returns the device id from the certificate of a TLS connection, and raises `HandshakeRefused` to refuse it.
        """
        clock, emit = runtime.clock, runtime.emit
        self._build = protocol
        self.clock = clock
        self.turn = runtime.turn
        self.emit = emit
        self.now = runtime.now
        self.settings = settings
        self.framing = settings.framing
        self.connections = connections
        self.traffic = connections.traffic
        self.sink = sink
        self.courier = courier
        self._identify = identify
        self.reordering = ReorderLimits(clock, emit, settings.gap_timeout, settings.reorder_limit)
        self.slow = SlowDevices(clock, emit, settings.write_timeout)
        self.reading = PausedReading(hangups)
        self.discards = Discards()
        self.devices = IdentifiedDevices(clock, emit, settings.replace)
        self.deliveries = Deliveries(clock, runtime.now, courier, self.reordering, self.slow)
        self.timers: Deadlines[TimedOut] = Deadlines()
        """Time-outs of dialects."""
        self.housekeeping = Housekeeping(
            clock,
            (
                *((lambda now: hangups.tick(),) if hangups is not None else ()),
                self.discards.tick,
                self.reading.tick,
                self.devices.tick,
                self._time_out,
                self.reordering.tick,
                self.slow.tick,
            ),
            IdleCheck(connections, sink, settings.idle_timeout),
        )

    def configure(self, settings: DeviceSettings) -> None:
        """Change the settings, but for the delimiter. Limits and times apply to all connections, the rest to new ones."""
        before, self.settings = self.settings, settings
        self.framing = settings.framing
        self.reordering.configure(settings.gap_timeout, settings.reorder_limit)
        self.slow.configure(settings.write_timeout)
        self.devices.configure(settings.replace, self.connections)
        self.housekeeping.configure(settings.idle_timeout)
        if settings.max_rate != before.max_rate:
            self.reading.rate_changed()

    def build_with(self, protocol: Callable[[Any, bytes], Any]) -> None:
        """Make the protocols of new connections with another function."""
        self._build = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol of a new connection, or `None` while the supervisor of connections does not run."""
        if not self.connections.running:
            return None
        return self._build(self, self.connections.new_id())

    def device_id(self, connection: SSL.Connection | None) -> str | None:
        """Return the device id that a TLS connection proves, if any. Raise `HandshakeRefused` to refuse the connection."""
        return self._identify(connection) if self._identify is not None and connection is not None else None

    def connected(self, connection: Connection) -> None:
        """Register a connection whose handshake is complete."""
        self.connections.add(connection)
        transport = connection.transport
        self.emit(
            DeviceConnected(connection.connection_id.decode(), connection.device_id, transport.peer, transport.tls_version)
        )
        self.devices.add(connection, transport.peer)

    def closed(self, connection: Connection, numbers: int | Ordering[Letter], failure: Failure | None) -> None:
        """Remove a closed connection.

        `numbers` are the sequence numbers that were written; `failure` is the exception of our own code that closed it, if any.
        """
        self.deliveries.closed(connection, numbers)
        self.slow.resumed(connection)
        self.devices.remove(connection)
        self.connections.remove(connection, failure)

    def _time_out(self, now: float) -> None:
        if self.timers:
            for waiter in self.timers.due(now):
                waiter.timed_out()
