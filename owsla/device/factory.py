"""Factory of the device protocols of a door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.python.failure import Failure

from ..events import DeviceConnected
from ..interfaces import FIRST_DOOR, LineSink
from ..letter import Letter
from ..tls.refusal import Refusal
from .connections import Connection, ConnectionsOf
from .housekeeping import IdleCheck
from .ordering import Ordering
from .services import DeviceServices
from .settings import DeviceSettings


class DeviceFactory(ServerFactory):
    """Builds the protocol of each device connection of a door.

    Protocols read its attributes: the settings of their door, and the `DeviceServices` that the doors share.
    """

    def __init__(
        self,
        services: DeviceServices,
        settings: DeviceSettings,
        protocol: Callable[[Any, bytes], Any],
        *,
        identify: Callable[[SSL.Connection], str | None] | None = None,
        door: str = FIRST_DOOR,
        sink: LineSink | None = None,
    ) -> None:
        """Create a factory.

        `protocol(factory, connection_id)` makes a protocol: `DeviceProtocol`, or what `dialect_protocol.speaking` returns.
        `identify` returns the device id from the certificate of a TLS connection, and raises `HandshakeRefused` to refuse it.
        `sink` takes the lines of this door; by default that of the services.
        """
        self._build = protocol
        self._identify = identify
        self.door = door
        self.settings = settings
        self.framing = settings.framing
        self.clock = services.runtime.clock
        self.turn = services.runtime.turn
        self.emit = services.runtime.emit
        self.now = services.runtime.now
        self.connections = services.connections
        self.traffic = services.connections.traffic
        self.sink = services.sink if sink is None else sink
        self.courier = services.courier
        self.reordering = services.reordering
        self.slow = services.slow
        self.reading = services.reading
        self.discards = services.discards
        self.skipped = services.skipped
        self.devices = services.devices
        self.denied = services.denied
        self.deliveries = services.deliveries
        self.timers = services.timers
        self._idle = IdleCheck(ConnectionsOf(services.connections, self), self.sink, settings.idle_timeout)
        services.housekeeping.check_idle(self._idle)

    def configure(self, settings: DeviceSettings) -> None:
        """Change the settings, but for the delimiter. Limits and times apply to all connections, the rest to new ones."""
        before, self.settings = self.settings, settings
        self.framing = settings.framing
        self._idle.configure(settings.idle_timeout)
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

    def device_id(self, transport: Any) -> str | None:
        """Return the device id that a connection proves, if any. Raise `HandshakeRefused` to refuse the connection.

        The certificate of a TLS connection proves it, or without TLS the one that a trusted proxy has verified.
        """
        connection = transport.getHandle()
        if connection is not None:
            return self._identify(connection) if self._identify is not None else None
        return transport.proxy_identity if self.settings.proxy_identity else None

    def refusal(self, device_id: str | None, transport: Any) -> Refusal | None:
        """Return the reason for refusing a device that has just been identified, or `None`. Count its connection."""
        refusal = self.denied.refusal(device_id, transport)
        if refusal is None and device_id is not None:
            refusal = self.devices.held_off(device_id, transport.peer, self.door)
        return refusal

    def connected(self, connection: Connection) -> None:
        """Register a connection whose handshake is complete."""
        self.connections.add(connection)
        identified = connection.device_id is not None
        if identified:
            self.devices.add(connection, connection.opened or self.clock.seconds())
        transport = connection.transport
        peer = transport.peer
        self.emit(
            DeviceConnected(
                connection.connection_id.decode(),
                connection.device_id,
                peer,
                transport.tls_version,
                self.door,
                connection.since or None,
            )
        )
        if identified:
            self.devices.replace_previous(connection, peer)

    def closed(self, connection: Connection, numbers: int | Ordering[Letter], failure: Failure | None) -> None:
        """Remove a closed connection.

        `numbers` are the sequence numbers that were written; `failure` is the exception of our own code that closed it, if any.
        """
        if numbers != 0:
            self.deliveries.closed(connection, numbers)
        if failure is not None:
            # The end of the connection may have failed before these knew of it.
            self.slow.resumed(connection)
            self.skipped.closed(connection)
        if connection.device_id is not None:
            self.devices.remove(connection)
        self.connections.remove(connection, failure)
