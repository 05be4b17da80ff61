"""Tests of the actions of a dialect, and of lines and messages with a dialect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.deny_list import parse_deny_list
from owsla.config.framings import read_framing
from owsla.device.dialect_protocol import KEPT, DialectProtocol
from owsla.device.framing import LineFraming, make_framing
from owsla.dialects import REFUSED, Conversation, Dialect, Refused
from owsla.events import (
    DeviceDisconnected,
    DeviceHeldOff,
    DeviceIdentified,
    DeviceReplaced,
    DialectFailed,
    LoginFailed,
    SlowDevice,
)

from ..device._fakes import Source
from ._fakes import DialectWorld


class Scripted(Dialect):
    """Dialect that does what a line says, or what a message says. All other lines are published."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self.ended: list[str] = []
        self.timeouts = 0
        self.on_timeout: Any = None

    def line(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        talk = self.conversation
        if word == b"answer":
            talk.answer(rest)
        elif word == b"twice":
            talk.publish(rest)
            talk.publish(rest)
        elif word == b"nothing":
            pass
        elif word == b"hold":
            talk.hold()
        elif word == b"release":
            talk.release()
        elif word == b"identify":
            talk.identify(rest.decode())
        elif word == b"wait":
            talk.set_timeout(float(rest))
        elif word == b"wait-for-device":
            talk.set_timeout(float(rest), of_device=True)
        elif word == b"clear":
            talk.clear_timeout()
        elif word == b"bye":
            talk.answer(b"bye")
            talk.hang_up("it said bye")
        elif word == b"raise":
            raise ZeroDivisionError(rest.decode())
        else:
            talk.publish(line)

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        if line == b"raise":
            raise ZeroDivisionError
        if line == b"refuse":
            return REFUSED
        if line == b"kick":
            self.conversation.hang_up("kicked")
            return ()
        if line == b"long":
            return (b"x" * 17000,)
        return line.replace(b"LF", b"\n").replace(b"CR", b"\r").split(b"|") if line else ()

    def timed_out(self) -> None:
        self.timeouts += 1
        if self.on_timeout is not None:
            self.on_timeout()

    def disconnected(self, reason: str) -> None:
        self.ended.append(reason)


class Base(SynchronousTestCase):
    def world(self, **options: Any) -> DialectWorld:
        return DialectWorld(Scripted, **options)

    def dialect(self, endpoint: DialectProtocol) -> Scripted:
        dialect = endpoint._dialect
        assert isinstance(dialect, Scripted)
        return dialect


class FromDeviceTests(Base):
    def test_source(self) -> None:
        """The source is the address, and empty if the address is not known: such devices are not all at one address."""
        world = DialectWorld(Scripted)
        endpoint, wire = world.speak()
        for host, source in (("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), (None, "")):
            wire.host = host
            self.assertEqual(endpoint.source, source)

    def test_default(self) -> None:
        """The base class passes everything through in both directions, like a connection without a dialect."""
        world = DialectWorld(Dialect)
        endpoint, wire = world.speak(device_id="d1")
        endpoint.dataReceived(b"a\nb\r\n\n")
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b""])
        source = Source()
        world.send(endpoint, source, b"one", 0)
        world.send(endpoint, source, b"two")
        self.assertEqual(world.heard(wire), [b"one", b"two"])
        self.assertEqual(source.outstanding, 0)
        world.end(endpoint, Failure(ConnectionDone()))
        (event,) = world.of_type(DeviceDisconnected)
        self.assertEqual((event.lines_in, event.lines_out, event.reason), (3, 2, "closed by the device"))

    def test_numbers(self) -> None:
        """Published lines are numbered 0, 1, 2 …, independent of the lines in between."""
        world = self.world()
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"a\nnothing\ntwice b\nanswer hello\nc\n")
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"b", b"c"])
        self.assertEqual(world.heard(wire), [b"hello"])
        self.assertEqual((endpoint.lines_in, endpoint.lines_out, endpoint.seq), (5, 1, 4))

    def test_when_it_was_received(self) -> None:
        """A kept line has the time of its arrival, whether its dialect holds it or nothing can be published."""
        world = self.world()
        endpoint, _ = world.speak()
        first = world.factory.now()
        endpoint.dataReceived(b"hold\na\n")
        world.clock.advance(100)
        world.sink.stop()
        second = world.factory.now()
        endpoint.dataReceived(b"b\nrelease\n")
        world.clock.advance(100)
        world.sink.resume()
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b"])
        self.assertEqual(world.sink.received, [first, second])

    def test_hold(self) -> None:
        """While publication is held, lines are kept. They are published in order on release."""
        world = self.world()
        endpoint, _ = world.speak()
        endpoint.dataReceived(b"hold\na\nb\n")
        self.assertEqual(world.sink.lines, [])
        endpoint.dataReceived(b"release\nc\n")
        self.assertEqual(world.sink.of(endpoint), [b"a", b"b", b"c"])

    def test_held_too_much(self) -> None:
        """Beyond a limit of kept lines the connection is closed, and none of them is published."""
        for lines in (b"x\n" * 5000, b"y" * 16000 + b"\n"):
            world = self.world()
            endpoint, wire = world.speak()
            endpoint.dataReceived(b"hold\n")
            for _ in range(10):
                endpoint.dataReceived(lines)
            self.assertEqual(wire.closed, "lost")
            self.assertLess(sum(map(len, endpoint._kept)), KEPT + 16384)
            world.end(endpoint)
            self.assertIn("could not be published", world.of_type(DeviceDisconnected)[0].reason)
            self.assertEqual((world.sink.lines, len(endpoint._kept)), ([], 0))

    def test_held_longest_line(self) -> None:
        """One line of full length is kept, for any maximum length."""
        world = DialectWorld(Scripted, framing=LineFraming(max_line=1 << 20))
        endpoint, _ = world.speak()
        endpoint.dataReceived(b"hold\n" + b"x" * (1 << 20) + b"\nrelease\n")
        self.assertEqual([len(line) for line in world.sink.of(endpoint)], [1 << 20])

    def test_never_released(self) -> None:
        """Nothing is published for a device that never identified itself, also when it goes or Owsla stops."""
        world = self.world()
        endpoint, _ = world.speak()
        endpoint.dataReceived(b"hold\na\n")
        endpoint.drain()
        world.end(endpoint)
        self.assertEqual(world.sink.lines, [])

    def test_identify(self) -> None:
        """Lines and the end of the connection have the device id set by the dialect."""
        world = self.world()
        endpoint, _ = world.speak()
        endpoint.dataReceived(b"identify d1\na\n")
        self.assertEqual(endpoint.template, (endpoint.connection_id, "d1"))
        identified = DeviceIdentified(endpoint.connection_id.decode(), "d1", endpoint.since)
        self.assertEqual(world.of_type(DeviceIdentified), [identified])
        world.end(endpoint)
        self.assertEqual(world.of_type(DeviceDisconnected)[0].device_id, "d1")

    def test_identified_already(self) -> None:
        """The identity of a certificate is known from the start. Setting the same id again has no effect."""
        world = self.world()
        endpoint, _ = world.speak(device_id="d1")
        self.assertEqual(endpoint.device_id, "d1")
        endpoint.dataReceived(b"identify d1\n")
        self.assertEqual(world.events, [])

    def test_identify_too_late(self) -> None:
        """After the first published line no other id can be set, nor an invalid one at any time: that is an error of the
        dialect.
        """
        for lines in (b"a\nidentify d1\n", b"identify \n", b"identify a\x07\n", b"identify " + b"x" * 256 + b"\n"):
            world = self.world()
            endpoint, wire = world.speak()
            endpoint.dataReceived(lines)
            self.assertEqual((len(world.of_type(DialectFailed)), wire.closed), (1, "lost"))
            self.assertIsNone(endpoint.device_id)

    def test_denied(self) -> None:
        """A device that may not connect is closed with the reason. That is no failure of a dialect that does not expect it."""
        world = self.world()
        world.factory.denied.use(parse_deny_list(b"device d1"))
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"identify d1\na line of d1\n")
        self.assertEqual((wire.closed, world.sink.lines, endpoint.device_id), ("lost", [], None))
        self.assertEqual((world.of_type(DialectFailed), world.of_type(DeviceIdentified)), ([], []))
        self.assertEqual([event.reason for event in world.of_type(LoginFailed)], ["the device is denied: d1"])

    def test_held_off(self) -> None:
        """A device that a dialect identifies too often is held off, with one event."""
        world = self.world()
        world.factory.devices.flaps.configure(1)
        wires = []
        for _ in range(4):
            endpoint, wire = world.speak()
            endpoint.dataReceived(b"identify d1\n")
            wires.append(wire)
        self.assertEqual([wire.closed for wire in wires], [""] + ["lost"] * 3)
        self.assertEqual([event.connections for event in world.of_type(DeviceHeldOff)], [2])
        self.assertEqual((world.of_type(DialectFailed), world.of_type(LoginFailed)), ([], []))

    def test_replace(self) -> None:
        """With --on-duplicate replace an identity set by a dialect replaces like one of a certificate. A changed identity is
        released.
        """
        world = self.world(replace=True)
        first, first_wire = world.speak(device_id="d1")
        second, second_wire = world.speak()
        second.dataReceived(b"identify d1\n")
        self.assertEqual((first_wire.closed, second_wire.closed), ("lost", ""))
        self.assertEqual(len(world.of_type(DeviceReplaced)), 1)
        world.end(first)
        second.dataReceived(b"identify d2\n")
        _, third_wire = world.speak(device_id="d1")
        self.assertEqual((second_wire.closed, third_wire.closed), ("", ""))
        world.speak(device_id="d2")
        self.assertEqual(second_wire.closed, "lost")

    def test_hang_up(self) -> None:
        """The last answer of the dialect is sent, and later lines are not passed to it."""
        world = self.world()
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"bye\na\nraise\n")
        self.assertEqual((world.heard(wire), wire.closed), ([b"bye"], "lost"))
        dialect = self.dialect(endpoint)
        world.end(endpoint)
        self.assertEqual((world.sink.lines, dialect.ended), ([], ["it said bye"]))
        self.assertEqual(world.of_type(DeviceDisconnected)[0].reason, "it said bye")

    def test_after_the_end(self) -> None:
        """Actions of a dialect on a connection that is gone have no effect."""
        world = self.world()
        endpoint, wire = world.speak()
        dialect = self.dialect(endpoint)
        world.end(endpoint)
        wire.written.clear()
        events = len(world.events)
        talk = dialect.conversation
        self.assertTrue(talk.closed)
        talk.hold()
        talk.publish(b"x")
        talk.release()
        talk.answer(b"x")
        talk.identify("d1")
        talk.set_timeout(1.0)
        talk.hang_up("again")
        talk.fail(Failure(ZeroDivisionError()))
        world.later(2.0)
        self.assertEqual((world.sink.lines, wire.written, len(world.events), dialect.timeouts), ([], [], events, 0))
        self.assertEqual((dialect.ended, len(world.factory.timers), talk.peer), (["lost"], 0, ""))


