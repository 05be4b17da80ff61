"""The broker's state: the queues and exchanges of its one virtual host, and the memory that their messages take.

Connections bring commands; each either happens or raises the `AMQPError` that RabbitMQ would answer with.
"""

from __future__ import annotations

import base64
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from .dead_letters import dead_letter
from .errors import AMQPError, inequivalent, locked, no_exchange, no_queue
from .exchanges import TYPES, Destination, Exchange
from .queues import Message, Queue
from .replies import REPLY_TO, ReplyConsumer

LOW_WATER: Final = 0.8
"""The part of the memory limit below which publishers go on: far enough down that they don't flap."""

EXHAUSTED_AT: Final = 2
"""Times the memory limit at which publishers that also consume have to wait, too."""


class Publisher(Protocol):
    """A connection that waits for memory."""

    def unblocked(self) -> None:
        """The alarm is over: publish freely."""

    def relieved(self) -> None:
        """The alarm goes on, but a connection that also consumes may publish again."""


class Outcome(NamedTuple):
    """What became of a publish."""

    routed: bool
    accepted: bool


def unique_name(prefix: str) -> str:
    """A name that nobody has yet: 128 random bits after the prefix."""
    return prefix + base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()


class Broker:
    """Queues, exchanges and memory. `now` is the clock, in seconds; `wake(when)` asks for a `sweep` at a time of that clock."""

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
        self.memory_limit = memory_limit
        self.memory = 0
        """Bytes held by messages: ready, unacknowledged, and those arriving in parts."""
        self.alarm = False
        """Whether publishers are to wait."""
        self.exhausted = False
        """Whether publishers that also consume are to wait, too."""
        self._waiting: list[Publisher] = []
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, Exchange] = {
            name: Exchange(name, kind, durable=True)
            for name, kind in [
                ("amq.direct", "direct"),
                ("amq.fanout", "fanout"),
                ("amq.headers", "headers"),
                ("amq.match", "headers"),
                ("amq.topic", "topic"),
            ]
        }
        self.exchanges["amq.rabbitmq.trace"] = Exchange("amq.rabbitmq.trace", "topic", durable=True, internal=True)
        self._replies: dict[str, ReplyConsumer] = {}
        self._timed: set[Queue] = set()
        self._dead: deque[tuple[Queue, Message, str]] = deque()
        self._burying = False

    # -- memory ------------------------------------------------------------------------------------------------------------

    def account(self, size: int) -> None:
        """Count bytes in (or, negative, out)."""
        self.memory += size
        if self.alarm or self.memory > self.memory_limit:
            self._watch()

    def _watch(self) -> None:
        was_exhausted, self.exhausted = self.exhausted, self.memory > EXHAUSTED_AT * self.memory_limit
        self.alarm = self.memory > self.memory_limit * LOW_WATER
        if not self.alarm:
            waiting, self._waiting = self._waiting, []
            for publisher in waiting:
                publisher.unblocked()
        elif was_exhausted and not self.exhausted:
            for publisher in tuple(self._waiting):
                publisher.relieved()

    def wait(self, publisher: Publisher) -> None:
        """Tell a publisher when the alarm is over."""
        self._waiting.append(publisher)

    def stop_waiting(self, publisher: Publisher) -> None:
        """The publisher has gone."""
        if publisher in self._waiting:
            self._waiting.remove(publisher)

    def retain(self, message: Message) -> None:
        """One more queue holds the message; its bytes count once however many do."""
        message.refs += 1
        if message.refs == 1:
            self.account(message.size)

    def release(self, message: Message) -> None:
        """One fewer does."""
        message.refs -= 1
        if not message.refs:
            self.account(-message.size)

    # -- time --------------------------------------------------------------------------------------------------------------

    def deadline(self, queue: Queue, when: float) -> None:
        """Something of the queue's expires at that time."""
        self._timed.add(queue)
        self._wake(when)

    def sweep(self) -> None:
        """Let go of what has expired, and ask to be woken for what expires next."""
        soonest: float | None = None
        for queue in list(self._timed):
            if queue.deleted:
                self._timed.discard(queue)
                continue
            unused = queue.unused_until()
            if unused is not None and unused <= self._now():
                self._remove_queue(queue)
                self._timed.discard(queue)
                continue
            times = [when for when in (queue.expire(), unused) if when is not None]
            if times:
                soonest = min([*times, soonest] if soonest is not None else times)
            else:
                self._timed.discard(queue)
        if soonest is not None:
            self._wake(soonest)

    # -- publishing --------------------------------------------------------------------------------------------------------

    def publish(self, message: Message, ttl: int | None = None, copies: Iterable[str] = ()) -> Outcome:
        """Route a message to its queues, by its routing key and those of its `copies`."""
        if not message.exchange and not copies:
            queue = self.queues.get(message.routing_key)
            if queue is not None:
                return Outcome(True, queue.publish(message, ttl))
        queues = self.route(message.exchange, [message.routing_key, *copies], message)
        return Outcome(bool(queues), self.enqueue(queues, message, ttl))

    def enqueue(self, queues: Iterable[Queue], message: Message, ttl: int | None = None) -> bool:
        """Put a message into its queues. Returns whether all of them took it."""
        # One more hold while it goes round: a first queue that lets it go at once must not end its accounting for the second.
        self.retain(message)
        accepted = True
        for queue in queues:
            accepted = queue.publish(message, ttl) and accepted
        self.release(message)
        return accepted

    def route(self, exchange: str, keys: Iterable[str], message: Message) -> list[Queue]:
        """The queues that a message to this exchange with these routing keys goes to, each once; 404 without the exchange.

        A direct reply is delivered here: it goes to no queue.
        """
        keys = list(keys)
        if not exchange:
            if self._replies:
                self._reply(keys, message)
            return list(dict.fromkeys(self.queues[key] for key in keys if key in self.queues))
        first = self.exchanges.get(exchange)
        if first is None:
            raise no_exchange(exchange)
        found: dict[Queue, None] = {}
        seen = {first}
        todo = [first]
        while todo:
            current = todo.pop()
            destinations = [destination for key in keys for destination in current.route(key, message)]
            if not destinations:
                alternate = self.exchanges.get(current.arguments.get("alternate-exchange", ""))
                destinations = [alternate] if alternate is not None else []
            for destination in destinations:
                if isinstance(destination, Queue):
                    found[destination] = None
                elif isinstance(destination, Exchange) and destination not in seen:
                    seen.add(destination)
                    todo.append(destination)
        return list(found)

    # -- direct replies ----------------------------------------------------------------------------------------------------

    def _reply(self, keys: Iterable[str], message: Message) -> None:
        for key in dict.fromkeys(keys):
            consumer = self._replies.get(key)
            if consumer is not None:
                consumer.deliver(message)

    def add_reply_consumer(self, consumer: ReplyConsumer) -> None:
        """Deliver replies to this consumer's name."""
        self._replies[consumer.name] = consumer

    def remove_reply_consumer(self, consumer: ReplyConsumer) -> None:
        """Its replies go nowhere from now on."""
        self._replies.pop(consumer.name, None)

    def takes_replies(self, name: str) -> bool:
        """Whether this is the name of a direct reply consumer, or the one that stands for it."""
        return name == REPLY_TO or name in self._replies

    # -- dead letters ------------------------------------------------------------------------------------------------------

    def dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        """Publish a message that a queue gave up to the queue's dead-letter exchange. Never deeper than one at a time."""
        self.retain(message)
        self._dead.append((queue, message, reason))
        if self._burying:
            return
        self._burying = True
        try:
            while self._dead:
                queue, message, reason = self._dead.popleft()
                self._bury(queue, message, reason)
                self.release(message)
        finally:
            self._burying = False

    def _bury(self, queue: Queue, message: Message, reason: str) -> None:
        exchange = queue.policy.dead_exchange or ""
        if exchange and exchange not in self.exchanges:
            return
        letter = dead_letter(queue, message, reason, self._wall())
        if letter is None:
            return
        for target in self.route(exchange, letter.keys, letter.message):
            if not letter.cycles_at(target.name):
                target.publish(letter.message)

    # -- queues ------------------------------------------------------------------------------------------------------------

    def queue(self, name: str, owner: object) -> Queue:
        """The queue of this name; 404 if there is none, 405 if it is another connection's own."""
        queue = self.queues.get(name)
        if queue is None:
            raise no_queue(name)
        if queue.owner is not None and queue.owner is not owner:
            raise locked(name)
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
    ) -> Queue:
        """Make a queue, or check that the one that is there is like it. Without a name it gets one."""
        arguments = arguments or {}
        queue = self.queues.get(name) if name else None
        if queue is not None:
            if (queue.owner is not None or exclusive) and (queue.owner is not owner or not exclusive):
                raise locked(name)
            queue.check_equivalent(durable=durable, auto_delete=auto_delete, arguments=arguments)
            queue.touch()
            return queue
        if name.startswith(REPLY_TO):
            raise no_queue(name)
        if name.startswith("amq."):
            raise AMQPError(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
        name = name or unique_name("amq.gen-")
        queue = Queue(
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
        """Delete a queue; returns how many messages were ready in it. One that is not there is deleted already."""
        if name not in self.queues:
            return 0
        queue = self.queue(name, owner)
        if if_unused and queue.consumers:
            raise AMQPError(406, f"queue '{name}' in vhost '/' in use")
        queue.expire()
        if if_empty and queue.ready:
            raise AMQPError(406, f"queue '{name}' in vhost '/' not empty")
        return self._remove_queue(queue)

    def _remove_queue(self, queue: Queue) -> int:
        del self.queues[queue.name]
        self._timed.discard(queue)
        self._forget(queue)
        return queue.delete()

    def consumer_removed(self, queue: Queue) -> None:
        """A consumer left: an auto-delete queue goes with its last one."""
        if queue.auto_delete and not queue.consumers and not queue.deleted:
            self._remove_queue(queue)

    def connection_lost(self, owner: object) -> None:
        """A connection has gone, and its exclusive queues with it."""
        for queue in [queue for queue in self.queues.values() if queue.owner is owner]:
            self._remove_queue(queue)

    # -- exchanges ---------------------------------------------------------------------------------------------------------

    def exchange(self, name: str) -> Exchange:
        """The exchange of this name; 404 if there is none, 403 for the default one, which nothing can be done to."""
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
    ) -> Exchange:
        """Make an exchange, or check that the one that is there is like it."""
        if kind not in TYPES:
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
        exchange = Exchange(name, kind, durable=durable, auto_delete=auto_delete, internal=internal, arguments=arguments)
        self.exchanges[name] = exchange
        return exchange

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange and its bindings. One that is not there is deleted already."""
        if name.startswith("amq."):
            raise AMQPError(403, f"deletion of system exchange '{name}' in vhost '/' not allowed")
        if name and name not in self.exchanges:
            return
        exchange = self.exchange(name)
        if if_unused and exchange.bindings:
            raise AMQPError(406, f"exchange '{name}' in vhost '/' in use")
        del self.exchanges[name]
        self._forget(exchange)

    def bind(self, source: str, destination: Destination, key: str, arguments: dict[str, Any]) -> None:
        """Lead what the source exchange gets for this key to a queue or another exchange."""
        self.exchange(source).bind(destination, key, arguments)

    def unbind(self, source: str, destination: Destination | None, key: str, arguments: dict[str, Any]) -> None:
        """Undo a binding. One that is not there, at either end, is undone already."""
        if not source:
            raise AMQPError(403, "operation not permitted on the default exchange")
        exchange = self.exchanges.get(source)
        if exchange is not None and destination is not None and exchange.unbind(destination, key, arguments):
            self._auto_delete(exchange)

    def _forget(self, destination: Destination) -> None:
        for exchange in list(self.exchanges.values()):
            if exchange.forget(destination):
                self._auto_delete(exchange)

    def _auto_delete(self, exchange: Exchange) -> None:
        if exchange.auto_delete and not exchange.bindings and self.exchanges.get(exchange.name) is exchange:
            del self.exchanges[exchange.name]
            self._forget(exchange)
