"""Tests of the direction to the device: order, slow devices, global limits, lost consumers, and the end."""

from __future__ import annotations

from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import LineFraming
from owsla.device.protocol import CHUNK, DeviceProtocol
from owsla.events import DeviceDisconnected, GapSkipped, SlowDevice

from ._fakes import Source, Wire, World


def lines(wire: Wire, ending: bytes = b"\r\n") -> list[bytes]:
    """Return the lines sent to the device."""
    data = wire.data
    assert data.endswith(ending) or not data
    return data.split(ending)[:-1]


class Broken(Exception):
    """Failure of a step of the end of a connection."""


def failing_for(one: DeviceProtocol, method: str) -> Any:
    """Return a context in which a method of `DeviceProtocol` fails for one of them."""
    real = getattr(DeviceProtocol, method)

    def either(endpoint: DeviceProtocol, *args: Any) -> None:
        if endpoint is one:
            raise ZeroDivisionError
        real(endpoint, *args)

    return mock.patch.object(DeviceProtocol, method, autospec=True, side_effect=either)


def broken(step: str) -> Any:
    """Return a context in which this step fails before it does anything."""
    return mock.patch.object(DeviceProtocol, step, side_effect=Broken)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.source = Source()

    def world(self, prefetch: int = 500, **options: Any) -> World:
        """Return a world with one device, and a consumer with this many messages."""
        self.source.prefetch = prefetch
        world = World(**options)
        self.endpoint, self.wire = world.connect()
        return world

    def send(self, world: World, *seqs: int | None) -> None:
        for seq in seqs:
            world.send(self.endpoint, self.source, b"%d" % seq if seq is not None else b"-", seq)


class HandOverTests(Base):
    def test_one_write_a_turn(self) -> None:
        """Lines of one turn leave in one write. Each message is acknowledged when it is written."""
        world = self.world()
        self.send(world, 0, 1, None, 2)
        self.assertEqual(self.wire.written, [])
        world.turns()
        self.assertEqual(self.wire.written, [b"0\r\n1\r\n-\r\n2\r\n"])
        self.assertEqual(self.source.acked, [1, 2, 3, 4])
        self.send(world, 3)
        world.turns()
        self.assertEqual(self.wire.written[1:], [b"3\r\n"])
        self.assertEqual(self.endpoint.lines_out, 5)

    def test_acknowledged_after_the_write(self) -> None:
        """Acknowledgements at the end of the same turn follow the write."""
        world = self.world()
        order: list[str] = []
        world.turn.call_last(lambda: order.append(f"ack with {len(self.wire.written)} written"))
        self.send(world, 0)
        world.turns()
        self.assertEqual(order, ["ack with 1 written"])

    def test_custom_delimiter(self) -> None:
        """A configured delimiter is used unchanged towards the device."""
        world = self.world(framing=LineFraming(b"||"))
        self.send(world, 0, 1)
        world.turns()
        self.assertEqual(self.wire.data, b"0||1||")

    def test_empty_line(self) -> None:
        """An empty body is an empty line."""
        world = self.world()
        world.send(self.endpoint, self.source, b"")
        world.turns()
        self.assertEqual((self.wire.data, self.source.acked), (b"\r\n", [1]))

    def test_much_in_one_turn(self) -> None:
        """During a large turn the socket is checked in between: at most one chunk is acknowledged beyond its capacity."""
        world = self.world(write_buffer=1 << 20, prefetch=4500)
        self.wire.room = 0
        body = b"x" * 1000
        for _ in range(500):
            world.send(self.endpoint, self.source, body)
        world.turns()
        self.assertLessEqual(len(self.wire.data), CHUNK + 2 * 1002)
        self.assertEqual(len(self.source.acked), len(lines(self.wire)))
        self.assertEqual(world.waiting, 500 - len(self.source.acked))

    def test_reports(self) -> None:
        """A report `delivered` is sent when the line was written, and not before."""
        world = self.world()
        asked: dict[str, Any] = {"reply_to": b"q", "correlation_id": b"\x011"}
        world.post(self.endpoint, self.source, b"1", 1, **asked)
        self.assertEqual(world.courier.reports, [])
        first = world.post(self.endpoint, self.source, b"0", 0, **asked)
        self.assertEqual([(one.seq, word) for one, word in world.courier.reports], [(0, "delivered"), (1, "delivered")])
        self.assertEqual(first.correlation_id, b"\x011")
        world.post(self.endpoint, self.source, b"2", 2)
        self.assertEqual(len(world.courier.reports), 2)

    def test_report_of_a_slow_device(self) -> None:
        """A message that waits for a slow device is not `delivered`."""
        world = self.world()
        self.wire.room = 0
        self.send(world, 0)
        world.turns()
        world.post(self.endpoint, self.source, b"1", 1, reply_to=b"q")
        world.end(self.endpoint)
        self.assertEqual((world.courier.reports, world.courier.reasons), ([], [(b"1", "connection-closed")]))


