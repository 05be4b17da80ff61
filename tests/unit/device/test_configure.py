"""Limits and times that change while devices are connected: also to less than what is in use."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.admission import Admission, PortAdmission
from owsla.device.framing import LineFraming
from owsla.device.protocol import DeviceProtocol
from owsla.device.reordering import CATCHING_UP
from owsla.device.sources import SourceLimits, Sources
from owsla.events import DeviceReplaced, GapSkipped, LineTooLong, SlowDevice

from ._fakes import Source, World


def change(world: World, **settings: Any) -> None:
    """Change settings of the connections of a world."""
    world.change(**settings)


class RateTests(SynchronousTestCase):
    def test_higher(self) -> None:
        """A device that waits under a low rate is read at once under a higher one, which holds from then on."""
        world = World(max_rate=0.01)
        endpoint, wire = world.connect()
        other, other_wire = world.connect()
        for each in (endpoint, other):
            each.dataReceived(b"x\n" * 50)
        world.later(100)
        self.assertFalse(wire.reading or other_wire.reading)
        change(world, max_rate=10.0)
        self.assertTrue(wire.reading and other_wire.reading)
        endpoint.dataReceived(b"x\n" * 20)
        self.assertFalse(wire.reading)
        world.later(1.8)
        self.assertFalse(wire.reading)
        world.later(0.3)
        self.assertTrue(wire.reading)
        self.assertEqual(len(world.sink.of(endpoint)), 70)

    def test_off(self) -> None:
        """Without a rate nothing waits, and nothing is left of the former rate when there is one again."""
        world = World(max_rate=0.01)
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"x\n" * 50)
        change(world, max_rate=None)
        for _ in range(5):
            self.assertTrue(wire.reading)
            endpoint.dataReceived(b"x\n" * 50)
        world.later(3)
        change(world, max_rate=10.0)
        endpoint.dataReceived(b"x\n" * 10)
        self.assertTrue(wire.reading)

    def test_lower(self) -> None:
        """A connected device is slowed down by a rate that is new or lower."""
        world = World()
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"x\n" * 1000)
        change(world, max_rate=10.0)
        endpoint.dataReceived(b"x\n" * 30)
        self.assertFalse(wire.reading)
        world.later(2.2)
        self.assertTrue(wire.reading)

    def test_same(self) -> None:
        """Other changes do not let a device go on."""
        world = World(max_rate=1.0)
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"x\n" * 50)
        change(world, write_timeout=1.0)
        self.assertFalse(wire.reading)

    def test_paused_for_the_sink(self) -> None:
        """A device that the sink has paused, too, waits for the sink. One that has gone is left alone."""
        world = World(max_rate=0.01)
        endpoint, wire = world.connect()
        gone, _ = world.connect()
        endpoint.dataReceived(b"x\n" * 50)
        gone.dataReceived(b"x\n" * 50)
        world.end(gone)
        world.sink.stop()
        endpoint.dataReceived(b"y\n")
        change(world, max_rate=10.0)
        self.assertFalse(wire.reading)
        world.sink.resume()
        self.assertEqual(world.sink.of(endpoint)[-1], b"y")


class IdleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(idle_timeout=1000.0)

    def later(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.clock.advance(1.0)
            self.world.services.housekeeping.sweep()

    def test_shorter(self) -> None:
        """A device that has been idle for longer than the new time is closed, and one that has talked meanwhile is not."""
        _, idle_wire = self.world.connect()
        busy, busy_wire = self.world.connect()
        self.later(500)
        busy.dataReceived(b"x\n")
        change(self.world, idle_timeout=100.0)
        self.later(13)
        self.assertEqual((idle_wire.closed, busy_wire.closed), ("lost", ""))
        self.later(115)
        self.assertEqual(busy_wire.closed, "lost")

    def test_an_error_of_ours(self) -> None:
        """If the check of a device fails, its connection is closed, and the other devices are checked."""
        broken, broken_wire = self.world.connect()
        idle_wires = [self.world.connect()[1] for _ in range(10)]
        check = DeviceProtocol.check_idle

        def either(connection: DeviceProtocol, *times: float) -> None:
            if connection is broken:
                raise ZeroDivisionError
            check(connection, *times)

        self.patch(DeviceProtocol, "check_idle", either)
        change(self.world, idle_timeout=8.0)
        self.later(12)
        self.assertEqual((broken_wire.closed, {wire.closed for wire in idle_wires}), ("aborted", {"lost"}))

    def test_shorter_with_many_devices(self) -> None:
        """All devices are checked within the new time, wherever the check of the former time was."""
        self.world = World(idle_timeout=100_000.0)
        wires = [self.world.connect()[1] for _ in range(200)]
        self.later(50)
        change(self.world, idle_timeout=16.0)
        self.later(3)
        self.assertEqual({wire.closed for wire in wires}, {"lost"})

    def test_longer(self) -> None:
        """A device has the new time from its last line on."""
        _, wire = self.world.connect()
        self.later(900)
        change(self.world, idle_timeout=2000.0)
        self.later(900)
        self.assertEqual(wire.closed, "")
        self.later(500)
        self.assertEqual(wire.closed, "lost")

    def test_on_after_an_outage(self) -> None:
        """Where there was no limit, devices that were not read in an outage have their whole time after it."""
        change(self.world, idle_timeout=0.0)
        _, wire = self.world.connect()
        self.later(5000)
        self.world.sink.stop()
        self.later(10)
        self.world.sink.resume()
        change(self.world, idle_timeout=100.0)
        self.later(90)
        self.assertEqual(wire.closed, "")
        self.later(50)
        self.assertEqual(wire.closed, "lost")


class LineTests(SynchronousTestCase):
    def test_shorter_lines(self) -> None:
        """A lower limit of lines holds for the next line, and for one that has begun. Complete lines are not lost by it."""
        world = World(LineFraming(max_line=50_000))
        endpoint, wire = world.connect()
        other, other_wire = world.connect()
        endpoint.dataReceived(b"a" * 20 + b"\n")
        other.dataReceived(b"b" * 40_000)
        change(world, framing=LineFraming(max_line=10))
        other.dataReceived(b"b")
        endpoint.dataReceived(b"c" * 10 + b"\n" + b"d" * 11 + b"\n")
        self.assertEqual(world.sink.of(endpoint), [b"a" * 20, b"c" * 10])
        self.assertEqual((wire.closed, other_wire.closed), ("lost", "lost"))
        self.assertEqual([event.limit for event in world.of_type(LineTooLong)], [10, 10])

    def test_longer_lines(self) -> None:
        """A higher limit holds for a line that has begun."""
        world = World(LineFraming(max_line=10))
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"a" * 10)
        change(world, framing=LineFraming(max_line=100_000))
        endpoint.dataReceived(b"a" * 80_000)
        endpoint.dataReceived(b"a\n")
        self.assertEqual((world.sink.of(endpoint), wire.closed), ([b"a" * 80_011], ""))


class AcknowledgementTests(SynchronousTestCase):
    def test_new_connections(self) -> None:
        """A connection keeps the acknowledgements that it began with, or none, and remembers nothing for none."""
        world = World()
        without, _ = world.connect()
        without.dataReceived(b"x\n" * 3)
        change(world, device_ack=lambda seq: b"ACK %d\r\n" % seq)
        first, first_wire = world.connect()
        change(world, device_ack=lambda seq: b"OK %d\r\n" % seq)
        second, second_wire = world.connect()
        change(world, device_ack=None)
        for endpoint in (without, first, second):
            endpoint.dataReceived(b"x\n")
            endpoint.confirmed(endpoint.seq - 1)
        world.turns()
        self.assertEqual((first_wire.data, second_wire.data), (b"ACK 0\r\n", b"OK 0\r\n"))
        self.assertIsNone(without._confirmed_ahead)
        self.assertFalse(without.backlog)
        self.assertEqual([each.acknowledges for each in (without, first, second)], [False, True, True])


class DeliveryTests(SynchronousTestCase):
    def test_smaller_write_buffer(self) -> None:
        """Messages that wait for a slow device stay; the next one closes it if they are too many by the new limit."""
        world = World(write_buffer=1000)
        endpoint, wire = world.connect(room=10)
        source = Source()
        world.send(endpoint, source, b"x" * 20)
        world.turns()
        world.send(endpoint, source, b"y" * 500)
        change(world, write_buffer=100)
        world.later(1)
        self.assertEqual((wire.closed, world.waiting), ("", 1))
        world.send(endpoint, source, b"z")
        self.assertEqual((wire.closed, world.waiting, len(world.of_type(SlowDevice))), ("lost", 0, 1))
        self.assertEqual(world.courier.reasons, [(b"y" * 500, "slow-device"), (b"z", "slow-device")])

    def test_shorter_write_timeout(self) -> None:
        """A device that has taken nothing for the new time is closed."""
        world = World(write_timeout=100.0)
        endpoint, wire = world.connect(room=10)
        world.send(endpoint, Source(), b"x" * 20)
        world.later(10)
        change(world, write_timeout=5.0)
        world.later(0.2)
        self.assertEqual(wire.closed, "lost")

    def test_lower_reorder_limit(self) -> None:
        """With more messages held than allowed, the next one makes the connection skip. All are written, in their order."""
        world = World(reorder_limit=50, gap_timeout=100.0)
        endpoint, wire = world.connect()
        source = Source()
        for seq in range(1, 40, 2):
            world.send(endpoint, source, b"%d" % seq, seq)
        change(world, reorder_limit=5)
        world.later(1)
        self.assertEqual((world.held, wire.data), (20, b""))
        world.send(endpoint, source, b"41", 41)
        world.turns()
        self.assertEqual(world.held, 5)
        self.assertEqual(wire.data, b"".join(b"%d\r\n" % seq for seq in range(1, 33, 2)))
        self.assertEqual(len(world.of_type(GapSkipped)), 16)
        self.assertEqual(source.outstanding, 5)

    def test_shorter_gap_timeout(self) -> None:
        """A gap that is older than the new time is skipped at once."""
        world = World(gap_timeout=100.0)
        endpoint, wire = world.connect()
        world.send(endpoint, Source(), b"1", 1)
        world.later(10)
        change(world, gap_timeout=5.0)
        world.later(CATCHING_UP)
        self.assertEqual(wire.data, b"1\r\n")


class DuplicateTests(SynchronousTestCase):
    def test_replace(self) -> None:
        """Connections of one device stay when replacing begins. The next one replaces the newest of them."""
        world = World()
        wires = [world.connect(device_id="d1")[1] for _ in range(3)]
        nobody = world.connect()[1]
        change(world, replace=True)
        self.assertEqual([wire.closed for wire in wires], ["", "", ""])
        wires.append(world.connect(device_id="d1")[1])
        self.assertEqual([wire.closed for wire in [*wires, nobody]], ["", "", "lost", "", ""])
        self.assertEqual(len(world.of_type(DeviceReplaced)), 1)

    def test_keep(self) -> None:
        """When replacing ends, all connections of a device stay. The newest is its address."""
        world = World(replace=True)
        first, first_wire = world.connect(device_id="d1")
        change(world, replace=False)
        second, _ = world.connect(device_id="d1")
        self.assertEqual(first_wire.closed, "")
        self.assertIs(world.services.devices.find("d1"), second)
        world.end(first)


class AdmissionTests(SynchronousTestCase):
    def test_fewer_connections(self) -> None:
        """Below the number of connections there is no room until enough have closed."""
        admission: Admission[str] = Admission(100, 10)
        for number in range(10):
            admission.accepted(f"c{number}")
            admission.spoke(f"c{number}")
            self.assertIsNotNone(admission.next_turn(0.0))
            admission.secured(f"c{number}", 1.0)
        self.assertEqual((admission.room, admission.max_silent), (40, 40))
        admission.configure(5, 10)
        self.assertEqual((admission.full, admission.max_silent, admission.open), (True, 2, 10))
        self.assertLessEqual(admission.room, 0)
        for number in range(6):
            self.assertLessEqual(admission.room, 0)
            admission.lost(f"c{number}")
        self.assertEqual((admission.full, admission.room), (False, 1))

    def test_fewer_handshakes(self) -> None:
        """Below the number of handshakes no other begins until enough are complete."""
        admission: Admission[str] = Admission(100, 3)
        for number in range(4):
            admission.accepted(f"c{number}")
            admission.spoke(f"c{number}")
            admission.next_turn(0.0)
        admission.configure(100, 2)
        admission.secured("c0", 1.0)
        self.assertIsNone(admission.next_turn(1.0))
        admission.secured("c1", 1.0)
        self.assertEqual(admission.next_turn(1.0), "c3")

    def test_handshake_timeout(self) -> None:
        """Another time for handshakes counts from accepting, in all states."""
        process: Admission[str] = Admission(100, 1)
        admission = PortAdmission(process, 100)
        for number, name in enumerate(("handshaking", "waiting", "silent", "last")):
            admission.accepted(name, float(number))
        admission.spoke("handshaking")
        process.next_turn(0.0)
        admission.spoke("waiting")
        self.assertEqual(admission.overdue(6.0, 5.0), ["handshaking", "waiting"])
        self.assertEqual(admission.overdue(57.0, 55.0), ["handshaking", "waiting", "silent"])

    def test_fewer_connections_of_a_port(self) -> None:
        """A lower limit of a port closes none of its connections, and lets none in until enough have closed."""
        process: Admission[str] = Admission(100, 10)
        admission, other = PortAdmission(process, 100), PortAdmission(process, 100)
        for name in "abc":
            admission.accepted(name, 0.0)
            admission.spoke(name)
        admission.configure(2)
        self.assertEqual((admission.connections, admission.full, other.full), (3, True, False))
        for name in "ab":
            self.assertLessEqual(admission.room, 0)
            admission.lost(name)
        self.assertEqual((admission.full, admission.room), (False, 1))

    def test_sources(self) -> None:
        """Connections that were open before count. A lower limit turns away, and leaving makes room by and by."""
        sources = Sources(SourceLimits(), lambda: 0.0)
        for host in ["192.0.2.1"] * 3 + ["2001:db8::1", "2001:db8::2"]:
            self.assertTrue(sources.enter(host))
        sources.configure(SourceLimits(2))
        self.assertFalse(sources.enter("192.0.2.1") or sources.enter("2001:db8::3"))
        self.assertTrue(sources.enter("192.0.2.2"))
        sources.configure(SourceLimits(1))
        for _ in range(2):
            sources.leave("192.0.2.1")
            self.assertFalse(sources.enter("192.0.2.1"))
        sources.leave("192.0.2.1")
        self.assertTrue(sources.enter("192.0.2.1"))
        sources.leave("192.0.2.9")
        for host in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::9"):
            sources.leave(host)
        self.assertEqual(len(sources), 0)
