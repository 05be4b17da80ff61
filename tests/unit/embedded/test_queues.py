"""Queues, without a connection."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from owsla.amqp import wire
from owsla.embedded.errors import AMQPError
from owsla.embedded.queues import ServerQueue

from .samples import BrokerTestCase, Taker, message


class QueueTests(BrokerTestCase):
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
