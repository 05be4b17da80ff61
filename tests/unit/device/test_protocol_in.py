"""Tests of the direction from the device: lines to the sink, pauses, the rate, acknowledgements, and the end."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import LineFraming
from owsla.device.protocol import DeviceProtocol
from owsla.events import DeviceDisconnected, LineTooLong

from ._fakes import GONE, Sink, Source, Wire, World


class Watch:
    """Hang-up watch that records the watched connections."""

    def __init__(self) -> None:
        self.watched: list[Any] = []

    def watch(self, connection: Any) -> None:
        assert connection not in self.watched
        self.watched.append(connection)

    def unwatch(self, connection: Any) -> None:
        if connection in self.watched:
            self.watched.remove(connection)

    def tick(self) -> None: ...


class LinesTests(SynchronousTestCase):
    def test_published_with_numbers(self) -> None:
        """The lines of a connection are published with numbers 0, 1, 2 …, and with the prepared headers of that connection."""
        world = World()
        one, _ = world.connect(device_id="d1")
        two, _ = world.connect()
        one.dataReceived(b"a\nb\n")
        two.dataReceived(b"c\n")
        one.dataReceived(b"\n")
        self.assertEqual([(seq, line) for _, seq, line in world.sink.lines], [(0, b"a"), (1, b"b"), (0, b"c"), (2, b"")])
        self.assertEqual(world.sink.of(one), [b"a", b"b", b""])
        self.assertEqual((one.template, one.seq), ((one.connection_id, "d1"), 3))

    def test_disconnected_event(self) -> None:
        """The end of a connection is an event with peer, reason, lines in both directions, and duration."""
        world = World()
        endpoint, _ = world.connect(device_id="d1")
        endpoint.dataReceived(b"a\nb\nc")
        world.send(endpoint, Source(), b"hello")
        world.turns()
        world.clock.advance(12.5)
        world.end(endpoint, Failure(ConnectionDone()))
        connection_id = endpoint.connection_id.decode()
        self.assertEqual(
            world.events,
            [DeviceDisconnected(connection_id, "d1", "192.0.2.1:1234", "closed by the device", 2, 1, 12.5, 1)],
        )
        self.assertEqual(len(world.registry), 0)

    def test_counted(self) -> None:
        """Bytes and lines are counted once over all connections, including closed ones."""
        world = World()
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"a\nb\nc")
        world.sink.accepting = False
        endpoint.dataReceived(b"d\ne\n")  # kept until lines are accepted, and scanned again then
        world.sink.accepting = True
        endpoint.resume()
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"cd", b"e"])
        self.assertEqual((world.totals.bytes_in, endpoint.bytes_in), (9, 9))
        world.send(endpoint, Source(), b"hello")
        world.turns()
        self.assertEqual((world.totals.lines_out, world.totals.bytes_out), (1, 5))
        self.assertEqual((endpoint.lines_out, endpoint.bytes_out), (1, 5))
        world.end(endpoint)
        other, _ = world.connect()
        for line in (b"you", b"too"):
            world.send(other, Source(), line)
        world.turns()
        self.assertEqual((world.totals.lines_out, world.totals.bytes_out), (3, 11))
        self.assertEqual((other.lines_out, other.bytes_out, other.bytes_in), (2, 6, 0))

    def test_last_lines(self) -> None:
        """A connection has the time of its last line each way: that of its turn, and of a line that waited, that of its
        arrival. Bytes without the end of a line are no line.
        """
        world = World()
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"no end yet")
        self.assertEqual((endpoint.last_in, endpoint.last_out, endpoint.bytes_in), (None, None, 10))
        world.later(1)
        endpoint.dataReceived(b"\n")
        self.assertEqual((endpoint.last_in, endpoint.last_out), (1_000_001.0, None))
        world.clock.advance(2)
        world.send(endpoint, Source(), b"hello")
        world.turns()
        self.assertEqual((endpoint.last_in, endpoint.last_out), (1_000_001.0, 1_000_003.0))
        world.sink.accepting = False
        endpoint.dataReceived(b"waits\n")
        world.later(10)
        self.assertEqual(endpoint.last_in, 1_000_001.0)
        world.sink.resume()
        self.assertEqual(endpoint.last_in, 1_000_003.0)

    def test_pauses(self) -> None:
        """A connection that is not read says why: the broker, its share, its rate, or its end."""
        world = World(max_rate=1.0, device_ack=lambda seq: b"ACK %d\r\n" % seq)
        world.sink.share = 4
        endpoint, _ = world.connect()
        self.assertEqual((endpoint.paused, endpoint.pauses), (False, ()))
        endpoint.dataReceived(b"a\nb\nc\nd\ne\nf")
        self.assertEqual((endpoint.pauses, endpoint.unpublished), (("share", "rate"), 3))
        world.sink.stop()
        self.assertEqual(endpoint.pauses, ("broker", "rate"))
        endpoint.drain()
        self.assertEqual(endpoint.pauses, ("broker", "rate", "draining"))

    def test_reasons(self) -> None:
        """A reason is readable. The reason for which the gateway closed precedes the error of the socket."""
        tls = Failure(SSL.Error([("SSL routines", "", "bad record mac")]))
        for reason, said in ((tls, "TLS: bad record mac"), (GONE, "lost")):
            world = World()
            endpoint, _ = world.connect()
            world.end(endpoint, reason)
            self.assertIn(said, world.of_type(DeviceDisconnected)[0].reason)
        world = World()
        endpoint, _ = world.connect()
        endpoint.close("no line for 5 s")
        world.end(endpoint, tls)
        self.assertEqual(world.of_type(DeviceDisconnected)[0].reason, "no line for 5 s")

    def test_until_the_device_has_closed(self) -> None:
        """Lines that a device sends before it notices that its connection was closed are published: it would not send them
        again.
        """
        world = World()
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"on its")
        endpoint.close("enough")
        endpoint.dataReceived(b" way\n")
        self.assertEqual((world.sink.of(endpoint), wire.closed, endpoint.discarding), ([b"on its way"], "lost", False))
        world.end(endpoint)
        self.assertEqual(world.of_type(DeviceDisconnected)[0].reason, "enough")

    def test_nothing_after_the_last_acknowledgement(self) -> None:
        """Lines that arrive after the close from a device that waits for acknowledgements are not published: it sends them
        again.
        """
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        endpoint, wire = world.connect()
        endpoint.close("enough")
        endpoint.dataReceived(b"late\n")
        self.assertEqual((world.sink.lines, wire.closed, endpoint.discarding), ([], "lost", True))
        world.end(endpoint)
        self.assertEqual(world.sink.lines, [])

    def test_nothing_after_a_line_too_long(self) -> None:
        """Nothing is published after a line that is too long, also if it arrives after the close."""
        for closed in (False, True):
            world = World(LineFraming(max_line=5))
            endpoint, _ = world.connect()
            if closed:
                endpoint.close("enough")
            endpoint.dataReceived(b"a\nlonger\nb\n")
            endpoint.dataReceived(b"c\n")
            self.assertEqual((world.sink.of(endpoint), endpoint.discarding), ([b"a"], True))


class PausingTests(SynchronousTestCase):
    def test_when_it_next_speaks(self) -> None:
        """While the sink is paused, a connection is paused when it next sends, and not before."""
        world = World()
        endpoint, wire = world.connect()
        _, quiet = world.connect()
        world.sink.stop()
        self.assertTrue(wire.reading)
        endpoint.dataReceived(b"a\nb")
        self.assertEqual((wire.reading, quiet.reading, world.sink.lines), (False, True, []))
        self.assertEqual(world.totals.paused_connections, 1)
        world.sink.resume()
        self.assertEqual((wire.reading, world.sink.of(endpoint)), (True, [b"a"]))
        self.assertEqual(world.totals.paused_connections, 0)
        endpoint.dataReceived(b"c\n")
        self.assertEqual(world.sink.of(endpoint), [b"a", b"bc"])

    def test_what_was_kept_is_not_changed(self) -> None:
        """A line that ends with a carriage return still has it after it was kept."""
        world = World()
        endpoint, _ = world.connect()
        world.sink.room = 1
        endpoint.dataReceived(b"a\r\nb\r\r\n\r\r\nc\n")
        world.sink.resume()
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b\r", b"\r", b"c"])

    def test_stops_in_the_middle(self) -> None:
        """Lines that were read when the sink paused are kept, and published in order before lines that are read later."""
        world = World()
        endpoint, wire = world.connect()
        world.sink.room = 2
        endpoint.dataReceived(b"a\nb\r\nc\r\nd\ne")
        self.assertEqual((wire.reading, world.sink.of(endpoint)), (False, [b"a", b"b"]))
        world.sink.resume(1)
        self.assertEqual((wire.reading, world.sink.of(endpoint)), (False, [b"a", b"b", b"c"]))
        world.sink.resume()
        self.assertEqual((wire.reading, world.sink.of(endpoint)), (True, [b"a", b"b", b"c", b"d"]))
        endpoint.dataReceived(b"f\n")
        self.assertEqual(world.sink.of(endpoint)[4:], [b"ef"])

    def test_stops_after_the_last_line(self) -> None:
        """A sink that pauses after the last line that was read pauses no connection."""
        world = World()
        endpoint, wire = world.connect()
        world.sink.room = 2
        endpoint.dataReceived(b"a\nb\nrest")
        self.assertEqual((wire.reading, world.sink.waiting), (True, []))

    def test_when_it_was_received(self) -> None:
        """A line that waits for the sink keeps the time at which it was read. Later lines have their own."""
        world = World()
        endpoint, _ = world.connect()
        world.sink.room = 1
        world.later(10)
        first = world.factory.now()
        endpoint.dataReceived(b"a\nb\nc\nd")
        for seconds in (100, 200):
            world.clock.advance(seconds)
            world.sink.resume(1)
        endpoint.dataReceived(b"e\n")
        world.clock.advance(100)
        world.sink.resume()
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"c", b"de"])
        self.assertEqual(world.sink.received, [0.0, first, first, first + 300])

    def test_when_it_was_received_before_the_end(self) -> None:
        """The same holds for a line that is published because its connection ends or drains."""
        for end in (World.end, lambda world, endpoint: endpoint.drain()):
            world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
            endpoint, _ = world.connect()
            world.sink.stop()
            first = world.factory.now()
            endpoint.dataReceived(b"a\nb\n")
            world.clock.advance(100)
            end(world, endpoint)
            self.assertEqual(world.sink.received, [first, first])

    def test_counted_once(self) -> None:
        """However often the sink pauses while a connection is resumed, the connection waits and counts once."""
        watch = Watch()
        world = World(hangups=watch)
        endpoint, wire = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"1\n2\n3\n4\n5\n6\n")
        for _ in range(5):
            world.sink.resume(1)
            self.assertEqual(world.totals.paused_connections, 1)
            self.assertEqual((world.sink.waiting, watch.watched, wire.reading), ([endpoint], [wire], False))
        world.sink.resume(1)
        self.assertEqual((world.sink.waiting, watch.watched, wire.reading), ([], [], True))
        self.assertEqual((world.totals.paused_connections, len(world.sink.of(endpoint))), (0, 6))

    def test_fair(self) -> None:
        """A busy device takes one turn at a time: waiting connections are resumed one after another."""
        world = World()
        talkative, _ = world.connect()
        others = [world.connect()[0] for _ in range(3)]
        world.sink.stop()
        talkative.dataReceived(b"x\n" * 100)
        for other in others:
            other.dataReceived(b"y\n")
        for _ in range(4):
            world.sink.resume(1)
        self.assertEqual([world.sink.of(other) for other in others], [[b"y"]] * 3)
        self.assertEqual(len(world.sink.of(talkative)), 1)

    def test_gone_while_paused(self) -> None:
        """The complete lines of a device that goes while it is paused were read, and are published once."""
        for room in (None, 1):
            watch = Watch()
            world = World(hangups=watch)
            endpoint, _ = world.connect()
            world.sink.room = room
            if room is None:
                world.sink.stop()
            endpoint.dataReceived(b"a\nb\nrest")
            self.assertEqual(len(watch.watched), 1)
            world.end(endpoint)
            self.assertEqual(world.sink.of(endpoint), [b"a", b"b"])
            self.assertEqual((world.totals.paused_connections, watch.watched), (0, []))
            self.assertEqual(world.of_type(DeviceDisconnected)[0].unterminated, 4)
            world.sink.resume()
            self.assertEqual(world.sink.of(endpoint), [b"a", b"b"])

    def test_gone_while_paused_with_a_long_line(self) -> None:
        """Lines before a line that is too long, which were read and not published yet, are published when the device goes."""
        world = World(LineFraming(max_line=5))
        endpoint, _ = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"a\nlonger\nb\n")
        world.end(endpoint)
        self.assertEqual(world.sink.of(endpoint), [b"a"])
        self.assertEqual(len(world.of_type(LineTooLong)), 1)
        self.assertEqual(len(world.of_type(DeviceDisconnected)), 1)

    def test_closed_while_paused(self) -> None:
        """A connection that is closed while it waits for the sink still waits, and is not counted after its end."""
        for resumed_first in (True, False):
            watch = Watch()
            world = World(hangups=watch)
            endpoint, wire = world.connect()
            world.sink.stop()
            endpoint.dataReceived(b"a\n")
            endpoint.close("enough")
            self.assertFalse(wire.reading)
            if resumed_first:
                world.sink.resume()
            self.assertEqual(wire.reading, resumed_first)
            world.end(endpoint)
            world.sink.resume()
            self.assertEqual((world.totals.paused_connections, watch.watched), (0, []))

    def test_lines_before_a_close_while_paused(self) -> None:
        """Complete lines received before the close are published, also if they waited for the sink."""
        world = World()
        endpoint, _ = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"a\nb\n")
        endpoint.close("enough")
        world.end(endpoint)
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b"])


class ShareTests(SynchronousTestCase):
    def test_two_shares_on_their_way(self) -> None:
        """A connection has at most two unconfirmed shares: the next one begins when the last but one is confirmed."""
        world = World()
        world.sink.share = 3
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"\n" * 20)
        self.assertEqual((len(world.sink.lines), wire.reading), (3, False))
        world.sink.resume()
        self.assertEqual((len(world.sink.lines), wire.reading), (6, False))
        world.sink.resume()
        self.assertEqual(len(world.sink.lines), 6)
        world.sink.settled = 3
        world.sink.resume()
        self.assertEqual(len(world.sink.lines), 9)
        world.sink.settled = 20
        for _ in range(4):
            world.sink.resume()
        self.assertEqual((len(world.sink.of(endpoint)), wire.reading), (20, True))

    def test_quiet_devices_never_wait(self) -> None:
        """A connection whose lines are confirmed on arrival is never paused, for any number of lines."""
        world = World()
        world.sink.share = 3
        endpoint, wire = world.connect()
        for number in range(50):
            endpoint.dataReceived(b"x\n")
            self.assertTrue(wire.reading)
            world.sink.settled = number + 1
        self.assertEqual(len(world.sink.of(endpoint)), 50)

    def test_long_lines_cost_more(self) -> None:
        """A share is limited in bytes, too: a long line counts as several."""
        world = World()
        world.sink.share, world.sink.line_size = 10, 100
        endpoint, wire = world.connect()
        for _ in range(2):
            endpoint.dataReceived(b"x" * 1000 + b"\n")
            self.assertTrue(wire.reading)
        endpoint.dataReceived(b"x" * 1000 + b"\n")
        self.assertEqual((len(world.sink.lines), wire.reading), (2, False))


class DepartureTests(SynchronousTestCase):
    """The device has closed its side, or reset the connection, while it was not read."""

    def test_in_an_outage(self) -> None:
        """Data sent before the hang-up is read and published, although the sink accepts nothing from others."""
        world = World(hangups=Watch())
        world.sink.stop()
        endpoint, wire = world.connect()
        self.assertFalse(wire.reading)
        self.assertTrue(endpoint.peerClosed())
        self.assertTrue(wire.reading)
        endpoint.dataReceived(b"a\nb\n")
        endpoint.dataReceived(b"c\n")
        self.assertEqual((world.sink.of(endpoint), wire.reading), ([b"a", b"b", b"c"], True))

    def test_what_waited_comes_first(self) -> None:
        """Lines that were read before the outage are published before lines that are read now."""
        world = World()
        endpoint, _ = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"a\nb")
        endpoint.peerClosed()
        endpoint.dataReceived(b"c\n")
        self.assertEqual(world.sink.of(endpoint), [b"a", b"bc"])
        self.assertEqual(world.sink.waiting, [])

    def test_no_more_than_its_share(self) -> None:
        """A connection has the share that the sink can spare. The excess waits, and is dropped and counted when it must go."""
        world = World()
        world.sink.stop()
        world.sink.spare = 3
        endpoint, wire = world.connect()
        endpoint.peerClosed()
        endpoint.dataReceived(b"1\n2\n3\n4\n5\n")
        self.assertEqual((world.sink.of(endpoint), wire.reading), ([b"1", b"2", b"3"], False))
        self.assertFalse(endpoint.peerClosed())
        world.sink.spare = 100  # the part that others leave is not its share
        wire.unread = 1000
        world.end(endpoint)
        self.assertEqual(world.factory.discards.take_discards(), (2, 1000))
        self.assertEqual(world.factory.discards.take_discards(), (0, 0))

    def test_a_goodbye_is_no_loss(self) -> None:
        """Unread bytes that may be a close_notify are not counted, nor are lines that a device with acknowledgements sends
        again.
        """
        cases: list[tuple[int, dict[str, Any]]] = [(24, {}), (1000, {"device_ack": lambda seq: b""})]
        for unread, options in cases:
            world = World(**options)
            world.sink.stop()
            endpoint, wire = world.connect()
            wire.unread = unread
            world.end(endpoint)
            self.assertEqual(world.factory.discards.take_discards(), (0, 0))

    def test_in_line_with_a_working_broker(self) -> None:
        """While the broker confirms, a device that left waits for its turn like all others, and uses no room beyond the window.
        When the broker goes, it has its share of the spare room.
        """
        world = World(hangups=Watch())
        world.sink.room = 2
        endpoint, wire = world.connect()
        other, _ = world.connect()
        other.dataReceived(b"1\n2\n3\n")
        endpoint.dataReceived(b"a\nb\n")
        self.assertFalse(endpoint.peerClosed())
        self.assertEqual((world.sink.of(endpoint), endpoint.awaiting_turn, wire.reading), ([], True, False))
        self.assertEqual(world.sink.waiting, [other, endpoint])
        world.sink.resume(2)
        self.assertEqual((world.sink.of(other), world.sink.of(endpoint)), ([b"1", b"2", b"3"], [b"a"]))
        self.assertFalse(endpoint.peerClosed())
        world.sink.stop()
        self.assertFalse(endpoint.awaiting_turn)
        self.assertTrue(endpoint.peerClosed())
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b"])

    def test_too_long_at_last(self) -> None:
        """A closing connection is read to its end if its kept bytes turn out to be a line that is too long."""
        world = World(LineFraming(max_line=5))
        endpoint, wire = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"a\nlonger\nb\n")
        endpoint.close("enough")
        self.assertFalse(wire.reading)
        world.sink.resume()
        self.assertEqual((world.sink.of(endpoint), endpoint.discarding, wire.reading), ([b"a"], True, True))

    def test_rejected(self) -> None:
        """A connection whose lines cannot be published is closed at the first one. No other line is tried."""
        world = World()
        endpoint, wire = world.connect()
        tried: list[bytes] = []

        def publish(source: Any, line: bytes, received: float = 0.0) -> None:
            tried.append(line)
            source.reject("no")

        self.patch(world.sink, "publish", publish)
        endpoint.dataReceived(b"a\nb\nc\nrest")
        endpoint.dataReceived(b"d\n")
        self.assertEqual((tried, endpoint.seq, wire.closed), ([b"a"], 0, "lost"))
        self.assertTrue(endpoint.closing and endpoint.discarding)
        world.end(endpoint)
        self.assertEqual(tried, [b"a"])

    def test_the_rate_is_over(self) -> None:
        """A device that was slowed down and has gone is read to its end: little data is left."""
        world = World(max_rate=10.0)
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"x\n" * 30)
        self.assertFalse(wire.reading)
        self.assertTrue(endpoint.peerClosed())
        endpoint.dataReceived(b"x\n" * 30)
        self.assertTrue(wire.reading)
        self.assertEqual(len(world.sink.of(endpoint)), 60)


class RateTests(SynchronousTestCase):
    def rate(self, world: World, device: tuple[Any, Wire], seconds: float, burst: int) -> int:
        """Return the number of accepted lines of a device that sends as fast as it is read."""
        endpoint, wire = device
        for _ in range(round(seconds * 10)):
            for _ in range(20):
                if wire.reading:
                    endpoint.dataReceived(b"x\n" * burst)
            world.later(0.1)
        return len(world.sink.of(endpoint))

    def test_rate_is_kept(self) -> None:
        """Over a long time the rate holds, with an initial credit of a second and one read."""
        for burst in (1, 7, 40):
            world = World(max_rate=10.0)
            lines = self.rate(world, world.connect(), 60, burst)
            self.assertTrue(590 <= lines <= 600 + 20 + burst, (burst, lines))

    def test_below_the_rate(self) -> None:
        """A device within the rate is never paused, nor is one that sends the lines of a second after a silence."""
        world = World(max_rate=10.0)
        endpoint, wire = world.connect()
        for _ in range(50):
            endpoint.dataReceived(b"x\n")
            self.assertTrue(wire.reading)
            world.later(0.1)
        world.later(5)
        endpoint.dataReceived(b"x\n" * 10)
        self.assertTrue(wire.reading)
        endpoint.dataReceived(b"x\n")
        self.assertFalse(wire.reading)

    def test_others_are_not_slowed(self) -> None:
        """Each connection has its own rate."""
        world = World(max_rate=10.0)
        fast, _ = world.connect()
        _, wire = world.connect()
        fast.dataReceived(b"x\n" * 100)
        self.assertTrue(wire.reading)

    def test_two_reasons(self) -> None:
        """A connection paused for its rate and for the sink is read when both reasons have ended."""
        for sink_first in (True, False):
            world = World(max_rate=10.0)
            endpoint, wire = world.connect()
            endpoint.dataReceived(b"x\n" * 30)  # paid after 2 s
            world.sink.stop()
            endpoint.dataReceived(b"y\n")  # was on its way
            self.assertEqual(world.totals.paused_connections, 1)
            if sink_first:
                world.sink.resume()
                self.assertFalse(wire.reading)
                world.later(3)
            else:
                world.later(3)
                self.assertFalse(wire.reading)
                world.sink.resume()
            self.assertTrue(wire.reading)
            self.assertEqual(world.totals.paused_connections, 0)
            self.assertEqual(len(world.sink.of(endpoint)), 31)

    def test_lines_count_when_the_sink_stops(self) -> None:
        """Lines count for the rate also if the sink paused in the middle of them."""
        world = World(max_rate=10.0)
        endpoint, wire = world.connect()
        world.sink.room = 50
        endpoint.dataReceived(b"x\n" * 51)
        world.sink.resume()
        self.assertEqual(len(world.sink.of(endpoint)), 51)
        self.assertFalse(wire.reading)
        world.later(3.5)
        self.assertFalse(wire.reading)
        world.later(1)
        self.assertTrue(wire.reading)

    def test_gone_while_rated(self) -> None:
        """A device that goes while its rate pauses it leaves nothing behind."""
        watch = Watch()
        world = World(max_rate=10.0, hangups=watch)
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"x\n" * 30)
        self.assertEqual(len(watch.watched), 1)
        world.end(endpoint)
        world.later(5)
        self.assertEqual((world.totals.paused_connections, watch.watched), (0, []))


class StallTests(SynchronousTestCase):
    def test_until_it_is_resumed(self) -> None:
        """A connection that the sink stalls is not read until the sink resumes it, although others are."""
        world = World()
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"a\n")
        endpoint.stall()
        endpoint.stall()
        self.assertEqual((wire.reading, world.sink.waiting), (False, [endpoint]))
        world.sink.resume()
        self.assertTrue(wire.reading)

    def test_when_it_is_gone(self) -> None:
        """The lines of a connection that has ended may be refused. That is no failure, and nobody waits."""
        world = World()
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"a\n")
        world.end(endpoint, GONE)
        endpoint.stall()
        self.assertEqual((world.sink.waiting, world.totals.paused_connections), ([], 0))


class FailureTests(SynchronousTestCase):
    def test_when_it_is_gone(self) -> None:
        """An exception for a connection that is already gone (a late confirm, for example) is not swallowed."""
        world = World()
        endpoint, _ = world.connect()
        endpoint.connectionLost(GONE)
        endpoint.failed(Failure(RuntimeError("ours")))
        self.assertEqual(world.endpoints.failures, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class DeviceAckTests(SynchronousTestCase):
    def world(self) -> World:
        return World(device_ack=lambda seq: b"ACK %d\r\n" % seq)

    def test_once_a_turn(self) -> None:
        """A device gets one acknowledgement per turn, of the last line."""
        world = self.world()
        endpoint, wire = world.connect()
        for seq in range(5):
            endpoint.confirmed(seq)
        self.assertEqual(wire.data, b"")
        world.turns()
        self.assertEqual(wire.data, b"ACK 4\r\n")
        world.turns()
        endpoint.confirmed(5)
        world.turns()
        self.assertEqual(wire.data, b"ACK 4\r\nACK 5\r\n")

    @given(st.permutations(range(12)), st.lists(st.integers(1, 5), min_size=12, max_size=12))
    def test_contiguous_prefix_only(self, confirms: list[int], turns: list[int]) -> None:
        """In any order of confirms, an acknowledgement covers only lines without an unconfirmed one before them."""
        world = self.world()
        endpoint, wire = world.connect()
        seen: set[int] = set()
        told = -1
        for turn in turns:
            for seq in confirms[:turn]:
                endpoint.confirmed(seq)
                seen.add(seq)
            del confirms[:turn]
            wire.written.clear()
            world.turns()
            safe = min(set(range(13)) - seen) - 1
            self.assertEqual(wire.data, b"ACK %d\r\n" % safe if safe > told else b"")
            told = safe

    def test_end_that_fails(self) -> None:
        """An acknowledgement and a message that were due when the end of their connection failed are dropped, without a second
        failure.
        """

        def fail(*arguments: object) -> None:
            raise ValueError("an end that fails")

        world = self.world()
        endpoint, wire = world.connect()
        endpoint.confirmed(0)
        endpoint.sendLine(b"due")
        self.patch(DeviceProtocol, "_report_end", fail)
        world.end(endpoint)
        world.turns()
        endpoint.confirmed(1)
        world.turns()
        self.assertEqual(wire.data, b"")
        self.assertEqual(world.endpoints.failures, 1)
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_not_told_when_closed(self) -> None:
        """Confirms for a connection that is closing or gone are no error, and nothing is written."""
        world = self.world()
        endpoint, wire = world.connect()
        endpoint.confirmed(0)
        endpoint.close("enough")
        world.turns()
        endpoint.confirmed(1)
        world.turns()
        world.end(endpoint)
        endpoint.confirmed(2)
        world.turns()
        self.assertEqual(wire.written, [])

    def test_confirmed_and_gone_in_one_turn(self) -> None:
        """A connection that ends in the turn in which its lines were confirmed is no error."""
        world = self.world()
        endpoint, _ = world.connect()
        endpoint.confirmed(0)
        world.end(endpoint)
        world.turns()

    def test_a_device_that_does_not_read(self) -> None:
        """Acknowledgements for a device that does not read do not accumulate: it gets the last one when it reads, and is closed
        if it does not read within the write timeout.
        """
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq, write_timeout=5.0)
        endpoint, wire = world.connect(room=10)
        for seq in range(100):
            endpoint.confirmed(seq)
            world.turns()
        self.assertLess(len(wire.data), 40)
        told = len(wire.written)
        wire.drained()
        world.turns()
        self.assertEqual(wire.written[told:], [b"ACK 99\r\n"])
        wire.room = 0
        endpoint.confirmed(100)
        world.turns()
        self.assertTrue(wire.congested)
        world.later(4.8)
        self.assertEqual(wire.closed, "")
        world.later(0.4)
        self.assertEqual(wire.closed, "lost")


class DrainTests(SynchronousTestCase):
    def test_reads_no_more(self) -> None:
        """After its drain a device with acknowledgements is not read any more, whatever resumes."""
        world = World(max_rate=10.0, device_ack=lambda seq: b"ACK %d\r\n" % seq)
        for state in ("reading", "waiting", "rated"):
            world.sink.resume()
            endpoint, wire = world.connect()
            if state == "waiting":
                world.sink.stop()
                endpoint.dataReceived(b"x\n")
            elif state == "rated":
                endpoint.dataReceived(b"x\n" * 30)
            endpoint.drain()
            world.sink.resume()
            world.later(4)
            self.assertFalse(wire.reading, state)
            self.assertEqual(wire.closed, "")
            world.end(endpoint)
            self.assertEqual(world.totals.paused_connections, 0)

    def test_publishes_what_was_read(self) -> None:
        """Complete lines of a device with acknowledgements are published once, also if they waited for the sink."""
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        endpoint, _ = world.connect()
        world.sink.room = 1
        endpoint.dataReceived(b"a\nb\nc\nrest")
        endpoint.drain()
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"c"])
        world.sink.resume()
        world.end(endpoint)
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"c"])
        self.assertEqual(world.of_type(DeviceDisconnected)[0].unterminated, 4)

    def test_too_long(self) -> None:
        """A line that is too long is not published in a drain either, nor are the lines after it."""
        world = World(LineFraming(max_line=5), device_ack=lambda seq: b"ACK %d\r\n" % seq)
        endpoint, wire = world.connect()
        world.sink.stop()
        endpoint.dataReceived(b"a\nlonger\nb\n")
        endpoint.drain()
        self.assertEqual((world.sink.of(endpoint), wire.closed), ([b"a"], "lost"))

    def test_has_its_turn(self) -> None:
        """Lines of a device without acknowledgements wait for their turn like all others, however full the sink is. Then the
        device is read further.
        """
        world = World()
        endpoint, wire = world.connect()
        world.sink.stop()
        world.sink.spare = 0
        endpoint.dataReceived(b"a\nb\n")
        endpoint.drain()
        endpoint.close("enough")
        self.assertEqual((world.sink.lines, world.factory.discards.take_discards()), ([], (0, 0)))
        world.sink.resume()
        self.assertEqual((world.sink.of(endpoint), wire.reading), ([b"a", b"b"], True))

    def test_waits_for_no_number(self) -> None:
        """Messages held for a missing number are delivered: the number will not arrive in time."""
        world = World()
        endpoint, wire = world.connect()
        source = Source()
        for seq in (5, 2, 4):
            world.send(endpoint, source, b"%d" % seq, seq)
        endpoint.drain()
        world.turns()
        self.assertEqual((wire.data, source.outstanding), (b"2\r\n4\r\n5\r\n", 0))

    def test_still_served(self) -> None:
        """Until it is closed, a device gets messages and acknowledgements."""
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        endpoint, wire = world.connect()
        endpoint.dataReceived(b"a\n")
        endpoint.drain()
        source = Source()
        world.send(endpoint, source, b"last", 0)
        endpoint.confirmed(0)
        self.assertTrue(endpoint.backlog)
        world.turns()
        self.assertFalse(endpoint.backlog)
        self.assertEqual((sorted(wire.written), source.outstanding), ([b"ACK 0\r\n", b"last\r\n"], 0))

    def test_twice_and_gone(self) -> None:
        """Draining twice, or after a close or an end, has no effect."""
        world = World()
        endpoint, _ = world.connect()
        endpoint.drain()
        endpoint.drain()
        endpoint.close("enough")
        endpoint.drain()
        world.end(endpoint)
        endpoint.drain()
        self.assertEqual(world.totals.paused_connections, 0)


class SinkFakeTests(SynchronousTestCase):
    def test_numbers_are_checked(self) -> None:
        """The sink of these tests detects a hole in the numbers."""
        sink = Sink()
        world = World()
        endpoint, _ = world.connect()
        sink.publish(endpoint, b"a")
        endpoint.seq += 1
        sink.publish(endpoint, b"b")
        self.assertRaises(AssertionError, sink.of, endpoint)
