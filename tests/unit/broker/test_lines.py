"""Tests of device lines to the broker: published, confirmed, refused, returned, and published again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.python.failure import Failure

from owsla.amqp import wire
from owsla.amqp.wire import WireError
from owsla.broker import queues as topology
from owsla.broker.batch_pacing import BatchPacing
from owsla.broker.batch_packing import BatchPacker
from owsla.broker.batch_window import BatchWindow
from owsla.broker.batches import BatchPublisher
from owsla.broker.client import BrokerError
from owsla.broker.door_lines import line_channel
from owsla.broker.door_publisher import SMALLEST_SHARE, DoorPublisher, PublisherOptions
from owsla.broker.lines import LinePublisher
from owsla.broker.packing import LinePacker, MessageArguments
from owsla.broker.refusals import RefusalHistory
from owsla.broker.window import Window
from owsla.events import BrokerWarning, Event, LinesAccepted, LinesRefused
from owsla.routing_key import RoutingKey
from owsla.runtime.end_of_turn import EndOfTurn

from .fakes import BrokerTestCase, Publish, Result, Server, message

Numbered = tuple[str, int]

LINES = line_channel(0)
SCRATCH = LINES + 1

DELAY = 0.005
"""Seconds that a line waits at most for others of its batch."""

TOO_LARGE = "PRECONDITION_FAILED - message size %d is larger than configured max size %d"
"""Reply text of RabbitMQ for a message above its max_message_size."""


class Device:
    """Connection with lines to publish."""

    def __init__(self, producer: DoorPublisher, name: str) -> None:
        self.producer = producer
        self.connection_id = name.encode()
        self.template = producer.open(self.connection_id, None)
        self.seq = 0
        self.safe: list[int] = []
        self.resumed = 0
        self.stalled = 0
        self.closed: list[str] = []
        self.fault: Exception | None = None
        self.failures: list[BaseException | None] = []
        self.on_resume: Callable[[], None] = lambda: None
        self.on_confirmed: Callable[[], None] = lambda: None

    def stall(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.stalled += 1
        self.producer.wait(self)

    def reject(self, reason: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.closed.append(reason)

    def resume(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.resumed += 1
        self.on_resume()

    def confirmed(self, seq: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.safe.append(seq)
        self.on_confirmed()

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure.value)


def lines(published: list[Publish]) -> list[Numbered]:
    """Return the lines of messages, also of batches, in order."""
    return [line for one in published for line in lines_of(one)]


def lines_of(one: Publish) -> list[Numbered]:
    if "owsla_batch" not in one.headers:
        return [(one.headers["connection_id"], one.headers["from_device_seq"])]
    unpacker = msgpack.Unpacker()
    unpacker.feed(one.body)
    found = [(connection_id, seq) for connection_id, seq, _, _, _ in unpacker]
    assert len(found) == one.headers["owsla_batch"]
    return found


class Lab:
    """Publisher of lines, and its broker."""

    def __init__(
        self, *, messages: int = 8, size: int = 1 << 20, routing_key: str | None = None, batch: int = 1
    ) -> None:
        """With a `routing_key` the lines go to an exchange, and with a `batch` up to so many travel together."""
        self.server = Server()
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.window = Window(messages, size) if batch == 1 else BatchWindow(messages, size)
        self.now = 1000.0
        self.waits: list[float] = []
        queue = topology.Queue("from_device") if routing_key is None else topology.Exchange("lines")
        message = MessageArguments(
            channel=LINES,
            exchange="" if routing_key is None else "lines",
            routing_key="from_device" if routing_key is None else RoutingKey(routing_key),
            delivery_mode=2,
            reply_to=b"to_device.0123abcd",
            frame_max=131072,
        )
        options = PublisherOptions(acknowledge=True, observe=self.waits.append, now=lambda: self.now)
        self.producer: DoorPublisher
        if isinstance(self.window, BatchWindow):
            self.producer = BatchPublisher(
                self.clock,
                self.events.append,
                queue=queue,
                packer=BatchPacker(most=batch, **message),
                window=self.window,
                pacing=BatchPacing(self.clock, EndOfTurn(self.clock), DELAY),
                options=options,
            )
        else:
            packer = LinePacker(seq_header="from_device_seq", **message)
            self.producer = LinePublisher(
                self.clock, self.events.append, queue=queue, packer=packer, window=self.window, options=options
            )

    def device(self, name: str = "a") -> Device:
        return Device(self.producer, name)

    def connect(self, **more: Any) -> Result:
        """Connect (again), until lines are published."""
        if self.server.client.transport is not None:
            self.server = Server(self.clock, **more)
        self.server.ready()
        result = Result(self.producer.up(self.server.client))
        self.server.settle()
        return result

    def lose(self) -> None:
        self.server.drop()
        self.producer.down()

    def publish(self, device: Device, *bodies: bytes) -> None:
        for body in bodies:
            self.producer.publish(device, body)

    def publish_together(self, device: Device, *bodies: bytes) -> int:
        return self.producer.publish_lines(device, bodies)

    def taken(self) -> list[Numbered]:
        return lines(self.server.take())


def given_up(lab: Lab, taken: str = "") -> bool:
    """Refuse the published lines, or those of one connection, and wait until the rest is published again. Return whether that
    is on another connection, after this one was dropped.
    """
    for one in lab.server.take():
        (lab.server.ack if lines([one])[0][0] == taken else lab.server.nack)(LINES, one.tag)
    for _ in range(100):
        if lab.server.published:
            return False
        if lab.server.lost:
            assert "is full or unavailable, or only on this channel" in str(lab.server.lost[0])
            lab.producer.down()
            lab.connect()
            return True
        lab.clock.advance(0.1)
        lab.server.settle()
    raise AssertionError("nothing was tried in ten seconds")


class ProducerTests(BrokerTestCase):
    def setUp(self) -> None:
        self.lab = Lab()
        self.device = self.lab.device()

    def test_an_error_of_ours(self) -> None:
        """An exception for one connection affects only that one: others get their acknowledgements, and are resumed."""
        other = self.lab.device("b")
        self.lab.connect()
        self.lab.publish(self.device, b"1")
        self.lab.publish(other, b"2")
        self.device.fault = ZeroDivisionError()
        self.lab.server.ack(LINES, 2, multiple=True)
        self.assertEqual((other.safe, self.device.failures), ([0], [self.device.fault]))
        self.lab.lose()
        for device in (self.device, other):
            self.lab.producer.wait(device)
        self.lab.connect()
        self.lab.clock.advance(0)
        self.assertEqual((other.resumed, self.device.failures), (1, [self.device.fault] * 2))

    def test_setting_up(self) -> None:
        """The queue is declared durable and without arguments, and confirms are on before the first line."""
        self.assertFalse(self.lab.producer.accepting)
        self.lab.connect()
        names = [(channel, name) for channel, name, _ in self.lab.server.calls if name.split(".")[0] != "connection"]
        self.assertEqual(
            names,
            [
                (SCRATCH, "channel.open"),
                (SCRATCH, "queue.declare"),
                (SCRATCH, "channel.close"),
                (LINES, "channel.open"),
                (LINES, "confirm.select"),
            ],
        )
        (declared,) = self.lab.server.called("queue.declare")
        self.assertEqual(
            {name: declared[name] for name in ("queue", "durable", "auto_delete", "exclusive", "arguments")},
            {"queue": "from_device", "durable": True, "auto_delete": False, "exclusive": False, "arguments": {}},
        )
        self.assertTrue(self.lab.producer.accepting)

    def test_publish_and_confirm(self) -> None:
        """Lines are published in order, numbered from 0 for each connection, and are safe when they are confirmed."""
        self.lab.connect()
        other = self.lab.device("b")
        self.lab.publish(self.device, b"one", b"two")
        self.lab.publish(other, b"")
        published = self.lab.server.take()
        self.assertEqual(lines(published), [("a", 0), ("a", 1), ("b", 0)])
        self.assertEqual([one.body for one in published], [b"one", b"two", b""])
        self.assertTrue(all(one.queue == "from_device" and one.method["mandatory"] for one in published))
        self.assertEqual(published[0].properties["timestamp"], 1000)
        self.assertEqual((self.lab.producer.unconfirmed, self.device.safe), (3, []))
        self.lab.server.ack(LINES, 2)
        self.lab.server.ack(LINES, 3, True)
        self.assertEqual((self.device.safe, other.safe), ([1, 0], [0]))
        self.assertEqual((self.lab.producer.unconfirmed, self.lab.window.confirmed_lines), (0, 3))

    def test_followed(self) -> None:
        """One line at a time is followed to its confirm, also through a return or a reconnect; then the next one."""
        lab, producer = self.lab, self.lab.producer
        self.assertIsNone(producer.unconfirmed_since)
        lab.connect()
        lab.publish(self.device, b"followed")
        lab.now += 1
        lab.publish(self.device, b"not followed")
        self.assertEqual(producer.unconfirmed_since, 1000.0)
        lab.server.ack(LINES, 1)
        self.assertEqual((lab.waits, producer.unconfirmed_since), ([1.0], None))
        lab.now += 1
        lab.publish(self.device, b"followed")
        lab.now += 1
        lab.server.ack(LINES, 2)
        self.assertEqual(lab.waits, [1.0])
        lab.lose()
        lab.now += 60
        lab.connect()
        self.assertEqual(producer.unconfirmed_since, 1002.0)
        lab.server.take()
        lab.server.ack(LINES, 1)
        self.assertEqual(lab.waits, [1.0, 61.0])

    def test_lines_before_the_broker(self) -> None:
        """Lines that were read without a broker wait for it, and come first."""
        self.lab.publish(self.device, b"one", b"two")
        self.lab.connect()
        self.lab.publish(self.device, b"three")
        self.assertEqual([one.body for one in self.lab.server.take()], [b"one", b"two", b"three"])

    def test_full(self) -> None:
        """A full window pauses devices, though lines already read are accepted. It opens again when an eighth is free."""
        self.lab.connect()
        self.lab.publish(self.device, *[b"x"] * 7)
        self.assertTrue(self.lab.producer.accepting)
        self.lab.publish(self.device, b"x")
        self.assertFalse(self.lab.producer.accepting)
        self.lab.publish(self.device, b"x")
        self.assertEqual(len(self.lab.taken()), 9)
        self.lab.server.ack(LINES, 1)
        self.assertFalse(self.lab.producer.accepting)
        self.lab.server.ack(LINES, 2)
        self.assertTrue(self.lab.producer.accepting)

    def test_full_of_bytes(self) -> None:
        """The same holds for a window that is full in bytes."""
        lab = Lab(messages=1000, size=1000)
        lab.connect()
        device = lab.device()
        lab.publish(device, b"x" * 900)
        self.assertFalse(lab.producer.accepting)
        lab.server.ack(LINES, 1)
        self.assertTrue(lab.producer.accepting)

    def test_lines_of_a_read(self) -> None:
        """Lines that were read together are published as they would be one by one: the same frames, in one write."""
        each, together = Lab(messages=100), Lab(messages=100)
        for lab in (each, together):
            lab.connect()
        self.assertEqual(together.publish_together(together.device(), b"a", b"", b"c" * 200_000), 3)
        each.publish(each.device(), b"a", b"", b"c" * 200_000)
        before, after = each.server.take(), together.server.take()
        self.assertEqual(after, before)
        self.assertEqual([one.body for one in after], [b"a", b"", b"c" * 200_000])
        self.assertEqual((together.window.messages, together.window.size), (each.window.messages, each.window.size))
        self.assertEqual(together.producer.unconfirmed_since, 1000.0)

    def test_a_read_fills_the_window(self) -> None:
        """Of lines that were read together those are taken that fill the window, in lines or in bytes, and at least one."""
        for lab, expected in ((Lab(messages=3), 3), (Lab(messages=1000, size=300), 2)):
            lab.connect()
            device = lab.device()
            self.assertEqual(lab.publish_together(device, *[b"x" * 40] * 5), expected)
            self.assertEqual((lab.producer.accepting, device.seq, len(lab.taken())), (False, expected, expected))
            self.assertEqual(lab.publish_together(device, b"x", b"y"), 1)

    def test_a_read_behind_refused_lines(self) -> None:
        """Lines that were read together wait behind the refused ones of their connection."""
        lab = Lab(messages=100, routing_key="{connection_id}")
        lab.connect()
        device = lab.device()
        lab.publish(device, b"1")
        lab.taken()
        lab.server.nack(LINES, 1)
        self.assertEqual(lab.publish_together(device, b"2", b"3"), 2)
        self.assertEqual((lab.taken(), lab.window.refused_lines), ([], 3))

    def test_a_read_with_a_line_that_is_too_large(self) -> None:
        """Of lines that were read together those before one above the limit of the broker are published. It ends the
        connection, and no line after it is taken.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"x" * 65)
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (65, 64))
        self.lab.producer.down()
        self.lab.connect()
        other = self.lab.device("b")
        self.assertEqual(self.lab.publish_together(other, b"a", b"b", b"x" * 65, b"c"), 2)
        self.assertEqual((self.lab.taken(), other.seq, len(other.closed)), ([("b", 0), ("b", 1)], 2, 1))
        self.lab.publish_together(other, b"d", b"e")
        self.assertEqual((self.lab.taken(), other.seq, len(other.closed)), ([], 2, 2))

    def test_resuming_is_fair(self) -> None:
        """Waiting connections are resumed in turn: one that fills the window each time goes to the end of the queue."""
        self.lab.connect()
        order: list[str] = []
        devices = [self.lab.device(name) for name in "abc"]

        def talk(device: Device) -> None:
            order.append(device.connection_id.decode())
            while self.lab.producer.accepting:
                self.lab.publish(device, b"x")
            self.lab.producer.wait(device)

        for device in devices:
            device.on_resume = lambda device=device: talk(device)  # type: ignore[misc]
        talk(devices[0])
        for device in devices[1:]:
            self.lab.producer.wait(device)
        order.clear()
        for _ in range(7):
            self.lab.server.ack(LINES, 0, True)
        self.assertEqual("".join(order), "abcabca")

    def test_many_are_resumed_in_slices(self) -> None:
        """Thousands of waiting connections are resumed over several turns."""
        lab = Lab(messages=100_000)
        devices = [lab.device(str(number)) for number in range(1000)]
        for device in devices:
            lab.producer.wait(device)
        lab.server.ready()
        up = Result(lab.producer.up(lab.server.client))
        turns = 0
        while not up.done or any(not device.resumed for device in devices):
            lab.clock.advance(0)
            data = lab.server.transport.value()
            lab.server.transport.clear()
            lab.server._read(data)
            turns += 1
            self.assertLess(turns, 100)
        self.assertEqual({device.resumed for device in devices}, {1})

    def test_blocked(self) -> None:
        """While the broker is blocked, devices are not read. Afterwards they are, waiting ones first."""
        self.lab.connect()
        self.lab.producer.wait(self.device)
        self.lab.producer.blocked("memory")
        self.lab.clock.advance(1)
        self.assertEqual((self.lab.producer.accepting, self.device.resumed), (False, 0))
        self.lab.producer.unblocked()
        self.lab.clock.advance(0)
        self.assertEqual((self.lab.producer.accepting, self.device.resumed), (True, 1))

    def test_a_confirm_does_not_unblock(self) -> None:
        """A confirm while the broker is blocked does not resume devices."""
        self.lab.connect()
        self.lab.publish(self.device, b"x")
        self.lab.producer.blocked("memory")
        self.lab.server.ack(LINES, 1)
        self.assertFalse(self.lab.producer.accepting)

    def test_connection_lost_while_blocked(self) -> None:
        """The end of the connection ends the block, too: on the next one devices are read."""
        self.lab.connect()
        self.lab.producer.blocked("memory")
        self.lab.lose()
        self.lab.connect()
        self.assertTrue(self.lab.producer.accepting)

    def test_after_a_reconnect(self) -> None:
        """Unconfirmed lines are published again, in order, before new ones. Confirmed lines are not."""
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1", b"2")
        self.lab.server.take()
        self.lab.server.ack(LINES, 2)
        self.lab.lose()
        self.assertFalse(self.lab.producer.accepting)
        self.lab.publish(self.device, b"3")
        self.lab.connect()
        self.assertTrue(self.lab.producer.accepting)
        self.lab.publish(self.device, b"4")
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 2), ("a", 3), ("a", 4)])
        self.lab.server.ack(LINES, 4, True)
        self.assertEqual(self.device.safe, [1, 0, 2, 3, 4])

    def test_traces(self) -> None:
        """With a share of 1 each line has its own traceparent. A line that is published again, after a reconnect or a refusal,
        has the same as before.
        """
        self.lab.producer.trace(1.0)
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1", b"2")
        traces = self.traces()
        self.assertEqual(len({*traces.values()} - {None}), 3)
        self.assertEqual(self.lab.producer.traceparent(self.device), traces[2])
        self.lab.lose()
        self.lab.connect(tune=(0, 4096, 0))
        self.assertEqual(self.traces(), traces)
        self.lab.server.ack(LINES, 1)
        self.lab.server.nack(LINES, 2)
        self.lab.clock.advance(0.1)
        self.assertEqual(self.traces(), {seq: traces[seq] for seq in (1, 2)})
        self.lab.server.ack(LINES, 0, True)
        self.assertEqual((self.lab.producer.traced_lines, self.lab.producer.unconfirmed), (3, 0))

    def test_traces_off(self) -> None:
        """By default, and with a share of 0, no line has a traceparent; the last one of a connection stays known."""
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        self.assertIsNone(self.lab.producer.traceparent(self.device))
        self.lab.producer.trace(1.0)
        self.lab.publish(self.device, b"1")
        self.lab.producer.trace(0.0)
        self.lab.publish(self.device, b"2")
        traces = self.traces()
        self.assertEqual((traces[0], traces[2]), (None, None))
        assert traces[1] is not None
        self.assertEqual(self.lab.producer.traceparent(self.device), traces[1])
        assert isinstance(self.lab.producer, LinePublisher)
        self.assertEqual(self.lab.producer._pack, self.lab.producer._packer.pack)

    def test_trace_of_a_connection_that_is_rejected(self) -> None:
        """A connection whose lines cannot be published keeps its last traceparent, for the event of its end."""
        self.lab.producer.trace(1.0)
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        before = self.lab.producer.traceparent(self.device)
        self.lab.publish(self.device, b"x" * 70)
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (70, 64))
        self.lab.publish(self.device, b"y")
        self.assertEqual(len(self.device.closed), 2)
        self.assertIsNotNone(before)
        self.assertIsNotNone(self.lab.producer.traceparent(self.device))

    def traces(self) -> dict[int, str | None]:
        """Return the traceparent of each line that was published, by number."""
        return {one.headers["from_device_seq"]: one.headers.get("traceparent") for one in self.lab.server.take()}

    def test_a_broker_with_smaller_frames(self) -> None:
        """Waiting and new lines are packed for the smaller frames of another broker."""
        self.lab.connect()
        self.lab.publish(self.device, b"x" * 9000)
        self.lab.lose()
        self.lab.connect(tune=(0, 4096, 0))
        self.lab.publish(self.device, b"y" * 9000)
        self.lab.clock.advance(0)
        data = self.lab.server.transport.value()
        sizes = []
        while data:
            sizes.append(8 + int.from_bytes(data[3:7]))
            data = data[sizes[-1] :]
        self.assertLessEqual(max(sizes), 4096)
        self.assertEqual([one.body[:1] * len(one.body) for one in self.lab.server.take()], [b"x" * 9000, b"y" * 9000])

    def test_refused(self) -> None:
        """A refused line pauses devices and is logged once. After a wait it is published again, then the other lines of its
        connection.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1", b"2")
        self.lab.server.take()
        self.lab.server.ack(LINES, 1)
        self.lab.server.nack(LINES, 2)
        self.assertFalse(self.lab.producer.accepting)
        self.assertEqual([type(event) for event in self.lab.events], [LinesRefused])
        self.assertEqual(self.lab.taken(), [])
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 1), ("a", 2)])
        self.assertEqual(len(self.lab.server.called("queue.declare")), 1, "the queue is there")
        self.lab.server.ack(LINES, 3)
        self.lab.server.ack(LINES, 5, True)
        self.assertEqual((self.device.safe, self.lab.producer.unconfirmed), ([0, 1, 2], 0))
        self.assertTrue(self.lab.producer.accepting)
        self.assertEqual([type(event) for event in self.lab.events], [LinesRefused, LinesAccepted])
        self.assertEqual(str(self.lab.events[-1]), "Broker accepts lines again: queue from_device")

    def test_behind_refused_lines(self) -> None:
        """A line that arrives while refused ones wait is published with them, behind them, to keep the order. One that arrives
        after that is published at once: it is behind them, too.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        self.lab.server.take()
        self.lab.server.nack(LINES, 1)
        self.lab.publish(self.device, b"1")
        self.assertEqual((self.lab.taken(), self.lab.producer.unconfirmed), ([], 2))
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 1)])
        self.lab.publish(self.device, b"2")
        self.assertEqual(self.lab.taken(), [("a", 2)])
        self.lab.server.ack(LINES, 3, True)
        self.assertEqual(self.device.safe, [0, 1])
        self.lab.server.ack(LINES, 4)
        self.assertEqual((self.device.safe, self.lab.producer.accepting), ([0, 1, 2], True))

    def test_lines_of_devices_that_leave_while_lines_are_refused(self) -> None:
        """Devices are read again with the first confirm of a refused line, however many lines of devices that leave come
        meanwhile: devices that are not read give up, so that there may be some at any time.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        self.lab.server.nack(LINES, self.lab.server.take()[-1].tag)
        self.lab.publish(self.lab.device("b"), b"0")
        self.lab.clock.advance(0.1)
        published = self.lab.server.take()
        self.lab.publish(self.lab.device("c"), b"0")
        self.lab.server.ack(LINES, published[0].tag)
        self.assertTrue(self.lab.producer.accepting)
        self.assertEqual(lines(published) + self.lab.taken(), [("a", 0), ("b", 0), ("c", 0)])

    def test_shares(self) -> None:
        """A connection that has used its share continues when the lines published before are confirmed."""
        other = self.lab.device("b")
        self.lab.connect()
        producer = self.lab.producer
        self.lab.publish(self.device, b"0", b"1")
        since = producer.position(0)
        self.lab.publish(other, b"0")
        self.assertEqual(producer.position(since), -1)
        producer.wait(self.device, since)
        self.lab.server.ack(LINES, 1)
        self.lab.clock.advance(0)
        self.assertEqual(self.device.resumed, 0)
        self.lab.server.ack(LINES, 2)
        self.lab.clock.advance(0)
        self.assertEqual((self.device.resumed, producer.position(since)), (1, since + 1))
        producer.wait(self.device, since + 1)
        producer.leave(self.device)
        self.lab.server.ack(LINES, 3)
        self.lab.clock.advance(0)
        self.assertEqual(self.device.resumed, 1)

    def test_smaller_window(self) -> None:
        """Lines beyond a smaller window stay, and are confirmed or published again. Others are accepted once it has room."""
        producer = self.lab.producer
        self.lab.connect()
        self.lab.publish(self.device, *[b"-"] * 6)
        self.assertTrue(producer.accepting)
        producer.configure(4, 1 << 20, acknowledge=True)
        self.assertFalse(producer.accepting)
        producer.wait(self.device)
        self.lab.clock.advance(0)
        self.assertEqual((producer.unconfirmed, self.device.resumed, producer.spare), (6, 0, 1))
        self.lab.lose()
        self.lab.server = Server(self.lab.clock)
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("a", seq) for seq in range(6)])
        self.lab.clock.advance(0)
        self.assertEqual((producer.accepting, self.device.resumed), (False, 0))
        self.lab.server.ack(LINES, 3, multiple=True)
        self.lab.clock.advance(0)
        self.assertEqual((producer.accepting, self.device.resumed, self.device.safe), (True, 1, [0, 1, 2]))
        self.lab.server.ack(LINES, 6, multiple=True)
        self.assertEqual((producer.unconfirmed, self.device.safe), (0, [0, 1, 2, 3, 4, 5]))

    def test_larger_window(self) -> None:
        """A larger window accepts lines at once, unless something else prevents it."""
        producer = self.lab.producer
        self.lab.connect()
        self.lab.publish(self.device, *[b"-"] * 8)
        producer.wait(self.device)
        producer.configure(100, 1 << 20, acknowledge=True)
        self.lab.clock.advance(0)
        self.assertEqual((producer.accepting, self.device.resumed, producer.share), (True, 1, SMALLEST_SHARE))
        producer.blocked("memory")
        producer.configure(200, 1 << 20, acknowledge=True)
        self.assertFalse(producer.accepting)
        producer.unblocked()
        self.lab.lose()
        producer.configure(1000, 1 << 20, acknowledge=True)
        self.assertFalse(producer.accepting)

    def test_smaller_window_in_bytes(self) -> None:
        """The limit in bytes is as much a limit as that of lines."""
        self.lab.connect()
        self.lab.publish(self.device, b"-" * 5000)
        self.lab.producer.configure(8, 4000, acknowledge=True)
        self.assertEqual((self.lab.producer.accepting, self.lab.producer.line_size), (False, 500))
        self.lab.server.ack(LINES, self.lab.server.take()[0].tag)
        self.assertTrue(self.lab.producer.accepting)

    def test_acknowledged_to_the_end(self) -> None:
        """Connections that are told what is safe are told for as long as they live, also when new ones are not to be."""
        self.lab.connect()
        self.lab.producer.configure(8, 1 << 20, acknowledge=False)
        self.lab.publish(self.device, b"-")
        self.lab.server.ack(LINES, self.lab.server.take()[0].tag)
        self.assertEqual(self.device.safe, [0])

    def test_a_share_of_the_window(self) -> None:
        """A share is a sixty-fourth of the window, but has a minimum, so that shares never cost more than publishing."""
        for messages, share in ((10_000, 156), (500, SMALLEST_SHARE), (5, 5)):
            self.assertEqual(Lab(messages=messages).producer.share, share)

    def test_refused_again_and_again(self) -> None:
        """The waits grow, and start at the shortest one after an accepted line. Each period of refusals is logged once."""
        self.lab.connect()
        self.lab.publish(self.device, b"-", b"0")
        self.lab.server.ack(LINES, self.lab.server.take()[0].tag)
        tag = 2
        waits = []
        for _ in range(6):
            self.lab.server.nack(LINES, tag)
            waited = 0.0
            while not self.lab.server.published:
                self.assertLess(waited, 10.0)
                self.lab.clock.advance(0.01)
                self.lab.server.settle()
                waited += 0.01
            waits.append(waited)
            tag = self.lab.server.take()[-1].tag
        self.assertGreater(waits[5], 10 * waits[0])
        self.assertEqual(len(self.lab.events), 1)
        self.lab.server.ack(LINES, tag)
        self.assertTrue(self.lab.producer.accepting)
        self.lab.publish(self.device, b"1")
        self.lab.server.nack(LINES, self.lab.server.take()[-1].tag)
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 2)])
        self.assertEqual([type(event) for event in self.lab.events], [LinesRefused, LinesAccepted, LinesRefused])
        self.assertEqual(self.lab.server.lost, [], "the channel takes lines, and so is good")

    def test_a_channel_that_takes_nothing(self) -> None:
        """If a channel has accepted no line, the third refusal may be the fault of the channel: another one is tried, with all
        unconfirmed lines in order. Later attempts are rare.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1")
        tried = [given_up(self.lab) for _ in range(25)]
        self.assertEqual([number for number, new in enumerate(tried, 1) if new], [3, 4, 5, 6, 7, 12, 24])
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 1)])

    def test_a_good_channel_at_last(self) -> None:
        """When another channel accepts the refused lines, normal work continues, and the next refusals are handled in the same
        way.
        """
        self.lab.connect()
        for time in range(3):
            self.lab.publish(self.device, b"0", b"1")
            self.assertEqual([given_up(self.lab) for _ in range(RefusalHistory.FIRST)], [False, False, True])
            self.lab.server.ack(LINES, self.lab.server.take()[-1].tag, True)
            self.assertTrue(self.lab.producer.accepting)
            self.assertEqual(self.device.safe, list(range(2 * time + 2)))
            self.lab.producer.down()
            self.lab.connect()

    def test_a_late_refusal_of_a_first_copy(self) -> None:
        """A late refusal of the first copy of a line whose second copy was accepted has no effect."""
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1")
        self.lab.server.take()
        self.lab.server.nack(LINES, 1)
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 1)])
        self.lab.server.ack(LINES, 3)
        self.lab.server.ack(LINES, 4)
        self.lab.server.nack(LINES, 2)
        self.lab.clock.advance(10)
        self.assertTrue(self.lab.producer.accepting)
        self.assertEqual((self.lab.taken(), self.device.safe, len(self.lab.events)), ([], [0, 1], 2))

    def test_returned(self) -> None:
        """A returned line is not safe although it is acknowledged: the queue is declared again, then the line is published
        again.
        """
        self.lab.connect()
        other = self.lab.device("b")
        self.lab.publish(self.device, b"0", b"1")
        self.lab.publish(other, b"0")
        first, second, third = self.lab.server.take()
        self.lab.server.give_back(first)
        self.lab.server.give_back(second)
        self.assertEqual((self.device.safe, self.lab.producer.accepting), ([], False))
        self.assertEqual([type(event) for event in self.lab.events], [LinesRefused])
        self.lab.server.ack(LINES, third.tag)
        self.assertEqual(other.safe, [0])
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 1)])
        names = [name for _, name, _ in self.lab.server.calls]
        self.assertEqual(names.count("queue.declare"), 2)
        self.lab.server.ack(LINES, 5, True)
        self.assertEqual((self.device.safe, self.lab.producer.accepting), ([0, 1], True))

    def test_returned_and_acknowledged_together(self) -> None:
        """A cumulative acknowledgement covers only the lines that were not returned."""
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1", b"2")
        published = self.lab.server.take()
        self.lab.server.give_back(published[1], ack=False)
        self.lab.server.ack(LINES, 3, True)
        self.assertEqual(self.device.safe, [0, 2])
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 1)])

    def test_the_queue_cannot_be_declared_again(self) -> None:
        """If the queue cannot be declared, the connection is dropped with the reason of the broker, and the lines are kept."""
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        (published,) = self.lab.server.take()
        self.lab.server.refusals["from_device", False] = (404, "NOT_FOUND - home node is down")
        self.lab.server.give_back(published)
        self.lab.clock.advance(0.1)
        self.lab.server.settle()
        self.assertIn("home node is down", str(self.lab.server.lost[0]))
        self.lab.producer.down()
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("a", 0)])
        self.assertEqual(len(self.lab.clock.getDelayedCalls()), 1, "the heartbeat")

    def test_a_channel_error(self) -> None:
        """When the broker closes the channel, the connection ends with that reason, and nothing is lost."""
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        self.lab.server.close_channel(LINES, 403, "ACCESS_REFUSED - no")
        (error,) = self.lab.server.lost
        assert isinstance(error, BrokerError)
        self.assertIn("ACCESS_REFUSED - no", str(error))
        self.lab.producer.down()
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("a", 0)])

    def test_a_channel_error_while_declaring(self) -> None:
        """The same holds while the queue is being declared again. The next connection publishes."""
        for code in (403, 404, 406):
            lab = Lab()
            lab.connect()
            lab.publish(lab.device(), b"0")
            (published,) = lab.server.take()
            lab.server.silent.add("queue.declare")
            lab.server.give_back(published)
            lab.clock.advance(0.1)
            lab.server.settle()
            lab.server.close_channel(LINES, code)
            self.assertEqual(len(lab.server.lost), 1)
            lab.producer.down()
            lab.connect()
            self.assertEqual(lab.taken(), [("a", 0)])

    def test_confirms_that_make_no_sense(self) -> None:
        """A broker that confirms a line that was not published, or returns an unknown one, is left. No line is lost."""

        def unknown_ack(lab: Lab) -> None:
            lab.server.ack(LINES, 9)

        def unknown_nack(lab: Lab) -> None:
            lab.server.nack(LINES, 9)

        def returned(headers: dict[str, Any] | None) -> Callable[[Lab], None]:
            def act(lab: Lab) -> None:
                (published,) = lab.server.take()
                lab.server.give_back(published._replace(header=message(published.body, headers)), ack=False)

            return act

        for act in (
            unknown_ack,
            unknown_nack,
            returned(None),
            returned({}),
            returned({"connection_id": "a"}),
            returned({"connection_id": "a", "from_device_seq": float("inf")}),
            returned({"connection_id": "a", "from_device_seq": "x"}),
            returned({"connection_id": "a", "from_device_seq": [1]}),
        ):
            lab = Lab()
            lab.connect()
            lab.publish(lab.device(), b"0")
            act(lab)
            self.assertEqual([type(error) for error in lab.server.lost], [WireError])
            self.assertEqual(lab.producer.unconfirmed, 1)

    def test_a_queue_that_is_declared_otherwise(self) -> None:
        """A queue that exists with other arguments is used unchanged, with a warning."""
        lab = Lab()
        lab.server.refusals["from_device", False] = (406, "PRECONDITION_FAILED - inequivalent arg")
        self.assertIsNone(lab.connect().failure)
        (warning,) = lab.events
        assert isinstance(warning, BrokerWarning)
        self.assertIn("from_device is used as it is", str(warning))
        self.assertTrue(lab.producer.accepting)

    def test_settled(self) -> None:
        """A connection is settled once all its lines are confirmed, at any time of the request."""
        other = self.lab.device("b")
        self.lab.connect()
        self.lab.publish(self.device, b"0", b"1")
        self.assertEqual((self.lab.producer.settled(self.device), self.lab.producer.settled(other)), (False, True))
        self.lab.server.ack(LINES, 1)
        self.lab.publish(other, b"0")
        self.assertEqual((self.lab.producer.settled(self.device), self.lab.producer.settled(other)), (False, False))
        self.lab.server.nack(LINES, 2)
        self.assertFalse(self.lab.producer.settled(self.device))
        self.lab.clock.advance(0.1)
        self.lab.server.settle()
        self.lab.server.ack(LINES, 4, True)
        self.assertEqual((self.lab.producer.settled(self.device), self.lab.producer.settled(other)), (True, True))

    def test_settled_remembers_nobody(self) -> None:
        """After a request, a connection that is gone with all lines confirmed leaves nothing in memory."""
        self.lab.connect()
        self.assertTrue(self.lab.producer.settled(self.device))
        gone = weakref.ref(device := self.lab.device("b"))
        self.lab.publish(device, b"0", b"1")
        self.lab.server.ack(LINES, 2, True)
        del device
        gc.collect()
        self.assertIsNone(gone())

    def test_asked_while_it_is_told(self) -> None:
        """The first request may be made in the callback of a confirm."""
        self.lab.connect()
        asked: list[bool] = []
        self.device.on_confirmed = lambda: asked.append(self.lab.producer.settled(self.device))
        self.lab.publish(self.device, b"0", b"1")
        self.lab.server.ack(LINES, 1)
        self.lab.server.ack(LINES, 2)
        self.assertEqual(asked, [False, True])
        self.assertTrue(self.lab.producer.settled(self.device))

    def test_too_large(self) -> None:
        """A line for which the broker closes the channel because of its size is given up. Its connection is closed, and the
        line is not acknowledged. The log says what to do, and all other lines are published on the next connection.
        """
        other = self.lab.device("b")
        self.lab.connect()
        self.assertTrue(self.lab.producer.settled(other))
        self.lab.publish(other, b"small")
        self.lab.publish(self.device, b"x" * 70)
        self.lab.publish(self.device, b"x" * 64)
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (70, 64))
        self.assertIn("message size 70", str(self.lab.server.lost[0]))
        advice, closed = map(str, self.lab.events)
        self.assertIn("messages of at most 64 bytes", advice)
        self.assertIn("--max-line", advice)
        self.assertIn("max_message_size", advice)
        self.assertIn("a line of 70 bytes", closed)
        self.assertEqual((len(self.device.closed), other.closed), (1, []))
        self.assertIsNone(self.lab.producer.unconfirmed_since)
        self.lab.producer.down()
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("b", 0), ("a", 1)])
        self.lab.server.ack(LINES, 2, True)
        self.assertEqual((self.device.safe, other.safe), ([1], [0]))
        self.assertTrue(self.lab.producer.settled(self.device))
        self.assertEqual((self.lab.window.given_up_lines, self.lab.producer.unconfirmed, self.lab.window.size), (1, 0, 0))

    def test_share_behind_a_line_that_is_given_up(self) -> None:
        """A connection gets its next share when the lines before it are given up, although no confirm comes."""
        other = self.lab.device("b")
        self.lab.connect()
        self.lab.publish(self.device, b"x" * 65)
        self.lab.producer.wait(other, self.lab.producer.position(0))
        self.lab.clock.advance(0)
        self.assertEqual(other.resumed, 0)
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (65, 64))
        self.lab.producer.down()
        self.lab.connect()
        self.lab.clock.advance(0)
        self.assertEqual((self.lab.taken(), other.resumed), ([], 1))

    def test_too_large_the_next_time(self) -> None:
        """A line above the known limit of the broker is not published: its connection is closed at once, with a log line. None
        of its later lines is accepted.
        """
        self.lab.connect()
        self.lab.publish(self.device, b"x" * 65)
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (65, 64))
        self.lab.producer.down()
        self.lab.connect()
        self.lab.events.clear()
        other = self.lab.device("b")
        self.lab.publish(other, b"x" * 64, b"x" * 65, b"small", b"")
        self.assertEqual(self.lab.taken(), [("b", 0)])
        (said,) = self.lab.events
        self.assertIn(
            "lines of connection b cannot be published: a line of 65 bytes, and the limit of the broker is 64; closing it",
            str(said),
        )
        self.assertEqual((len(other.closed) > 0, other.seq, self.lab.server.lost), (True, 1, []))

    def test_too_large_and_nobody_has_it(self) -> None:
        """If no line is that large, the connection ends as after any other channel error."""
        self.lab.connect()
        self.lab.publish(self.device, b"0")
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (65, 64))
        self.assertEqual((self.lab.events, len(self.lab.server.lost)), ([], 1))
        self.lab.producer.down()
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("a", 0)])

    def test_too_large_and_an_error_of_ours(self) -> None:
        """An exception in closing the connection of such a line affects that connection only."""
        self.lab.connect()
        self.lab.publish(self.device, b"x" * 65)
        self.device.fault = ZeroDivisionError()
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (65, 64))
        self.assertEqual(self.device.failures, [self.device.fault])
        self.assertEqual([type(error) for error in self.lab.server.lost], [BrokerError])


