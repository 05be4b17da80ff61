"""Tests of the recording of a connection for traces: what is recorded, and that it costs neither a line nor a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.dialect_protocol import DialectProtocol
from owsla.device.protocol import DeviceProtocol
from owsla.device.tracing import LONGEST_BODY, TraceRecord, Tracing
from owsla.dialects import REDACTED, Dialect
from owsla.dialects.login import Login, LoginService
from owsla.dialects.turnstile import Turnstile

from ..dialects._fakes import DialectWorld
from ._fakes import Source, World


class Listener:
    """A trace that keeps the records. It fails at record number `fail_at`, counted from 1, and then runs `at_failure`."""

    def __init__(self, bodies: bool = True, fail_at: int = 0) -> None:
        self.bodies = bodies
        self.records: list[TraceRecord] = []
        self.gone: list[tuple[Any, bool]] = []
        self.fail_at = fail_at
        self.at_record: Callable[[], None] = lambda: None

    def record(self, record: TraceRecord) -> None:
        self.records.append(record)
        self.at_record()
        if len(self.records) == self.fail_at:
            raise ZeroDivisionError

    def left(self, connection: DeviceProtocol, failed: bool) -> None:
        self.gone.append((connection, failed))

    @property
    def shown(self) -> list[tuple[str, int | None, int | None, bytes | str | None]]:
        return [(each.kind, each.seq, each.size, each.body if each.text is None else each.text) for each in self.records]


class TracingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.tracing = Tracing(lambda: 1_700_000_000.25)
        self.listener = Listener()

    def traced(self, world: World, **connect: Any) -> tuple[DeviceProtocol, Any]:
        endpoint, wire = world.connect(**connect)
        self.tracing.attach(endpoint, self.listener)
        return endpoint, wire


class LinesTests(TracingCase):
    def test_both_directions(self) -> None:
        """Lines from and to the device are recorded with time, ids, number, size and body, and handled as ever."""
        world = World()
        endpoint, wire = self.traced(world, device_id="d1")
        endpoint.dataReceived(b"one\ntwo\n")
        source = Source()
        world.send(endpoint, source, b"answer")
        world.send(endpoint, source, b"numbered", 0)
        world.turns()
        self.assertEqual(
            self.listener.shown,
            [("in", 0, 3, b"one"), ("in", 1, 3, b"two"), ("out", None, 6, b"answer"), ("out", 0, 8, b"numbered")],
        )
        first = self.listener.records[0]
        self.assertEqual(
            (first.time, first.connection_id, first.device_id), (1_700_000_000.25, endpoint.connection_id.decode(), "d1")
        )
        self.assertEqual(world.sink.of(endpoint), [b"one", b"two"])
        self.assertEqual(wire.data, b"answer\r\nnumbered\r\n")
        self.assertEqual(source.outstanding, 0)

    def test_bodies(self) -> None:
        """Without a trace that wants bodies none is kept. A long one is cut, and its record has the whole size."""
        world = World()
        self.listener.bodies = False
        endpoint, _ = self.traced(world)
        endpoint.dataReceived(b"secret\n")
        with_bodies = Listener()
        self.tracing.attach(endpoint, with_bodies)
        endpoint.dataReceived(b"x" * (LONGEST_BODY + 1) + b"\n")
        self.assertEqual(self.listener.shown[0], ("in", 0, 6, None))
        self.assertEqual(with_bodies.shown, [("in", 1, LONGEST_BODY + 1, b"x" * LONGEST_BODY)])
        self.tracing.detach(endpoint, with_bodies)
        endpoint.dataReceived(b"secret\n")
        self.assertEqual(self.listener.shown[2], ("in", 2, 6, None))

    def test_acknowledgements(self) -> None:
        """An acknowledgement to the device is recorded with the number of the last line that it covers."""
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        endpoint, wire = self.traced(world, room=3)
        endpoint.dataReceived(b"one\ntwo\n")
        endpoint.confirmed(0)
        endpoint.confirmed(1)
        world.turns()
        wire.drained()  # it looks whether there is more to acknowledge
        self.assertEqual(self.listener.shown[2:], [("ack", 1, 7, None)])
        self.assertEqual(wire.data, b"ACK 1\r\n")

    def test_messages_that_wait(self) -> None:
        """A message that waits for a number, or for the socket, is an event. It is a line when it is written."""
        world = World()
        endpoint, wire = self.traced(world, room=4)
        source = Source()
        world.send(endpoint, source, b"second", 1)
        self.assertEqual(self.listener.shown, [("event", 1, 6, "message 1 waits for the messages before it")])
        world.send(endpoint, source, b"first", 0)
        world.turns()
        self.assertEqual(self.listener.shown[1:], [("out", 0, 5, b"first"), ("out", 1, 6, b"second")])
        world.send(endpoint, source, b"third", 2)
        waits = "the device does not read: a message waits for its socket"
        self.assertEqual(self.listener.shown[3:], [("event", 2, 5, waits)])
        wire.drained()
        self.assertEqual(self.listener.shown[4:], [("out", 2, 5, b"third")])

    def test_duplicates(self) -> None:
        """A message whose number was written before is an event: it is dropped."""
        world = World()
        endpoint, _ = self.traced(world)
        source = Source()
        world.send(endpoint, source, b"first", 0)
        world.send(endpoint, source, b"first", 0)
        self.assertEqual(self.listener.shown[1:], [("event", 0, 5, "message 0 was sent before, and is dropped")])

    def test_end(self) -> None:
        """At its end a connection is forgotten, and the trace is told."""
        world = World()
        endpoint, _ = self.traced(world)
        world.end(endpoint)
        self.assertEqual(self.listener.gone, [(endpoint, False)])
        self.assertEqual(len(self.tracing), 0)
        self.assertIs(type(endpoint), DeviceProtocol)


class ClassTests(TracingCase):
    def test_own_class_afterwards(self) -> None:
        """A connection has another class while it is traced, without attributes of its own, and its own class afterwards."""
        world = World()
        endpoint, _ = world.connect()
        other, _ = world.connect()
        second = Listener()
        for listener in (self.listener, second, second):
            self.tracing.attach(endpoint, listener)
        traced = type(endpoint)
        self.assertNotEqual(traced, DeviceProtocol)
        self.assertIs(type(other), DeviceProtocol)
        self.tracing.attach(other, self.listener)
        self.assertIs(type(other), traced)  # made once
        endpoint.dataReceived(b"one\n")
        self.assertEqual(len(second.records), 1)
        self.assertEqual(vars(endpoint), {})
        self.tracing.detach(endpoint, second)
        self.assertIs(type(endpoint), traced)
        self.tracing.detach(endpoint, self.listener)
        self.assertIs(type(endpoint), DeviceProtocol)
        endpoint.dataReceived(b"two\n")
        self.assertEqual((len(self.listener.records), len(second.records), len(self.tracing)), (1, 1, 1))

    def test_detached_within_a_line(self) -> None:
        """A trace may end while a line is recorded, in either direction: the line is handled all the same."""
        world = World()
        source = Source()
        for act in (
            lambda endpoint: endpoint.dataReceived(b"one\n"),
            lambda endpoint: world.send(endpoint, source, b"answer"),
            lambda endpoint: world.post(endpoint, source, b"answer"),
        ):
            self.listener = Listener()
            endpoint, wire = self.traced(world)
            self.listener.at_record = lambda endpoint=endpoint: self.tracing.detach(endpoint, self.listener)  # type: ignore[misc]
            act(endpoint)
            world.turns()
            self.assertEqual(len(self.listener.records), 1)
            self.assertEqual([*world.sink.of(endpoint), *wire.data.split()], [self.listener.records[0].body])
            self.assertIs(type(endpoint), DeviceProtocol)
        self.assertEqual(source.outstanding, 0)


class ErrorTests(TracingCase):
    def test_failing_trace(self) -> None:
        """A trace that fails costs no line and no other trace: it is removed, told so, and logged."""
        world = World(device_ack=lambda seq: b"ACK %d\r\n" % seq)
        source = Source()
        for fail_at in (1, 2, 3, 4):
            bad, good = Listener(fail_at=fail_at), Listener()
            endpoint, wire = world.connect()
            self.tracing.attach(endpoint, bad)
            self.tracing.attach(endpoint, good)
            endpoint.dataReceived(b"one\ntwo\n")
            world.send(endpoint, source, b"answer")
            endpoint.confirmed(0)
            world.turns()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertEqual(world.sink.of(endpoint), [b"one", b"two"])
            self.assertEqual(sorted(wire.data.split()), [b"0", b"ACK", b"answer"])
            self.assertEqual((len(bad.records), len(good.records)), (fail_at, 4))
            self.assertEqual((bad.gone, good.gone), ([(endpoint, True)], []))
            self.assertEqual(wire.closed, "")
            self.tracing.detach(endpoint, good)
            self.assertIs(type(endpoint), DeviceProtocol)

    def test_failing_recorder(self) -> None:
        """An error in recording itself ends the traces of the connection, and nothing else."""
        world = World()
        source = Source()
        for act in (
            lambda endpoint: endpoint.dataReceived(b"one\n"),
            lambda endpoint: world.send(endpoint, source, b"answer"),
            lambda endpoint: world.send(endpoint, source, b"later", 5),
        ):
            self.tracing = Tracing(lambda: 1 // 0)
            self.listener = Listener()
            endpoint, wire = self.traced(world)
            act(endpoint)
            world.turns()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertEqual(self.listener.gone, [(endpoint, True)])
            self.assertIs(type(endpoint), DeviceProtocol)
            self.assertEqual((wire.closed, endpoint.seq + endpoint.held + len(wire.written)), ("", 1))

    def test_failing_at_the_end(self) -> None:
        """A trace that fails when it is told of the end of a connection leaves no trace of it."""
        world = World()
        endpoint, _ = self.traced(world)
        self.listener.left = lambda connection, failed: 1 // 0  # type: ignore[method-assign,assignment]
        world.end(endpoint)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(self.tracing), len(world.registry)), (0, 0))

    def test_failing_connection(self) -> None:
        """An error of the connection passes through: it is no matter of the trace."""
        world = World()
        endpoint, _ = self.traced(world)
        world.sink.publish = lambda *args: 1 // 0  # type: ignore[method-assign,assignment]
        self.assertRaises(ZeroDivisionError, endpoint.dataReceived, b"one\n")
        self.assertEqual(self.listener.shown, [("in", 0, 3, b"one")])


class Upper(Dialect):
    """A dialect without `redact`: it publishes data as it came, and more for a command."""

    __slots__ = ()

    def line(self, line: bytes) -> None:
        if line.startswith(b"*"):
            self.conversation.answer(b"OK")
        elif line.startswith(b"+"):
            self.conversation.publish(line.upper())
            self.conversation.publish(b"more")
        else:
            self.conversation.publish(line)

    def outgoing(self, line: bytes) -> tuple[bytes, ...]:
        return (line.upper(), b"end")


class DialectTests(TracingCase):
    def speak(self, make: Any, **connect: Any) -> tuple[DialectWorld, DialectProtocol, Any]:
        world = DialectWorld(make)
        endpoint, wire = world.speak(**connect)
        self.tracing.attach(endpoint, self.listener)
        return world, endpoint, wire

    def test_on_the_wire(self) -> None:
        """With a dialect the lines on the wire are recorded: a message that becomes two lines as two, with its number."""
        world, endpoint, wire = self.speak(Upper)
        self.assertIsInstance(endpoint, DialectProtocol)
        world.send(endpoint, Source(), b"hello", 0)
        world.turns()
        self.assertEqual(self.listener.shown, [("out", 0, 5, b"HELLO"), ("out", 0, 3, b"end")])
        self.assertEqual(wire.data, b"HELLO\r\nend\r\n")

    def test_published_lines_are_shown(self) -> None:
        """A line that is published as it came is shown, with the number under which back ends get it. Of others the dialect
        decides what is shown: nothing, if it says nothing. The answer follows its line.
        """
        world, endpoint, _ = self.speak(Upper)
        endpoint.dataReceived(b"*secret\ndata\n+x\n*secret\ndata\n")
        world.turns()
        self.assertEqual(
            self.listener.shown,
            [
                ("in", None, 7, REDACTED),
                ("out", None, 2, b"OK"),
                ("in", 0, 4, b"data"),
                ("in", 1, 2, REDACTED),
                ("in", None, 7, REDACTED),
                ("out", None, 2, b"OK"),
                ("in", 3, 4, b"data"),
            ],
        )
        self.assertFalse(any(each.body for each in self.listener.records if each.text is not None))
        self.assertEqual(world.sink.of(endpoint), [b"data", b"+X", b"more", b"data"])

    def test_published_later(self) -> None:
        """What a dialect publishes at another time, equal to a line that it had kept to itself, does not show that line."""
        _, endpoint, _ = self.speak(Upper)
        endpoint.dataReceived(b"*secret\n")
        endpoint.publish(b"*secret")
        self.assertEqual(self.listener.shown[0], ("in", None, 7, REDACTED))

    def test_kept_method(self) -> None:
        """A dialect may keep `publish`: what it publishes with that after the end of the trace is published as ever."""
        world, endpoint, _ = self.speak(Upper)
        publish = endpoint.publish
        self.tracing.detach(endpoint, self.listener)
        publish(b"data")
        self.assertEqual(world.sink.of(endpoint), [b"data"])

    def test_bodies_of_published_lines(self) -> None:
        """Of a line that a dialect publishes the body is cut as well, and left out without bodies."""
        _, endpoint, _ = self.speak(Upper)
        endpoint.dataReceived(b"x" * (LONGEST_BODY + 1) + b"\n")
        self.assertEqual(self.listener.shown, [("in", 0, LONGEST_BODY + 1, b"x" * LONGEST_BODY)])
        self.listener = Listener(bodies=False)
        _, endpoint, _ = self.speak(Upper)
        endpoint.dataReceived(b"data\n*secret\n")
        self.assertEqual(self.listener.shown[:2], [("in", 0, 4, None), ("in", None, 7, REDACTED)])
        self.assertEqual([each.room for each in self.listener.records], [0, 0, 0])

    def test_room_for_a_body_that_comes_later(self) -> None:
        """The room of a body is known when a line is recorded, before the dialect publishes it, so that memory has a bound."""
        _, endpoint, _ = self.speak(Upper)
        rooms: list[tuple[int, bytes | None]] = []
        self.listener.at_record = lambda: rooms.append((self.listener.records[-1].room, self.listener.records[-1].body))
        endpoint.dataReceived(b"x" * (LONGEST_BODY + 1) + b"\n")
        self.assertEqual(rooms, [(LONGEST_BODY, None)])

    def test_turnstile(self) -> None:
        """A dialect may say that its lines have no secrets: they are shown although they are not published."""
        world, endpoint, _ = self.speak(Turnstile)
        endpoint.dataReceived(b"COIN\nwrong\n")
        world.turns()
        self.assertEqual(
            self.listener.shown,
            [("in", 0, 4, b"COIN"), ("out", None, 8, b"UNLOCKED"), ("in", None, 5, b"wrong"), ("out", None, 4, b"WHAT")],
        )

    def test_login(self) -> None:
        """The line of a login is not shown, right or wrong, whether it is checked at once or later. Lines after it are, also
        those that wait for the result, with the numbers under which they are published.
        """
        checked: list[Deferred[str]] = []

        class Service(LoginService):
            def __init__(self) -> None: ...

            def login(self, name: bytes, token: bytes, source: str) -> Deferred[str]:
                checked.append(Deferred())
                return checked[-1]

        world, endpoint, _ = self.speak(lambda conversation: Login(conversation, Service(), 10.0))
        endpoint.dataReceived(b"HELLO d1 s3cret\nearly\nlines\n")
        checked[0].callback("d1")
        endpoint.dataReceived(b"HELLO d1 again\n")
        world.turns()
        self.assertEqual(
            self.listener.shown,
            [
                ("in", None, 15, "login line, not shown"),
                ("in", 0, 5, b"early"),
                ("in", 1, 5, b"lines"),
                ("out", None, 10, b"WELCOME d1"),
                ("in", 2, 14, b"HELLO d1 again"),
            ],
        )
        self.assertEqual([each.device_id for each in self.listener.records], [None, None, None, "d1", "d1"])
        self.listener = Listener()
        world, endpoint, _ = self.speak(lambda conversation: Login(conversation, Service(), 10.0))
        endpoint.dataReceived(b"s3cret\n")
        self.assertEqual(self.listener.shown, [("in", None, 6, "login line, not shown"), ("out", None, 6, b"DENIED")])

    def test_failing_redact(self) -> None:
        """A dialect that fails to say what is shown gets the line, which is not shown."""

        class Bad(Upper):
            def redact(self, line: bytes) -> str | None:
                raise ZeroDivisionError

        world, endpoint, wire = self.speak(Bad)
        endpoint.dataReceived(b"*secret\ndata\n")
        world.turns()
        self.assertEqual(self.listener.shown[0], ("in", None, 7, REDACTED))
        self.assertEqual((wire.data, world.sink.of(endpoint), wire.closed), (b"OK\r\n", [b"data"], ""))

    def test_failing_dialect(self) -> None:
        """A dialect that raises is the same as without a trace: its connection is closed, and its line is not shown."""

        class Bad(Upper):
            def line(self, line: bytes) -> None:
                raise ZeroDivisionError

        _, endpoint, wire = self.speak(Bad)
        endpoint.dataReceived(b"secret\n")
        self.assertEqual(self.listener.shown, [("in", None, 6, REDACTED)])
        self.assertEqual(wire.closed, "lost")

    def test_failing_trace(self) -> None:
        """A trace that fails within a line of a dialect costs neither the line nor its answer."""
        self.listener.fail_at = 1
        world, endpoint, wire = self.speak(Upper)
        endpoint.dataReceived(b"*secret\ndata\n")
        world.turns()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(type(endpoint), DialectProtocol)
        self.assertEqual((wire.data, world.sink.of(endpoint), wire.closed), (b"OK\r\n", [b"data"], ""))
