"""Tests of the state of queues."""

from __future__ import annotations

from owsla.broker.client import BrokerError
from owsla.broker.queue_state import QueueState, inspect_queue

from .fakes import BrokerTestCase, Result, Server


class InspectTests(BrokerTestCase):
    def inspect(self, code: int = 0, text: str = "") -> Result:
        self.server = Server().ready()
        self.server.found["q"] = (3, 2)
        if code:
            self.server.refusals["q", True] = (code, text)
        result = Result(inspect_queue(self.server.client, 9, "q"))
        self.server.settle()
        return result

    def test_there(self) -> None:
        """The state of a queue has its messages and consumers."""
        self.assertEqual(self.inspect().value, QueueState(3, 2))

    def test_missing(self) -> None:
        """A queue that does not exist has no state."""
        self.assertIsNone(self.inspect(404, "NOT_FOUND - no queue 'q' in vhost '/'").value)

    def test_unreachable(self) -> None:
        """A queue that exists, and that the broker cannot reach, is not missing: a node would be taken for dead. The texts are
        those of RabbitMQ 4.0 with Mnesia and with Khepri.
        """
        for text in (
            "NOT_FOUND - home node 'rabbit@two' of durable queue 'q' in vhost '/' is down or inaccessible",
            "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
        ):
            error = self.inspect(404, text).error
            self.assertIsInstance(error, BrokerError)
            self.assertEqual(error.text, text)
