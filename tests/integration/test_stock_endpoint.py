"""The device protocol on the TLS endpoint of Twisted, instead of the device port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol, serverFromString
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure

from owsla.device.connections import Connections
from owsla.device.factory import DeviceFactory
from owsla.device.protocol import DeviceProtocol
from owsla.device.services import DeviceRuntime, DeviceServices
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.events import DeviceConnected, Event
from owsla.tls.development import development_certificates
from tests.unit.device._fakes import Source, World

from ._support.waiting import current_reactor, reactor_test, until


class Client(Protocol):
    """Device that collects what it receives."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = True


@reactor_test
async def test_ssl_endpoint(tmp_path: Path) -> None:
    """With `serverFromString("ssl:…")` and a `DeviceFactory`, lines go both ways, and the events are those of the port."""
    made = development_certificates(tmp_path, "localhost")
    world = World()
    events: list[Event] = []
    services = DeviceServices(
        DeviceRuntime(world.clock, world.turn, events.append, lambda: 0.0),
        SharedSettings(),
        Connections(world.ids, world.registry, world.endpoints),
        world.sink,
        world.courier,
    )
    factory = DeviceFactory(
        services, DeviceSettings(), DeviceProtocol, identify=lambda connection: connection.get_cipher_name()
    )
    reactor: Any = current_reactor()
    strport = f"ssl:0:interface=127.0.0.1:privateKey={made.key}:certKey={made.cert}"
    port: Any = await serverFromString(reactor, strport).listen(factory)
    client: Any = Client()
    await connectProtocol(SSL4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port, CertificateOptions()), client)
    client.transport.write(b"one\ntwo\n")
    await until(lambda: len(world.sink.lines) == 2)
    (protocol,) = world.registry
    assert isinstance(protocol, DeviceProtocol)
    assert world.sink.of(protocol) == [b"one", b"two"]
    (event,) = events
    assert isinstance(event, DeviceConnected)
    assert event.tls.startswith("TLSv1.")
    assert event.device_id, "the certificate is read after the handshake"
    world.send(protocol, Source(), b"answer", 0)
    world.turns()
    await until(lambda: client.data == b"answer\r\n")
    protocol.close("enough")
    await until(lambda: client.lost and not len(world.registry))
    assert "enough" in str(events[-1])
    await port.stopListening()
