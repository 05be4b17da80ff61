"""Queues: order of the messages, their limits, and the choice of the next consumer. No I/O, and no clock but the one passed in.

Theory of operation
-------------------
A message is in one of three places: *ready* in the queue, *unacknowledged* in the channel of a consumer, or gone (acknowledged,
expired, dropped). The queue holds only ready messages.

Position. A message gets a position when it is published, and keeps it. `ready` is always sorted by position. A message that
comes back (basic.nack, the end of a channel) is inserted at its position, ahead of everything that was published after it, as
in the classic queues of RabbitMQ. With `x-max-priority`, each priority has a range of positions of its own, the higher priority
first. The head, which expires first and which a full queue drops, is then the oldest message of the highest priority, as in
RabbitMQ.

A quorum queue counts how often a message came back (`x-delivery-count`) and drops or dead-letters it past `x-delivery-limit`.
Without a limit, a message that a client rejected gets a new position behind all others. That is RabbitMQ 3.10; 4.0 has a
default limit of 20.

Dispatch. Messages go to a consumer as soon as one can take them. A queue is *stalled* if it has messages and consumers, but no
consumer had room. Publishing to a stalled queue only appends, which costs nothing per consumer. Code that makes room calls
`dispatch`, which ends the stall. Consumers may publish, acknowledge or cancel from inside `deliver`, so `dispatch` is guarded
against recursion: the outer call takes the messages that an inner call leaves.

Expiry. Only the head expires, as in RabbitMQ: a message with a short lifetime behind one with a long lifetime stays, and is
dropped when it becomes the head.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from .errors import AMQPError, inequivalent
from .exchanges import Destination
from .memory import MemoryAccount
from .messages import Message
from .policy import check_equivalent, check_properties, read_policy

_POSITIONS_PER_PRIORITY: Final = 1 << 64
"""Number of positions of a priority: more than a queue ever uses, so that the ranges do not overlap."""


class QueuedMessage:
    """Message in a queue, with its position there."""

    __slots__ = ("expires_at", "message", "position", "redelivered", "returns")

    def __init__(self, message: Message, position: int, expires_at: float | None) -> None:
        self.message = message
        self.position = position
        self.expires_at = expires_at
        self.redelivered = False
        self.returns = 0
        """Number of times that the message came back."""


class QueueHost(Protocol):
    """Interface of the broker that a queue belongs to."""

    memory: MemoryAccount

    def dead_letter(self, queue: ServerQueue, message: Message, reason: str) -> None:
        """Publish a message that the queue dropped to its dead-letter exchange. The queue releases it afterwards."""

    def schedule_expiry(self, queue: ServerQueue, when: float) -> None:
        """Call `expire` of the queue, or delete it, at this time of the clock."""


class QueueConsumer:
    """Consumer of a queue. Subclasses decide when it takes messages and what becomes of them."""

    __slots__ = ("exclusive", "no_ack", "priority", "queue", "tag")

    def __init__(self, tag: str, queue: ServerQueue, *, no_ack: bool, exclusive: bool, priority: int) -> None:
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.priority = priority

    def can_take(self) -> bool:
        """Return whether there is room for a message. When that changes to true, `ServerQueue.dispatch` must be called."""
        raise NotImplementedError

    def deliver(self, queued: QueuedMessage) -> None:
        """Deliver a message. With `no_ack` the queue releases it afterwards."""
        raise NotImplementedError

    def cancelled(self) -> None:
        """Handle the deletion of the queue."""
        raise NotImplementedError


class ServerQueue(Destination):
    """Queue of ready messages, in order, with the consumers that they go to."""

    __slots__ = (
        "_dispatching",
        "_host",
        "_now",
        "_position",
        "_priority_groups",
        "_stalled",
        "active",
        "arguments",
        "auto_delete",
        "consumers",
        "deleted",
        "durable",
        "owner",
        "policy",
        "ready",
        "ready_bytes",
        "used_at",
    )

    def __init__(
        self,
        name: str,
        now: Callable[[], float],
        host: QueueHost,
        *,
        durable: bool = False,
        owner: object | None = None,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        self._now = now
        self._host = host
        self.durable = durable
        self.owner = owner
        """Connection that an exclusive queue belongs to."""
        self.auto_delete = auto_delete
        self.arguments = arguments or {}
        self.policy = read_policy(name, self.arguments)
        check_properties(name, self.arguments, durable=durable, exclusive=owner is not None, auto_delete=auto_delete)
        self.ready: deque[QueuedMessage] = deque()
        self.ready_bytes = 0
        """Size of the bodies of the ready messages: x-max-length-bytes limits it."""
        self.consumers: list[QueueConsumer] = []
        """Consumers in the order of their subscription."""
        self.active: QueueConsumer | None = None
        """Consumer that is served with x-single-active-consumer."""
        self._priority_groups: list[deque[QueueConsumer]] = []
        self._position = 0
        self._stalled = False
        self._dispatching = False
        self.deleted = False
        self.used_at = now()
        self.mark_used()

    # -- declaration -------------------------------------------------------------------------------------------------------

    def check_equivalent(self, *, durable: bool, auto_delete: bool, arguments: dict[str, Any]) -> None:
        """Raise 406 if a second declaration differs from the first."""
        for name, received, current in [("durable", durable, self.durable), ("auto_delete", auto_delete, self.auto_delete)]:
            if received != current:
                raise inequivalent(name, "queue", self.name, received, current)
        check_equivalent(self.name, arguments, self.arguments)

    def mark_used(self) -> None:
        """Restart the time of x-expires, which counts from the last use of the queue."""
        self.used_at = self._now()
        if self.policy.expires is not None:
            self._host.schedule_expiry(self, self.used_at + self.policy.expires / 1000)

    # -- messages in -------------------------------------------------------------------------------------------------------

    def publish(self, message: Message, ttl: int | None = None) -> bool:
        """Store or deliver a message that lives at most `ttl` milliseconds. Return `False` if the queue is full and refuses."""
        policy = self.policy
        if policy.reject_publish:
            self.expire()
            if self._is_full_for(message):
                if policy.dead_letter_refused and policy.dead_letter_exchange is not None:
                    self._host.dead_letter(self, message, "maxlen")
                return False
        if policy.ttl is not None and (ttl is None or policy.ttl < ttl):
            ttl = policy.ttl
        self._host.memory.retain(message)
        self._position += 1
        position = self._position
        if policy.max_priority:
            position -= min(message.priority(), policy.max_priority) * _POSITIONS_PER_PRIORITY
        queued = QueuedMessage(message, position, None if ttl is None else self._now() + ttl / 1000)
        # Before the queue, not through it: as in RabbitMQ a message with an expiration of 0 reaches a consumer that waits.
        if not self.ready and self.consumers and not self._stalled and not self._dispatching:
            consumer = self._next_consumer()
            if consumer is not None:
                self._deliver(consumer, queued)
                return True
            self._stalled = True
        if self.ready and self.ready[-1].position > position:
            insort(self.ready, queued, key=_position)
        else:
            self.ready.append(queued)
        self.ready_bytes += len(message.body)
        if queued.expires_at is not None:
            self._host.schedule_expiry(self, queued.expires_at)
        if self.consumers and not self._stalled:
            self.dispatch()
        if policy.max_length is not None or policy.max_bytes is not None:
            self._drop_head()
        return True

    def _is_full_for(self, message: Message) -> bool:
        policy = self.policy
        return (policy.max_length is not None and len(self.ready) >= policy.max_length) or (
            policy.max_bytes is not None and self.ready_bytes + len(message.body) > policy.max_bytes
        )

    def requeue(self, returned: Iterable[QueuedMessage], *, rejected: bool = False) -> None:
        """Insert returned messages at their positions, marked as redelivered.

        A quorum queue without a delivery limit puts messages that a client `rejected` behind all others.
        """
        back = sorted(returned, key=_position)
        if self.policy.quorum and not self.deleted:
            back = self._count_returns(back, rejected)
        if not back:
            return
        if self.deleted:
            for queued in back:
                self._host.memory.release(queued.message)
            return
        for queued in back:
            queued.redelivered = True
            self.ready_bytes += len(queued.message.body)
            if queued.expires_at is not None:
                self._host.schedule_expiry(self, queued.expires_at)
        ready = self.ready
        last = back[-1].position
        # Returned messages are nearly always older than the ready ones, so only the few between them are sorted.
        if ready and ready[0].position < last:
            while ready and ready[0].position < last:
                back.append(ready.popleft())
            back.sort(key=_position)
        ready.extendleft(reversed(back))
        self.dispatch()
        self._drop_head()

    def _count_returns(self, back: list[QueuedMessage], rejected: bool) -> list[QueuedMessage]:
        """Count the returns to a quorum queue, drop messages past the limit, and return the others."""
        limit = self.policy.delivery_limit
        kept: list[QueuedMessage] = []
        for queued in back:
            queued.returns += 1
            if limit is not None and queued.returns > limit:
                self._drop(queued, "delivery_limit")
                continue
            if rejected and limit is None:
                self._position += 1
                queued.position = self._position
            kept.append(queued)
        return kept

    # -- messages out ------------------------------------------------------------------------------------------------------

    def get(self) -> QueuedMessage | None:
        """Remove and return the first message, for basic.get."""
        self.mark_used()
        self.expire()
        return self._pop() if self.ready else None

    def dispatch(self) -> None:
        """Deliver ready messages as long as a consumer can take them."""
        self._stalled = False
        if self._dispatching or self.deleted:
            return
        self._dispatching = True
        try:
            while self.ready:
                consumer = self._next_consumer()
                if consumer is None:
                    self._stalled = bool(self.consumers)
                    return
                self.expire()
                if self.ready:
                    self._deliver(consumer, self._pop())
        finally:
            self._dispatching = False

    def message_to_deliver(self, queued: QueuedMessage) -> Message:
        """Return the message as a client gets it: from a quorum queue, with `x-delivery-count`."""
        return queued.message.with_delivery_count(queued.returns) if self.policy.quorum else queued.message

    def is_stalled(self) -> bool:
        """Return whether messages wait because no consumer had room."""
        return self._stalled

    def purge(self) -> int:
        """Drop the ready messages and return their number."""
        self.expire()
        count = len(self.ready)
        for queued in self.ready:
            self._host.memory.release(queued.message)
        self.ready.clear()
        self.ready_bytes = 0
        return count

    def _deliver(self, consumer: QueueConsumer, queued: QueuedMessage) -> None:
        consumer.deliver(queued)
        if consumer.no_ack:
            self._host.memory.release(queued.message)

    def _pop(self) -> QueuedMessage:
        queued = self.ready.popleft()
        self.ready_bytes -= len(queued.message.body)
        return queued

    def _next_consumer(self) -> QueueConsumer | None:
        """Return the next consumer with room: the highest priority first, in turn within a priority."""
        if self.policy.single_active:
            return self.active if self.active is not None and self.active.can_take() else None
        for group in self._priority_groups:
            for _ in range(len(group)):
                consumer = group[0]
                group.rotate(-1)
                if consumer.can_take():
                    return consumer
        return None

    # -- limits ------------------------------------------------------------------------------------------------------------

    def _drop_head(self) -> None:
        policy = self.policy
        if policy.reject_publish:
            return
        while self.ready and (
            (policy.max_length is not None and len(self.ready) > policy.max_length)
            or (policy.max_bytes is not None and self.ready_bytes > policy.max_bytes)
        ):
            self._drop(self._pop(), "maxlen")

    def expire(self) -> float | None:
        """Drop expired messages at the head, and return the time at which the head expires next."""
        ready = self.ready
        while ready:
            when = ready[0].expires_at
            if when is None:
                return None
            if when > self._now():
                return when
            self._drop(self._pop(), "expired")
        return None

    def unused_until(self) -> float | None:
        """Return the time at which the queue itself expires without further use."""
        if self.policy.expires is None or self.consumers:
            return None
        return self.used_at + self.policy.expires / 1000

    def reject(self, queued: QueuedMessage) -> None:
        """Drop or dead-letter a message that a consumer rejected without requeueing it."""
        self._drop(queued, "rejected")

    def _drop(self, queued: QueuedMessage, reason: str) -> None:
        """Drop a message, and dead-letter it if the queue has a dead-letter exchange."""
        if self.policy.dead_letter_exchange is not None and not self.deleted:
            self._host.dead_letter(self, queued.message, reason)
        self._host.memory.release(queued.message)

    # -- consumers ---------------------------------------------------------------------------------------------------------

    def add(self, consumer: QueueConsumer) -> None:
        """Add a consumer. Raise 403 if it or another consumer is exclusive."""
        # An exclusive consumer has the queue alone; RabbitMQ refuses it together with x-single-active-consumer, too.
        taken = self.consumers and (consumer.exclusive or self.consumers[0].exclusive)
        if taken or (consumer.exclusive and self.policy.single_active):
            raise AMQPError(403, f"queue '{self.name}' in vhost '/' in exclusive use")
        self.consumers.append(consumer)
        self._group_by_priority()
        if self.active is None:
            self.active = consumer
        self.used_at = self._now()

    def remove(self, consumer: QueueConsumer) -> None:
        """Remove a consumer. Its unacknowledged messages stay with its channel."""
        self.consumers.remove(consumer)
        self._group_by_priority()
        if self.active is consumer:
            self.active = self.consumers[0] if self.consumers else None
        self.mark_used()
        self.dispatch()

    def _group_by_priority(self) -> None:
        groups: dict[int, deque[QueueConsumer]] = {}
        for consumer in self.consumers:
            groups.setdefault(consumer.priority, deque()).append(consumer)
        self._priority_groups = [groups[priority] for priority in sorted(groups, reverse=True)]

    def delete(self) -> int:
        """Delete the queue, notify its consumers, and return the number of ready messages that it had."""
        count = self.purge()
        self.deleted = True
        consumers, self.consumers, self._priority_groups, self.active = self.consumers, [], [], None
        for consumer in consumers:
            consumer.cancelled()
        return count


def _position(queued: QueuedMessage) -> int:
    return queued.position
