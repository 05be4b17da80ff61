"""Tests of queues: their declaration, and the use of queues that exist with other arguments."""

from __future__ import annotations

from typing import Any

from txamqp.client import Closed

from owsla.broker import queues as topology
from owsla.broker.client import BrokerError
from owsla.broker.queues import Exchange, Queue

from .fakes import BrokerTestCase, ComparingServer, Result, Server

STREAM = "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/' of queue type rabbit_stream_queue"


class DeclareTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server: Any = Server().ready()
        self.warnings: list[str] = []

    def declare(self, queue: Queue | None = None) -> Result:
        result = Result(topology.declare(self.server.client, 9, queue or Queue("q"), self.warnings.append))
        self.server.settle()
        return result

    def test_declared(self) -> None:
        """A queue is declared durable, with its arguments, on a channel that is closed again."""
        self.assertIsNone(self.declare(Queue("q", {"x-max-length": 5, "x-flag": True})).failure)
        self.assertEqual(
            [(channel, name) for channel, name, _ in self.server.calls[-3:]],
            [(9, "channel.open"), (9, "queue.declare"), (9, "channel.close")],
        )
        (declared,) = self.server.called("queue.declare")
        self.assertEqual(
            declared,
            {
                "ticket": 0,
                "queue": "q",
                "passive": False,
                "durable": True,
                "exclusive": False,
                "auto_delete": False,
                "nowait": False,
                "arguments": {"x-max-length": 5, "x-flag": True},
            },
        )
        self.assertEqual(self.warnings, [])

    def test_no_delivery_limit(self) -> None:
        """A quorum queue that only Owsla declares has no delivery limit: it is declared with -1 where RabbitMQ has a default,
        since 4.0. A limit of the operator is kept, and so are the arguments of a queue of back ends.
        """
        quorum = {"x-queue-type": "quorum"}
        for version, queue, limit in (
            ("3.13.7", topology.node_queue("q", b"0123abcd", quorum), None),
            ("4.0.5", topology.node_queue("q", b"0123abcd", quorum), -1),
            ("4.0.5", topology.undeliverable_queue("q", 7, quorum), -1),
            ("4.0.5", topology.node_queue("q", b"0123abcd", {**quorum, "x-delivery-limit": 5}), 5),
            ("4.0.5", topology.node_queue("q", b"0123abcd"), None),
            ("4.0.5", Queue("q", quorum), None),
        ):
            self.server = ComparingServer({}, version)
            self.assertIsNone(self.declare(queue).failure)
            ((_, arguments),) = self.server.queues.items()
            self.assertEqual(arguments.get("x-delivery-limit"), limit)
            self.assertEqual(self.warnings, [])

    def test_quorum_by_default(self) -> None:
        """The same where the virtual host makes a quorum queue of a declaration without a type."""
        for queue, limit in (
            (topology.node_queue("q", b"0123abcd"), -1),
            (topology.node_queue("q", b"0123abcd", {"x-queue-type": "classic"}), None),
            (Queue("q"), None),
        ):
            self.server = ComparingServer({}, default_type="quorum")
            self.assertIsNone(self.declare(queue).failure)
            ((_, arguments),) = self.server.queues.items()
            self.assertEqual(arguments.get("x-delivery-limit"), limit)

    def test_there_with_a_limit(self) -> None:
        """A quorum queue of Owsla that exists with the default limit is used, without a warning about its arguments: another
        one says what to do about the limit.
        """
        for kind in ({}, {"x-queue-type": "quorum"}):
            queue = topology.undeliverable_queue("q", 7, kind)
            self.server = ComparingServer({queue.name: {"x-queue-type": "quorum", **queue.arguments}}, default_type="quorum")
            self.assertIsNone(self.declare(queue).failure)
            self.assertEqual(self.warnings, [])

    def test_used_as_it_is(self) -> None:
        """A queue that exists with other arguments, or that Owsla must not declare, is checked passively, with a warning."""
        for code, text in ((406, "PRECONDITION_FAILED - inequivalent arg"), (403, "ACCESS_REFUSED - no")):
            self.warnings.clear()
            self.server.refusals["q", False] = (code, text)
            result = self.declare()
            self.assertTrue(result.done)
            self.assertIsNone(result.failure)
            self.assertTrue(self.server.called("queue.declare")[-1]["passive"])
            (warning,) = self.warnings
            self.assertIn("q is used as it is", warning)
            self.assertIn(text, warning)
            self.assertFalse(self.server.transport.ended)

    def test_consumed_stream(self) -> None:
        """A stream is not used as it is if Owsla would consume it: each consumer would get each message. That it is one shows
        whatever argument of it RabbitMQ finds different first, and also for a user who may not declare it.
        """
        different = "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'q' in vhost '/': received none but current is {}"
        for code, text in (
            (406, different.format("x-queue-type", "the value 'stream' of type 'longstr'")),
            (406, different.format("x-max-length-bytes", "'1000'")),
            (403, "ACCESS_REFUSED - no"),
        ):
            self.server.refusals["q", False] = code, text
            self.server.refusals["consume q", False] = 406, STREAM
            self.assertIsNone(self.declare(Queue("q")).failure)
            self.assertEqual(len(self.warnings), 1)
            self.warnings.clear()
            error = self.declare(Queue("q", consumed=True)).error
            self.assertIsInstance(error, BrokerError)
            self.assertIn("the queue q is a stream, which Owsla cannot consume", str(error))
            self.assertEqual(self.warnings, [])
            for other in ((403, "ACCESS_REFUSED - no"), (406, STREAM.replace("stream", "quorum")), (404, "NOT_FOUND - no")):
                self.server.refusals["consume q", False] = other
                self.assertIsNone(self.declare(Queue("q", consumed=True)).failure)
                self.assertIn("used as it is", self.warnings.pop())

    def test_is_stream(self) -> None:
        """A stream is told from other queues by the refusal of a consumer with an invalid argument, which consumes nothing."""
        for refusal, expected in (
            ((406, STREAM), True),
            ((406, STREAM.replace("stream", "classic")), False),
            ((406, "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/': \"expected integer\""), False),
            ((405, "RESOURCE_LOCKED - no"), False),
            ((403, "ACCESS_REFUSED - no"), None),
            (None, False),
        ):
            self.server.refusals = {} if refusal is None else {("consume q", False): refusal}
            result = Result(topology.is_stream(self.server.client, 9, "q"))
            self.server.settle()
            self.assertIs(result.value, expected)
            self.assertEqual(self.server.called("basic.consume")[-1]["arguments"], {"x-priority": "none"})
        self.assertEqual(self.server.calls[-1][:2], (9, "channel.close"))
        self.assertEqual(self.server.called("queue.declare"), [])

    def test_neither_there_nor_ours(self) -> None:
        """A missing queue that Owsla must not declare fails with the first reason."""
        self.server.refusals["q", False] = (403, "ACCESS_REFUSED - no")
        self.server.refusals["q", True] = (404, "NOT_FOUND - no queue")
        result = self.declare()
        self.assertIsInstance(result.error, BrokerError)
        self.assertEqual((result.error.code, self.warnings), (403, []))

    def test_any_other_error(self) -> None:
        """Any other error is not tried again."""
        self.server.refusals["q", False] = (404, "NOT_FOUND - home node is down")
        result = self.declare()
        self.assertIsInstance(result.error, BrokerError)
        self.assertEqual((result.error.code, len(self.server.called("queue.declare"))), (404, 1))

    def test_the_connection_ends(self) -> None:
        """If the connection ends first, the declaration fails with its reason, at any step."""
        for step in ("channel.open", "queue.declare", "channel.close"):
            self.server = Server().ready()
            self.server.silent.add(step)
            result = self.declare()
            self.assertFalse(result.done)
            self.server.drop()
            self.assertIsInstance(result.error, Closed)


class FindExchangeTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()

    def find(self) -> Result:
        result = Result(topology.find_exchange(self.server.client, 9, Exchange("x")))
        self.server.settle()
        return result

    def test_there(self) -> None:
        """An exchange is only checked, on a channel that is closed again."""
        result = self.find()
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)
        self.assertEqual(
            [(channel, name) for channel, name, _ in self.server.calls[-3:]],
            [(9, "channel.open"), (9, "exchange.declare"), (9, "channel.close")],
        )
        (declared,) = self.server.called("exchange.declare")
        self.assertEqual((declared["exchange"], declared["passive"]), ("x", True))

    def test_not_there(self) -> None:
        """A missing exchange fails with the reason of the broker."""
        self.server.refusals["x", True] = (404, "NOT_FOUND - no exchange 'x' in vhost '/'")
        result = self.find()
        self.assertIsInstance(result.error, BrokerError)
        self.assertEqual((result.error.code, result.error.scope), (404, "channel"))

    def test_the_connection_ends(self) -> None:
        """If the connection ends first, the check fails with its reason, at any step."""
        for step in ("channel.open", "exchange.declare", "channel.close"):
            self.server = Server().ready()
            self.server.silent.add(step)
            result = self.find()
            self.assertFalse(result.done)
            self.server.drop()
            self.assertIsInstance(result.error, Closed)


class NamesTests(BrokerTestCase):
    def test_the_nodes_queue(self) -> None:
        """The node queue is not exclusive, has a single active consumer, and survives a restart of the broker, but not the
        node.
        """
        queue = topology.node_queue("lines", b"0123abcd")
        self.assertEqual(queue.name, "lines.0123abcd")
        self.assertEqual(queue.arguments, {"x-expires": 30 * 60 * 1000, "x-single-active-consumer": True})

    def test_the_undeliverable_queue(self) -> None:
        """The queue of undeliverable messages is bounded, and refuses further messages rather than drop old ones."""
        queue = topology.undeliverable_queue("lines", 7)
        self.assertEqual(queue.name, "lines.undeliverable")
        self.assertEqual(queue.arguments, {"x-max-length": 7, "x-overflow": "reject-publish"})

    def test_the_operators_arguments(self) -> None:
        """Arguments of the operator are added to those that Owsla needs."""
        quorum = {"x-queue-type": "quorum"}
        queue = topology.node_queue("lines", b"0123abcd", quorum)
        self.assertEqual(
            queue.arguments, {"x-expires": 30 * 60 * 1000, "x-single-active-consumer": True, "x-queue-type": "quorum"}
        )
        queue = topology.undeliverable_queue("lines", 7, {"x-overflow": "drop-head"})
        self.assertEqual(queue.arguments, {"x-max-length": 7, "x-overflow": "drop-head"})
