"""State of the broker, without a connection."""

from __future__ import annotations

from typing import Any
from unittest import mock

from owsla.amqp import wire
from owsla.embedded.errors import AMQPError

from .samples import BrokerTestCase, Taker, message


class BrokerTests(BrokerTestCase):
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

    def test_another_memory_limit(self) -> None:
        """Under another memory limit, publishers wait or continue at once, as the messages there require."""
        memory, queue = self.broker.memory, self.declare()
        ended: list[str] = []
        waiting = mock.Mock(alarm_ended=lambda: ended.append("alarm"))
        while memory.used < 0.85 * memory.limit:
            queue.publish(message(b"x" * 400))
        memory.configure(memory.limit)
        self.assertFalse(memory.alarm)
        memory.configure(memory.used - 1)
        self.assertTrue(memory.alarm)
        memory.wait(waiting)
        memory.configure(memory.used + 1)
        self.assertEqual((memory.alarm, ended), (True, []))
        memory.configure(2 * memory.used)
        self.assertEqual((memory.alarm, ended), (False, ["alarm"]))

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
