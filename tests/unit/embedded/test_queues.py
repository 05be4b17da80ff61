"""Queues and the state of the broker, without a connection."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.embedded.broker import Broker
from owsla.embedded.errors import AMQPError
from owsla.embedded.messages import Message
from owsla.embedded.queues import QueueConsumer, QueuedMessage, ServerQueue


def message(body: bytes = b"", key: str = "q", exchange: str = "", properties: bytes = b"\0\0") -> Message:
    address = wire.short_string(exchange) + wire.short_string(key)
    return Message(exchange, key, address, wire.header_payload(len(body), properties), body)


class Taker(QueueConsumer):
    """Consumer with room for a number of messages."""

    def __init__(self, queue: ServerQueue, room: int = 1000, priority: int = 0, exclusive: bool = False) -> None:
        super().__init__("t", queue, no_ack=False, exclusive=exclusive, priority=priority)
        self.room = room
        self.got: list[QueuedMessage] = []
        self.gone = False

    def can_take(self) -> bool:
        return len(self.got) < self.room

    def deliver(self, queued: QueuedMessage) -> None:
        self.got.append(queued)

    def cancelled(self) -> None:
        self.gone = True

    @property
    def bodies(self) -> list[bytes]:
        return [entry.message.body for entry in self.got]


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.woken: list[float] = []
        self.broker = Broker(self.clock.seconds, 10_000, self.woken.append, lambda: 1.0)

    def declare(self, name: str = "q", **arguments: Any) -> ServerQueue:
        spelled = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        return self.broker.declare_queue(name, None, arguments=spelled)

    def bodies(self, queue: ServerQueue) -> list[bytes]:
        return [entry.message.body for entry in queue.ready]

    def fill(self, queue: ServerQueue, count: int) -> None:
        for number in range(count):
            queue.publish(message(b"%d" % number))


class QueueTests(Base):
    def test_requeued_messages_return_to_their_position(self) -> None:
        """Requeued messages come before later ones, and are marked as redelivered."""
        queue = self.declare()
        self.fill(queue, 5)
        taken = [queue.get() for _ in range(3)]
        queue.requeue([entry for entry in (taken[2], taken[0]) if entry])
        self.assertEqual(self.bodies(queue), [b"0", b"2", b"3", b"4"])
        self.assertEqual([entry.redelivered for entry in queue.ready], [True, True, False, False])

    @given(st.permutations(range(8)), st.integers(0, 8))
    def test_any_order_of_requeueing_restores_the_order(self, order: list[int], published: int) -> None:
        """In whatever order messages are requeued, the queue has the order of publishing."""
        self.setUp()
        queue = self.declare()
        self.fill(queue, 8)
        taken = [queue.get() for _ in range(8)]
        for number in range(published):
            queue.publish(message(b"later%d" % number))
        for index in order:
            entry = taken[index]
            assert entry is not None
            queue.requeue([entry])
        self.assertEqual(self.bodies(queue)[:8], [b"%d" % n for n in range(8)])
        self.assertEqual(len(queue.ready), 8 + published)

    def test_consumers_take_turns(self) -> None:
        """Consumers of one priority are served in turn; a consumer without room is skipped."""
        queue = self.declare()
        one, two, full = Taker(queue), Taker(queue), Taker(queue, room=0)
        for consumer in (one, full, two):
            queue.add(consumer)
        self.fill(queue, 4)
        self.assertEqual((one.bodies, two.bodies), ([b"0", b"2"], [b"1", b"3"]))

    def test_priority_first(self) -> None:
        """A consumer of higher priority gets as many messages as it has room for."""
        queue = self.declare()
        low, high = Taker(queue), Taker(queue, room=2, priority=5)
        queue.add(low)
        queue.add(high)
        self.fill(queue, 3)
        self.assertEqual((high.bodies, low.bodies), ([b"0", b"1"], [b"2"]))

    def put(self, queue: ServerQueue, *priorities: int | None) -> None:
        """Publish messages whose bodies are their priorities."""
        for priority in priorities:
            properties = wire.encode_properties({} if priority is None else {"priority": priority})
            queue.publish(message(str(priority).encode(), properties=properties))

    def test_priorities(self) -> None:
        """With x-max-priority higher priorities are first; no priority is 0, and priorities above the limit are the limit."""
        queue = self.declare(max_priority=5)
        self.put(queue, None, 9, 5, 3, 7, 0, 3)
        self.assertEqual(self.bodies(queue), [b"9", b"5", b"7", b"3", b"3", b"None", b"0"])
        taken = [queue.get() for _ in range(5)]
        self.put(queue, 3, 5)
        queue.requeue([entry for entry in taken[1:4:2] if entry])  # b"5" and the first b"3"
        self.assertEqual(self.bodies(queue), [b"5", b"5", b"3", b"3", b"None", b"0"])
        self.assertEqual([entry.redelivered for entry in queue.ready], [True, False, True, False, False, False])

    def test_no_priorities(self) -> None:
        """Without x-max-priority, or with 0, the priority of a message has no effect."""
        for arguments in ({}, {"max_priority": 0}):
            queue = self.declare(f"q{len(arguments)}", **arguments)
            self.put(queue, 1, 3, 2)
            self.assertEqual(self.bodies(queue), [b"1", b"3", b"2"])

    def test_priorities_and_limits(self) -> None:
        """A full queue drops its head, and only the head expires: the highest priority, as in RabbitMQ."""
        queue = self.declare(max_priority=5, max_length=2)
        self.put(queue, 1, 5, 3)
        self.assertEqual(self.bodies(queue), [b"3", b"1"])
        queue.publish(message(b"late"), ttl=1000)
        self.assertEqual(self.bodies(queue), [b"1", b"late"])
        self.clock.advance(2)
        self.assertEqual(self.bodies(queue), [b"1", b"late"])
        self.assertIsNotNone(queue.get())
        self.assertIsNone(queue.get())

    def test_single_active_consumer(self) -> None:
        """Only the first consumer is served; when it leaves, the next one is."""
        queue = self.declare(single_active_consumer=True)
        one, two = Taker(queue, room=1), Taker(queue)
        queue.add(one)
        queue.add(two)
        self.fill(queue, 3)
        self.assertEqual((one.bodies, two.bodies), ([b"0"], []))
        queue.remove(one)
        self.assertEqual(two.bodies, [b"1", b"2"])

    def test_exclusive_consumer(self) -> None:
        """An exclusive consumer beside another one is refused with 403, whichever is first."""
        queue = self.declare()
        queue.add(Taker(queue, exclusive=True))
        self.assertEqual(self.assertRaises(AMQPError, queue.add, Taker(queue)).code, 403)
        other = self.declare("other")
        other.add(Taker(other))
        self.assertEqual(self.assertRaises(AMQPError, other.add, Taker(other, exclusive=True)).code, 403)

    def test_drop_head(self) -> None:
        """x-max-length keeps the newest messages."""
        queue = self.declare(max_length=2)
        self.fill(queue, 4)
        self.assertEqual(self.bodies(queue), [b"2", b"3"])
        self.assertEqual(self.broker.memory.used, sum(entry.message.size for entry in queue.ready))

    def test_max_length_bytes(self) -> None:
        """x-max-length-bytes limits the size of the bodies."""
        queue = self.declare(max_length_bytes=3)
        self.fill(queue, 5)
        self.assertEqual(self.bodies(queue), [b"2", b"3", b"4"])

    def test_reject_publish(self) -> None:
        """x-overflow=reject-publish keeps the oldest messages and refuses new ones."""
        queue = self.declare(max_length=1, overflow="reject-publish")
        self.assertTrue(queue.publish(message(b"a")))
        self.assertFalse(queue.publish(message(b"b")))
        self.assertEqual(self.bodies(queue), [b"a"])

    def test_message_ttl(self) -> None:
        """A message at the head expires at the earlier of its own and the queue's time to live."""
        queue = self.declare(message_ttl=1000)
        queue.publish(message(b"a"), 5000)
        queue.publish(message(b"b"), 100)
        self.assertEqual(self.woken, [1.0, 0.1])
        self.clock.advance(0.5)
        self.broker.sweep()
        self.assertEqual(self.bodies(queue), [b"a", b"b"])
        self.clock.advance(0.5)
        self.broker.sweep()
        self.assertEqual(self.bodies(queue), [])
        self.assertEqual(self.broker.memory.used, 0)

    def test_zero_ttl_reaches_a_waiting_consumer(self) -> None:
        """A message with a time to live of 0 is delivered if a consumer can take it at once."""
        queue = self.declare()
        queue.publish(message(b"a"), 0)
        self.assertIsNone(queue.get())
        taker = Taker(queue)
        queue.add(taker)
        queue.publish(message(b"b"), 0)
        self.assertEqual(taker.bodies, [b"b"])

    def test_expired_messages_are_not_delivered(self) -> None:
        """A new consumer does not get an expired message, even before a sweep."""
        queue = self.declare()
        queue.publish(message(b"a"), 100)
        queue.publish(message(b"b"), 1000)
        self.clock.advance(0.5)
        taker = Taker(queue)
        queue.add(taker)
        queue.dispatch()
        self.assertEqual(taker.bodies, [b"b"])

    def test_unused_queue_expires(self) -> None:
        """x-expires counts from the last use, while there is no consumer."""
        queue = self.declare(expires=1000)
        taker = Taker(queue)
        queue.add(taker)
        self.clock.advance(5)
        self.broker.sweep()
        self.assertIn("q", self.broker.queues)
        queue.remove(taker)
        self.clock.advance(0.9)
        queue.get()
        self.clock.advance(0.9)
        self.broker.sweep()
        self.assertIn("q", self.broker.queues)
        self.clock.advance(0.1)
        self.broker.sweep()
        self.assertNotIn("q", self.broker.queues)

    def test_deleting_tells_consumers_and_frees_memory(self) -> None:
        """The consumers of a deleted queue are notified, and messages that they requeue are dropped."""
        queue = self.declare()
        taker = Taker(queue, room=1)
        queue.add(taker)
        self.fill(queue, 3)
        self.assertEqual(self.broker.delete_queue("q", None), 2)
        self.assertTrue(taker.gone)
        queue.requeue(taker.got)
        self.assertEqual(self.broker.memory.used, 0)

    def test_arguments_that_rabbitmq_refuses(self) -> None:
        """Arguments of the wrong type or range are refused with 406, streams with 540."""
        for arguments, code in [
            ({"x-max-length": "a"}, 406),
            ({"x-max-length": True}, 406),
            ({"x-max-length": -1}, 406),
            ({"x-expires": 0}, 406),
            ({"x-overflow": "foo"}, 406),
            ({"x-overflow": ["foo"]}, 406),
            ({"x-single-active-consumer": 1}, 406),
            ({"x-dead-letter-routing-key": "k"}, 406),
            ({"x-queue-type": "stream"}, 540),
            ({"x-max-priority": 256}, 406),
            ({"x-max-priority": -1}, 406),
            ({"x-max-priority": True}, 406),
            ({"x-delivery-limit": 3}, 406),
            ({"x-quorum-initial-group-size": 3}, 406),
        ]:
            error = self.assertRaises(AMQPError, self.broker.declare_queue, "n", None, arguments=arguments)
            self.assertEqual(error.code, code, arguments)
            self.assertNotIn("n", self.broker.queues)

    def test_quorum_queues(self) -> None:
        """A quorum queue must be durable, and neither exclusive nor auto-delete; its unsupported arguments are refused."""
        quorum = {"x-queue-type": "quorum"}
        cases: list[tuple[dict[str, bool], dict[str, Any]]] = [
            ({}, {}),
            ({"durable": True, "exclusive": True}, {}),
            ({"durable": True, "auto_delete": True}, {}),
            ({"durable": True}, {"x-max-priority": 3}),
            ({"durable": True}, {"x-queue-mode": "lazy"}),
        ]
        for properties, arguments in cases:
            declare = partial(self.broker.declare_queue, "n", object(), arguments={**quorum, **arguments}, **properties)
            self.assertEqual(self.assertRaises(AMQPError, declare).code, 406, (properties, arguments))
            self.assertNotIn("n", self.broker.queues)
        self.broker.declare_queue("n", None, durable=True, arguments=quorum)


