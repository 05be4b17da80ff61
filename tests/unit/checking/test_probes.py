"""Tests of probes: each of them is a request that a broker must refuse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from owsla.broker.client import BrokerError
from owsla.broker.queue_state import QueueState
from owsla.checking.probes import Probes

from ..broker.fakes import BrokerTestCase, Result, Server


class ProbesTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()
        self.probes = Probes(self.server.client)

    def ask(self, probe: Any) -> Any:
        """Return the answer to a probe."""
        result = Result(probe)
        self.server.settle()
        self.assertTrue(result.done)
        if result.failure is not None:
            result.failure.raiseException()
        return result.value

    def test_inspect(self) -> None:
        """A passive declaration declares nothing; its answer is the state of the queue, or a refusal."""
        self.server.found["q"] = (3, 1)
        self.assertEqual(self.ask(self.probes.inspect("q")), QueueState(3, 1))
        self.server.refusals["q", True] = (404, "NOT_FOUND - no queue 'q' in vhost '/'")
        answer = self.ask(self.probes.inspect("q"))
        self.assertIsInstance(answer, BrokerError)
        self.assertEqual(answer.code, 404)
        self.assertTrue(all(declared["passive"] for declared in self.server.called("queue.declare")))

    def test_declare(self) -> None:
        """Each declaration has an argument that no queue of that type can have, whatever the settings say."""
        for arguments, impossible in (
            ({}, ("x-max-age", 1)),
            ({"x-queue-type": "quorum", "x-max-age": "1D"}, ("x-max-age", 1)),
            ({"x-queue-type": "stream", "x-max-priority": 5}, ("x-max-priority", "none")),
        ):
            self.server.calls.clear()
            self.assertIsNone(self.ask(self.probes.declare("q", arguments)))
            (declared,) = self.server.called("queue.declare")
            name, value = impossible
            self.assertEqual(declared["arguments"], {**arguments, name: value})
            self.assertTrue(declared["durable"])
        self.server.refusals["q", False] = (406, "PRECONDITION_FAILED - no")
        self.assertEqual(self.ask(self.probes.declare("q", {})).code, 406)

    def test_consume(self) -> None:
        """A consumer has a priority that is not a number."""
        self.assertIsNone(self.ask(self.probes.consume("q")))
        (consumed,) = self.server.called("basic.consume")
        self.assertEqual(consumed["arguments"], {"x-priority": "none"})
        self.server.silent.add("basic.consume")
        result = Result(self.probes.consume("q"))
        self.server.settle()
        self.server.close_channel(1, 403, "ACCESS_REFUSED - no")
        self.assertEqual(result.value.code, 403)

    def test_publish(self) -> None:
        """A message has an expiration that is not a number."""
        for code, text in ((403, "ACCESS_REFUSED - no"), (406, "PRECONDITION_FAILED - invalid expiration")):
            result = Result(self.probes.publish("lines", b"key"))
            (published,) = self.server.take()
            self.assertEqual((published.method["exchange"], published.method["routing_key"]), ("lines", "key"))
            self.assertEqual(published.properties, {"expiration": "never"})
            self.assertEqual(published.body, b"")
            self.assertFalse(result.done)
            self.server.close_channel(1, code, text)
            self.assertEqual(result.value.code, code)

    def test_accepted(self) -> None:
        """A broker that accepts the message, or refuses it as a full queue does, has given permission."""
        for answer in (self.server.ack, self.server.nack):
            result = Result(self.probes.publish("lines", b"key"))
            (published,) = self.server.take()
            answer(1, published.tag)
            self.assertTrue(result.done)
            self.assertIsNone(result.value)

    def test_channels(self) -> None:
        """The probes leave no channel open, and one after another can be made."""
        self.server.refusals["q", False] = (406, "PRECONDITION_FAILED - no")
        for _ in range(3):
            self.ask(self.probes.inspect("q"))
            self.ask(self.probes.declare("q", {}))
            self.ask(self.probes.consume("q"))
        opened = len(self.server.called("channel.open"))
        closed = len(self.server.called("channel.close")) + len(self.server.called("channel.close-ok"))
        self.assertEqual((opened, closed), (9, 9))

    def test_lost(self) -> None:
        """The end of the connection is not an answer."""
        asks: list[Callable[[Probes], Any]] = [
            lambda probes: probes.inspect("q"),
            lambda probes: probes.declare("q", {}),
            lambda probes: probes.consume("q"),
            lambda probes: probes.publish("", b"key"),
        ]
        for ask, closed in product(asks, (False, True)):
            self.server = Server().ready()
            self.server.silent |= {"queue.declare", "basic.consume"}
            probes = Probes(self.server.client)
            result = Result(ask(probes))
            self.server.settle()
            self.assertFalse(result.done)
            if closed:
                self.server.send(0, "connection.close", reply_code=320, reply_text="CONNECTION_FORCED - bye")
            else:
                self.server.drop()
            self.assertIsNotNone(result.failure)