class ExchangeTests(BrokerTestCase):
    """Lines for an exchange, with a routing key for each connection."""

    def setUp(self) -> None:
        self.lab = Lab(routing_key="{connection_id}")
        self.a, self.b = self.lab.device("a"), self.lab.device("b")

    def test_setting_up(self) -> None:
        """The exchange is checked, and no queue is declared."""
        self.lab.connect()
        self.assertEqual(self.lab.server.called("queue.declare"), [])
        self.assertEqual([one["exchange"] for one in self.lab.server.called("exchange.declare")], ["lines"])
        self.assertTrue(self.lab.producer.accepting)

    def test_not_there(self) -> None:
        """Without the exchange the set-up fails with the reason of the broker."""
        self.lab.server.refusals["lines", True] = (404, "NOT_FOUND - no exchange 'lines'")
        result = self.lab.connect()
        self.assertIn("no exchange 'lines'", str(result.error))
        self.assertFalse(self.lab.producer.accepting)

    def test_one_key(self) -> None:
        """If all lines have the same key, a returned line pauses all connections, and is logged with exchange and key. No queue
        is declared for it.
        """
        lab = Lab(routing_key="all")
        lab.connect()
        device = lab.device()
        lab.publish(device, b"0")
        (published,) = lab.server.take()
        lab.server.give_back(published)
        self.assertEqual((lab.producer.accepting, device.stalled), (False, 0))
        self.assertEqual(lab.events, [LinesRefused(1, "the exchange lines has no queue for the routing key 'all'")])
        lab.clock.advance(0.1)
        self.assertEqual(lab.taken(), [("a", 0)])
        self.assertEqual(lab.server.called("queue.declare"), [])
        lab.server.ack(LINES, 2)
        self.assertTrue(lab.producer.accepting)

    def test_others_go_on(self) -> None:
        """A returned line stalls its own connection. Accepted lines of another one do not resume it."""
        self.lab.connect()
        self.lab.publish(self.a, b"0", b"1")
        first, second = self.lab.server.take()
        self.lab.server.give_back(first)
        self.lab.server.give_back(second)
        self.assertEqual((self.a.stalled, self.b.stalled, self.lab.producer.accepting), (1, 0, True))
        self.assertEqual(self.lab.events, [LinesRefused(1, "the exchange lines has no queue for the routing key 'a'")])
        self.assertEqual(
            str(self.lab.events[0]),
            "Broker refused 1 line: the exchange lines has no queue for the routing key 'a'; devices whose lines go there are "
            "not read, retrying",
        )
        self.lab.publish(self.b, b"0")
        self.assertEqual(self.lab.taken(), [("b", 0)])
        self.lab.server.ack(LINES, 3)
        self.lab.clock.advance(0)
        self.assertEqual((self.b.safe, self.a.resumed), ([0], 0))
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 0), ("a", 1)])
        self.lab.server.ack(LINES, 4)
        self.lab.clock.advance(0)
        self.assertEqual((self.a.safe, self.a.resumed), ([0], 1))
        self.lab.server.ack(LINES, 5)
        self.assertEqual((self.a.safe, self.lab.producer.unconfirmed), ([0, 1], 0))

    def test_a_channel_that_takes_nothing(self) -> None:
        """Another channel is tried if nothing at all was accepted. If other lines are accepted, they are not disturbed."""
        for taken, expected in (("", [3, 4, 5, 6, 7]), ("b", [])):
            lab = Lab(routing_key="{connection_id}")
            lab.connect()
            a, b = lab.device("a"), lab.device("b")
            lab.publish(a, b"0")
            tried: list[bool] = []
            for _ in range(8):
                if taken:
                    lab.publish(b, b"-")
                tried.append(given_up(lab, taken))
            self.assertEqual([number for number, new in enumerate(tried, 1) if new], expected)
            self.assertEqual((lab.taken(), a.safe, b.safe), ([("a", 0)], [], list(range(8)) if taken else []))

    def test_shares_beside_refused_lines(self) -> None:
        """A connection gets its next share although refused lines of another one stay in the window, more of them than a share
        has.
        """
        lab = Lab(messages=100, routing_key="{connection_id}")
        lab.connect()
        a, b = lab.device("a"), lab.device("b")
        lab.publish(a, *[b"x"] * (SMALLEST_SHARE + 4))
        lab.server.nack(LINES, len(lab.server.take()), multiple=True)
        since = 0
        for _ in range(5):
            since = lab.producer.position(since)
            self.assertGreaterEqual(since, 0)
            lab.publish(b, *[b"x"] * SMALLEST_SHARE)
            lab.server.ack(LINES, lab.server.take()[-1].tag, multiple=True)

    def test_waiting_for_a_share_when_lines_are_refused(self) -> None:
        """A connection that waits for its next share gets it when what its last share waits for is refused."""
        for returned in (False, True):
            lab = Lab(messages=100, routing_key="{connection_id}")
            lab.connect()
            a, b = lab.device("a"), lab.device("b")
            lab.publish(a, *[b"x"] * 3)
            published = lab.server.take()
            lab.producer.wait(b, lab.producer.position(0))
            lab.clock.advance(0)
            self.assertEqual(b.resumed, 0)
            if returned:
                for one in published:
                    lab.server.give_back(one)
            else:
                lab.server.nack(LINES, 3, multiple=True)
            lab.clock.advance(0)
            self.assertEqual((b.resumed, a.stalled), (1, 1))

    def test_a_full_queue(self) -> None:
        """A refused line stalls its connection in the same way. The reason is logged once for all stalled connections."""
        self.lab.connect()
        self.lab.publish(self.a, b"0")
        self.lab.publish(self.b, b"0")
        self.lab.server.take()
        self.lab.server.nack(LINES, 2, multiple=True)
        self.assertEqual((self.a.stalled, self.b.stalled, self.lab.producer.accepting), (1, 1, True))
        self.assertEqual(self.lab.events, [LinesRefused(2, "a queue behind the exchange lines is full or unavailable")])

    def test_it_waited_already(self) -> None:
        """A connection that waits for the window when its line is refused then waits for its own line."""
        lab = Lab(messages=2, routing_key="{connection_id}")
        a, b = lab.device("a"), lab.device("b")
        lab.connect()
        lab.publish(a, b"0")
        lab.publish(b, b"0")
        self.assertFalse(lab.producer.accepting)
        lab.producer.wait(a)
        lab.server.take()
        lab.server.nack(LINES, 1)
        lab.server.ack(LINES, 2)
        lab.clock.advance(0)
        self.assertEqual((a.stalled, a.resumed, lab.producer.accepting), (0, 0, True))
        lab.clock.advance(0.1)
        lab.server.settle()
        lab.server.ack(LINES, 3)
        lab.clock.advance(0)
        self.assertEqual((a.resumed, a.safe), (1, [0]))

    def test_a_window_full_of_refused_lines(self) -> None:
        """Refused lines count in the window: when it is full of them, all connections wait, and continue with the first safe
        line.
        """
        lab = Lab(messages=2, routing_key="{connection_id}")
        a, b = lab.device("a"), lab.device("b")
        lab.connect()
        lab.publish(a, b"0", b"1")
        for published in lab.server.take():
            lab.server.give_back(published)
        lab.producer.wait(b)
        lab.clock.advance(0)
        self.assertEqual((lab.producer.accepting, b.resumed), (False, 0))
        lab.clock.advance(0.1)
        lab.server.settle()
        lab.server.ack(LINES, 3)
        lab.clock.advance(0)
        self.assertEqual((lab.producer.accepting, a.resumed, b.resumed), (True, 1, 1))

    def test_a_new_connection(self) -> None:
        """On a new connection to the broker everything is published again, and no connection is stalled."""
        self.lab.connect()
        self.lab.publish(self.a, b"0")
        (published,) = self.lab.server.take()
        self.lab.server.give_back(published)
        self.lab.lose()
        self.lab.connect()
        self.lab.clock.advance(0)
        self.assertEqual((self.lab.taken(), self.a.resumed), ([("a", 0)], 1))
        self.assertEqual(len(self.lab.clock.getDelayedCalls()), 1, "the heartbeat")

    def test_it_leaves(self) -> None:
        """A connection that ends while it is stalled is not resumed, and its lines are published."""
        self.lab.connect()
        self.lab.publish(self.a, b"0")
        (published,) = self.lab.server.take()
        self.lab.server.give_back(published)
        self.lab.producer.leave(self.a)
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 0)])
        self.lab.server.ack(LINES, 2)
        self.lab.clock.advance(0)
        self.assertEqual((self.a.resumed, self.lab.producer.unconfirmed), (0, 0))

    def test_an_error_of_ours(self) -> None:
        """An exception in stalling one connection affects that one only."""
        self.lab.connect()
        self.lab.publish(self.a, b"0")
        self.lab.publish(self.b, b"0")
        self.lab.server.take()
        self.a.fault = ZeroDivisionError()
        self.lab.server.nack(LINES, 2, multiple=True)
        self.assertEqual((self.a.failures, self.b.stalled), ([self.a.fault], 1))

    def test_the_waits(self) -> None:
        """The waits grow while a line is returned again, and start over once no connection is stalled."""
        self.lab.connect()
        self.lab.publish(self.a, b"0")
        waits = []
        for _ in range(6):
            (published,) = self.lab.server.take()
            self.lab.server.give_back(published)
            waited = 0.0
            while not self.lab.server.published:
                self.lab.clock.advance(0.01)
                self.lab.server.settle()
                waited += 0.01
            waits.append(waited)
        self.assertGreater(waits[5], 10 * waits[0])
        self.assertEqual(len(self.lab.events), 1)
        self.lab.server.ack(LINES, 7)
        self.lab.publish(self.a, b"1")
        _, published = self.lab.server.take()
        self.lab.server.give_back(published)
        self.lab.clock.advance(0.1)
        self.assertEqual(self.lab.taken(), [("a", 1)])
        self.assertEqual([type(event) for event in self.lab.events], [LinesRefused, LinesAccepted, LinesRefused])
        self.assertEqual(str(self.lab.events[1]), "Broker accepts lines again: exchange lines")

    def test_unroutable(self) -> None:
        """A connection whose key is too long is closed at its first line, with one log line. None of its lines counts."""
        long = self.lab.device("x" * 256)
        self.lab.connect()
        self.lab.publish(long, b"0", b"1")
        reason = "the routing key would be 256 bytes long, and AMQP allows 255"
        self.assertEqual((set(long.closed), long.seq, self.lab.producer.unconfirmed), ({reason}, 0, 0))
        (warning,) = self.lab.events
        self.assertIn(f"cannot be published: {reason}; closing it", str(warning))
        self.assertEqual(self.lab.taken(), [])
        self.assertTrue(self.lab.producer.settled(long))