class OutageTests(Base):
    def test_not_read(self) -> None:
        """While nothing can be published, the dialect gets no lines; then all of them, in order."""
        world = self.world()
        endpoint, wire = world.speak()
        world.sink.stop()
        endpoint.dataReceived(b"a\nanswer hello\nb\n")
        self.assertEqual((world.heard(wire), wire.reading), ([], False))
        world.sink.resume(1)
        self.assertEqual(world.sink.of(endpoint), [b"a"])
        world.sink.resume()
        self.assertEqual((world.sink.of(endpoint), world.heard(wire), wire.reading), ([b"a", b"b"], [b"hello"], True))

    def test_published_in_an_outage(self) -> None:
        """Lines that a dialect publishes in an outage are kept, and precede later lines of the device."""
        world = self.world()
        endpoint, wire = world.speak()
        dialect = self.dialect(endpoint)
        world.sink.stop()
        for number in range(3):
            dialect.conversation.publish(b"%d" % number)
        self.assertEqual((world.sink.lines, wire.reading), ([], False))
        endpoint.dataReceived(b"later\n")
        for _ in range(3):
            world.sink.resume(1)
        self.assertEqual(world.sink.of(endpoint), [b"0", b"1", b"2"])
        world.sink.resume()
        self.assertEqual((world.sink.of(endpoint)[3:], wire.reading, world.sink.waiting), ([b"later"], True, []))

    def test_gone_in_an_outage(self) -> None:
        """At the end of the connection, or in the drain of a device with acknowledgements, kept lines are published at once."""
        for drained in (False, True):
            world = self.world(device_ack=lambda seq: b"ACK %d\r\n" % seq)
            endpoint, _ = world.speak()
            dialect = self.dialect(endpoint)
            world.sink.stop()
            dialect.conversation.publish(b"mine")
            endpoint.dataReceived(b"a\nb\n")
            if drained:
                endpoint.drain()
            else:
                world.end(endpoint)
            self.assertEqual(world.sink.of(endpoint), [b"mine", b"a", b"b"])

    def test_bounded(self) -> None:
        """A dialect that publishes without end in an outage is closed."""
        world = self.world()
        endpoint, wire = world.speak()
        world.sink.stop()
        for _ in range(2000):
            self.dialect(endpoint).conversation.publish(b"again")
        self.assertEqual(wire.closed, "lost")
        self.assertLess(endpoint._kept_size, KEPT + 100)