class OrderTests(Base):
    def test_in_order(self) -> None:
        """Numbered messages are written in the order of their numbers, and acknowledged only then."""
        world = self.world()
        self.send(world, 2, 1, 0, 4)
        world.turns()
        self.assertEqual((lines(self.wire), self.source.acked), ([b"0", b"1", b"2"], [3, 2, 1]))
        self.send(world, 3)
        world.turns()
        self.assertEqual((lines(self.wire)[3:], self.source.outstanding), ([b"3", b"4"], 0))

    def test_unnumbered_between(self) -> None:
        """A message without a number waits for none."""
        world = self.world()
        self.send(world, 1, None, 0, None)
        world.turns()
        self.assertEqual(lines(self.wire), [b"-", b"0", b"1", b"-"])

    def test_duplicates(self) -> None:
        """A message with a number that was sent, or is held, is acknowledged and counted, and not sent again."""
        world = self.world()
        self.send(world, 0, 0, 2, 2, 1, 1)
        world.turns()
        self.assertEqual((lines(self.wire), self.source.outstanding), ([b"0", b"1", b"2"], 0))
        self.assertEqual((world.totals.duplicates, world.courier.records), (3, []))

    def test_duplicates_are_reported(self) -> None:
        """A back end that repeats a message, because its report was lost, gets the report `duplicate` and no more: the first
        copy may have expired, or may be waiting.
        """
        world = self.world()
        for _ in range(2):
            world.post(self.endpoint, self.source, b"x", 0, reply_to=b"answers")
        world.turns()
        self.assertEqual(lines(self.wire), [b"x"])
        self.assertEqual([outcome for _, outcome in world.courier.reports], ["delivered", "duplicate"])
        for _ in range(2):
            world.post(self.endpoint, self.source, b"x", 1, fault="expired", reply_to=b"answers")
            world.post(self.endpoint, self.source, b"held", 3, reply_to=b"answers")
        self.assertEqual([outcome for _, outcome in world.courier.reports[2:]], ["duplicate", "duplicate"])

    def test_an_error_of_ours_in_a_tick(self) -> None:
        """An exception in the timer of one connection affects that connection only, and no timer of another."""
        world = self.world(gap_timeout=2.0)
        other, wire = world.connect()
        self.send(world, 3)
        world.send(other, self.source, b"3", 3)
        with failing_for(self.endpoint, "skip_gap"):
            world.later(2.5)
        self.assertEqual((self.wire.closed, lines(wire)), ("aborted", [b"3"]))

    def test_an_error_of_ours_in_another_connection(self) -> None:
        """If the connection that holds most messages cannot skip its gap, it alone is closed, and the message of another one,
        with which the limit was reached, is kept.
        """
        for outage in (False, True):
            self.source = Source()
            world = self.world(prefetch=3 if outage else 5)
            other, wire = world.connect()
            if outage:
                world.services.reordering.flowing(False)
                world.services.reordering.flowing(True)
            self.send(world, 3, 4)
            with failing_for(self.endpoint, "skip_gap"):
                world.send(other, self.source, b"3", 3)
            self.assertEqual((self.wire.closed, wire.closed, world.courier.records), ("aborted", "", []))
            world.end(self.endpoint)
            world.send(other, self.source, b"0", 0)
            self.assertEqual((world.held, self.source.outstanding), (1, 1))

    def test_an_error_of_ours_after_an_outage(self) -> None:
        """When the limits hold again after an outage, a connection that cannot skip its gap is closed. Others skip."""
        world = self.world(reorder_limit=1)
        other, wire = world.connect()
        world.services.reordering.flowing(False)
        world.services.reordering.flowing(True)
        for number in (3, 4):
            self.send(world, number)
            world.send(other, self.source, b"%d" % number, number)
        with failing_for(self.endpoint, "skip_gap"):
            world.later(1.5)
        self.assertEqual((self.wire.closed, lines(wire)), ("aborted", [b"3", b"4"]))

    def test_greatest_number(self) -> None:
        """The greatest possible number is waited for, and skipped to, like any other."""
        world = self.world(gap_timeout=2.0)
        self.send(world, 2**63 - 1)
        world.later(2.5)
        self.assertEqual((len(lines(self.wire)), world.totals.skips), (1, 2**63 - 1))

    def test_gap_timeout(self) -> None:
        """A missing number is waited for until the timeout, then skipped with an event. It is late when it arrives."""
        world = self.world(gap_timeout=2.0)
        self.endpoint.device_id = "d1"
        self.send(world, 0, 3)
        world.later(1.8)
        self.assertEqual(lines(self.wire), [b"0"])
        world.later(0.4)
        self.assertEqual(lines(self.wire), [b"0", b"3"])
        connection_id = self.endpoint.connection_id.decode()
        self.assertEqual(world.of_type(GapSkipped), [GapSkipped(connection_id, "d1", 1, 2)])
        self.assertEqual(world.totals.skips, 2)
        self.send(world, 2, 4)
        world.turns()
        self.assertEqual(lines(self.wire)[2:], [b"4"])
        self.assertEqual((world.courier.reasons, self.source.outstanding), ([(b"2", "late")], 0))

    def test_gap_timeout_counts_from_the_first_miss(self) -> None:
        """The timeout of each number begins when it was first missing, so that the waits for several gaps overlap."""
        world = self.world(gap_timeout=2.0)
        self.send(world, 1, 3, 5)
        world.later(2.5)
        self.assertEqual(lines(self.wire), [b"1", b"3", b"5"])

    def test_clock_stands_still(self) -> None:
        """While no message can arrive, the timeout of missing numbers stops."""
        world = self.world(gap_timeout=2.0)
        self.send(world, 1)
        world.later(1)
        world.factory.reordering.clock.pause()
        world.later(60)
        self.assertEqual(lines(self.wire), [])
        world.factory.reordering.clock.resume()
        world.later(0.8)
        self.assertEqual(lines(self.wire), [])
        world.later(0.4)
        self.assertEqual(lines(self.wire), [b"1"])

    def test_missed_while_it_stands_still(self) -> None:
        """For a number that is first missing while the clock is stopped, the full timeout begins when the clock runs."""
        world = self.world(gap_timeout=2.0)
        world.factory.reordering.clock.pause()
        world.later(30)
        self.send(world, 1)
        world.later(30)
        world.factory.reordering.clock.resume()
        world.later(1.8)
        self.assertEqual(lines(self.wire), [])
        world.later(0.4)
        self.assertEqual(lines(self.wire), [b"1"])

    def test_reorder_limit(self) -> None:
        """At the limit of held messages for a device, the next message makes it skip to the lowest held number."""
        world = self.world(reorder_limit=4)
        self.send(world, 2, 4, 6, 8)
        world.turns()
        self.assertEqual(lines(self.wire), [])
        self.send(world, 9)
        world.turns()
        self.assertEqual((lines(self.wire), self.endpoint.held), ([b"2"], 4))
        self.send(world, 3)
        world.turns()
        self.assertEqual(lines(self.wire), [b"2", b"3", b"4"])

    def test_half_of_the_prefetch(self) -> None:
        """All devices together hold at most half of the prefetch of a consumer. Beyond that, the device that holds most skips.
        """
        world = self.world(prefetch=20)
        other, wire = world.connect()
        self.send(world, 2, 4, 6, 8, 10, 12)
        for seq in (1, 3, 5, 7):
            world.send(other, self.source, b"%d" % seq, seq)
        world.turns()
        self.assertEqual((lines(self.wire), lines(wire)), ([], []))
        world.send(other, self.source, b"9", 9)
        world.turns()
        self.assertEqual((lines(self.wire), lines(wire)), ([b"2"], []))

    def test_a_thousand_devices(self) -> None:
        """A thousand devices that each wait for an earlier number leave half of the prefetch of every consumer to others, with
        one consumer or several. Each device gets its lines in order, and every message is delivered or recorded.
        """
        for sources in ([Source()], [Source() for _ in range(9)]):
            world = World()
            waiting = [world.connect() for _ in range(1000)]
            busy, wire = world.connect()
            turn = 0
            for seq in range(1, 4):
                for endpoint, _ in waiting:
                    source = sources[turn % len(sources)]
                    turn += 1
                    world.send(endpoint, source, b"%d" % seq, seq)
                    self.assertLessEqual(source.outstanding, 250)
                    world.send(busy, source, b"x")
            world.turns()
            self.assertEqual(len(lines(wire)), 3000)
            for endpoint, _ in waiting:
                world.send(endpoint, sources[0], b"0", 0)
            world.later(2.5)
            self.assertEqual([source.outstanding for source in sources], [0] * len(sources))
            sent = 0
            for _, one in waiting:
                numbers = [int(line) for line in lines(one)]
                self.assertEqual(numbers, sorted(set(numbers)))
                sent += len(numbers)
            self.assertEqual({reason for _, reason in world.courier.reasons}, {"late"})
            self.assertEqual(sent + len(world.courier.records), 4000)

    def test_consumers_are_bounded_apart(self) -> None:
        """The messages of one consumer do not count for another one."""
        world = self.world(prefetch=8)
        other = Source(prefetch=8)
        self.send(world, 2, 4, 6, 8)
        for seq in (10, 12, 14, 16):
            world.send(self.endpoint, other, b"%d" % seq, seq)
        self.assertEqual((world.held, self.source.outstanding, other.outstanding), (8, 4, 4))
        world.send(self.endpoint, other, b"18", 18)
        world.turns()
        self.assertLessEqual(other.outstanding, 4)

    @given(st.permutations(range(20)), st.lists(st.integers(0, 19), max_size=20), st.lists(st.integers(0, 40), max_size=8))
    def test_any_arrival_order(self, order: list[int], again: list[int], turns: list[int]) -> None:
        """In any order of arrivals and repeats, the device gets each message once and in order."""
        world = self.world()
        source = self.source = Source()
        for place, seq in enumerate([*order, *again]):
            self.send(world, seq)
            if place in turns:
                world.turns()
        world.turns()
        self.assertEqual(lines(self.wire), [b"%d" % seq for seq in range(20)])
        self.assertEqual((source.outstanding, world.totals.duplicates), (0, len(again)))


