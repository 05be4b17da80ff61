"""What a connection leaves in memory: little while it is there, nothing for the garbage collector when it is gone."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.dialect_protocol import SpokenEndpoint
from owsla.device.protocol import Endpoint
from owsla.device.transport import TLSTransport
from owsla.tls.post_handshake import PostHandshake

from ._fakes import Source, World
from ._sockets import Client, Loop, context, reset, unix_pair

ENDPOINT = 500
"""Bytes that an idle endpoint may take: some 280 are its own, and the rest is its entries in registry and supervisor."""


class Owner:
    """Makes an endpoint for each connection, as the listener does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoint: Endpoint | None = None
        self.gone = False
        self.established = PostHandshake(world.clock.seconds).context

    def spoke(self, transport: TLSTransport) -> bool:
        return True

    def secured(self, transport: TLSTransport) -> Endpoint:
        self.endpoint = Endpoint(self.world.hub, self.world.ids.new(), None)
        self.world.registry.add(self.endpoint.connection_id, self.endpoint)
        self.world.endpoints.start_child(self.endpoint)
        return self.endpoint

    def closing(self, transport: TLSTransport) -> None: ...

    def lost(self, transport: TLSTransport, failed: str | None) -> None:
        self.gone = True


def connections() -> int:
    """How many objects of connections there are, of this test's and of others'."""
    return sum(isinstance(each, Endpoint | TLSTransport) for each in gc.get_objects())


class FootprintTests(SynchronousTestCase):
    def test_no_dictionaries(self) -> None:
        """What there is one of for each connection has slots, all the way up to `object`."""
        for kind in (Endpoint, SpokenEndpoint, TLSTransport):
            self.assertEqual([base for base in kind.__mro__[:-1] if "__slots__" not in vars(base)], [])
            self.assertEqual(kind.__dictoffset__, 0)

    def test_idle(self) -> None:
        """An idle endpoint is small, and keeps no list of lines after there were some."""
        world = World()
        source = Source()
        # What the sink prepares for it, and whether a line is kept, is the sink's.
        self.patch(world.sink, "open", lambda connection_id, device_id: None)
        self.patch(world.sink, "publish", lambda source, line, received: None)
        connection_ids = [world.ids.new() for _ in range(500)]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            endpoints = []
            for connection_id in connection_ids:
                endpoint = Endpoint(world.hub, connection_id, None)
                world.registry.add(connection_id, endpoint)
                world.endpoints.start_child(endpoint)
                endpoints.append(endpoint)
            each = (tracemalloc.get_traced_memory()[0] - before) / len(endpoints)
        finally:
            tracemalloc.stop()
        self.assertLess(each, ENDPOINT)
        for endpoint in endpoints:
            endpoint.makeConnection(world.connect()[1])
            endpoint.dataReceived(b"one\ntwo\n")
            world.send(endpoint, source, b"answer")
        world.turns()
        for endpoint in endpoints:
            self.assertIsNone(endpoint._out)

    def _live(self, farewell: Callable[[Client, Endpoint, TLSTransport], None]) -> None:
        """A connection from its first byte to its last."""
        world, loop = World(), cast(Any, Loop())
        server, sock = unix_pair()
        client = Client(sock)
        owner = Owner(world)
        transport = TLSTransport(loop, server, ("127.0.0.1", 1), context(), owner)
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
        """However a connection ends, its objects go with the last reference: they hold each other in no circle that only the
        garbage collector would find, ten thousand connections at a time.
        """

        def goodbye(client: Client, endpoint: Endpoint, transport: TLSTransport) -> None:
            client.tls.shutdown()
            client.close()

        def closed(client: Client, endpoint: Endpoint, transport: TLSTransport) -> None:
            endpoint.close("enough")
            client.close()

        farewells: dict[str, Callable[[Client, Endpoint, TLSTransport], None]] = {
            "by the device": goodbye,
            "reset": lambda client, endpoint, transport: reset(client.socket),
            "aborted": lambda client, endpoint, transport: transport.abortConnection(),
            "closed": closed,
        }
        for how, farewell in farewells.items():
            gc.collect()
            before = connections()
            gc.disable()
            try:
                self._live(farewell)
                after = connections()
            finally:
                gc.enable()
            self.assertEqual(after, before, how)
