"""What the measurements leave behind."""

from __future__ import annotations

from typing import Any

import pika
from twisted.trial.unittest import SynchronousTestCase

from bench import harness
from owsla.broker.queues import undeliverable_queue
from owsla.cluster.registrar import register_queue


class Connection:
    """One to a broker, of which it is kept what is deleted there."""

    def __init__(self, deleted: list[str]) -> None:
        self._deleted = deleted

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def channel(self) -> Any:
        return self

    def queue_delete(self, name: str) -> None:
        self._deleted.append(name)


class QueueTests(SynchronousTestCase):
    """The queues of a gateway."""

    def test_all_deleted(self) -> None:
        """All that Owsla declares for the names it was given is deleted, the register of nodes included: it is durable."""
        deleted: list[str] = []
        self.patch(pika, "BlockingConnection", lambda parameters: Connection(deleted))
        harness.delete_queues(harness.BROKER, "from", "to")
        expected = ["from", "to", undeliverable_queue("to", 1).name, register_queue("to", {}).name]
        self.assertEqual(sorted(deleted), sorted(expected))