class ToDeviceTests(Base):
    def test_shaped(self) -> None:
        """A message may become several lines, or none. It is settled with the last one, once."""
        world = self.world()
        endpoint, wire = world.speak()
        source = Source()
        world.send(endpoint, source, b"a|b|c", 0)
        world.post(endpoint, source, b"", 1, reply_to=b"reports")
        world.send(endpoint, source, b"d", 2)
        self.assertEqual(world.heard(wire), [b"a", b"b", b"c", b"d"])
        self.assertEqual((source.acked, len(world.courier.reports)), ([1, 2, 3], 1))

    def test_refused(self) -> None:
        """A refused message is recorded, its number is used, and later messages continue."""
        world = self.world()
        endpoint, wire = world.speak()
        source = Source()
        world.send(endpoint, source, b"b", 1)
        world.send(endpoint, source, b"refuse", 0)
        world.send(endpoint, source, b"refuse")
        self.assertEqual(world.heard(wire), [b"b"])
        self.assertEqual(world.courier.reasons, [(b"refuse", "refused-by-dialect")] * 2)
        self.assertTrue(world.courier.records[0][0].settled)
        self.assertEqual(source.outstanding, 0)

    def test_in_order(self) -> None:
        """The dialect gets messages in the order of their numbers, each at its turn."""
        world = self.world()
        seen: list[bytes] = []

        class Seeing(Dialect):
            def outgoing(self, line: bytes) -> Iterable[bytes]:
                seen.append(line)
                return (line,)

        endpoint, _ = world.speak(make=Seeing)
        source = Source()
        for number in (2, 1, 0, 0, 3):
            world.send(endpoint, source, b"%d" % number, number)
        self.assertEqual((seen, source.outstanding), ([b"0", b"1", b"2", b"3"], 0))

    def test_congested(self) -> None:
        """While the socket is full, messages wait unacknowledged and without a call of the dialect. Answers wait with them, in
        order.
        """
        world = self.world()
        endpoint, wire = world.speak(room=3)
        source = Source()
        world.send(endpoint, source, b"fills it")
        world.turns()
        world.send(endpoint, source, b"a|b")
        endpoint.dataReceived(b"answer one\nanswer two\n")
        self.assertEqual((source.acked, world.heard(wire)), ([1], [b"fills it"]))
        wire.drained()
        self.assertEqual((source.acked, world.heard(wire)), ([1, 2], [b"a", b"b", b"one", b"two"]))

    def test_answers_are_bounded(self) -> None:
        """A device that asks without end and does not read is closed as slow."""
        world = self.world(write_buffer=1000)
        endpoint, wire = world.speak(room=3)
        endpoint.dataReceived(b"answer fills it\n")
        world.turns()
        endpoint.dataReceived(b"answer more\n" * 100)
        self.assertEqual((wire.closed, len(world.of_type(SlowDevice))), ("lost", 1))
        self.assertLess(len(endpoint._answers), 20)

    def test_closed_while_congested(self) -> None:
        """Waiting answers are sent before close_notify."""
        world = self.world()
        endpoint, wire = world.speak(room=3)
        endpoint.dataReceived(b"answer fills it\n")
        world.turns()
        endpoint.dataReceived(b"answer more\nbye\n")
        self.assertEqual((world.heard(wire), wire.closed), ([b"fills it", b"more", b"bye"], "lost"))
        self.assertEqual((endpoint.lines_out, endpoint.bytes_out), (3, 15))

    def test_kicked(self) -> None:
        """A message on which the dialect hangs up is settled."""
        world = self.world()
        endpoint, wire = world.speak()
        source = Source()
        world.send(endpoint, source, b"kick")
        self.assertEqual((wire.closed, source.outstanding, world.courier.records), ("lost", 0, []))

    def test_no_line(self) -> None:
        """A line that is too long, or has a delimiter, is not sent: that is an error of the dialect."""
        for line in (b"long", b"aLFb", b"aCRb"):
            world = self.world()
            endpoint, wire = world.speak()
            source = Source()
            world.send(endpoint, source, line)
            self.assertEqual((world.heard(wire), wire.closed), ([], "lost"))
            self.assertEqual(world.courier.reasons, [(line, "connection-closed")])
            self.assertEqual(len(world.of_type(DialectFailed)), 1)

    def test_framing(self) -> None:
        """In another framing the dialect has payloads, and what it returns is framed. What cannot be sent in the framing is an
        error of the dialect; a message that cannot is recorded and does not reach the dialect.
        """
        spec = read_framing("fixed:6")
        world = self.world(framing=make_framing(spec, b"\n", 100))
        endpoint, wire = world.speak()
        source = Source()
        endpoint.dataReceived(b"a\nb\r\0csec")
        endpoint.dataReceived(b"ond")
        self.assertEqual(world.sink.of(endpoint), [b"a\nb\r\0c", b"second"])
        world.send(endpoint, source, b"kick")
        self.assertEqual((world.courier.reasons, wire.closed), ([(b"kick", "bad-length")], ""))
        world.send(endpoint, source, b"one|23")
        self.assertEqual(wire.closed, "lost")
        (event,) = world.of_type(DialectFailed)
        self.assertIn("a line of 3 bytes to the device does not fit into its framing", event.reason)


