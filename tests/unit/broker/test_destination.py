"""Tests of the destination of device lines."""

from __future__ import annotations

from owsla.broker.destination import Destination
from owsla.broker.queues import Exchange, Queue

from .fakes import BrokerTestCase, Result, Server

SCRATCH = 4


class DestinationTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()
        self.warnings: list[str] = []
        self.queue = Destination(Queue("from_device"), self.warnings.append, SCRATCH)
        self.exchange = Destination(Exchange("lines"), self.warnings.append, SCRATCH)

    def declared(self) -> list[tuple[int, str]]:
        self.server.settle()
        return [(channel, name) for channel, name, _ in self.server.calls if name.endswith(".declare")]

    def test_prepare(self) -> None:
        """A queue is declared, and an exchange must exist."""
        results = [Result(self.queue.prepare(self.server.client))]
        self.server.settle()
        results.append(Result(self.exchange.prepare(self.server.client)))
        declared = self.declared()
        self.assertIn((SCRATCH, "queue.declare"), declared)
        self.assertIn((SCRATCH, "exchange.declare"), declared)
        self.assertTrue(all(result.done and result.failure is None for result in results))

    def test_missing(self) -> None:
        """Only a queue can be declared again after a line was returned."""
        for destination, missing in ((self.queue, True), (self.exchange, False)):
            self.assertFalse(destination.missing)
            destination.unroutable()
            self.assertEqual(destination.missing, missing)

    def test_restore(self) -> None:
        """A queue is missing until its declaration has succeeded."""
        self.queue.unroutable()
        self.server.refusals["from_device", False] = self.server.refusals["from_device", True] = (403, "ACCESS_REFUSED - no")
        failed = Result(self.queue.restore(self.server.client))
        self.server.settle()
        self.assertTrue(failed.done)
        self.assertEqual(self.queue.missing, failed.failure is not None)
        self.server.refusals.clear()
        self.queue.unroutable()
        restored = Result(self.queue.restore(self.server.client))
        self.server.settle()
        self.assertTrue(restored.done)
        self.assertIsNone(restored.failure)
        self.assertFalse(self.queue.missing)

    def test_descriptions(self) -> None:
        """Descriptions name the queue or the exchange."""
        self.assertEqual(self.queue.describe(), "queue from_device")
        self.assertEqual(self.exchange.describe(), "exchange lines")
        self.assertIn("queue from_device is full", self.queue.full())
        self.assertIn("behind the exchange lines", self.exchange.full())
        self.assertIn("'door'", self.exchange.nowhere("door"))
