"""A channel's transaction (tx): publishes and acknowledgements that take effect together, at tx.commit.

As in RabbitMQ a publish is checked and routed when it arrives, and reaches its queues at the commit; what is acknowledged or
rejected can be acknowledged again after a rollback.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from .publishing import Publish
from .queues import Consumer, Entry, Queue


class Held(NamedTuple):
    """A message that a client has and has not acknowledged."""

    tag: int
    entry: Entry
    queue: Queue
    consumer: Consumer | None


class Settle(enum.Enum):
    """What becomes of a delivery."""

    ACK = enum.auto()
    REJECT = enum.auto()
    REQUEUE = enum.auto()


class Transaction:
    """What a channel collected since tx.select, or the last commit or rollback."""

    __slots__ = ("publishes", "settled")

    def __init__(self) -> None:
        self.publishes: list[Publish] = []
        self.settled: list[tuple[Settle, list[Held]]] = []

    def deliveries(self) -> list[Held]:
        """The deliveries that are settled with the commit, in the order of their tags."""
        return sorted((held for _, taken in self.settled for held in taken), key=lambda held: held.tag)
