"""Confirmed publishing: delivery tags, returns, refusals, and the next attempt."""

from __future__ import annotations

import tracemalloc
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import WireError
from owsla.broker.publisher import METHODS_KEPT, Publisher, Retry
from owsla.broker.refusals import RefusalHistory
from owsla.broker.retry_delay import RetryDelay

from .fakes import BrokerTestCase, Publish, Result, Server


class Policy:
    """A policy that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def messages_confirmed(self, accepted: list[str], unroutable: list[str]) -> None:
        self.calls.append(("confirmed", (accepted, unroutable)))

    def messages_refused(self, messages: list[str]) -> None:
        self.calls.append(("refused", messages))

    def channel_closed(self, reason: BaseException) -> None:
        self.calls.append(("closed", str(reason)))

    def retry_due(self, new_channel: bool) -> None:
        self.calls.append(("retry", new_channel))


class PublisherTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server(heartbeat=1000).ready()
        self.policy = Policy()
        self.publisher: Publisher[str] = Publisher(self.server.clock, 1, self.policy, longest_delay=10.0)
        opened = Result(self.publisher.open(self.server.client))
        self.server.settle()
        self.assertTrue(opened.done)

    def publish(self, *messages: str, queue: str = "queue") -> list[Publish]:
        for message in messages:
            properties = wire.encode_properties({"message_id": message})
            self.publisher.publish(message, queue, properties, message.encode())
        return self.server.take()

    def test_published(self) -> None:
        """Messages are mandatory, on a channel with confirms, and go to the queue through the default exchange."""
        (one,) = self.publish("a")
        self.assertEqual((one.queue, one.body, one.method["exchange"], one.method["mandatory"]), ("queue", b"a", "", True))
        self.assertEqual(one.properties, {"message_id": "a"})
        self.assertEqual(len(self.server.called("confirm.select")), 1)

    def test_confirmed(self) -> None:
        """A confirm is of one message, of all up to a tag, or with tag 0 of all; each message is answered once."""
        self.publish(*"abcdef")
        self.server.ack(1, 2)
        self.server.ack(1, 3, True)
        self.server.ack(1, 3, True)
        self.server.ack(1, 2)
        self.server.nack(1, 0, True)
        self.assertEqual(
            self.policy.calls, [("confirmed", (["b"], [])), ("confirmed", (["a", "c"], [])), ("refused", ["d", "e", "f"])]
        )
        self.assertEqual(len(self.publisher), 0)

    def test_unknown_tags(self) -> None:
        """A tag that was not published is an error of the broker, and changes nothing."""
        self.publish("a")
        for tag, multiple in ((2, False), (2, True), (7, False)):
            with self.assertRaises(WireError):
                self.publisher.confirmed(tag, multiple)
            with self.assertRaises(WireError):
                self.publisher.refused(tag, multiple)
        self.assertEqual((self.policy.calls, len(self.publisher)), ([], 1))

    def test_returned(self) -> None:
        """The message that was returned is the one that is equal to the return, or else the next for the queue: the broker
        returns messages in order.
        """
        _, b, c = self.publish("a", "b", "c")
        self.publish("d", queue="other")
        self.server.give_back(b, ack=False)
        self.server.give_back(c._replace(body=b"d", header=wire.header_payload(1, b"\0\0")), ack=False)
        self.server.ack(1, 0, True)
        self.assertEqual(self.policy.calls, [("confirmed", (["a", "d"], ["b", "c"]))])

    def test_returned_out_of_order(self) -> None:
        """A message is found in any order of the returns, and not a second time."""
        a, b, c = self.publish("a", "b", "c")
        for one in (c, a, b):
            self.server.give_back(one, ack=False)
        with self.assertRaises(WireError):
            self.publisher.returned("NO_ROUTE", a.queue, a.header, a.body)
        self.server.ack(1, 3, True)
        self.assertEqual(self.policy.calls, [("confirmed", ([], ["a", "b", "c"]))])

    def test_returned_with_other_headers(self) -> None:
        """A broker may return the headers of a message in another order, without repeats of a name, or with more of them. The
        message is found all the same.
        """
        for number in range(3):
            entries = ((b"b", number), (b"a", "x"), (b"a", "y"))
            table = wire.join_table([(key, wire.encode_value(value)) for key, value in entries])
            properties = wire.join_properties({"headers": table, "app_id": wire.short_string("y")})
            self.publisher.publish(str(number), "queue", properties, b"body")
        published = self.server.take()
        added: dict[str, Any] = {"headers": {"x-routed-by": "rabbit@a", "timestamp_in_ms": 5}, "timestamp": 1}
        for number, more in ((1, {}), (2, added)):
            headers = {"a": "x", "b": number, **more.get("headers", {})}
            properties = wire.encode_properties({**more, "headers": headers, "app_id": "y"})
            self.server.give_back(published[number]._replace(header=wire.header_payload(4, properties)), ack=False)
        self.server.ack(1, 0, True)
        self.assertEqual(self.policy.calls, [("confirmed", (["0"], ["1", "2"]))])

    def test_returned_with_a_part_of_its_properties(self) -> None:
        """A message that has fewer headers or properties than the returned one, or other values, is not taken for it."""
        tables: list[dict[str, Any]] = [{}, {"a": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2, "c": 3}, {"b": 2, "a": 1}]
        for number, headers in enumerate(tables):
            self.publisher.publish(str(number), "queue", wire.encode_properties({"headers": headers}), b"body")
        header = wire.header_payload(4, wire.encode_properties({"headers": {"a": 1, "b": 2}}))
        self.server.give_back(self.server.take()[4]._replace(header=header), ack=False)
        self.server.ack(1, 0, True)
        self.assertEqual(self.policy.calls, [("confirmed", (["0", "1", "2", "3"], ["4"]))])

    def test_returned_and_withdrawn(self) -> None:
        """A return has no effect on the messages of the next channel, and leaves nothing in memory when it is confirmed."""
        for last in (False, True):
            one, _ = self.publish("a", "b")
            self.server.give_back(one, ack=last)
            if not last:
                self.assertEqual(self.publisher.withdraw(), ["a", "b"])
                self.server = Server(heartbeat=1000).ready()
                opened = Result(self.publisher.open(self.server.client))
                self.server.settle()
                self.assertTrue(opened.done)
                self.publish("c")
                self.server.ack(1, 1)
                self.assertEqual(self.policy.calls, [("confirmed", (["c"], []))])
        self.assertEqual(self.policy.calls[1:], [("confirmed", ([], ["a"]))])
        self.assertFalse(self.publisher._returned)

    def test_returned_and_refused(self) -> None:
        """A return of a message that is refused then leaves nothing in memory."""
        (one,) = self.publish("a")
        self.server.give_back(one, ack=False)
        self.server.nack(1, one.tag)
        self.assertEqual(self.policy.calls, [("refused", ["a"])])
        self.assertFalse(self.publisher._returned)

    def test_relayed(self) -> None:
        """A relayed message has the content header of its delivery, byte for byte, and a body of any size in frames that the
        broker takes. A return of it is found.
        """
        header = wire.encode_properties({"headers": {"n": 1}, "app_id": "x"})
        for body in (b"", b"body", b"x" * 131_064, b"y" * 131_065, b"z" * 400_000):
            payload = wire.header_payload(len(body), header)
            self.publisher.relay("m", "queue", payload, body)
            (one,) = self.server.take()
            self.assertEqual((one.queue, one.header, one.body == body), ("queue", payload, True))
            self.assertEqual((one.method["exchange"], one.method["mandatory"]), ("", True))
            self.policy.calls.clear()
            self.server.give_back(one)
            self.assertEqual(self.policy.calls, [("confirmed", ([], ["m"]))])

    def test_relayed_without_a_channel(self) -> None:
        """Nothing is relayed without a channel."""
        self.publisher.withdraw()
        self.assertRaises(RuntimeError, self.publisher.relay, "c", "queue", b"header", b"body")

    def test_many_queues(self) -> None:
        """Each message goes to its own queue or exchange, and any number of queues leaves little in memory."""
        for number in range(3 * METHODS_KEPT):
            self.publisher.publish("m", f"queue-{number % (2 * METHODS_KEPT)}", b"\0\0", b"")
        self.publisher.publish("m", "", b"\0\0", b"", "fanout")
        published = self.server.take()
        self.assertEqual(
            [one.queue for one in published[:-1]],
            [f"queue-{number % (2 * METHODS_KEPT)}" for number in range(3 * METHODS_KEPT)],
        )
        self.assertEqual((published[-1].queue, published[-1].method["exchange"]), ("", "fanout"))
        self.assertLessEqual(len(self.publisher._methods), METHODS_KEPT)

    def test_confirmed_in_any_order(self) -> None:
        """Confirms of single messages behind unconfirmed ones leave those for a later confirm of several."""
        self.publish(*"abcdefgh")
        for tag in (5, 3, 4, 1):
            self.server.ack(1, tag)
        self.assertEqual(self.publisher.messages, ["b", "f", "g", "h"])
        self.server.ack(1, 6, True)
        self.server.ack(1, 4, True)
        self.server.ack(1, 7)
        self.server.nack(1, 8)
        single: list[tuple[str, object]] = [("confirmed", ([one], [])) for one in "ecda"]
        self.assertEqual(
            self.policy.calls, [*single, ("confirmed", (["b", "f"], [])), ("confirmed", (["g"], [])), ("refused", ["h"])]
        )
        self.assertEqual(len(self.publisher), 0)

    def test_confirmed_one_by_one(self) -> None:
        """Messages that were confirmed one by one, some out of order, cost nothing later: a confirm of several takes no memory
        for them.
        """
        self.publish("a", "b")
        self.server.ack(1, 2)
        self.server.ack(1, 1)
        many = 20_000
        for tag in range(3, 3 + many):
            self.publisher.publish("m", "queue", b"\0\0", b"")
            self.publisher.confirmed(tag, False)
        self.server.take()
        self.publish("last")
        tracemalloc.start()
        self.publisher.confirmed(0, True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertEqual(self.policy.calls[-1], ("confirmed", (["last"], [])))
        self.assertLess(peak, many)

    def test_returned_without_a_message(self) -> None:
        """A return for a queue that nothing was published to is an error of the broker."""
        (one,) = self.publish("a")
        with self.assertRaises(WireError):
            self.publisher.returned("NO_ROUTE", "other", one.header, one.body)

    def test_withdrawn(self) -> None:
        """Messages of a channel that is given up come back in order; its late answers are ignored, unknown tags are not."""
        a, *_ = self.publish("a", "b")
        self.assertEqual(self.publisher.withdraw(), ["a", "b"])
        self.publisher.returned("NO_ROUTE", a.queue, a.header, a.body)
        self.publisher.confirmed(2, True)
        self.assertRaises(WireError, self.publisher.confirmed, 3, False)
        self.assertRaises(RuntimeError, self.publisher.publish, "c", "queue", b"\0\0", b"")
        self.server.close_channel(1)
        self.assertEqual((self.policy.calls, len(self.publisher)), ([], 0))

    def test_closed(self) -> None:
        """The policy hears of the end of the channel, alone or with the connection."""
        self.server.close_channel(1, 406, "PRECONDITION_FAILED - no")
        self.assertEqual(self.policy.calls, [("closed", "PRECONDITION_FAILED - no (406)")])


class RetryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.due: list[bool] = []
        self.retry = Retry(self.clock, self.due.append, RetryDelay(first=1.0, most=4.0, random=lambda: 1.0))

    def test_one_at_a_time(self) -> None:
        """An attempt is pending until it is done, and is scheduled once."""
        self.retry.schedule()
        self.retry.schedule()
        self.clock.advance(1)
        self.assertEqual((self.due, self.retry.pending), ([False], True))
        self.retry.schedule()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.retry.done()
        self.retry.schedule()
        self.clock.advance(1.9)
        self.assertEqual(len(self.due), 1)
        self.clock.advance(0.1)
        self.assertEqual(len(self.due), 2)

    def test_a_new_channel(self) -> None:
        """A request for a new channel holds for the attempt that is pending, and for no other."""
        self.retry.schedule()
        self.retry.schedule(new_channel=True)
        self.clock.advance(1)
        self.retry.done()
        self.retry.schedule()
        self.clock.advance(2)
        self.assertEqual(self.due, [True, False])

    def test_refused_again_and_again(self) -> None:
        """A queue that accepted nothing on the channel is tried on others after some refusals."""
        for _ in range(RefusalHistory.FIRST):
            self.retry.refusals.refused("queue")
            self.retry.schedule()
            self.clock.advance(4)
            self.retry.done()
        self.assertEqual(self.due, [False] * (RefusalHistory.FIRST - 1) + [True])

    def test_cancelled(self) -> None:
        """A cancelled attempt leaves no timer."""
        self.retry.schedule(new_channel=True)
        self.retry.cancel()
        self.assertEqual((self.retry.pending, self.clock.getDelayedCalls()), (False, []))
        self.retry.schedule()
        self.clock.advance(4)
        self.assertEqual(self.due, [False])
