"""Cleanup after the measurements."""

from __future__ import annotations

from typing import Any

import pika
from twisted.trial.unittest import SynchronousTestCase

from bench import harness
from owsla.broker.queues import undeliverable_queue
from owsla.cluster.register import register_queue


class RecordingConnection:
    """Connection to a broker that records deleted queues."""

    def __init__(self, deleted: list[str]) -> None:
        self._deleted = deleted

    def __enter__(self) -> RecordingConnection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def channel(self) -> Any:
        return self

    def queue_delete(self, name: str) -> None:
        self._deleted.append(name)


class QueueTests(SynchronousTestCase):
    def test_all_deleted(self) -> None:
        """All queues that Owsla declares for the given names are deleted, including the durable register of nodes."""
        deleted: list[str] = []
        self.patch(pika, "BlockingConnection", lambda parameters: RecordingConnection(deleted))
        harness.delete_queues(harness.BROKER, "from", "to")
        expected = ["from", "to", undeliverable_queue("to", 1).name, register_queue("to", {}).name]
        self.assertEqual(sorted(deleted), sorted(expected))
