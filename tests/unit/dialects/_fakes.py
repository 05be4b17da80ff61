"""Connections that speak a dialect, in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address

from owsla.device.dialect_protocol import SpokenEndpoint
from owsla.dialects import Factory

from ..device._fakes import Wire, World


class DialectWorld(World):
    """A world whose devices speak a dialect."""

    def __init__(self, make: Factory, **options: Any) -> None:
        super().__init__(**options)
        self.make = make

    def speak(
        self, room: float = float("inf"), device_id: str | None = None, make: Factory | None = None
    ) -> tuple[SpokenEndpoint, DialectWire]:
        """A device whose handshake is complete: what the listener does."""
        endpoint = SpokenEndpoint(make or self.make, "Test", self.hub, self.ids.new(), device_id)
        self.registry.add(endpoint.connection_id, endpoint)
        self.endpoints.start_child(endpoint)
        wire = DialectWire(room)
        self.hub.identified(endpoint, wire.peer)
        wire.endpoint = endpoint
        endpoint.makeConnection(wire)
        return endpoint, wire

    def heard(self, wire: Wire) -> list[bytes]:
        """The lines that the device was sent since this was last asked."""
        self.turns()
        lines = wire.data.split(b"\r\n")
        assert lines.pop() == b"", "a line without its end"
        wire.written.clear()
        return lines


class DialectWire(Wire):
    """A transport that knows the peer."""

    peer = "192.0.2.1:5"
    host = "192.0.2.1"

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, 5)
