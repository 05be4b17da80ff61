"""Stock Twisted protocols on the device port, and the device protocol on stock Twisted transports."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet.interfaces import (
    IConsumer,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReadWriteDescriptor,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from owsla.device.acceptor import Limits
from owsla.device.admission import Admission, PortAdmission
from owsla.device.connected_sockets import ConnectedSockets
from owsla.device.hangup import HangupWatch
from owsla.device.interfaces import IDeviceTransport, IHangupListener
from owsla.device.port import DevicePort, PortHooks, PortSettings
from owsla.device.protocol import DeviceProtocol
from owsla.device.stock_transport import StockTransport
from owsla.device.tls_transport import TLSTransport
from owsla.events import DeviceDisconnected
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.runtime.sockets import bind

from ._fakes import Source, World
from ._sockets import Client, Loop, PlainClient, device_tls


class EchoLines(LineReceiver):
    """Stock protocol that answers each line, and closes the connection on request."""

    def lineReceived(self, line: bytes) -> None:
        self.sendLine(line)
        if line == b"bye":
            cast(Any, self.transport).loseConnection()


class InterfaceTests(SynchronousTestCase):
    def test_protocol(self) -> None:
        """The protocol is a `LineReceiver`, a push producer of its transport, and built by a `ServerFactory`."""
        world = World()
        protocol = world.factory.buildProtocol(None)
        self.assertIsInstance(protocol, LineReceiver)
        self.assertIsInstance(world.factory, ServerFactory)
        for interface in (IProtocol, IPushProducer, IHandshakeListener, IHangupListener):
            self.assertTrue(verifyObject(interface, protocol), interface)
        self.assertTrue(verifyObject(IProtocolFactory, world.factory))
        self.assertEqual((protocol.delimiter, protocol.MAX_LENGTH, protocol.paused), (b"\n", 16384, False))
        world.endpoints.stopService()
        self.assertIsNone(world.factory.buildProtocol(None))


class StockProtocolTests(SynchronousTestCase):
    """A stock protocol on the device port, with a real TLS client."""

    plain = False
    interfaces: tuple[Any, ...] = (
        ITCPTransport,
        ISSLTransport,
        IConsumer,
        IPushProducer,
        IReadWriteDescriptor,
        IDeviceTransport,
    )
    """Interfaces of its transport."""

    def setUp(self) -> None:
        self.loop: Any = Loop()
        self.built: list[EchoLines] = []
        factory = ServerFactory()
        factory.buildProtocol = self.build  # type: ignore[method-assign]
        admission: Admission[TLSTransport] = Admission(10, 10)
        self.sockets = ConnectedSockets(self.loop, admission, HangupWatch(self.loop), EndOfTurn(self.loop))
        events: list[Any] = []
        self.port = DevicePort(
            self.loop,
            bind(0, "127.0.0.1"),
            None if self.plain else device_tls(),
            factory,
            self.sockets,
            Limits(PortAdmission(admission, 10)),
            PortSettings(handshake_timeout=5.0),
            PortHooks(events.append, self.fail),
        )
        self.sockets.startService()
        self.port.startService()
        self.port.startListening()
        self.port.startAccepting()
        self.admission = admission

    def build(self, addr: Any) -> EchoLines:
        protocol = EchoLines()
        self.built.append(protocol)
        return protocol

    def tearDown(self) -> None:
        self.port.stopListening()
        self.port.stopService()
        self.sockets.stopService()
        self.loop.settle()

    def connect(self) -> Any:
        sock = socket.create_connection(("127.0.0.1", self.port.port))
        sock.setblocking(False)
        return PlainClient(sock) if self.plain else Client(sock)

    def test_echo(self) -> None:
        """A stock `LineReceiver` receives lines, answers them, sees its peer, and closes the connection.

        Its transport provides the interfaces of such a transport of Twisted, as a consumer and as a producer.
        """
        client = self.connect()
        client.write(b"one\r\ntwo\r\nbye\r\n")
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual((client.received, client.ended), (b"one\r\ntwo\r\nbye\r\n", client.goodbye))
        (protocol,) = self.built
        transport: Any = protocol.transport
        self.assertEqual(transport.getPeer().host, "127.0.0.1")
        self.assertTrue(transport.disconnecting)
        for interface in self.interfaces:
            self.assertTrue(verifyObject(interface, transport), interface)
        self.assertEqual(ISSLTransport.providedBy(transport), not self.plain)
        client.close()
        self.loop.until(lambda: not self.admission.connections)
        self.assertEqual(self.port.handshakes, 1)

    def test_paused_as_a_producer(self) -> None:
        """A stock protocol that is registered as a producer is paused while the client reads nothing, and resumed after."""
        client = self.connect()
        client.write(b"hello\r\n")
        self.loop.until(lambda: client.received, client.step)
        (protocol,) = self.built
        transport: Any = protocol.transport
        transport.registerProducer(protocol, True)
        self.assertRaises(RuntimeError, transport.registerProducer, protocol, True)
        client.reading = False
        transport.write(b"x" * 600_000)
        self.assertTrue(protocol.paused)
        client.reading = True
        self.loop.until(lambda: len(client.received) == 600_007, client.step)
        self.loop.settle(client.step)
        self.assertFalse(protocol.paused)
        transport.loseConnection()
        self.loop.settle(client.step)
        self.assertEqual(client.ended, "")
        transport.unregisterProducer()
        self.loop.until(lambda: client.ended, client.step)
        client.close()
        self.loop.until(lambda: not self.admission.connections)

    def test_pull_producer(self) -> None:
        """A pull producer is asked for more each time that everything was sent, until it is unregistered."""
        client = self.connect()
        client.write(b"hello\r\n")
        self.loop.until(lambda: client.received, client.step)
        transport: Any = self.built[0].transport

        class Pulled:
            left = 5

            def resumeProducing(self) -> None:
                self.left -= 1
                transport.write(b"x" * 1000)
                if not self.left:
                    transport.unregisterProducer()

            def stopProducing(self) -> None: ...

        transport.registerProducer(Pulled(), False)
        transport.loseConnection()
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual(client.received, b"hello\r\n" + b"x" * 5000)
        client.close()
        self.loop.until(lambda: not self.admission.connections)


class PlainStockProtocolTests(StockProtocolTests):
    """A stock protocol on a device port without TLS."""

    plain = True
    interfaces = (ITCPTransport, IConsumer, IPushProducer, IReadWriteDescriptor, IDeviceTransport)


class StringTransportTests(SynchronousTestCase):
    def connect(self) -> tuple[World, DeviceProtocol, StringTransportWithDisconnection]:
        world = World()
        protocol = world.factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return world, protocol, transport

    def test_both_ways(self) -> None:
        """Lines go both ways over a `StringTransport`, to which the protocol registers as a producer."""
        world, protocol, transport = self.connect()
        self.assertIsInstance(protocol.transport, StockTransport)
        self.assertTrue(verifyObject(IDeviceTransport, protocol.transport))
        protocol.dataReceived(b"one\ntwo\n")
        self.assertEqual(world.sink.of(protocol), [b"one", b"two"])
        world.send(protocol, Source(), b"answer", 0)
        world.turns()
        self.assertEqual(transport.value(), b"answer\r\n")
        self.assertIs(transport.producer, protocol)
        protocol.close("enough")
        (event,) = world.of_type(DeviceDisconnected)
        self.assertEqual((event.reason, event.peer, len(world.registry)), ("enough", "192.168.1.1:54321", 0))

    def test_back_pressure(self) -> None:
        """A stock transport pauses the protocol, which keeps further messages unacknowledged, and reading pauses as well."""
        world, protocol, transport = self.connect()
        source = Source()
        protocol.pauseProducing()
        world.send(protocol, source, b"later", 0)
        world.turns()
        self.assertEqual((transport.value(), source.outstanding), (b"", 1))
        protocol.resumeProducing()
        world.turns()
        self.assertEqual((transport.value(), source.outstanding), (b"later\r\n", 0))
        world.sink.accepting = False
        protocol.dataReceived(b"line\n")
        self.assertEqual((transport.producerState, protocol.paused), ("paused", True))
        world.sink.resume()
        self.assertEqual((transport.producerState, world.sink.of(protocol)), ("producing", [b"line"]))

    def test_failure(self) -> None:
        """An exception in the name of a connection on a stock transport is counted by its supervisor."""
        world, protocol, transport = self.connect()
        transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
        protocol.failed(Failure(RuntimeError("ours")))
        self.assertEqual((world.endpoints.failures, len(world.endpoints)), (1, 0))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
