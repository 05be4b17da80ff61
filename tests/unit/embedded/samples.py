"""Messages, consumers and a broker for the unit tests of the embedded broker."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.embedded.broker import Broker
from owsla.embedded.messages import Message
from owsla.embedded.queues import QueueConsumer, QueuedMessage, ServerQueue


def message(body: bytes = b"", key: str = "q", exchange: str = "", properties: bytes = b"\0\0") -> Message:
    address = wire.short_string(exchange) + wire.short_string(key)
    return Message(exchange, key, address, wire.header_payload(len(body), properties), body)


class Taker(QueueConsumer):
    """Consumer with room for a number of messages."""

    def __init__(self, queue: ServerQueue, room: int = 1000, priority: int = 0, exclusive: bool = False) -> None:
        super().__init__("t", queue, no_ack=False, exclusive=exclusive, priority=priority)
        self.room = room
        self.got: list[QueuedMessage] = []
        self.gone = False

    def can_take(self) -> bool:
        return len(self.got) < self.room

    def deliver(self, queued: QueuedMessage) -> None:
        self.got.append(queued)

    def cancelled(self) -> None:
        self.gone = True

    @property
    def bodies(self) -> list[bytes]:
        return [entry.message.body for entry in self.got]


class BrokerTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.woken: list[float] = []
        self.broker = Broker(self.clock.seconds, 10_000, self.woken.append, lambda: 1.0)

    def declare(self, name: str = "q", **arguments: Any) -> ServerQueue:
        spelled = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        return self.broker.declare_queue(name, None, arguments=spelled)

    def bodies(self, queue: ServerQueue) -> list[bytes]:
        return [entry.message.body for entry in queue.ready]

    def fill(self, queue: ServerQueue, count: int) -> None:
        for number in range(count):
            queue.publish(message(b"%d" % number))
