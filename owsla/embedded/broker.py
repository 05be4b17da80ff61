"""State of the broker: queues, exchanges and direct replies of its one virtual host, and the routing between them.

Each command of a connection either takes effect or raises the `AMQPError` that RabbitMQ would answer with.
"""

from __future__ import annotations

import base64
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .dead_letters import make_dead_letter
from .errors import AMQPError, inequivalent, no_exchange, no_queue, queue_locked
from .exchanges import EXCHANGE_TYPES, Destination, ServerExchange
from .memory import MemoryAccount
from .messages import Message
from .queues import ServerQueue
from .replies import REPLY_TO, ReplyConsumer


class PublishResult(NamedTuple):
    """Result of a publish."""

    routed: bool
    """True if there was a queue for the message."""
    accepted: bool
    """True if no queue refused the message."""


def unique_name(prefix: str) -> str:
    """Return a name that cannot be guessed: the prefix and 128 random bits."""
    return prefix + base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()


class Broker:
    """Queues and exchanges of the virtual host, with the memory of their messages.

    `now` is the clock in seconds. `wake(when)` requests a call of `sweep` at a time of that clock.
    """

    def __init__(
        self,
        now: Callable[[], float],
        memory_limit: int,
        wake: Callable[[float], None] = lambda when: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._wake = wake
        self._wall = wall
        self.memory = MemoryAccount(memory_limit)
        self.queues: dict[str, ServerQueue] = {}
        # The exchanges that RabbitMQ declares in each virtual host.
        self.exchanges: dict[str, ServerExchange] = {
            name: ServerExchange(name, kind, durable=True)
            for name, kind in [
                ("amq.direct", "direct"),
                ("amq.fanout", "fanout"),
                ("amq.headers", "headers"),
                ("amq.match", "headers"),
                ("amq.topic", "topic"),
            ]
        }
        self.exchanges["amq.rabbitmq.trace"] = ServerExchange("amq.rabbitmq.trace", "topic", durable=True, internal=True)
        self._replies: dict[str, ReplyConsumer] = {}
        self._expiring: set[ServerQueue] = set()
        self._dead_letters: deque[tuple[ServerQueue, Message, str]] = deque()
        self._dead_lettering = False

    # -- time --------------------------------------------------------------------------------------------------------------

    def schedule_expiry(self, queue: ServerQueue, when: float) -> None:
        """Request a sweep at the time at which a message of the queue, or the queue, expires."""
        self._expiring.add(queue)
        self._wake(when)

    def sweep(self) -> None:
        """Drop expired messages and queues, and request the next sweep."""
        next_expiry: float | None = None
        for queue in list(self._expiring):
            if queue.deleted:
                self._expiring.discard(queue)
                continue
            unused = queue.unused_until()
            if unused is not None and unused <= self._now():
                self._remove_queue(queue)
                continue
            times = [when for when in (queue.expire(), unused) if when is not None]
            if times:
                next_expiry = min([*times, next_expiry] if next_expiry is not None else times)
            else:
                self._expiring.discard(queue)
        if next_expiry is not None:
            self._wake(next_expiry)

    # -- publishing --------------------------------------------------------------------------------------------------------

    def publish(self, message: Message, ttl: int | None = None, copies: Iterable[str] = ()) -> PublishResult:
        """Publish a message to the queues of its routing key and of the routing keys `copies`."""
        # The common case, the default exchange with one routing key, without the routing.
        if not message.exchange and not copies:
            queue = self.queues.get(message.routing_key)
            if queue is not None:
                return PublishResult(True, queue.publish(message, ttl))
        queues = self.route(message.exchange, [message.routing_key, *copies], message)
        return PublishResult(bool(queues), self.enqueue(queues, message, ttl))

    def enqueue(self, queues: Iterable[ServerQueue], message: Message, ttl: int | None = None) -> bool:
        """Publish a message to queues. Return whether all of them accepted it."""
        # Hold the message meanwhile: a first queue that delivers and releases it at once must not end its accounting before
        # the second queue holds it.
        self.memory.retain(message)
        accepted = True
        for queue in queues:
            accepted = queue.publish(message, ttl) and accepted
        self.memory.release(message)
        return accepted

    def route(self, exchange: str, keys: Iterable[str], message: Message) -> list[ServerQueue]:
        """Return the queues for a message to this exchange with these routing keys, each once. Raise 404 without the exchange.

        A direct reply is delivered here, since it goes to no queue.
        """
        keys = list(keys)
        if not exchange:
            if self._replies:
                self._deliver_reply(keys, message)
            return list(dict.fromkeys(self.queues[key] for key in keys if key in self.queues))
        first = self.exchanges.get(exchange)
        if first is None:
            raise no_exchange(exchange)
        found: dict[ServerQueue, None] = {}
        seen = {first}  # exchanges may be bound in a loop
        todo = [first]
        while todo:
            current = todo.pop()
            destinations = [destination for key in keys for destination in current.route(key, message)]
            # As in RabbitMQ, the alternate exchange gets what no binding of this exchange matched.
            if not destinations:
                alternate = self.exchanges.get(current.arguments.get("alternate-exchange", ""))
                destinations = [alternate] if alternate is not None else []
            for destination in destinations:
                if isinstance(destination, ServerQueue):
                    found[destination] = None
                elif isinstance(destination, ServerExchange) and destination not in seen:
                    seen.add(destination)
                    todo.append(destination)
        return list(found)

    # -- direct replies ----------------------------------------------------------------------------------------------------

    def _deliver_reply(self, keys: Iterable[str], message: Message) -> None:
        for key in dict.fromkeys(keys):
            consumer = self._replies.get(key)
            if consumer is not None:
                consumer.deliver(message)

    def add_reply_consumer(self, consumer: ReplyConsumer) -> None:
        """Deliver replies to the name of this consumer."""
        self._replies[consumer.name] = consumer

    def remove_reply_consumer(self, consumer: ReplyConsumer) -> None:
        """Discard further replies to this consumer."""
        self._replies.pop(consumer.name, None)

    def is_reply_name(self, name: str) -> bool:
        """Return whether the name is that of a direct reply consumer, or `amq.rabbitmq.reply-to`."""
        return name == REPLY_TO or name in self._replies

    # -- dead letters ------------------------------------------------------------------------------------------------------

    def dead_letter(self, queue: ServerQueue, message: Message, reason: str) -> None:
        """Publish a message that a queue dropped to the dead-letter exchange of the queue."""
        # A dead letter can make the next queue drop a message, and so on: a list of them instead of recursion, which a long
        # chain of queues would overflow.
        self.memory.retain(message)
        self._dead_letters.append((queue, message, reason))
        if self._dead_lettering:
            return
        self._dead_lettering = True
        try:
            while self._dead_letters:
                queue, message, reason = self._dead_letters.popleft()
                self._publish_dead_letter(queue, message, reason)
                self.memory.release(message)
        finally:
            self._dead_lettering = False

    def _publish_dead_letter(self, queue: ServerQueue, message: Message, reason: str) -> None:
        exchange = queue.policy.dead_letter_exchange or ""
        if exchange and exchange not in self.exchanges:
            return
        letter = make_dead_letter(queue, message, reason, self._wall())
        if letter is None:
            return
        for target in self.route(exchange, letter.keys, letter.message):
            if not letter.cycles_at(target.name):
                target.publish(letter.message)

    # -- queues ------------------------------------------------------------------------------------------------------------

    def queue(self, name: str, owner: object) -> ServerQueue:
        """Return the queue of this name. Raise 404 if it does not exist, 405 if it is exclusive to another connection."""
        queue = self.queues.get(name)
        if queue is None:
            raise no_queue(name)
        if queue.owner is not None and queue.owner is not owner:
            raise queue_locked(name)
        return queue

    def declare_queue(
        self,
        name: str,
        owner: object,
        *,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> ServerQueue:
        """Create a queue, or check that the existing one is equivalent. Without a name the queue gets a generated one."""
        arguments = arguments or {}
        queue = self.queues.get(name) if name else None
        if queue is not None:
            if (queue.owner is not None or exclusive) and (queue.owner is not owner or not exclusive):
                raise queue_locked(name)
            queue.check_equivalent(durable=durable, auto_delete=auto_delete, arguments=arguments)
            queue.mark_used()
            return queue
        # RabbitMQ reserves the names of direct replies: one that is not in use cannot be declared.
        if name.startswith(REPLY_TO):
            raise no_queue(name)
        if name.startswith("amq."):
            raise AMQPError(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
        name = name or unique_name("amq.gen-")
        queue = ServerQueue(
            name,
            self._now,
            self,
            durable=durable,
            owner=owner if exclusive else None,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        self.queues[name] = queue
        return queue

    def delete_queue(self, name: str, owner: object, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue and return the number of its ready messages. A queue that does not exist counts as deleted."""
        if name not in self.queues:
            return 0
        queue = self.queue(name, owner)
        if if_unused and queue.consumers:
            raise AMQPError(406, f"queue '{name}' in vhost '/' in use")
        queue.expire()
        if if_empty and queue.ready:
            raise AMQPError(406, f"queue '{name}' in vhost '/' not empty")
        return self._remove_queue(queue)

    def _remove_queue(self, queue: ServerQueue) -> int:
        del self.queues[queue.name]
        self._expiring.discard(queue)
        self._unbind_all(queue)
        return queue.delete()

    def consumer_removed(self, queue: ServerQueue) -> None:
        """Delete an auto-delete queue after its last consumer."""
        if queue.auto_delete and not queue.consumers and not queue.deleted:
            self._remove_queue(queue)

    def connection_lost(self, owner: object) -> None:
        """Delete the exclusive queues of a closed connection."""
        for queue in [queue for queue in self.queues.values() if queue.owner is owner]:
            self._remove_queue(queue)

    # -- exchanges ---------------------------------------------------------------------------------------------------------

    def exchange(self, name: str) -> ServerExchange:
        """Return the exchange of this name. Raise 404 if it does not exist, and 403 for the default exchange."""
        if not name:
            raise AMQPError(403, "operation not permitted on the default exchange")
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise no_exchange(name)
        return exchange

    def declare_exchange(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> ServerExchange:
        """Create an exchange, or check that the existing one is equivalent."""
        if kind not in EXCHANGE_TYPES:
            raise AMQPError(503, f"unknown exchange type '{kind}'")
        arguments = arguments or {}
        if not name or name in self.exchanges:
            exchange = self.exchange(name)
            for arg, received, current in [
                ("type", kind, exchange.kind),
                ("durable", durable, exchange.durable),
                ("auto_delete", auto_delete, exchange.auto_delete),
                ("internal", internal, exchange.internal),
                (
                    "alternate-exchange",
                    arguments.get("alternate-exchange"),
                    exchange.arguments.get("alternate-exchange"),
                ),
            ]:
                if received != current:
                    raise inequivalent(arg, "exchange", name, received, current)
            return exchange
        if name.startswith("amq."):
            raise AMQPError(403, f"exchange name '{name}' contains reserved prefix 'amq.*'")
        alternate = arguments.get("alternate-exchange")
        if alternate is not None and not isinstance(alternate, str):
            raise AMQPError(406, f"invalid arg 'alternate-exchange' for exchange '{name}' in vhost '/'")
        exchange = ServerExchange(name, kind, durable=durable, auto_delete=auto_delete, internal=internal, arguments=arguments)
        self.exchanges[name] = exchange
        return exchange

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange and its bindings. An exchange that does not exist counts as deleted."""
        if name.startswith("amq."):
            raise AMQPError(403, f"deletion of system exchange '{name}' in vhost '/' not allowed")
        if name and name not in self.exchanges:
            return
        exchange = self.exchange(name)
        if if_unused and exchange.bindings:
            raise AMQPError(406, f"exchange '{name}' in vhost '/' in use")
        del self.exchanges[name]
        self._unbind_all(exchange)

    def bind(self, source: str, destination: Destination, key: str, arguments: dict[str, Any]) -> None:
        """Bind a queue or an exchange to the source exchange."""
        self.exchange(source).bind(destination, key, arguments)

    def unbind(self, source: str, destination: Destination | None, key: str, arguments: dict[str, Any]) -> None:
        """Remove a binding. A binding that does not exist, at either end, counts as removed."""
        if not source:
            raise AMQPError(403, "operation not permitted on the default exchange")
        exchange = self.exchanges.get(source)
        if exchange is not None and destination is not None and exchange.unbind(destination, key, arguments):
            self._auto_delete(exchange)

    def _unbind_all(self, destination: Destination) -> None:
        for exchange in list(self.exchanges.values()):
            if exchange.unbind_all(destination):
                self._auto_delete(exchange)

    def _auto_delete(self, exchange: ServerExchange) -> None:
        """Delete an auto-delete exchange after its last binding."""
        if exchange.auto_delete and not exchange.bindings and self.exchanges.get(exchange.name) is exchange:
            del self.exchanges[exchange.name]
            self._unbind_all(exchange)
