"""Queues: how they are declared, and used as they are where somebody else has declared them otherwise."""

from __future__ import annotations

from txamqp.client import Closed

from owsla.broker import topology
from owsla.broker.protocol import BrokerError
from owsla.broker.topology import Exchange, Queue

from .fakes import BrokerTestCase, Result, Server


class DeclareTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()
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

    def test_used_as_it_is(self) -> None:
        """One that exists with other arguments, or that is not ours to declare, is checked passively, with a warning."""
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

    def test_neither_there_nor_ours(self) -> None:
        """One that is not ours to declare, and not there, fails with the first reason."""
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
        """When the connection ends first it fails with that, at whichever step."""
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
        """An exchange is only looked for, on a channel that is closed again."""
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
        """Where it is not there the broker's reason is the error."""
        self.server.refusals["x", True] = (404, "NOT_FOUND - no exchange 'x' in vhost '/'")
        result = self.find()
        self.assertIsInstance(result.error, BrokerError)
        self.assertEqual((result.error.code, result.error.scope), (404, "channel"))

    def test_the_connection_ends(self) -> None:
        """When the connection ends first it fails with that, at whichever step."""
        for step in ("channel.open", "exchange.declare", "channel.close"):
            self.server = Server().ready()
            self.server.silent.add(step)
            result = self.find()
            self.assertFalse(result.done)
            self.server.drop()
            self.assertIsInstance(result.error, Closed)


class NamesTests(BrokerTestCase):
    def test_the_nodes_queue(self) -> None:
        """A node's queue is not exclusive, has one active consumer, and outlives any restart of the broker, not the node."""
        queue = topology.node_queue("lines", b"0123abcd")
        self.assertEqual(queue.name, "lines.0123abcd")
        self.assertEqual(queue.arguments, {"x-expires": 30 * 60 * 1000, "x-single-active-consumer": True})

    def test_the_undeliverable_queue(self) -> None:
        """It is bounded, and refuses what is too much rather than drop what is there."""
        queue = topology.undeliverable_queue("lines", 7)
        self.assertEqual(queue.name, "lines.undeliverable")
        self.assertEqual(queue.arguments, {"x-max-length": 7, "x-overflow": "reject-publish"})

    def test_the_operators_arguments(self) -> None:
        """Arguments of the operator's come to those that Owsla needs."""
        quorum = {"x-queue-type": "quorum"}
        queue = topology.node_queue("lines", b"0123abcd", quorum)
        self.assertEqual(
            queue.arguments, {"x-expires": 30 * 60 * 1000, "x-single-active-consumer": True, "x-queue-type": "quorum"}
        )
        queue = topology.undeliverable_queue("lines", 7, {"x-overflow": "drop-head"})
        self.assertEqual(queue.arguments, {"x-max-length": 7, "x-overflow": "drop-head"})
