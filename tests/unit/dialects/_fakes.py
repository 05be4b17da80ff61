"""Connections with a dialect, in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address

from owsla.device.dialect_protocol import DialectProtocol, speaking
from owsla.dialects import Factory

from ..device._fakes import Wire, World


class DialectWorld(World):
    """A node whose devices use a dialect."""

    def __init__(self, make: Factory, **options: Any) -> None:
        super().__init__(**options)
        self.make = make

    def speak(
        self, room: float = float("inf"), device_id: str | None = None, make: Factory | None = None
    ) -> tuple[DialectProtocol, DialectWire]:
        """Connect a device whose handshake is complete."""
        endpoint = speaking(make or self.make, "Test")(self.factory, self.ids.new())
        wire = DialectWire(room, device_id, "192.0.2.1:5")
        endpoint.makeConnection(wire)
        return endpoint, wire

    def heard(self, wire: Wire) -> list[bytes]:
        """Return the lines for the device since the last call."""
        self.turns()
        lines = wire.data.split(b"\r\n")
        assert lines.pop() == b"", "a line without its end"
        wire.written.clear()
        return lines


class DialectWire(Wire):
    """A transport with a peer address."""

    host: str | None = "192.0.2.1"

    def get_peer_certificate(self) -> None:
        """Return no certificate. The fake is its own TLS connection."""

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.host or "", 5)
