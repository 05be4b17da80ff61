"""Tests of a second connection of the same device."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.protocol import DeviceProtocol
from owsla.device.replaced_connections import BURST, STAY, STAYING, ReplacedConnections
from owsla.events import DeviceContested, DeviceDisconnected, DeviceReplaced

from ._fakes import Source, Wire, World


class DuplicateTests(SynchronousTestCase):
    def connect(self, world: World, device_id: str | None, room: float = float("inf")) -> tuple[DeviceProtocol, Wire]:
        return world.connect(room, device_id)

    def test_keep(self) -> None:
        """By default both connections of a device stay open."""
        world = World()
        wires = [self.connect(world, "d1")[1] for _ in range(2)]
        self.assertEqual([wire.closed for wire in wires], ["", ""])
        self.assertEqual(world.events, [])

    def test_replace(self) -> None:
        """The earlier connection is closed with the reason "replaced", and an event names both."""
        world = World(replace=True)
        first, first_wire = self.connect(world, "d1")
        second, second_wire = self.connect(world, "d1")
        self.assertEqual((first_wire.closed, second_wire.closed), ("lost", ""))
        self.assertEqual(world.events, [DeviceReplaced(first.connection_id.decode(), "d1", second.connection_id.decode())])
        world.end(first)
        self.assertEqual([event.reason for event in world.of_type(DeviceDisconnected)], ["replaced"])
        third, _ = self.connect(world, "d1")
        self.assertEqual(second_wire.closed, "lost")
        self.assertEqual(world.of_type(DeviceReplaced)[-1].by, third.connection_id.decode())

    def test_others_stay(self) -> None:
        """Connections of other devices, and of devices without an identity, stay open."""
        world = World(replace=True)
        wires = [self.connect(world, device_id)[1] for device_id in ("d1", "d2", None, None)]
        self.assertEqual([wire.closed for wire in wires], [""] * 4)

    def test_after_the_end(self) -> None:
        """A connection that has ended, or is closing, is not replaced, and nothing of it is kept."""
        world = World(replace=True)
        first, _ = self.connect(world, "d1")
        world.end(first)
        second, _ = self.connect(world, "d1")
        second.close("enough")
        third, wire = self.connect(world, "d1")
        world.end(second)
        self.assertEqual((world.of_type(DeviceReplaced), wire.closed), ([], ""))
        world.end(third)
        self.assertEqual((list(world.services.devices), world.services.devices._earlier), ([], {}))

    def test_two_with_one_identity(self) -> None:
        """Two devices with one identity that reconnect at once replace each other only every few seconds. A warning names the
        identity and both addresses, once a minute.
        """
        world = World(replace=True)
        connections: dict[str, tuple[DeviceProtocol, Wire]] = {}
        handshakes = 0
        for _ in range(600):
            for peer in ("192.0.2.1:1", "192.0.2.2:2"):
                if peer in connections and not connections[peer][1].closed:
                    continue
                if peer in connections:
                    world.end(connections[peer][0])
                connections[peer] = world.connect(device_id="d1", peer=peer)
                handshakes += 1
            world.later(0.1)
        self.assertLess(handshakes, BURST + 2 + 60 / STAY + 1)
        self.assertGreater(handshakes, BURST + 2)
        (event,) = world.of_type(DeviceContested)
        self.assertEqual((event.device_id, event.replacements), ("d1", BURST + 1))
        self.assertEqual(set(event.peers), {"192.0.2.1:1", "192.0.2.2:2"})

    def test_contested_in_a_loop(self) -> None:
        """A device that connects repeatedly without closing has a few connections at a time, and is reported once."""
        world = World(replace=True)
        wires = [self.connect(world, "d1")[1] for _ in range(100)]
        self.assertEqual([wire.closed for wire in wires].count(""), STAYING + 1)
        self.assertEqual(len(world.of_type(DeviceContested)), 1)
        world.later(STAY + 0.5)
        self.assertEqual([wire.closed for wire in wires].count(""), 1)
        self.assertEqual(wires[-1].closed, "")
        self.assertEqual(len(world.factory.devices._replaced), 0)

    def test_back_now_and_then(self) -> None:
        """A device that reconnects now and then replaces its earlier connection at once, any number of times."""
        world = World(replace=True)
        last = None
        for _ in range(50):
            _, wire = self.connect(world, "d1")
            if last is not None:
                self.assertEqual(last.closed, "lost")
            last = wire
            world.later(31.0)
        self.assertEqual(world.of_type(DeviceContested), [])

    def test_what_waits(self) -> None:
        """Messages for the earlier connection, held for a number or for its socket, are recorded as connection-closed."""
        world = World(replace=True)
        first, _ = self.connect(world, "d1", room=1)
        source = Source()
        world.send(first, source, b"fills it", 0)
        world.turns()
        world.send(first, source, b"waits", 1)
        world.send(first, source, b"held", 3)
        self.connect(world, "d1")
        self.assertEqual(sorted(world.courier.reasons), [(b"held", "connection-closed"), (b"waits", "connection-closed")])
        self.assertEqual((source.outstanding, world.held, world.waiting), (0, 0, 0))
        world.send(first, source, b"too late", 2)
        self.assertEqual(world.courier.reasons[-1], (b"too late", "connection-closed"))

    def test_its_lines(self) -> None:
        """Lines that were read from the earlier connection are published."""
        world = World(replace=True)
        first, _ = self.connect(world, "d1")
        world.sink.stop()
        first.dataReceived(b"a\nb\n")
        self.connect(world, "d1")
        world.end(first)
        self.assertEqual(world.sink.of(first), [b"a", b"b"])


class RivalsTests(SynchronousTestCase):
    def test_told(self) -> None:
        """A lasting contest is reported once a minute, with the number of replacements in between. Only the device id matters.
        """
        rivals: ReplacedConnections[int] = ReplacedConnections()
        told = [rivals.replaced("d1", number, float(number))[1] for number in range(180)]
        self.assertEqual([(at, count) for at, count in enumerate(told) if count], [(5, 6), (65, 60), (125, 60)])
        self.assertEqual(rivals.replaced("d2", 1, 180.0), ([1], 0))

    def test_over(self) -> None:
        """After some quiet minutes a contest is forgotten."""
        rivals: ReplacedConnections[int] = ReplacedConnections()
        for number in range(20):
            rivals.replaced("d1", number, 0.0)
        self.assertEqual(rivals.replaced("d1", 1, 200.0), ([1], 0))