class BrokerTests(Base):
    def test_dead_letters_fit_a_frame(self) -> None:
        """If the x-death history does not fit a frame, its oldest part is left out; the message is kept."""
        self.declare("dead")
        queue = self.declare("q", dead_letter_exchange="", dead_letter_routing_key="dead", max_length=0)
        deaths = [{"queue": f"q{number}", "reason": "rejected", "count": 1} for number in range(1000)]
        room = 131072 - 8 - len(wire.encode_table({"x-death": deaths, "filler": ""})) - 14
        cases: list[tuple[int, list[Any], int]] = [(10, deaths, 1001), (room, deaths, 500), (131_000, [], 0)]
        for size, before, expected in cases:
            headers: dict[str, Any] = {"filler": "z" * size, "x-death": before}
            queue.publish(message(b"x", properties=wire.encode_properties({"headers": headers})))
            entry = self.broker.queues["dead"].get()
            assert entry is not None
            self.assertLessEqual(len(entry.message.header), 131072 - 8)
            found = entry.message.headers()
            self.assertEqual(found["filler"], headers["filler"])
            self.assertEqual(len(found.get("x-death", [])), expected, size)

    def test_exchange_to_exchange(self) -> None:
        """A message passes through bound exchanges, each once even in a loop, and reaches each queue once."""
        queue = self.declare()
        one = self.broker.declare_exchange("one", "fanout")
        two = self.broker.declare_exchange("two", "topic")
        self.broker.bind("one", two, "", {})
        self.broker.bind("two", one, "#", {})
        self.broker.bind("two", queue, "a.#", {})
        self.broker.bind("one", queue, "", {})
        self.assertEqual(self.broker.route("one", ["a.b"], message()), [queue])
        self.assertEqual(self.broker.publish(message(b"x", "a.b", "one")), (True, True))
        self.assertEqual(len(queue.ready), 1)

    def test_memory_counts_a_fanned_out_message_once(self) -> None:
        """The bytes of a message in several queues count once, until the last queue releases it."""
        queues = [self.declare(name) for name in "abc"]
        for queue in queues:
            self.broker.bind("amq.fanout", queue, "", {})
        sent = message(b"x" * 100, "", "amq.fanout")
        self.broker.publish(sent)
        self.assertEqual(self.broker.memory.used, sent.size)
        for queue in queues:
            self.assertEqual(self.broker.memory.used, sent.size)
            queue.purge()
        self.assertEqual(self.broker.memory.used, 0)

    def test_memory_alarm_with_hysteresis(self) -> None:
        """Publishers wait above the memory limit, and continue at 80 % of it."""
        queue = self.declare()
        calls: list[str] = []

        class Waiting:
            def alarm_ended(self) -> None:
                calls.append("alarm")

            def exhaustion_ended(self) -> None:
                calls.append("exhaustion")

        while not self.broker.memory.alarm:
            queue.publish(message(b"x" * 400))
        self.broker.memory.wait(Waiting())
        while self.broker.memory.used > 8000:
            self.assertEqual(calls, [])
            entry = queue.get()
            assert entry is not None
            self.broker.memory.release(entry.message)
        self.assertEqual(calls, ["alarm"])
        self.assertFalse(self.broker.memory.alarm)

    def test_dead_letter(self) -> None:
        """A rejected message goes to the dead-letter exchange with its history and without its expiration."""
        queue = self.declare(dead_letter_exchange="", dead_letter_routing_key="dead")
        dead = self.declare("dead")
        queue.publish(message(b"x", properties=wire.encode_properties({"expiration": "5000", "headers": {"a": 1}})))
        entry = queue.get()
        assert entry is not None
        queue.reject(entry)
        properties = wire.decode_properties(dead.ready[0].message.header, 12)
        self.assertNotIn("expiration", properties)
        self.assertEqual(properties["headers"]["a"], 1)
        death = properties["headers"]["x-death"][0]
        self.assertEqual((death["reason"], death["queue"], death["count"]), ("rejected", "q", 1))
        dead.purge()
        self.assertEqual(self.broker.memory.used, 0)

    def test_expired_messages_do_not_cycle(self) -> None:
        """A queue that dead-letters expired messages to itself drops them."""
        queue = self.declare(dead_letter_exchange="", dead_letter_routing_key="q", message_ttl=0)
        queue.publish(message(b"x"))
        self.broker.sweep()
        self.assertEqual((len(queue.ready), self.broker.memory.used), (0, 0))

    def test_exclusive_queues(self) -> None:
        """An exclusive queue is locked for other connections (405), and deleted with its own."""
        owner, other = object(), object()
        self.broker.declare_queue("mine", owner, exclusive=True)
        self.broker.declare_queue("mine", owner, exclusive=True)
        self.assertEqual(self.assertRaises(AMQPError, self.broker.queue, "mine", other).code, 405)
        self.assertEqual(self.assertRaises(AMQPError, self.broker.declare_queue, "mine", owner).code, 405)
        self.broker.connection_lost(owner)
        self.assertNotIn("mine", self.broker.queues)

    def test_auto_delete(self) -> None:
        """An auto-delete exchange is deleted with its last binding, an auto-delete queue with its last consumer."""
        exchange = self.broker.declare_exchange("x", "direct", auto_delete=True)
        queue = self.broker.declare_queue("auto", None, auto_delete=True)
        self.broker.bind("x", queue, "k", {})
        taker = Taker(queue)
        queue.add(taker)
        self.broker.consumer_removed(queue)
        self.assertIn("auto", self.broker.queues)
        queue.remove(taker)
        self.broker.consumer_removed(queue)
        self.assertNotIn("auto", self.broker.queues)
        self.assertNotIn(exchange.name, self.broker.exchanges)
