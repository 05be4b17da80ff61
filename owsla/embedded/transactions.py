"""Transaction of a channel (tx): publishes and acknowledgements that take effect together, at tx.commit.

As in RabbitMQ a publish is checked and routed when it arrives, and reaches its queues at the commit. Deliveries that were
acknowledged or rejected are unacknowledged again after a rollback.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from .errors import AMQPError
from .publishing import PendingPublish
from .queues import QueueConsumer, QueuedMessage, ServerQueue


class UnackedDelivery(NamedTuple):
    """Message that a client got and has not acknowledged."""

    tag: int
    queued: QueuedMessage
    queue: ServerQueue
    consumer: QueueConsumer | None
    """Consumer that it was delivered to; `None` for basic.get."""


class Settlement(enum.Enum):
    """Kinds of answers to a delivery."""

    ACK = enum.auto()
    REJECT = enum.auto()
    REQUEUE = enum.auto()


Settlements = list[tuple[Settlement, list[UnackedDelivery]]]


class Transaction:
    """Publishes and settlements of a channel since tx.select, tx.commit or tx.rollback."""

    __slots__ = ("publishes", "selected", "settlements")

    def __init__(self) -> None:
        self.selected = False
        """True once the channel is transactional, which it stays."""
        self.publishes: list[PendingPublish] = []
        self.settlements: Settlements = []

    def select(self) -> None:
        """Make the channel transactional."""
        self.selected = True

    def take(self) -> tuple[list[PendingPublish], Settlements]:
        """Begin a new transaction and return the content of the last one. Raise 406 if the channel is not transactional."""
        if not self.selected:
            raise AMQPError(406, "channel is not transactional")
        taken = self.publishes, self.settlements
        self.publishes, self.settlements = [], []
        return taken
