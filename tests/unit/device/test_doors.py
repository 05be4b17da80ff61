"""Tests of several doors of a process: what their ports and connections share, and what each has of its own."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.acceptor import Limits
from owsla.device.admission import PortAdmission
from owsla.device.connections import ConnectionsOf
from owsla.device.factory import DeviceFactory
from owsla.device.port import DevicePort, PortHooks, PortSettings
from owsla.device.protocol import DeviceProtocol
from owsla.device.settings import DeviceSettings
from owsla.device.sources import SourceLimits, Sources
from owsla.device.tls_transport import TLSTransport
from owsla.events import (
    DeviceConnected,
    DeviceDisconnected,
    DeviceReplaced,
    Full,
    HandshakeFailed,
    Listening,
    SilentEvicted,
    TurnedAway,
)
from owsla.runtime.sockets import bind

from ._fakes import World
from ._sockets import Client, device_tls, polled
from .test_port import Base, close


class FactoryTests(SynchronousTestCase):
    """Doors of a process without sockets."""

    def test_idle(self) -> None:
        """Each connection has the idle time-out of its door, also after a change."""
        world = World(idle_timeout=100.0)
        meters, never = world.door("meters", idle_timeout=1000.0), world.door("never")
        wires = [world.connect(factory=factory)[1] for factory in (world.factory, meters, never)]

        def closed_after(seconds: int) -> list[str]:
            for _ in range(seconds):
                world.clock.advance(1.0)
                world.services.housekeeping.sweep()
            return [wire.closed for wire in wires]

        self.assertEqual(closed_after(90), ["", "", ""])
        self.assertEqual(closed_after(30), ["lost", "", ""])
        meters.configure(DeviceSettings(idle_timeout=200.0))
        self.assertEqual(closed_after(120), ["lost", "lost", ""])
        self.assertEqual(closed_after(10_000), ["lost", "lost", ""])

    def test_replaced(self) -> None:
        """With --on-duplicate replace a connection replaces that of its device at another door, which the event names."""
        world = World(replace=True)
        other = world.door("other")
        first, wire = world.connect(device_id="d1")
        second, _ = world.connect(device_id="d1", factory=other)
        self.assertEqual(wire.closed, "lost")
        ids = first.connection_id.decode(), second.connection_id.decode()
        self.assertEqual(world.of_type(DeviceReplaced), [DeviceReplaced(ids[0], "d1", ids[1], "other")])

    def test_connections_of(self) -> None:
        """The connections of a door are those of its factory, as they are each time."""
        world = World()
        other = world.door("other")
        connections = ConnectionsOf(world.registry, other)
        self.assertEqual(list(connections), [])
        world.connect()
        mine, _ = world.connect(factory=other)
        self.assertEqual(list(connections), [mine])
        world.end(mine)
        self.assertEqual(list(connections), [])

    def test_settings(self) -> None:
        """Limits of a door hold for its own connections."""
        world = World(max_rate=1.0)
        other = world.door("other")
        slow, slow_wire = world.connect()
        fast, fast_wire = world.connect(factory=other)
        for endpoint in (slow, fast):
            endpoint.dataReceived(b"x\n" * 50)
        self.assertEqual((slow_wire.reading, fast_wire.reading), (False, True))


class InOrder(set[Any]):
    """Set of readers in the order in which they were added, as epoll reports descriptors that stay ready."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[Any, None] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._order))

    def add(self, element: Any) -> None:
        super().add(element)
        self._order.setdefault(element)

    def discard(self, element: Any) -> None:
        super().discard(element)
        self._order.pop(element, None)


