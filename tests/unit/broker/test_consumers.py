"""Tests of messages from the broker: consumed, read, routed and acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from txamqp.client import Closed

from owsla.amqp import wire
from owsla.broker import message_properties
from owsla.broker import queues as topology
from owsla.broker.binding import Binding
from owsla.broker.consumer import INDIVIDUAL_DELAY
from owsla.broker.consumers import OWN, SHARED, Consumers, ConsumerSettings, OwnQueueParts
from owsla.broker.own_queue import SCRATCH, OwnQueueSettings
from owsla.events import BrokerWarning, Event
from owsla.letter import BAD, DeliverySource, Hop, Letter

from .fakes import BrokerTestCase, Result, Server, deliver, message

ID = b"0123abcd-0000-8000-8000-000000000001"


class Router:
    """Router that records its messages."""

    def __init__(self) -> None:
        self.plain: list[tuple[Any, ...]] = []
        self.letters: list[Letter] = []
        self.refused: list[tuple[Letter, str]] = []
        self.forgotten: list[DeliverySource] = []
        self.handed_over: list[bytes] = []

    def route(self, *what: Any) -> None:
        self.plain.append(what)

    def route_letter(self, letter: Letter) -> None:
        self.letters.append(letter)

    def refuse(self, letter: Letter, reason: str) -> None:
        self.refused.append((letter, reason))

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        self.forgotten.append(source)
        self.handed_over += handed_over


class Place:
    """Node that records the results of queue checks. Its names are 0123abcd and the following ones."""

    def __init__(self) -> None:
        self.names = [b"0123abcd", b"1123abcd", b"2123abcd"]
        self.renamed: list[str] = []
        self.heres: list[bool] = []
        self.probes: list[tuple[str, str]] = []
        self.arrived: list[Callable[[], None]] = []
        self.losses = 0
        self.lists: list[bytes] = []
        self.aways = 0
        self.proposed = False

    def queue(self) -> topology.Queue:
        return topology.node_queue("to_device", self.names[0])

    def other(self) -> topology.Queue:
        del self.names[1 : 2 if self.proposed else 1]  # the last one must differ
        self.proposed = True
        return topology.node_queue("to_device", self.names[1])

    def rename(self, reason: str) -> None:
        self.renamed.append(reason)
        self.proposed = False
        del self.names[0]

    def here(self, *, missed: bool) -> None:
        self.heres.append(missed)

    def listed(self, nodes: bytes) -> None:
        self.lists.append(nodes)

    def away(self) -> None:
        self.aways += 1

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        self.probes.append((queue, text))
        self.arrived.append(arrived)

    def lost(self) -> None:
        self.losses += 1


class Base(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server(heartbeat=1000)
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.flowing: list[bool] = []
        self.router = Router()
        self.place = Place()
        self.binding = Binding(self.clock, "to_device.all", changed=lambda: None, warn=lambda text: None)
        self.consumers = self.make()
        self.connect()

    def make(self) -> Consumers:
        return Consumers(
            self.clock,
            self.server.turn,
            self.events.append,
            self.router,
            own=OwnQueueParts(self.place, self.binding),
            settings=ConsumerSettings(
                shared=topology.Queue("to_device"),
                count=2,
                prefetch=50,
                own_queue=OwnQueueSettings(
                    users={"me"},
                    grace=10.0,
                    ghost=61.0,
                    patience=30.0,
                ),
            ),
            flowing=self.flowing.append,
        )

    def connect(self) -> None:
        self.server.ready()
        up = Result(self.consumers.up(self.server.client))
        self.server.settle()
        assert up.done
        assert up.failure is None

    def deliver(self, tag: int, headers: dict[str, Any] | None, channel: int = SHARED, **properties: Any) -> None:
        self.server.raw(deliver(channel, tag, message(b"body", headers, **properties), b"body"))

    def channels(self, name: str) -> list[int]:
        return [channel for channel, called, _ in self.server.calls if called == name]

    def acks(self) -> list[tuple[int, int, bool]]:
        self.server.settle()
        found = [
            (channel, fields["delivery_tag"], fields["multiple"])
            for channel, name, fields in self.server.calls
            if name == "basic.ack"
        ]
        self.server.calls.clear()
        return found

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.settle()


class SettingUpTests(Base):
    def test_consumers(self) -> None:
        """Each queue is declared once and consumed with the prefetch: first the shared one, by several consumers on one
        channel, which keeps its order; then the node queue, by one consumer.
        """
        self.assertEqual(
            [
                (one["queue"], one["durable"], one["arguments"])
                for one in self.server.called("queue.declare")
                if not one["passive"]
            ],
            [
                ("to_device", True, {}),
                (
                    "to_device.0123abcd",
                    True,
                    {"x-expires": topology.NODE_QUEUE_EXPIRES, "x-single-active-consumer": True},
                ),
            ],
        )
        self.assertEqual(
            [
                (channel, fields["queue"], fields["no_ack"])
                for channel, name, fields in self.server.calls
                if name == "basic.consume"
            ],
            [(SHARED, "to_device", False), (SHARED, "to_device", False), (OWN, "to_device.0123abcd", False)],
        )
        tags = [one["consumer_tag"] for one in self.server.called("basic.consume")][:2]
        self.assertEqual(len(set(tags)), 2)
        self.assertEqual([one["prefetch_count"] for one in self.server.called("basic.qos")], [50] * 2)
        names = [name for channel, name, _ in self.server.calls if channel == SHARED]
        self.assertEqual(names, ["channel.open", "basic.qos", "basic.consume", "basic.consume"])
        self.assertEqual(self.flowing, [True])

    def test_prefetch(self) -> None:
        """Each message has the limit of unacknowledged messages of its consumer: the prefetch times its consumers."""
        for channel, most in ((SHARED, 100), (OWN, 50)):
            self.deliver(1, {"connection_id": ID}, channel=channel)
            self.assertEqual(self.router.plain[-1][0].prefetch, most)


class StartTests(Base):
    """Consumers that cannot be started: the connection ends with the reason, and nothing is restarted on it."""

    def begin(self) -> Result:
        self.server.drop()
        self.consumers.down()
        self.server = Server(self.clock, heartbeat=1000)
        self.server.ready()
        self.consumers = self.make()
        return Result(self.consumers.up(self.server.client))

    def test_stream(self) -> None:
        """A stream is refused, also one that a declaration did not find out."""
        text = "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'to_device' of queue type rabbit_stream_queue"
        up = self.begin()
        self.server.refusals["consume to_device", False] = 406, text
        self.server.settle()
        self.assertIn("the queue to_device is a stream, which Owsla cannot consume", str(up.error))
        self.pass_time(60)
        self.assertEqual((self.events, len(self.server.called("basic.consume"))), ([], 1))

    def test_cancelled_meanwhile(self) -> None:
        """The broker cancels the first consumer while the second one is started."""
        up = self.begin()
        self.server.silent.add("basic.consume")
        self.server.settle()
        self.server.send(SHARED, "basic.consume-ok", consumer_tag="owsla-0")
        self.server.send(SHARED, "basic.cancel", consumer_tag="owsla-0", nowait=True)
        self.server.send(SHARED, "basic.consume-ok", consumer_tag="owsla-1")
        self.assertIn("a consumer of to_device ended while others were started", str(up.error))
        self.pass_time(60)
        self.assertEqual((self.events, len(self.server.called("basic.consume"))), ([], 2))


class DeliveryTests(Base):
    def test_a_plain_message(self) -> None:
        """A message with a connection and a number goes straight to the router, and is not acknowledged yet."""
        self.deliver(1, {"connection_id": ID, "to_device_seq": 7})
        ((source, tag, connection_id, seq, header, body),) = self.router.plain
        self.assertEqual((tag, connection_id, seq, body), (1, ID, 7, b"body"))
        self.assertEqual(header, message(b"body", {"connection_id": ID, "to_device_seq": 7}))
        self.assertTrue(source.open)
        self.assertEqual(self.acks(), [])

    def test_odd_messages(self) -> None:
        """A missing id, a missing number and an invalid number are passed to the router."""
        self.deliver(1, None)
        self.deliver(2, {"connection_id": 5})
        self.deliver(3, {"connection_id": ID, "to_device_seq": "x"})
        self.assertEqual([one[2:4] for one in self.router.plain], [(b"", None), (ID, BAD)])
        self.assertEqual([(one.connection_id, one.to_device_id, one.selector) for one in self.router.letters], [(None,) * 3])

    def test_messages_to_devices(self) -> None:
        """A message without a connection id is for a device, or for those of a selector. A notice is for neither."""
        self.deliver(1, {"device_id": "door-7", "owsla_to": "all", "to_device_seq": 4})
        self.deliver(2, {"device_id": b"door-\xff"})
        self.deliver(3, {"device_id": 7})
        self.deliver(4, {"owsla_to": "prefix:door-"})
        self.deliver(5, {"owsla_to": 5})
        self.deliver(6, {"device_id": "door-7", "owsla_notice": "who-has"})
        self.deliver(7, {"device_id": "door-7", "connection_id": ID})
        self.assertEqual(
            [(one.to_device_id, one.selector, one.seq) for one in self.router.letters],
            [
                ("door-7", None, 4),
                ("door-\udcff", None, None),
                ("", None, None),
                (None, "prefix:door-", None),
                (None, "", None),
                (None, None, None),
            ],
        )
        self.assertEqual([one[2] for one in self.router.plain], [ID])

    def test_hops(self) -> None:
        """A message that another node has forwarded by device id says who asked, and how often it came back."""
        hop = {"owsla_from_node": "0123abcd", "owsla_returns": 2, "owsla_returned_by": "89abcdef"}
        self.deliver(1, {"device_id": "door-7", **hop})
        self.deliver(2, {"device_id": "door-7", **hop, "owsla_from_node": "x"})
        self.deliver(3, {"device_id": "door-7", "owsla_from_node": "0123abcd"})
        self.deliver(4, {"owsla_to": "all", **hop})
        hops = [one.hop for one in self.router.letters]
        self.assertEqual(hops, [Hop(b"0123abcd", 2, b"89abcdef"), None, Hop(b"0123abcd", 0), None])

    def test_a_message_that_asks_for_more(self) -> None:
        """Options of a message are passed on with it."""
        self.deliver(
            1,
            {"connection_id": ID, "to_device_seq": 7, "expires_at": 1_234_500, "owsla_close": True},
            reply_to="answers",
            correlation_id="c",
        )
        (letter,) = self.router.letters
        self.assertEqual((letter.tag, letter.connection_id, letter.seq, letter.body), (1, ID, 7, b"body"))
        self.assertEqual((letter.close, letter.expires_at), (True, 1234.5))
        self.assertEqual((letter.reply_to, letter.correlation_id), (b"answers", b"\x01c"))

    def test_expiration(self) -> None:
        """`expiration` counts from the arrival, by the monotonic clock. `expires_at` is a date."""
        now = self.clock.seconds()
        for headers, expiration, expected in (
            ({}, "500", (None, now + 0.5)),
            ({"expires_at": 1_000_200}, "500", (1000.2, now + 0.5)),
            ({"owsla_expiration": "0"}, None, (None, now)),
            ({"expires_at": 5}, None, (0.005, None)),
            ({"expires_at": "soon"}, None, (BAD, None)),
            ({"expires_at": "soon"}, "500", (BAD, now + 0.5)),
        ):
            self.deliver(1, headers, expiration=expiration)
            letter = self.router.letters.pop()
            self.assertEqual((letter.expires_at, letter.deadline), expected)

    def test_delivered_again(self) -> None:
        """A redelivered message without a number, at this node or at the one that forwarded it, has an identity. A numbered one
        has its number.
        """
        for redelivered, headers in ((True, {}), (False, {message_properties.REDELIVERED_HEADER: True})):
            header = message(b"body", {"connection_id": ID, **headers})
            self.server.raw(deliver(SHARED, 1, header, b"body", redelivered=redelivered))
            self.assertEqual(self.router.letters.pop().identity, message_properties.identity(header, b"body"))
        for more in ({}, {"expires_at": 1}):
            header = message(b"body", {"connection_id": ID, "to_device_seq": 1, **more})
            self.server.raw(deliver(SHARED, 1, header, b"body", redelivered=True))
        self.assertEqual(len(self.router.plain), 1)
        self.assertIsNone(self.router.letters.pop().identity)
        self.deliver(2, {"connection_id": ID, "expires_at": 1})
        self.assertIsNone(self.router.letters.pop().identity)

    def test_handed_over(self) -> None:
        """When a channel ends, its recently delivered messages are passed on."""
        self.deliver(1, {"connection_id": ID})
        ((source, _, _, _, header, body),) = self.router.plain
        source.written(header, body)
        self.server.close_channel(SHARED)
        self.assertEqual(self.router.handed_over, [message_properties.identity(header, body)])

    def test_unreadable_headers(self) -> None:
        """A message with unreadable headers is refused, and the connection stays open."""
        for properties in (
            b"\x20\0\0\0\0\x09\x01aS\0\0\0\xff",
            b"\x20\0\0\0\0\x03\x01a?",
            b"\x22\0\0\0\0\x02\x01aq",
            b"\x02\x00\xff",
        ):
            self.server.raw(deliver(SHARED, 1, wire.header_payload(4, properties), b"body"))
            letter, reason = self.router.refused.pop()
            self.assertEqual((letter.tag, letter.body, letter.connection_id, reason), (1, b"body", None, "bad-connection-id"))
        self.assertFalse(self.server.transport.ended)

    def test_acknowledged_at_the_end_of_the_turn(self) -> None:
        """Settled messages are acknowledged at the end of the turn, cumulatively as far as possible. Those behind an unsettled
        one wait for it, and are acknowledged one by one if that takes too long.
        """
        source = self.delivered(7)
        for tag in (2, 1, 6, 3, 5):
            source.done(tag)
        self.assertEqual(self.server.calls, [])
        self.assertEqual(self.acks(), [(SHARED, 3, True)])
        source.done(4)
        self.assertEqual(self.acks(), [(SHARED, 6, True)])
        self.pass_time(INDIVIDUAL_DELAY)
        source.done(8)
        self.assertEqual(self.acks(), [])
        self.pass_time(INDIVIDUAL_DELAY)
        self.assertEqual(self.acks(), [(SHARED, 8, False)])
        source.done(7)
        self.assertEqual(self.acks(), [(SHARED, 7, True)])
        self.pass_time(1)
        self.assertEqual((self.acks(), self.clock.getDelayedCalls()), ([], self.idle))

    def delivered(self, last: int) -> Any:
        """Deliver messages up to a tag and one more. Return their consumer."""
        self.idle = self.clock.getDelayedCalls()
        for tag in range(1, last + 2):
            self.deliver(tag, {"connection_id": ID})
        self.server.calls.clear()
        return self.router.plain[0][0]

    def test_many_behind_an_unsettled_one(self) -> None:
        """An eighth of the prefetch at most waits for an unsettled message: the rest is acknowledged at once."""
        source = self.delivered(40)
        for tag in range(2, 13):
            source.done(tag)
        self.assertEqual(self.acks(), [])
        source.done(13)
        self.assertEqual(self.acks(), [(SHARED, tag, False) for tag in range(2, 14)])

    def test_the_end_while_some_wait(self) -> None:
        """The end of a consumer leaves no timer."""
        source = self.delivered(3)
        source.done(2)
        self.assertEqual(self.acks(), [])
        self.server.close_channel(SHARED)
        source.done(3)
        self.server.settle()
        soon = self.clock.seconds() + INDIVIDUAL_DELAY
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.getTime() <= soon], [])
        self.pass_time(INDIVIDUAL_DELAY)
        self.assertEqual(self.acks(), [])

    def test_each_channel_for_itself(self) -> None:
        """Consumers acknowledge on their own channels."""
        self.deliver(1, {"connection_id": ID}, channel=SHARED)
        self.deliver(1, {"connection_id": ID}, channel=OWN)
        self.server.calls.clear()
        for one in self.router.plain:
            one[0].done(one[1])
        self.assertEqual(self.acks(), [(SHARED, 1, True), (OWN, 1, True)])


class LossTests(Base):
    def test_cancelled(self) -> None:
        """A cancelled consumer is logged once. After a pause its queue is declared and consumed again, on a new channel, so
        that its unacknowledged messages are redelivered. The others continue.
        """
        self.deliver(1, {"connection_id": ID})
        source = self.router.plain[0][0]
        self.server.calls.clear()
        self.server.send(SHARED, "basic.cancel", consumer_tag="owsla", nowait=True)
        self.assertEqual((self.router.forgotten, source.open), ([source], False))
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])
        self.assertEqual(self.server.calls, [])
        self.assertEqual(self.flowing, [True, False])
        self.pass_time(0.2)
        self.assertEqual([one["queue"] for one in self.server.called("queue.declare")], ["to_device"])
        self.assertEqual(self.channels("basic.consume"), [SHARED, SHARED])
        self.assertIn(SHARED, self.channels("channel.close"))
        self.assertEqual(self.flowing, [True, False, True])
        source.done(1)
        self.assertEqual(self.channels("basic.ack"), [])
        self.deliver(1, {"connection_id": ID})
        self.router.plain[-1][0].done(1)
        self.assertEqual(self.acks(), [(SHARED, 1, True)])

    def test_a_channel_error(self) -> None:
        """The same holds for a consumer whose channel the broker closes."""
        self.server.calls.clear()
        self.server.close_channel(OWN, 406, "PRECONDITION_FAILED - delivery acknowledgement timed out")
        self.assertIn("timed out", str(self.events[0]))
        self.assertEqual(len(self.router.forgotten), 1)
        self.pass_time(0.2)
        self.assertEqual(self.channels("basic.consume"), [OWN])
        self.assertFalse(self.server.transport.ended)

    def test_a_queue_that_is_deleted(self) -> None:
        """If all consumers of a queue are cancelled at once, that is logged once, and all are restored."""
        self.server.calls.clear()
        for tag in ("owsla-0", "owsla-1"):
            self.server.send(SHARED, "basic.cancel", consumer_tag=tag, nowait=True)
        self.assertEqual((len(self.events), len(self.router.forgotten)), (1, 1))
        self.pass_time(0.2)
        self.assertEqual(self.channels("basic.consume"), [SHARED, SHARED])

    def test_another_is_lost_meanwhile(self) -> None:
        """A consumer that is lost while another one is being restored follows it: there is one channel for declarations."""
        self.server.silent.add("queue.declare")
        self.server.close_channel(SHARED)
        self.pass_time(0.2)
        self.server.close_channel(OWN)
        self.pass_time(5)
        self.server.silent.clear()
        self.server.calls.clear()
        self.server.send(SCRATCH, "queue.declare-ok", queue="to_device")
        self.pass_time(20)
        self.assertEqual(self.server.lost, [])
        self.assertEqual(self.channels("basic.consume"), [SHARED, SHARED, OWN])
        self.assertIs(self.flowing[-1], True)

    def test_consuming_again_fails(self) -> None:
        """If a queue cannot be declared again, the connection ends with the reason of the broker."""
        self.server.refusals["to_device", False] = (404, "NOT_FOUND - home node is down")
        self.server.close_channel(SHARED)
        self.pass_time(0.2)
        self.assertIn("home node is down", str(self.server.lost[0]))
        self.consumers.down()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_connection_is_lost(self) -> None:
        """When the connection is lost, each consumer is forgotten once, without a log line, and nothing of it is acknowledged
        on the next connection.
        """
        for channel in (OWN, SHARED):
            self.deliver(1, {"connection_id": ID}, channel=channel)
        sources = {one[0] for one in self.router.plain}
        self.server.drop()
        self.consumers.down()
        self.assertEqual(self.place.aways, 1)
        self.assertEqual(len(self.router.forgotten), 2)
        self.assertEqual({*self.router.forgotten}, sources)
        self.assertFalse(any(source.open for source in sources))
        self.assertEqual((self.events, self.flowing), ([], [True, False]))
        self.server = Server(self.clock, heartbeat=1000)
        self.connect()
        for source in sources:
            source.done(1)
        self.assertEqual(self.acks(), [])
        self.assertEqual(self.flowing, [True, False, True])

    def test_lost_while_waiting_to_consume_again(self) -> None:
        """A connection that is lost during the pause leaves no timer."""
        self.server.close_channel(SHARED)
        self.server.drop()
        self.consumers.down()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OwnQueueTests(Base):
    def delete(self, messages: int) -> Result:
        self.server.silent.add("queue.declare")
        result = Result(self.consumers.delete_own_queue())
        self.server.settle()
        self.server.send(SCRATCH, "queue.declare-ok", queue="to_device.0123abcd", message_count=messages)
        return result

    def test_empty(self) -> None:
        """An empty node queue is deleted, and the cancellation of its consumer is not logged."""
        self.assertTrue(self.delete(0).value)
        self.assertEqual([one["queue"] for one in self.server.called("queue.delete")], ["to_device.0123abcd"])
        self.server.send(OWN, "basic.cancel", consumer_tag="owsla", nowait=True)
        self.pass_time(30)
        self.assertEqual(self.events, [])
        self.assertEqual(len(self.server.called("basic.consume")), 3)

    def test_not_empty(self) -> None:
        """A node queue with messages is not deleted."""
        self.assertIs(self.delete(1).value, False)
        self.assertEqual(self.server.called("queue.delete"), [])

    def test_unacknowledged(self) -> None:
        """One with a message that this node still holds is not deleted: the broker would delete the message with it, and does
        not count it.
        """
        self.deliver(1, {"connection_id": ID}, OWN)
        self.deliver(2, {"device_id": "door-7"}, OWN)
        (source, *_), (held,) = self.router.plain[-1], self.router.letters
        source.done(1)
        self.assertIs(self.delete(0).value, False)
        self.assertNotIn("queue.delete", [name for _, name, _ in self.server.calls])
        held.source.done(2)
        self.assertIs(self.delete(0).value, True)

    def test_no_connection(self) -> None:
        """Without a connection the node queue stays."""
        self.server.drop()
        self.consumers.down()
        self.assertIs(Result(self.consumers.delete_own_queue()).value, False)


class StopTests(Base):
    def stop(self, *, own: bool) -> Result:
        result = Result(self.consumers.stop_consuming(own=own))
        self.server.settle()
        return result

    def test_stopped(self) -> None:
        """Every consumer of a queue is cancelled. Its messages are acknowledged on the open channel when they are settled."""
        self.deliver(1, {"connection_id": ID}, channel=SHARED)
        self.assertTrue(self.stop(own=False).done)
        self.assertEqual(self.channels("basic.cancel"), [SHARED, SHARED])
        self.router.plain[0][0].done(1)
        self.server.settle()
        self.assertEqual(self.acks(), [(SHARED, 1, True)])
        self.assertTrue(self.stop(own=True).done)
        self.assertEqual(self.channels("basic.cancel"), [OWN])

    def test_nothing_waits(self) -> None:
        """When a consumer stops, settled messages behind an unsettled one are acknowledged at once."""
        for tag in (1, 2, 3):
            self.deliver(tag, {"connection_id": ID}, channel=SHARED)
        source = self.router.plain[0][0]
        source.done(2)
        self.assertEqual(self.acks(), [])
        self.assertTrue(self.stop(own=False).done)
        self.assertEqual(self.acks(), [(SHARED, 2, False)])
        source.done(3)
        self.assertEqual(self.acks(), [(SHARED, 3, False)])
        source.done(1)
        self.assertEqual(self.acks(), [(SHARED, 1, True)])

    def test_stopped_for_good(self) -> None:
        """A stopping node does not consume again after the loss of a channel or the connection, and logs no warning."""
        self.stop(own=False)
        self.server.close_channel(SHARED)
        self.server.close_channel(OWN)
        self.pass_time(30)
        self.server.drop()
        self.consumers.down()
        self.server = Server(self.clock, heartbeat=1000)
        self.connect()
        self.assertEqual(self.server.called("basic.consume"), [])
        self.assertEqual(self.events, [])
        self.assertTrue(self.stop(own=True).done)

    def test_stopped_while_consuming_again(self) -> None:
        """The same holds for a consumer that waits for its retry."""
        self.server.close_channel(SHARED)
        self.server.calls.clear()
        self.stop(own=False)
        self.pass_time(30)
        self.assertEqual(self.server.called("basic.consume"), [])

    def test_stopped_while_setting_up(self) -> None:
        """A node that stops during the set-up of its consumers starts no further one, at any call."""
        for silent, number, consumed in (
            ("queue.declare", SCRATCH, []),
            ("channel.open", SHARED, []),
            ("basic.qos", SHARED, []),
            ("basic.consume", SHARED, [SHARED]),
            ("basic.qos", OWN, [SHARED, SHARED]),
        ):
            self.setUp()
            self.server.drop()
            self.consumers.down()
            self.server = Server(self.clock, heartbeat=1000)
            self.server.ready()
            self.flowing.clear()
            self.place.heres.clear()
            self.server.silent.update({silent, "basic.cancel"})
            up = Result(self.consumers.up(self.server.client))
            self.server.settle()
            while self.server.calls[-1][:2] != (number, silent):
                self.answer(self.server.calls[-1])
            call = self.server.calls[-1]
            stopped = self.stop(own=False)
            self.server.silent.clear()
            self.answer(call)
            if not stopped.done:
                self.answer(next(call for call in self.server.calls if call[1] == "basic.cancel"))
            self.assertTrue(up.done and stopped.done, (silent, number))
            self.assertIsNone(up.failure)
            self.assertEqual(self.channels("basic.consume"), consumed)
            self.assertEqual(self.channels("basic.cancel"), consumed)
            self.assertEqual((self.flowing, self.place.heres), ([], []))

    def answer(self, call: tuple[int, str, dict[str, Any]]) -> None:
        """Answer a call."""
        number, name, fields = call
        more = {one: fields[one] for one in ("consumer_tag" if name.startswith("basic") else "queue",) if one in fields}
        self.server.send(number, f"{name}-ok", **more)

    def test_stopped_while_beginning_again(self) -> None:
        """The same holds for consumers that ended alone, and are set up again."""
        for number, consumer in ((SHARED, "to_device"), (OWN, "to_device.0123abcd")):
            self.setUp()
            self.server.close_channel(number)
            self.server.calls.clear()
            self.server.silent.add("queue.declare")
            self.pass_time(1)
            self.assertEqual(self.server.called("queue.declare")[0]["queue"], consumer)
            stopped = self.stop(own=False)
            self.server.silent.clear()
            self.answer(self.server.calls[-1])
            self.pass_time(30)
            self.assertTrue(stopped.done)
            self.assertEqual((self.channels("basic.consume"), self.server.lost), ([], []))

    def test_a_broker_that_goes_meanwhile(self) -> None:
        """A call without an answer fails when the connection is lost."""
        self.server.silent.add("basic.cancel")
        result = self.stop(own=False)
        self.assertFalse(result.done)
        self.server.drop()
        self.assertTrue(result.done)
        self.assertIsInstance(result.error, Closed)


class NameTests(Base):
    """Tests of the owner of a node queue."""

    MINE = "to_device.0123abcd"

    def again(self) -> None:
        self.server.drop()
        self.consumers.down()
        found = self.server.found
        self.server = Server(self.clock, heartbeat=1000)
        self.server.found = found
        self.connect()

    def notice(self, text: str, channel: int = OWN, user: str | None = "me") -> None:
        self.server.raw(deliver(channel, 1, message(b"", {"owsla_notice": text}, user_id=user), b""))

    def test_said_so(self) -> None:
        """Other parts are told of the node when its queue is consumed. A new name needs no check."""
        self.assertEqual((self.place.heres, self.place.probes), ([False], []))

    def test_a_new_name_that_is_taken(self) -> None:
        """A new name whose queue has a consumer already is replaced by another one, before anything is consumed."""
        self.server.drop()
        self.consumers = self.make()
        self.server = Server(self.clock, heartbeat=1000)
        self.server.found = {self.MINE: (0, 1), "to_device.1123abcd": (0, 1)}
        self.connect()
        self.assertEqual(self.place.renamed, ["another node has this name"])
        self.assertEqual(
            [one["queue"] for one in self.server.called("basic.consume")], ["to_device"] * 2 + ["to_device.2123abcd"]
        )

    def test_no_free_name(self) -> None:
        """Without a free name the connection is dropped, and retried like after any other error of the broker."""
        self.server.drop()
        self.consumers = self.make()
        self.place.names = [b"%08d" % number for number in range(20)]
        self.server = Server(self.clock, heartbeat=1000)
        self.server.found = {f"to_device.{number:08}": (0, 1) for number in range(20)}
        self.server.ready()
        up = Result(self.consumers.up(self.server.client))
        self.server.settle()
        self.assertIn("no free name", str(up.error))

    def test_its_ghost(self) -> None:
        """After a reconnect the node sends itself a message. If it arrives, the node still owns its queue, with any number of
        consumers. The message is not routed.
        """
        self.server.found = {self.MINE: (0, 2)}
        self.again()
        ((queue, text),) = self.place.probes
        self.assertEqual((queue, self.place.heres), (self.MINE, [False, False]))
        self.place.arrived.pop()()
        self.pass_time(60)
        self.notice(text)
        self.assertEqual(self.acks(), [(OWN, 1, True)])
        self.pass_time(1000)
        self.assertEqual((self.place.renamed, self.router.plain, self.router.letters), ([], [], []))

    def test_somebody_else(self) -> None:
        """If the message does not arrive and there is another consumer, the node takes another name, once that queue exists."""
        self.server.found = {self.MINE: (0, 2)}
        self.again()
        self.pass_time(1000)
        self.assertEqual(self.place.renamed, [], "the message is not even in the queue")
        self.place.arrived.pop()()
        self.pass_time(60.9)
        self.assertEqual(self.place.renamed, [])
        self.pass_time(0.2)
        self.assertEqual(self.place.renamed, ["another client consumes its queue"])
        self.assertEqual(self.server.called("basic.consume")[-1]["queue"], "to_device.1123abcd")
        self.assertEqual(self.place.heres, [False] * 3)
        self.assertEqual(self.server.lost, [])
        self.assertFalse(self.server.transport.ended)

    def test_a_probe_that_was_lost(self) -> None:
        """If the message does not arrive and there is no other consumer, it was lost: the node sends another one."""
        self.server.found = {self.MINE: (0, 1)}
        self.again()
        self.place.arrived.pop()()
        self.pass_time(61)
        self.assertEqual((len(self.place.probes), self.place.renamed), (2, []))
        self.notice(self.place.probes[0][1])
        self.assertIsNotNone(self.place.arrived)

    def test_notices_on_the_shared_queue(self) -> None:
        """On to_device such a header has no meaning: the message is treated as one without a connection."""
        self.notice("probe 1", SHARED)
        self.assertEqual(len(self.router.letters), 1)

    def test_told_that_it_is_lost(self) -> None:
        """A node learns from the registrar, and from no other sender, that it was announced as lost."""
        self.notice("lost")
        self.assertEqual(self.place.losses, 1)
        for user in (None, "backend"):
            self.notice("lost", user=user)
        self.assertEqual((self.place.losses, len(self.router.letters)), (1, 2))

    def test_told_of_the_nodes(self) -> None:
        """A node learns from the registrar, and from no other sender, which nodes the register has."""
        self.notice("nodes")
        self.notice("nodes", user="backend")
        self.assertEqual((len(self.place.lists), len(self.router.letters)), (1, 1))

    def test_away_for_long(self) -> None:
        """After an absence of at least the grace, others may have announced the node as lost: it reports that when it is back.
        """
        self.server.found = {self.MINE: (0, 1)}
        for away, missed in ((9.9, False), (10.1, True), (0.0, False)):
            self.server.drop()
            self.consumers.down()
            self.clock.advance(away)
            self.again()
            self.assertIs(self.place.heres[-1], missed, away)

    def test_the_queue_had_gone(self) -> None:
        """The same holds if its queue has been deleted."""
        self.server.refusals[self.MINE, True] = (404, "NOT_FOUND - no queue")
        refusals = self.server.refusals
        self.server.drop()
        self.consumers.down()
        self.server = Server(self.clock, heartbeat=1000)
        self.server.refusals = refusals
        self.connect()
        self.assertEqual(self.place.heres, [False, True])

    def test_out_of_reach(self) -> None:
        """A node waits for a queue that the broker cannot reach, because its cluster node is down. Then it takes another name.
        """
        self.server.drop()
        self.consumers.down()
        for since, renamed in ((0.0, 0), (29.0, 0), (1.0, 1)):
            self.clock.advance(since)
            self.server = Server(self.clock, heartbeat=1000)
            for passive in (True, False):
                self.server.refusals[self.MINE, passive] = (404, "NOT_FOUND - home node 'a@b' of durable queue is down")
            self.server.ready()
            up = Result(self.consumers.up(self.server.client))
            self.server.settle()
            self.assertEqual((len(self.place.renamed), up.failure is None), (renamed, bool(renamed)))
            if not renamed:
                self.server.drop()
                self.consumers.down()
        self.assertIn("home node", self.place.renamed[0])
        self.assertEqual(self.server.called("basic.consume")[-1]["queue"], "to_device.1123abcd")