class ProducerMachine(RuleBasedStateMachine):
    """Two devices and a broker with a queue that accepts, refuses or returns, over an unstable connection."""

    routing_key: str | None = None
    batch = 1

    @initialize()
    def begin(self) -> None:
        self.lab = Lab(messages=6, routing_key=self.routing_key, batch=self.batch)
        self.devices = [self.lab.device(name) for name in "ab"]
        self.queue: list[Numbered] = []
        self.pending: list[Publish] = []
        self.refused_any = False
        self.last = {"a": -1, "b": -1}
        self.most = {"a": -1, "b": -1}
        self.lab.connect()

    def arrive(self) -> None:
        """Take published messages. Lines of a device must be published in order, and again in order after a fault."""
        if self.lab.server.lost:  # after several refusals in a row another channel is tried
            assert "only on this channel" in str(self.lab.server.lost[0])
            self.pending = []
            self.lab.producer.down()
            self.lab.connect()
        taken = self.lab.server.take()
        for name, number in lines(taken):
            last, most = self.last[name], self.most[name]
            left_out = set(range(last + 1, number)) if number > last else {*range(number), *range(last + 1, most + 1)}
            left_out -= set(next(device.safe for device in self.devices if device.connection_id.decode() == name))
            assert not left_out, (name, last, number, left_out)
            self.last[name], self.most[name] = number, max(most, number)
        self.pending += taken

    @rule(which=st.integers(0, 1), count=st.integers(1, 4), together=st.booleans())
    def talk(self, which: int, count: int, together: bool) -> None:
        device = self.devices[which]
        if together and self.lab.producer.accepting and device.resumed == device.stalled:
            self.lab.publish_together(device, *[b"line"] * count)
            count = 0
        for _ in range(count):
            if self.lab.producer.accepting and device.resumed == device.stalled:
                self.lab.publish(device, b"line")
        self.arrive()

    @rule(which=st.integers(0, 1))
    def leave(self, which: int) -> None:
        """Publish a line at any time, as for a device that leaves."""
        self.lab.publish(self.devices[which], b"line")
        self.arrive()

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 5), single=st.booleans())
    def take(self, count: int, single: bool) -> None:
        taken, self.pending = self.pending[:count], self.pending[count:]
        self.queue += lines(taken)
        for one in reversed(taken) if single else taken[-1:]:
            self.lab.server.ack(LINES, one.tag, not single)
        self.arrive()

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 5), back=st.booleans())
    def refuse(self, which: int, back: bool) -> None:
        one = self.pending.pop(which % len(self.pending))
        self.refused_any = True
        if back:
            self.lab.server.give_back(one)
        else:
            self.lab.server.nack(LINES, one.tag)
        self.arrive()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.lab.server.client.dataReceived(wire.HEARTBEAT_FRAME)
        self.lab.clock.advance(seconds)
        self.arrive()

    @rule(messages=st.sampled_from([1, 6, 50]), size=st.sampled_from([300, 1 << 20]))
    def configure(self, messages: int, size: int) -> None:
        self.lab.producer.configure(messages, size, acknowledge=True)

    @rule(reached=st.integers(0, 5))
    def break_it(self, reached: int) -> None:
        self.queue += lines(self.pending[:reached])  # these had reached the queue, and the confirms were lost
        self.pending = []
        self.lab.lose()
        self.lab.connect()
        self.arrive()

    @invariant()
    def what_is_safe_is_in_the_queue(self) -> None:
        if not hasattr(self, "devices"):
            return
        assert not self.lab.server.lost
        # Confirmed and unconfirmed lines are all lines, at any time: the number of received lines is computed from them.
        published = sum(device.seq for device in self.devices)
        assert self.lab.window.confirmed_lines + self.lab.window.messages == published
        for device in self.devices:
            name = device.connection_id.decode()
            numbers = [number for one, number in self.queue if one == name]
            assert set(device.safe) <= set(numbers)
            assert len(device.safe) == len(set(device.safe)), "safe twice"
            if not self.refused_any:
                firsts = list(dict.fromkeys(numbers))
                assert firsts == sorted(firsts), firsts

    def teardown(self) -> None:
        """Let the broker accept everything: each line becomes safe, and devices are read."""
        if not hasattr(self, "devices"):
            return
        for _ in range(10):
            self.lab.server.client.dataReceived(wire.HEARTBEAT_FRAME)
            self.lab.clock.advance(6)
            self.arrive()
            for one in self.pending:
                self.queue += lines([one])
                self.lab.server.ack(LINES, one.tag)
            self.pending = []
        self.what_is_safe_is_in_the_queue()
        for device in self.devices:
            assert sorted(device.safe) == list(range(device.seq))
            assert device.resumed == device.stalled
        assert self.lab.producer.unconfirmed == 0
        assert self.lab.producer.accepting


class ExchangeMachine(ProducerMachine):
    """The same with an exchange and a key for each device, which stall separately."""

    routing_key = "{connection_id}"


class BooksTests(BrokerTestCase):
    def test_the_books_balance(self) -> None:
        """For any refusals, returns and lost connections: every acknowledged line is in the queue, acknowledged once, in order
        if none was refused; in the end every line is safe and devices are read.
        """
        for machine in (ProducerMachine, ExchangeMachine):
            run_state_machine_as_test(machine, settings=settings(deadline=None, max_examples=30, stateful_step_count=15))