class FaultTests(Base):
    def test_faults_use_up_their_number(self) -> None:
        """An invalid message is recorded at its turn, and the messages behind it do not wait for it."""
        world = self.world()
        for first, fault in ((0, "too-long"), (3, "delimiter-in-body")):
            self.send(world, first, first + 2)
            letter = world.post(self.endpoint, self.source, b"bad", first + 1, fault=fault)
            self.assertTrue(letter.settled)
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"2", b"3", b"5"])
        self.assertEqual(world.courier.reasons, [(b"bad", "too-long"), (b"bad", "delimiter-in-body")])
        self.assertEqual((self.source.outstanding, world.totals.skips), (0, 0))

    def test_unnumbered_fault(self) -> None:
        """An invalid message without a number is recorded at once, and uses no number: its copy is recorded as well."""
        world = self.world()
        letter = world.post(self.endpoint, self.source, b"bad", None, fault="too-long")
        self.assertEqual((world.courier.reasons, letter.settled), ([(b"bad", "too-long")], False))

    def test_expired(self) -> None:
        """An expired message is not sent at its turn: on arrival, held for a number, or waiting for the socket."""
        world = self.world(gap_timeout=60.0)
        now = world.epoch
        world.post(self.endpoint, self.source, b"0", 0, expires_at=now)
        world.post(self.endpoint, self.source, b"1", 1, expires_at=now + 0.1)
        world.post(self.endpoint, self.source, b"3", 3, expires_at=now + 10)
        world.post(self.endpoint, self.source, b"4", 4, expires_at=now + 20)
        world.later(11)
        self.wire.room = 0
        self.send(world, 2)
        world.turns()
        self.send(world, 5)
        world.post(self.endpoint, self.source, b"6", 6, expires_at=now + 20)
        world.later(10)
        self.wire.drained()
        world.turns()
        self.assertEqual(lines(self.wire), [b"1", b"2", b"4", b"5"])
        self.assertEqual(world.courier.reasons, [(body, "expired") for body in (b"0", b"3", b"6")])
        self.assertEqual(self.source.outstanding, 0)

    def test_expired_by_the_steady_clock(self) -> None:
        """A change of the system clock does not change a time counted from the arrival, nor does elapsed time change
        `expires_at`.
        """
        world = self.world()
        self.wire.room = 0
        self.send(world, 0)
        world.turns()
        world.post(self.endpoint, self.source, b"1", 1, deadline=world.clock.seconds() + 10)
        world.post(self.endpoint, self.source, b"2", 2, deadline=world.clock.seconds() + 4)
        world.post(self.endpoint, self.source, b"3", 3, expires_at=world.epoch + 3600)
        world.later(5)
        world.epoch += 3000
        self.wire.drained(room=0)
        self.assertEqual(world.courier.reasons, [(b"2", "expired")])
        world.epoch += 1000
        world.post(self.endpoint, self.source, b"4", 4, expires_at=world.epoch)
        world.post(self.endpoint, self.source, b"5", 5, deadline=world.clock.seconds() + 1)
        self.wire.drained()
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"1", b"3", b"5"])

    def test_duplicate_of_a_fault(self) -> None:
        """A copy of a recorded message is a duplicate, and not recorded again."""
        world = self.world()
        world.post(self.endpoint, self.source, b"bad", 0, fault="too-long")
        world.post(self.endpoint, self.source, b"bad", 0, fault="too-long")
        self.assertEqual((len(world.courier.records), world.totals.duplicates), (1, 1))