class TimeoutTests(Base):
    def test_timeout(self) -> None:
        """A timeout occurs once, by the clock of the gateway. A new one replaces it, and it can be cleared."""
        world = self.world()
        endpoint, _ = world.speak()
        dialect = self.dialect(endpoint)
        endpoint.dataReceived(b"wait 2\n")
        world.later(1.5)
        endpoint.dataReceived(b"wait 1\n")
        world.later(0.8)
        self.assertEqual(dialect.timeouts, 0)
        world.later(0.4)
        self.assertEqual(dialect.timeouts, 1)
        endpoint.dataReceived(b"wait 1\nclear\n")
        world.later(5.0)
        self.assertEqual((dialect.timeouts, len(world.factory.timers)), (1, 0))

    def test_no_time_at_all(self) -> None:
        """A timeout of zero that is set again in its callback occurs once per tick, and delays no other connection."""
        world = self.world()
        endpoint, _ = world.speak()
        dialect = self.dialect(endpoint)
        dialect.on_timeout = lambda: dialect.conversation.set_timeout(0.0)
        endpoint.dataReceived(b"wait -1\n")
        world.later(1.0)
        self.assertIn(dialect.timeouts, range(5, 11))

    def test_of_the_device(self) -> None:
        """A timeout for the device to send waits while the device is not read, and begins again afterwards. Other timeouts run.
        """
        for word, expected in ((b"wait-for-device", 0), (b"wait", 1)):
            world = self.world()
            endpoint, _ = world.speak()
            dialect = self.dialect(endpoint)
            endpoint.dataReceived(word + b" 2\n")
            world.later(1.0)
            world.sink.stop()
            endpoint.dataReceived(b"x\n")
            world.later(10.0)
            self.assertEqual(dialect.timeouts, expected)
            world.sink.resume()
            world.later(1.5)
            self.assertEqual(dialect.timeouts, expected)
            world.later(1.0)
            self.assertEqual(dialect.timeouts, 1)

    def test_paused_just_in_time(self) -> None:
        """A device that was paused for most of its time gets all of it again."""
        world = self.world()
        endpoint, _ = world.speak()
        dialect = self.dialect(endpoint)
        endpoint.dataReceived(b"wait-for-device 2\n")
        world.sink.stop()
        endpoint.dataReceived(b"x\n")
        world.later(1.8)
        world.sink.resume()
        world.later(1.8)
        self.assertEqual(dialect.timeouts, 0)

    def test_gone(self) -> None:
        """No timeout occurs for a connection that is gone or closing."""
        for ended in (True, False):
            world = self.world()
            endpoint, _ = world.speak()
            dialect = self.dialect(endpoint)
            endpoint.dataReceived(b"wait 1\n")
            if ended:
                world.end(endpoint)
            else:
                endpoint.close("enough")
            world.later(3.0)
            self.assertEqual(dialect.timeouts, 0)


