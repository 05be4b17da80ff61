"""Tests of the memory of a connection: small while it is open, and without cycles for the garbage collector afterwards."""

from __future__ import annotations

import gc
import itertools
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.dialect_protocol import speaking
from owsla.device.protocol import DeviceProtocol
from owsla.device.socket_transport import SocketTransport
from owsla.device.tcp_transport import TCPTransport
from owsla.device.tls_transport import TLSTransport
from owsla.dialects import Dialect
from owsla.tls.post_handshake import PostHandshake

from ._fakes import GONE, Source, Wire, World
from ._sockets import Client, Loop, PlainClient, device_tls, reset, unix_pair

ENDPOINT = 520 if sys.version_info < (3, 14) else 820
"""Maximum size of an idle protocol in bytes: some 420 of its own, and its entries in registry and supervisor.

Since Python 3.14, objects with an instance dictionary, which Twisted's base class gives them, have room for 30 values beside
their slots.
"""


TRANSPORT = 250
"""Maximum size of an idle transport in bytes, without socket, address and TLS connection. It is one object."""


class Owner:
    """Owner that creates a protocol for each connection, as the port does."""

    def __init__(self, world: World, loop: Any) -> None:
        self.world = world
        self.poller = loop
        self.endpoint: DeviceProtocol | None = None
        self.gone = False
        self.context = device_tls().context
        self.established = PostHandshake(world.clock.seconds).context

    def headerReceived(self, transport: SocketTransport) -> bool:
        return True

    def helloReceived(self, transport: TLSTransport) -> bool:
        return True

    def refusal(self, first: bytes) -> str | None:
        return None

    def connectionOpened(self, transport: TCPTransport) -> None:
        self.handshakeCompleted(transport)

    def mayHaveClosed(self, transport: TLSTransport) -> bool:
        return True

    def handshakeCompleted(self, transport: SocketTransport) -> None:
        self.endpoint = self.world.factory.buildProtocol(None)
        transport.connectProtocol(self.endpoint)

    def connectionClosing(self, transport: SocketTransport) -> None: ...

    def connectionClosed(self, transport: SocketTransport, failed: str | None) -> None:
        self.gone = True


class Still:
    """Reactor in which nothing happens."""

    def addReader(self, reader: Any) -> None: ...


def connections() -> int:
    """Return the number of connection objects, of this test and of others."""
    return sum(isinstance(each, DeviceProtocol | SocketTransport) for each in gc.get_objects())


class FootprintTests(SynchronousTestCase):
    def test_no_dictionaries(self) -> None:
        """A protocol has no instance dictionary after traffic, although the classes of Twisted have no slots."""
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        spoken = speaking(Dialect, "Plain")(world.factory, world.ids.new())
        spoken.makeConnection(Wire())
        for protocol in (world.connect(room=10)[0], spoken):
            source = Source()
            for number in range(5):
                protocol.dataReceived(b"one\ntwo\nthr")
                world.send(protocol, source, b"answer", number)
            world.turns()
            protocol.confirmed(0)
            world.turns()
            world.later(1)
            protocol.close("done")
            protocol.connectionLost(GONE)
            self.assertEqual(vars(protocol), {})
        for kind in (TLSTransport, TCPTransport):
            self.assertEqual([base for base in kind.__mro__[:-1] if "__slots__" not in vars(base)], [])

    def test_idle(self) -> None:
        """An idle protocol is small, and keeps no list of lines after traffic."""
        world = World()
        source = Source()
        # The prepared headers, and a kept line, belong to the sink.
        self.patch(world.sink, "open", lambda connection_id, device_id: None)
        self.patch(world.sink, "publish", lambda source, line, received: None)
        connection_ids = [world.ids.new() for _ in range(500)]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            endpoints = []
            for connection_id in connection_ids:
                endpoint = DeviceProtocol(world.factory, connection_id)
                world.factory.connections.add(endpoint)
                endpoints.append(endpoint)
            each = (tracemalloc.get_traced_memory()[0] - before) / len(endpoints)
        finally:
            tracemalloc.stop()
        self.assertLess(each, ENDPOINT)
        for endpoint in endpoints:
            endpoint.makeConnection(Wire())
            endpoint.dataReceived(b"one\ntwo\n")
            world.send(endpoint, source, b"answer")
        world.turns()
        for endpoint in endpoints:
            self.assertIsNone(endpoint._outgoing)

    def test_idle_transport(self) -> None:
        """An idle transport is one small object: neither its state machine nor its address is an object of its own."""
        server, client = unix_pair()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        loop = cast(Any, Still())
        owner = Owner(World(), loop)
        for kind in (TLSTransport, TCPTransport):
            transports: list[Any] = [None] * 500
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                for index in range(len(transports)):
                    transports[index] = kind(loop, server, ("127.0.0.1", 1), owner)
                each = (tracemalloc.get_traced_memory()[0] - before) / len(transports)
            finally:
                tracemalloc.stop()
            self.assertLess(each, TRANSPORT, kind)

    def _live(self, plain: bool, farewell: Callable[[Any, DeviceProtocol, SocketTransport], None]) -> None:
        """Run a connection from its first byte to its last."""
        world, loop = World(), cast(Any, Loop())
        server, sock = unix_pair()
        client = PlainClient(sock) if plain else Client(sock)
        owner = Owner(world, loop)
        transport: SocketTransport
        if plain:
            transport = TCPTransport(loop, server, ("127.0.0.1", 1), owner)
            client.write(b"first\n")
        else:
            transport = TLSTransport(loop, server, ("127.0.0.1", 1), owner)
        loop.until(lambda: owner.endpoint is not None, client.step)
        endpoint = owner.endpoint
        assert endpoint is not None
        client.write(b"hello\n")
        loop.until(lambda: world.sink.lines, client.step)
        world.send(endpoint, Source(), b"answer")
        world.turns()
        loop.until(lambda: client.received, client.step)
        farewell(client, endpoint, transport)
        loop.until(lambda: owner.gone)
        sock.close()

    def test_no_garbage(self) -> None:
        """After the end of a connection, its objects are freed with the last reference, however it ended: they form no cycle
        for the garbage collector, which would mean work for ten thousand connections at a time.
        """

        def goodbye(client: Any, endpoint: DeviceProtocol, transport: SocketTransport) -> None:
            client.shutdown()
            client.close()

        def closed(client: Any, endpoint: DeviceProtocol, transport: SocketTransport) -> None:
            endpoint.close("enough")
            client.close()

        def cut_off(client: Any, endpoint: DeviceProtocol, transport: SocketTransport) -> None:
            client.write(b"last\n")
            client.socket.send(b"\x17\3\3\x40\0" + bytes(100))  # a part of a TLS record, which is read together with the line
            client.close()

        def garbage(client: Any, endpoint: DeviceProtocol, transport: SocketTransport) -> None:
            client.socket.send(b"GET / HTTP/1.0\r\n\r\n")
            client.close()

        farewells: dict[str, Callable[[Any, DeviceProtocol, SocketTransport], None]] = {
            "by the device": goodbye,
            "reset": lambda client, endpoint, transport: reset(client.socket),
            "aborted": lambda client, endpoint, transport: transport.abortConnection(),
            "closed": closed,
            "cut off": cut_off,
            "garbage": garbage,
        }
        for plain, (how, farewell) in itertools.product((False, True), farewells.items()):
            gc.collect()
            before = connections()
            gc.disable()
            try:
                self._live(plain, farewell)
                after = connections()
            finally:
                gc.enable()
            self.assertEqual(after, before, (how, plain))