class SlowTests(Base):
    def slow(self, untaken: int = 0, **options: Any) -> World:
        """Return a world whose device has a full socket after one written line."""
        world = self.world(**options)
        self.wire.room = 0
        self.wire.untaken = untaken
        self.send(world, 0)
        world.turns()
        assert self.wire.congested
        return world

    def test_waits_unacknowledged(self) -> None:
        """While the transport is paused, lines wait unacknowledged and unwritten, with or without a number."""
        world = self.slow()
        self.send(world, 1, None, 2, 4)
        world.turns()
        self.assertEqual((lines(self.wire), self.source.acked), ([b"0"], [1]))

    def test_an_error_of_ours_in_another_connection(self) -> None:
        """If the slowest connection cannot be closed in order, it alone is aborted, and the message of another one, with which
        the limit was reached, waits for its socket.
        """
        world = self.slow(prefetch=8)
        self.send(world, 1, 2)
        other, wire = world.connect(room=0)
        world.send(other, self.source, b"0", 0)
        world.turns()
        with failing_for(self.endpoint, "close_slow"):
            world.send(other, self.source, b"1", 1)
        self.assertEqual((self.wire.closed, wire.closed, world.courier.records), ("aborted", "", []))
        world.end(self.endpoint)
        self.assertEqual((world.waiting, self.source.outstanding), (1, 1))

    def test_goes_on_in_order(self) -> None:
        """When the socket has room again, waiting lines are written in their original order."""
        world = self.slow()
        self.send(world, 2, 1, None, 3)
        self.wire.drained()
        self.send(world, 4)
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"1", b"2", b"-", b"3", b"4"])
        self.assertEqual(self.source.outstanding, 0)
        world.later(60)
        self.assertEqual(self.wire.closed, "")

    def test_fills_up_again(self) -> None:
        """Lines that do not fit then wait again, before later ones."""
        world = self.slow(write_buffer=10 * CHUNK, framing=LineFraming(max_line=CHUNK))
        body = b"x" * (CHUNK // 4)
        for seq in range(1, 20):
            world.send(self.endpoint, self.source, b"%03d" % seq + body, seq)
        for _ in range(10):
            self.wire.drained(room=CHUNK)
            world.turns()
        world.send(self.endpoint, self.source, b"020" + body, 20)
        self.wire.drained()
        world.turns()
        self.assertEqual([int(line[:3]) for line in lines(self.wire)], list(range(21)))
        self.assertEqual(self.source.outstanding, 0)

    def test_write_buffer(self) -> None:
        """Beyond the write buffer the connection is closed. Waiting messages are recorded as `slow-device`, held ones as
        `connection-closed`.
        """
        world = self.slow(write_buffer=10)
        self.endpoint.device_id = "d1"
        world.send(self.endpoint, self.source, b"held", 9)
        world.send(self.endpoint, self.source, b"12345", 1)
        world.send(self.endpoint, self.source, b"67890", 2)
        self.assertEqual(self.wire.closed, "")
        world.send(self.endpoint, self.source, b"x", None)
        self.assertEqual(self.wire.closed, "lost")
        (event,) = world.of_type(SlowDevice)
        self.assertEqual((event.connection_id, event.device_id), (self.endpoint.connection_id.decode(), "d1"))
        self.assertEqual(
            world.courier.reasons,
            [(b"12345", "slow-device"), (b"67890", "slow-device"), (b"x", "slow-device"), (b"held", "connection-closed")],
        )
        self.assertEqual((lines(self.wire), self.source.outstanding), ([b"0"], 0))

    def test_write_timeout(self) -> None:
        """A device that reads nothing for the write timeout is closed, also if no message waits for it."""
        for waiting in (0, 2):
            self.source = Source()
            world = self.slow(write_timeout=5.0)
            self.send(world, *range(1, 1 + waiting))
            world.later(4.8)
            self.assertEqual(self.wire.closed, "")
            world.later(0.4)
            self.assertEqual(self.wire.closed, "lost")
            self.assertEqual([reason for _, reason in world.courier.reasons], ["slow-device"] * waiting)
            self.assertEqual(self.source.outstanding, 0)

    def test_slow_but_reading(self) -> None:
        """For a device that reads some bytes within the write timeout, the timeout begins again."""
        world = self.slow(untaken=1000, write_timeout=5.0)
        for untaken in (999, 500, 1):
            self.wire.untaken = untaken
            world.later(6)
        self.assertEqual((self.wire.closed, world.of_type(SlowDevice)), ("", []))
        world.later(5)
        self.assertEqual(self.wire.closed, "lost")

    def test_write_timeout_begins_anew(self) -> None:
        """For a device that has read everything in between, the timeout begins again."""
        world = self.slow(write_timeout=5.0)
        world.later(4)
        self.wire.drained(room=0)
        self.send(world, 1)
        world.turns()
        self.assertTrue(self.wire.congested)
        world.later(4)
        self.assertEqual(self.wire.closed, "")
        world.later(2)
        self.assertEqual(self.wire.closed, "lost")

    def test_what_was_written_is_not_thrown_away(self) -> None:
        """A slow device is closed in order, behind the data already written, which counts as delivered."""
        world = self.slow(write_buffer=10)
        world.post(self.endpoint, self.source, b"x" * 20, 1, reply_to=b"q")
        self.assertEqual((self.wire.closed, lines(self.wire)), ("lost", [b"0"]))
        self.assertEqual([reason for _, reason in world.courier.reasons], ["slow-device"])

    def test_many_slow_devices(self) -> None:
        """All devices together may use a quarter of the prefetch while they are slow. Beyond that, the one with most is closed.
        """
        world = self.slow(prefetch=40)
        other, wire = world.connect(room=0)
        world.send(other, self.source, b"0")
        world.turns()
        self.send(world, *range(1, 7))
        for _ in range(4):
            world.send(other, self.source, b"-")
        self.assertEqual((self.wire.closed, wire.closed), ("", ""))
        world.send(other, self.source, b"-")
        self.assertEqual((self.wire.closed, wire.closed), ("lost", ""))
        self.assertEqual(len(world.courier.records), 6)

    def test_a_slow_device_that_is_closed_already(self) -> None:
        """A slow device that is already being closed does not block others."""
        world = self.slow(prefetch=40)
        other, wire = world.connect(room=0)
        world.send(other, self.source, b"0")
        world.turns()
        self.send(world, *range(1, 9))
        self.endpoint.close("enough")
        for _ in range(20):
            world.send(other, self.source, b"-")
        world.end(self.endpoint)
        self.assertEqual(wire.closed, "lost")
        self.assertEqual(self.source.outstanding, 0)

    def test_nothing_changes_for_others(self) -> None:
        """One device that stops reading does not affect the others."""
        world = self.slow(write_buffer=100)
        other, wire = world.connect()
        for seq in range(1, 300):
            self.send(world, seq)
            world.send(other, self.source, b"x")
        world.turns()
        self.assertEqual(len(lines(wire)), 299)
        self.assertEqual(self.source.outstanding, 0)


class ClosingTests(Base):
    """When a connection ends, every unwritten message is recorded, and none is acknowledged otherwise."""

    def test_after_close(self) -> None:
        """A message for a connection that is being closed is not acknowledged as sent."""
        world = self.world()
        self.send(world, 0)
        self.endpoint.close("enough")
        self.send(world, 1, None, 5)
        world.post(self.endpoint, self.source, b"more", 2, reply_to=b"q")
        world.turns()
        self.assertEqual(lines(self.wire), [b"0"])
        self.assertEqual({reason for _, reason in world.courier.reasons}, {"connection-closed"})
        self.assertEqual((len(world.courier.records), world.courier.reports, self.source.outstanding), (4, [], 0))

    def test_after_close_slow(self) -> None:
        """Nor is a message for a slow connection that is being closed."""
        world = self.world(write_timeout=1.0)
        self.wire.room = 0
        self.send(world, 0)
        world.later(1.2)
        self.assertEqual(self.wire.closed, "lost")
        self.send(world, 1, None)
        world.turns()
        self.assertEqual(world.courier.reasons, [(b"1", "connection-closed"), (b"-", "connection-closed")])

    def test_written_before_close(self) -> None:
        """Messages of the same turn are written before the close."""
        world = self.world()
        self.send(world, 0, 1)
        self.endpoint.close("enough")
        self.assertEqual((lines(self.wire), self.wire.closed), ([b"0", b"1"], "lost"))
        self.endpoint.close("again")
        world.turns()
        self.assertEqual(len(self.wire.written), 1)

    def test_connection_lost(self) -> None:
        """When the connection is lost, every waiting message is recorded: held for a number, or waiting for the socket."""
        world = self.world()
        self.wire.room = 0
        self.send(world, 0)
        world.turns()
        self.send(world, 1, None, 4, 3)
        world.end(self.endpoint)
        self.assertEqual(world.courier.reasons, [(body, "connection-closed") for body in (b"1", b"-", b"3", b"4")])
        self.assertEqual(self.source.outstanding, 0)
        self.assertEqual((world.held, world.waiting), (0, 0))
        other, _ = world.connect()
        world.send(other, self.source, b"1", 1)
        self.assertEqual((world.held, world.waiting), (1, 0))

    def test_an_end_that_fails(self) -> None:
        """A failure in one step of the end of a connection keeps no other step from being done."""
        for step in ("_publish_rest", "_settle_messages", "_leave_collaborators", "_report_end"):
            with self.subTest(step):
                self.source = Source()
                world = self.world()
                self.wire.room = 0
                self.send(world, 0)
                world.turns()
                self.send(world, 1, None, 4, 3)
                self.endpoint.stall()
                with broken(step):
                    world.end(self.endpoint)
                done = {
                    "_settle_messages": (self.source.outstanding, world.held, world.waiting) == (0, 0, 0),
                    "_leave_collaborators": world.factory.reading.count == 0,
                    "_report_end": len(world.of_type(DeviceDisconnected)) == 1,
                }
                self.assertEqual([name for name in done if not done[name] and name != step], [])
                self.assertEqual((world.endpoints.failures, len(self.flushLoggedErrors(Broken))), (1, 1))
                self.assertEqual(lines(self.wire), [b"0"])

    def test_a_settlement_that_fails(self) -> None:
        """If the messages of a connection could not be recorded at its end, the held ones are when their gap is skipped."""
        world = self.world()
        self.send(world, 4, 3)
        with broken("_settle_messages"):
            world.end(self.endpoint)
        self.assertEqual(world.held, 2)
        world.later(120)
        self.assertEqual(world.courier.reasons, [(b"3", "connection-closed"), (b"4", "connection-closed")])
        self.assertEqual((self.source.outstanding, world.held, self.wire.written), (0, 0, []))
        self.assertEqual(len(self.flushLoggedErrors(Broken)), 1)

    def test_lost_in_the_turn_of_a_line(self) -> None:
        """A connection that is lost in the turn in which a line was written is no error."""
        world = self.world()
        self.send(world, 0)
        world.end(self.endpoint)
        world.turns()
        self.assertEqual(self.wire.written, [])

    def test_late_arrival_after_the_end(self) -> None:
        """A message that was routed to the connection just before its end is recorded."""
        world = self.world()
        world.end(self.endpoint)
        self.send(world, 0, None)
        world.turns()
        self.assertEqual([reason for _, reason in world.courier.reasons], ["connection-closed"] * 2)

    def test_owsla_close_with_a_body(self) -> None:
        """`owsla_close` closes the connection after the line, which is acknowledged and reported."""
        world = self.world()
        self.send(world, 0)
        world.post(self.endpoint, self.source, b"bye", 1, close=True, reply_to=b"q")
        self.assertEqual((lines(self.wire), self.wire.closed), ([b"0", b"bye"], "lost"))
        self.assertEqual((len(world.courier.reports), self.source.outstanding), (1, 0))

    def test_owsla_close_without_a_body(self) -> None:
        """`owsla_close` with an empty body only closes."""
        world = self.world()
        world.post(self.endpoint, self.source, b"", None, close=True)
        world.turns()
        self.assertEqual((self.wire.data, self.wire.closed, self.source.outstanding), (b"", "lost", 0))

    def test_owsla_close_in_its_turn(self) -> None:
        """`owsla_close` waits for its turn. Messages behind it are recorded."""
        world = self.world()
        world.post(self.endpoint, self.source, b"bye", 1, close=True)
        self.send(world, 2)
        self.assertEqual(self.wire.closed, "")
        self.send(world, 0)
        world.turns()
        self.assertEqual((lines(self.wire), self.wire.closed), ([b"0", b"bye"], "lost"))
        self.assertEqual((world.courier.reasons, self.source.outstanding), ([(b"2", "connection-closed")], 0))

    def test_owsla_close_to_a_slow_device(self) -> None:
        """`owsla_close` waits behind messages that wait for the socket. Messages behind it are recorded."""
        world = self.world()
        self.wire.room = 0
        self.send(world, 0)
        world.turns()
        self.send(world, 1)
        world.post(self.endpoint, self.source, b"", 2, close=True)
        self.send(world, 3)
        self.assertEqual(self.wire.closed, "")
        self.wire.drained()
        self.assertEqual((lines(self.wire), self.wire.closed), ([b"0", b"1"], "lost"))
        self.assertEqual((world.courier.reasons, self.source.outstanding), ([(b"3", "connection-closed")], 0))

    def test_a_fault_does_not_close(self) -> None:
        """An invalid message does not close the connection either."""
        world = self.world()
        world.post(self.endpoint, self.source, b"x", None, fault="expired", close=True)
        self.assertEqual(self.wire.closed, "")


class ForgetTests(Base):
    """The channel of a consumer is lost: its unacknowledged messages are redelivered."""

    def test_held(self) -> None:
        """Held messages of a lost consumer are forgotten, and the next number stays."""
        world = self.world()
        other = Source()
        self.send(world, 0, 2)
        world.send(self.endpoint, other, b"3", 3)
        self.source.open = False
        world.factory.deliveries.forget(self.source)
        self.assertEqual(self.endpoint.held, 1)
        again = Source()
        for seq in (0, 2, 1):
            world.send(self.endpoint, again, b"%d" % seq, seq)
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"1", b"2", b"3"])
        self.assertEqual((again.outstanding, other.outstanding, world.held), (0, 0, 0))
        self.assertEqual(self.source.acked, [1])

    def test_an_error_of_ours(self) -> None:
        """If a connection fails to forget its messages, it is closed, and the others forget theirs."""
        world = self.world()
        other, wire = world.connect()
        self.send(world, 2)
        world.send(other, self.source, b"2", 2)
        self.source.open = False
        with failing_for(self.endpoint, "forget"):
            world.factory.deliveries.forget(self.source)
        self.assertEqual((self.wire.closed, wire.closed, other.held), ("aborted", "", 0))

    def test_waiting_for_the_socket(self) -> None:
        """Messages that waited for the socket are forgotten as well: after the redelivery they are sent once, in order."""
        world = self.world()
        other = Source()
        self.wire.room = 0
        self.send(world, 0)
        world.turns()
        self.send(world, 1)
        world.send(self.endpoint, other, b"2", 2)
        self.send(world, 3, None)
        world.send(self.endpoint, other, b"-other", None)
        self.source.open = False
        world.factory.deliveries.forget(self.source)
        self.wire.drained()
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"-other"])
        again = Source()
        for seq in (3, 1):
            world.send(self.endpoint, again, b"%d" % seq, seq)
        world.turns()
        self.assertEqual(lines(self.wire)[2:], [b"1", b"2", b"3"])
        self.assertEqual((again.outstanding, other.outstanding), (0, 0))
        self.assertEqual((world.held, world.waiting), (0, 0))

    def test_many_waiting_for_the_socket(self) -> None:
        """The redelivery of the first of many waiting messages does not make it undeliverable."""
        world = self.world(reorder_limit=8)
        other = Source()
        self.wire.room = 0
        world.send(self.endpoint, other, b"0", 0)
        world.turns()
        self.send(world, 1)
        for seq in range(2, 30):
            world.send(self.endpoint, other, b"%d" % seq, seq)
        world.factory.deliveries.forget(self.source)
        world.send(self.endpoint, Source(), b"1", 1)
        self.wire.drained()
        world.turns()
        self.assertEqual(lines(self.wire), [b"%d" % seq for seq in range(30)])
        self.assertEqual(world.courier.records, [])

    def test_a_number_used_up_by_a_fault(self) -> None:
        """The number of a recorded message is used: redelivered earlier messages do not wait for it."""
        world = self.world(gap_timeout=60.0)
        other = Source()
        self.wire.room = 0
        world.send(self.endpoint, other, b"0", 0)
        world.turns()
        self.send(world, 1)
        world.post(self.endpoint, other, b"bad", 2, fault="too-long")
        world.send(self.endpoint, other, b"3", 3)
        world.factory.deliveries.forget(self.source)
        again = Source()
        world.send(self.endpoint, again, b"1", 1)
        self.wire.drained()
        world.turns()
        self.assertEqual(lines(self.wire), [b"0", b"1", b"3"])

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_any_history(self, data: st.DataObject) -> None:
        """For any history of arrivals, full sockets and lost consumers: no number is sent twice or out of order, each is sent
        in the end, and each delivery of a live consumer is acknowledged.
        """
        world = World(gap_timeout=1000.0)
        endpoint, wire = world.connect()
        total = 12
        sources = [Source(), Source()]
        # Model of the broker: queued numbers, and unacknowledged numbers by consumer.
        queue: list[int] = data.draw(st.permutations(range(total)))
        out: dict[tuple[Source, int], int] = {}

        def settle() -> None:
            """Let the broker process the acknowledgements."""
            for source, tag in list(out):
                if tag in source.acked:
                    del out[source, tag]

        def step(what: str) -> None:
            if what == "deliver" and queue:
                source = sources[data.draw(st.integers(0, 1))]
                seq = queue.pop(0)
                world.send(endpoint, source, b"%d" % seq, seq)
                out[source, source.tags] = seq
            elif what == "turn":
                world.turns()
                settle()
            elif what == "full":
                wire.room = 0
            elif what == "drained":
                wire.drained(room=data.draw(st.sampled_from([0, 5, 1000])))
            elif what == "die":
                if data.draw(st.booleans()):
                    settle()
                place = data.draw(st.integers(0, 1))
                gone = sources[place]
                gone.open = False
                world.factory.deliveries.forget(gone)
                back = sorted(seq for (source, _), seq in out.items() if source is gone)
                for key in [key for key in out if key[0] is gone]:
                    del out[key]
                queue[:0] = back
                sources[place] = Source()

        steps = st.sampled_from(["deliver", "deliver", "deliver", "turn", "full", "drained", "die"])
        for what in data.draw(st.lists(steps, max_size=60)):
            step(what)
        while queue:
            step("deliver")
        wire.drained()
        world.turns()
        settle()
        self.assertEqual([int(line) for line in lines(wire)], list(range(total)))
        self.assertEqual((out, world.courier.records), ({}, []))
        self.assertEqual((world.held, world.waiting), (0, 0))


class EveryMessageTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_accounted_for_once(self, data: st.DataObject) -> None:
        """For any history, every message of every device is delivered or recorded once, and acknowledged; numbered ones arrive
        in order; and all counts are zero when all devices are gone.
        """
        world = World(gap_timeout=1.0, reorder_limit=4, write_buffer=60, write_timeout=3.0)
        source = Source(prefetch=24)
        devices: list[tuple[DeviceProtocol, Wire]] = [world.connect() for _ in range(3)]
        everybody = list(devices)
        seqs = st.one_of(st.none(), st.integers(0, 15))
        sent: dict[int, int | None] = {}
        for _ in range(data.draw(st.integers(0, 80))):
            what = data.draw(st.sampled_from(["send", "send", "send", "post", "full", "drained", "turn", "time", "lost"]))
            endpoint, wire = devices[data.draw(st.integers(0, 2))]
            if what in ("send", "post"):
                seq = data.draw(seqs)
                body = b"%d" % len(sent)
                sent[len(sent)] = seq
                if what == "send":
                    world.send(endpoint, source, body, seq)
                else:
                    fault = data.draw(st.sampled_from([None, None, "too-long"]))
                    close = data.draw(st.sampled_from([False, False, False, True]))
                    world.post(endpoint, source, body, seq, fault=fault, close=close, reply_to=b"q")
            elif what == "full":
                wire.room = 0
            elif what == "drained" and not wire.lost:
                wire.drained()
            elif what == "turn":
                world.turns()
            elif what == "time":
                world.later(data.draw(st.sampled_from([0.1, 1.0, 3.1])))
            elif what == "lost" and not wire.lost:
                world.turns()
                world.end(endpoint)
                devices[devices.index((endpoint, wire))] = new = world.connect()
                everybody.append(new)
        world.turns()
        for endpoint, wire in devices:
            if not wire.lost:
                world.end(endpoint)
        self.assertEqual(source.outstanding, 0)
        self.assertEqual((world.held, world.waiting), (0, 0))
        self.assertEqual((world.factory.reordering._holders, world.factory.slow._paused), ({}, {}))
        over: list[int] = []
        for _, wire in everybody:
            numbers = [int(line) for line in lines(wire)]
            in_order = [seq for seq in (sent[number] for number in numbers) if seq is not None]
            self.assertEqual(in_order, sorted(set(in_order)))
            over += numbers
        recorded = [int(letter.body) for letter, _ in world.courier.records]
        self.assertEqual(len(set(over + recorded)), len(over) + len(recorded))
        self.assertEqual(len(over) + len(recorded) + world.totals.duplicates, len(sent))