class PortTests(Base):
    """Two ports on real sockets. The first one is that of `Base`."""

    def open_both(
        self,
        max_connections: int = 100,
        max_handshakes: int = 100,
        *,
        limit: int = 100,
        timeout: float = 15.0,
        per_address: int | None = None,
    ) -> tuple[DevicePort, DevicePort]:
        """Open both ports. `limit`, `timeout` and `per_address` are those of the second one, `meters`."""
        first = self.listen(max_connections, max_handshakes)
        self.other_admission = PortAdmission(self.admission, limit)
        other = DevicePort(
            self.loop,
            bind(0, "127.0.0.1"),
            device_tls(),
            DeviceFactory(self.services, DeviceSettings(), DeviceProtocol, door="meters"),
            self.connected,
            Limits(self.other_admission, Sources(SourceLimits(per_address), self.loop.seconds)),
            PortSettings(timeout, door="meters"),
            PortHooks(self.events.append, self.failures.append),
        )
        self.other = other
        other.startService()
        self.assertTrue(other.startListening())
        other.startAccepting()
        return first, other

    def tearDown(self) -> None:
        for client in self.clients:
            client.close()
        self.loop.settle()
        for one in polled(self.connected.poller, self.connected.handshake_poller):
            one.abortConnection()
        self.loop.settle()
        close(self.other)
        super().tearDown()
        self.assertEqual((self.port_admission.connections, self.other_admission.connections), (0, 0))

    def at(self, port: DevicePort) -> Client:
        """Connect a device to a port, which the port has not processed yet."""
        client = socket.create_connection(("127.0.0.1", port.port))
        client.setblocking(False)
        self.clients.append(client)
        return Client(client)

    def device_at(self, port: DevicePort) -> Client:
        """Connect a device to a port, and complete its handshake."""
        client, before = self.at(port), len(self.registry)
        self.loop.until(lambda: client.secure and len(self.registry) > before, client.step)
        return client

    def test_events(self) -> None:
        """Events name the door. The service of the first port is `port`, and another one has the name of its door."""
        first, other = self.open_both()
        self.assertEqual((first.name, other.name), ("port", "port meters"))
        device = self.device_at(other)
        device.close()
        self.at(other).socket.send(b"no TLS")
        self.loop.until(lambda: self.of_type(HandshakeFailed) and self.of_type(DeviceDisconnected))
        for kind in (Listening, DeviceConnected, DeviceDisconnected, HandshakeFailed):
            self.assertEqual(self.of_type(kind)[-1].door, "meters", kind)
        self.assertEqual((first.handshakes, first.failed_handshakes), (0, 0))
        self.assertEqual((other.handshakes, other.failed_handshakes), (1, 1))

    def test_own_limit(self) -> None:
        """A port at its own limit does not accept, with one event, and the other one does. It accepts when one has closed."""
        first, other = self.open_both(limit=2)
        inside = [self.device_at(other) for _ in range(2)]
        self.assertEqual((first.accepting, other.accepting), (True, False))
        waiting = self.at(other)
        for _ in range(3):
            self.device_at(first)
            waiting.step()
        self.assertEqual((waiting.secure, first.connections, other.connections), (False, 3, 2))
        self.assertEqual(self.of_type(Full), [Full(2, "as many devices as --max-connections allows", "meters")])
        inside[0].close()
        self.loop.until(lambda: waiting.secure, waiting.step)
        self.assertEqual(other.connections, 2)

    def test_limit_of_the_process(self) -> None:
        """At the limit of the process no port accepts, and a place that becomes free is for either of them."""
        first, other = self.open_both(max_connections=3)
        inside = [self.device_at(port) for port in (first, other, other)]
        waiting = self.at(first)
        self.loop.settle(waiting.step)
        self.assertEqual((first.accepting, other.accepting, waiting.secure), (False, False, False))
        self.assertEqual({event.connections for event in self.of_type(Full)}, {3})
        inside[1].close()
        self.loop.until(lambda: waiting.secure, waiting.step)
        self.assertEqual((first.connections, other.connections), (2, 1))

    def test_silent_ones(self) -> None:
        """A port at its own limit closes one of its own silent connections for the next device."""
        first, other = self.open_both(limit=2)
        kept = self.at(first)
        self.loop.settle()
        silent = [self.at(other) for _ in range(2)]
        self.loop.settle()
        self.device_at(other)
        self.assertRaises(ConnectionResetError, silent[0].socket.recv, 1)
        self.assertRaises(BlockingIOError, kept.socket.recv, 1)
        self.later(2)
        self.assertEqual(self.of_type(SilentEvicted), [SilentEvicted(1, 2, "meters", "127.0.0.1")])
        self.assertEqual((first.evicted, other.evicted), (0, 1))

    def test_handshake_timeout(self) -> None:
        """Each port has a time-out of its own for handshakes."""
        self.open_both(timeout=5.0)
        assert self.listener is not None
        self.at(self.listener)
        self.at(self.other)
        self.loop.settle()
        self.later(4)
        self.assertEqual(self.admission.connections, 2)
        self.later(2)
        self.assertEqual((self.listener.connections, self.other.connections), (1, 0))
        self.assertEqual([event.reason for event in self.of_type(HandshakeFailed)], ["no handshake within 5 s"])

    def test_per_address(self) -> None:
        """The limit for each address is that of the port."""
        first, other = self.open_both(per_address=1)
        for _ in range(2):
            self.at(first)
            self.at(other)
        self.loop.settle()
        self.assertEqual((first.connections, other.connections, other.turned_away), (2, 1, 1))
        self.later(2)
        self.assertEqual(self.of_type(TurnedAway), [TurnedAway(1, 1, "127.0.0.1", "meters")])

    def test_turns(self) -> None:
        """While more devices wait at one port than there is room for, those at another one are accepted in turn with them."""
        self.loop.readers = InOrder()
        first, other = self.open_both(max_handshakes=1, max_connections=10_000)
        crowd = [self.at(first) for _ in range(60)]
        few = [self.at(other) for _ in range(10)]
        clients = [*crowd, *few]
        served: Counter[str] = Counter()
        while len(self.registry) < 24:
            for client in clients:
                client.step()
            self.loop.turn(0.01)
        for endpoint in self.registry:
            served[endpoint.factory.door] += 1
        self.assertEqual(served["meters"], len(few), served)

    def test_places(self) -> None:
        """At the limit of the process, places that become free one after another are for the ports in turn."""
        self.loop.readers = InOrder()
        ports = self.open_both(max_connections=1)
        clients = [self.at(port) for port in ports for _ in range(6)]
        served: Counter[str] = Counter()
        for _ in range(6):
            self.loop.until(lambda: len(self.registry) == 1, *[client.step for client in clients])
            (endpoint,) = self.registry
            served[endpoint.factory.door] += 1
            endpoint.transport.abortConnection()
            self.loop.until(lambda: not len(self.registry))
        self.assertEqual(served, {"default": 3, "meters": 3})

    def test_restart_of_a_port(self) -> None:
        """While one port is stopped, the other one accepts, and the connections of both are served."""
        first, other = self.open_both()
        device = self.device_at(other)
        other.stopService()
        waiting = self.at(other)
        self.device_at(first)
        device.write(b"still here\n")
        self.loop.until(lambda: self.sink.lines, device.step, waiting.step)
        self.assertFalse(waiting.secure)
        other.startService()
        self.loop.until(lambda: waiting.secure, waiting.step)

    def test_sockets_stopped(self) -> None:
        """While the service of the sockets is stopped, both ports accept, and handshakes go on when it is started again."""
        first, other = self.open_both()
        self.connected.stopService()
        clients = [self.at(first), self.at(other)]
        self.loop.settle(*[client.step for client in clients])
        self.connected.startService()
        self.loop.until(lambda: len(self.registry) == 2, *[client.step for client in clients])

    def test_closing(self) -> None:
        """Only when the last port is closed are connections kept whose last lines cannot be read yet."""
        first, other = self.open_both()
        first.stopListening()
        self.assertEqual((first.open, other.open, self.connected._hangups._keeping), (False, True, False))
        self.device_at(other)
        other.stopListening()
        self.assertTrue(self.connected._hangups._keeping)

    def test_memory_of_a_transport(self) -> None:
        """Both ports have their transports in the one epoll set, with the one context for established connections."""
        first, other = self.open_both()
        for port in (first, other):
            self.device_at(port)
        transports: list[Any] = [endpoint.transport for endpoint in self.registry]
        self.assertTrue(all(isinstance(each, TLSTransport) for each in transports))
        self.assertEqual(set(polled(self.connected.poller)), set(transports))
        contexts: set[SSL.Context] = {each.getHandle().get_context() for each in transports}
        self.assertEqual(contexts, {self.connected.post_handshake.context})