class FailureTests(Base):
    """Tests of a dialect that raises."""

    def setUp(self) -> None:
        self.logged: list[Any] = []
        observer: Any = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def observe(self, event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            self.logged.append(event)

    def assert_failed(self, world: DialectWorld, endpoint: DialectProtocol, wire: Any) -> None:
        """Check that its own connection was closed, with an event and one log entry, and that others are alive."""
        other, other_wire = world.speak(make=Scripted)
        self.assertIn("lost", (wire.closed,))
        if endpoint.transport is not None:
            world.end(endpoint)
        (event,) = world.of_type(DialectFailed)
        self.assertEqual((event.connection_id, event.dialect), (endpoint.connection_id.decode(), "Test"))
        self.assertIn("ZeroDivisionError", event.reason)
        self.assertEqual(world.of_type(DeviceDisconnected)[0].reason, "its dialect failed")
        self.assertEqual((world.endpoints.failures, len(world.endpoints)), (1, 1))
        self.assertEqual(len(self.logged), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        other.dataReceived(b"answer still here\n")
        self.assertEqual((world.heard(other_wire), other_wire.closed), ([b"still here"], ""))

    def test_line(self) -> None:
        """In `line`: earlier lines are published, later ones are not passed on. Answers are sent."""
        world = self.world()
        endpoint, wire = world.speak()
        dialect = self.dialect(endpoint)
        endpoint.dataReceived(b"a\nanswer yes\nraise it\nb\nraise it\n")
        self.assertEqual((world.sink.of(endpoint), world.heard(wire)), ([b"a"], [b"yes"]))
        self.assert_failed(world, endpoint, wire)
        self.assertEqual((world.sink.of(endpoint), dialect.ended), ([b"a"], []))

    def test_outgoing(self) -> None:
        """In `outgoing`: the message, and those that wait behind it, are recorded as connection-closed."""
        world = self.world()
        endpoint, wire = world.speak()
        source = Source()
        world.send(endpoint, source, b"behind", 1)
        world.send(endpoint, source, b"raise", 0)
        self.assertEqual(sorted(world.courier.reasons), [(b"behind", "connection-closed"), (b"raise", "connection-closed")])
        self.assertEqual(source.outstanding, 0)
        self.assert_failed(world, endpoint, wire)

    def test_outgoing_when_writable(self) -> None:
        """The same for a message that waited for the socket."""
        world = self.world()
        endpoint, wire = world.speak(room=3)
        source = Source()
        world.send(endpoint, source, b"fills it")
        world.turns()
        for body in (b"a", b"raise", b"b"):
            world.send(endpoint, source, body)
        wire.drained()
        self.assertEqual((source.outstanding, world.heard(wire)), (0, [b"fills it", b"a"]))
        self.assertEqual(sorted(world.courier.reasons), [(b"b", "connection-closed"), (b"raise", "connection-closed")])
        self.assert_failed(world, endpoint, wire)

    def test_timeout(self) -> None:
        """In `timed_out`."""
        world = self.world()
        endpoint, wire = world.speak()
        self.dialect(endpoint).on_timeout = lambda: 1 / 0
        endpoint.dataReceived(b"wait 1\n")
        world.later(1.5)
        self.assert_failed(world, endpoint, wire)

    def test_beginning(self) -> None:
        """In the constructor, or in `connected`."""

        class Unmade(Dialect):
            def __init__(self, conversation: Conversation) -> None:
                raise ZeroDivisionError

        class Unconnected(Dialect):
            def connected(self) -> None:
                raise ZeroDivisionError

        for make in (Unmade, Unconnected):
            self.logged.clear()
            world = self.world()
            endpoint, wire = world.speak(make=make)
            endpoint.dataReceived(b"a\n")
            self.assert_failed(world, endpoint, wire)
            self.assertEqual(world.sink.of(endpoint), [])

    def test_later(self) -> None:
        """In a callback of a Deferred, by `fail`."""
        world = self.world()
        endpoint, wire = world.speak()
        self.dialect(endpoint).conversation.fail(Failure(ZeroDivisionError()))
        self.assert_failed(world, endpoint, wire)

    def test_at_the_end(self) -> None:
        """In the lines left when the device went, or in `disconnected`: the rest of the clean-up is done."""

        class Ungrateful(Dialect):
            def disconnected(self, reason: str) -> None:
                raise ZeroDivisionError

        world = self.world()
        endpoint, _ = world.speak()
        world.sink.stop()
        endpoint.dataReceived(b"a\nraise\nb\n")
        world.end(endpoint)
        self.assertEqual(world.sink.of(endpoint), [b"a"])
        last, _ = world.speak(make=Ungrateful)
        world.end(last)
        self.assertEqual(len(world.of_type(DialectFailed)), 2)
        self.assertEqual((world.endpoints.failures, len(world.endpoints), len(world.registry)), (2, 0, 0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_any_exception(self) -> None:
        """An exception of a class that the network also raises counts as an error of the dialect."""

        class Times(Dialect):
            def line(self, line: bytes) -> None:
                raise TimeoutError("of its own")

        world = self.world()
        endpoint, _ = world.speak(make=Times)
        endpoint.dataReceived(b"a\n")
        world.end(endpoint)
        self.assertEqual(world.endpoints.failures, 1)
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)


class AcknowledgementTests(Base):
    def world(self, **options: Any) -> DialectWorld:
        return super().world(device_ack=lambda seq: b"ACK %d\r\n" % seq, **options)

    def test_received_lines(self) -> None:
        """Acknowledgements count received lines: published ones once confirmed, others with the lines before them."""
        world = self.world()
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"nothing\na\nnothing\ntwice b\nc\n")
        self.assertEqual(world.heard(wire), [b"ACK 0"])
        endpoint.confirmed(0)
        self.assertEqual(world.heard(wire), [b"ACK 2"])
        endpoint.confirmed(1)
        self.assertEqual(world.heard(wire), [])
        endpoint.confirmed(3)
        self.assertEqual(world.heard(wire), [])
        endpoint.confirmed(2)
        self.assertEqual(world.heard(wire), [b"ACK 4"])

    def test_held(self) -> None:
        """A kept line is safe once it is published and confirmed; later answered lines wait for it.

        Until the release of publication no line is acknowledged: otherwise a device would see its login acknowledged before the
        answer.
        """
        world = self.world()
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"hold\na\nnothing\n")
        self.assertEqual(world.heard(wire), [])
        endpoint.dataReceived(b"release\n")
        self.assertEqual(world.heard(wire), [b"ACK 0"])
        endpoint.confirmed(0)
        self.assertEqual(world.heard(wire), [b"ACK 3"])

    def test_not_heard(self) -> None:
        """Lines that were not passed to the dialect, or on which it failed, are never acknowledged."""
        world = self.world()
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"a\nraise\nb\n")
        endpoint.confirmed(0)
        self.assertNotIn(b"ACK 1", wire.data)
        world.end(endpoint)
        self.flushLoggedErrors(ZeroDivisionError)

    @settings(deadline=None)
    @given(
        st.lists(
            st.sampled_from([b"a", b"twice b", b"nothing", b"answer x", b"hold", b"release", None]), min_size=1, max_size=40
        ),
        st.data(),
    )
    def test_never_too_early(self, steps: list[bytes | None], data: st.DataObject) -> None:
        """For any actions of the dialect and any order of confirms, `ACK n` is sent only when every message of lines 0 to n is
        confirmed, and in the end for all lines.
        """
        world = self.world()
        endpoint, wire = world.speak()
        unconfirmed: list[int] = []
        told = -1
        effects: list[list[int]] = []  # for each line: the numbers of its messages
        number = 0
        confirmed: set[int] = set()

        def check() -> None:
            nonlocal told
            for line in world.heard(wire):
                if line.startswith(b"ACK "):
                    self.assertGreater(int(line[4:]), told)
                    told = int(line[4:])
            for became in effects[: told + 1]:
                self.assertLessEqual(set(became), confirmed)

        for step in [*steps, b"release"]:
            if step is not None:
                became = {b"a": 1, b"twice b": 2}.get(step, 0)
                effects.append(list(range(number, number + became)))
                number += became
                endpoint.dataReceived(step + b"\n")
                unconfirmed = [seq for seq in range(endpoint.seq) if seq not in confirmed]
            elif unconfirmed:
                seq = unconfirmed.pop(data.draw(st.integers(0, len(unconfirmed) - 1)))
                confirmed.add(seq)
                endpoint.confirmed(seq)
            check()
        for seq in range(endpoint.seq):
            if seq not in confirmed:
                confirmed.add(seq)
                endpoint.confirmed(seq)
        check()
        self.assertEqual(told, len(effects) - 1)
        assert endpoint._settled_lines is not None
        self.assertEqual(len(endpoint._settled_lines), 0)
