"""A second connection of the same device: what becomes of the first."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.endpoint import Endpoint
from owsla.events import DeviceDisconnected, DeviceReplaced

from ._fakes import Source, Wire, World


class DuplicateTests(SynchronousTestCase):
    def connect(self, world: World, device_id: str | None, room: float = float("inf")) -> tuple[Endpoint, Wire]:
        endpoint, wire = world.connect(room, device_id)
        world.hub.identified(endpoint)
        return endpoint, wire

    def test_keep(self) -> None:
        """Unless told otherwise, both connections of a device stay."""
        world = World()
        wires = [self.connect(world, "d1")[1] for _ in range(2)]
        self.assertEqual([wire.closed for wire in wires], ["", ""])
        self.assertEqual(world.events, [])

    def test_replace(self) -> None:
        """The earlier connection is closed, as "replaced"; that is an event which names both."""
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
        """Other devices, and those without an identity, are none of it."""
        world = World(replace=True)
        wires = [self.connect(world, device_id)[1] for device_id in ("d1", "d2", None, None)]
        self.assertEqual([wire.closed for wire in wires], [""] * 4)

    def test_after_the_end(self) -> None:
        """A connection that has ended, or is closing anyway, is not replaced; and nothing is kept of it."""
        world = World(replace=True)
        first, _ = self.connect(world, "d1")
        world.end(first)
        second, _ = self.connect(world, "d1")
        second.close("enough")
        third, wire = self.connect(world, "d1")
        world.end(second)
        self.assertEqual((world.of_type(DeviceReplaced), wire.closed), ([], ""))
        world.end(third)
        self.assertEqual(world.hub._devices, {})

    def test_what_waits(self) -> None:
        """What waits for the earlier connection is on record as connection-closed: held for a number, or for its socket."""
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
        """Lines that were read of the earlier connection are published all the same."""
        world = World(replace=True)
        first, _ = self.connect(world, "d1")
        world.sink.stop()
        first.dataReceived(b"a\nb\n")
        self.connect(world, "d1")
        world.end(first)
        self.assertEqual(world.sink.of(first), [b"a", b"b"])
