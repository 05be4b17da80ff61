"""Queues: what waits, in which order, and who gets it next. No transport, and no clock but the one passed in.

A message keeps its *position* in a queue for as long as it is there: one that is given back (a nack, a channel's end) returns
to where it was, ahead of what came after it, as in RabbitMQ's classic queues. With `x-max-priority` the higher priorities are
before the lower ones; the head, which expires and which makes way in a full queue, is then the oldest of the highest, as there.

A quorum queue counts how often a message came back (`x-delivery-count`) and gives it up past `x-delivery-limit`. Without
such a limit one that a client sent back goes behind the others, as in RabbitMQ 3.10.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from owsla.amqp import wire

from .errors import AMQPError, inequivalent
from .exchanges import Destination
from .policy import check_equivalent, check_properties, read_policy

_PRIORITY: Final = wire.PROPERTIES["priority"][0]
_HEADERS: Final = wire.PROPERTIES["headers"][0]
_DELIVERY_COUNT: Final = b"x-delivery-count"
NO_HEADERS: Final = wire.encode_table({})
"""An empty table, as bytes."""

FRAME_MAX: Final = 131072
"""Bytes of the largest frame that the broker proposes to its clients."""

OVERHEAD: Final = 512
"""Bytes that a waiting message costs beyond its body and header: its objects, as `sys.getsizeof` and the allocator see them."""


_ROOM: Final = 1 << 64
"""Positions of one priority: so many that they never reach those of the one below."""


def fits(header: bytes) -> bool:
    """Whether a content header fits a frame, which it has to: unlike a body it cannot be split."""
    return len(header) <= FRAME_MAX - wire.FRAME_OVERHEAD


class Message:
    """A message as it came: the bytes of its address, header and body, which deliveries repeat unchanged."""

    __slots__ = ("address", "body", "exchange", "header", "refs", "routing_key", "size")

    def __init__(self, exchange: str, routing_key: str, address: bytes, header: bytes, body: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.address = address
        """Exchange and routing key as two short strings, the way basic.publish, deliver, get-ok and return all carry them."""
        self.header = header
        """The content header's payload: class, weight, body size, property flags and values."""
        self.body = body
        self.refs = 0
        """Queues and unacknowledged deliveries that hold it."""
        self.size = len(header) + len(body) + OVERHEAD

    def priority(self) -> int:
        """Its property of that name; 0 without one."""
        if not int.from_bytes(self.header[12:14]) & _PRIORITY:
            return 0
        return wire.split_properties(self.header, 12)["priority"][0]

    def headers(self) -> dict[str, Any]:
        """Its property of that name, decoded; empty without one."""
        if not int.from_bytes(self.header[12:14]) & _HEADERS:
            return {}
        return wire.decode_table(wire.split_properties(self.header, 12)["headers"])[0]

    def counted(self, deliveries: int) -> Message:
        """A copy whose headers say how often it came back; the message itself where that would not fit a frame."""
        values = wire.split_properties(self.header, 12)
        entries = wire.split_table(values.get("headers", NO_HEADERS))
        entries = [entry for entry in entries if entry[0] != _DELIVERY_COUNT]
        entries.append((_DELIVERY_COUNT, wire.encode_value(deliveries)))
        header = self.header[:12] + wire.join_properties({**values, "headers": wire.join_table(entries)})
        if not fits(header):
            return self
        return Message(self.exchange, self.routing_key, self.address, header, self.body)


class Entry:
    """A message's place in one queue."""

    __slots__ = ("expires_at", "message", "position", "redelivered", "returns")

    def __init__(self, message: Message, position: int, expires_at: float | None) -> None:
        self.message = message
        self.position = position
        self.expires_at = expires_at
        self.redelivered = False
        self.returns = 0
        """Times that it came back."""


class Host(Protocol):
    """What a queue needs of the broker that it lives in."""

    def retain(self, message: Message) -> None:
        """One more queue holds the message."""

    def release(self, message: Message) -> None:
        """One fewer does."""

    def dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        """The queue gives the message up: it goes to the dead-letter exchange, if there is one. It is released afterwards."""

    def deadline(self, queue: Queue, when: float) -> None:
        """Something of the queue's expires at this time of the clock."""


class Consumer:
    """One that takes messages from a queue. Subclasses say when, and what becomes of them."""

    __slots__ = ("exclusive", "no_ack", "priority", "queue", "tag")

    def __init__(self, tag: str, queue: Queue, *, no_ack: bool, exclusive: bool, priority: int) -> None:
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.priority = priority

    def can_take(self) -> bool:
        """Whether there is room for one more message now. When that becomes true again, the queue wants a `dispatch`."""
        raise NotImplementedError

    def deliver(self, entry: Entry) -> None:
        """Take a message; one that needs no acknowledgement is released by the queue afterwards."""
        raise NotImplementedError

    def cancelled(self) -> None:
        """The queue has gone."""
        raise NotImplementedError


class Queue(Destination):
    """A queue: messages that are ready, in order, and the consumers they go to."""

    __slots__ = (
        "_dispatching",
        "_groups",
        "_host",
        "_now",
        "_position",
        "_stalled",
        "active",
        "arguments",
        "auto_delete",
        "body_bytes",
        "consumers",
        "deleted",
        "durable",
        "owner",
        "policy",
        "ready",
        "used_at",
    )

    def __init__(
        self,
        name: str,
        now: Callable[[], float],
        host: Host,
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
        """The connection whose exclusive queue it is."""
        self.auto_delete = auto_delete
        self.arguments = arguments or {}
        self.policy = read_policy(name, self.arguments)
        check_properties(name, self.arguments, durable=durable, exclusive=owner is not None, auto_delete=auto_delete)
        self.ready: deque[Entry] = deque()
        self.body_bytes = 0
        """The ready messages' bodies together: what x-max-length-bytes counts."""
        self.consumers: list[Consumer] = []
        """In the order of their subscription."""
        self.active: Consumer | None = None
        """With x-single-active-consumer, the one that is served."""
        self._groups: list[deque[Consumer]] = []
        self._position = 0
        self._stalled = False
        self._dispatching = False
        self.deleted = False
        self.used_at = now()
        self.touch()

    # -- declaration -------------------------------------------------------------------------------------------------------

    def check_equivalent(self, *, durable: bool, auto_delete: bool, arguments: dict[str, Any]) -> None:
        """Raise 406 where a second declaration differs from the first."""
        for name, received, current in [("durable", durable, self.durable), ("auto_delete", auto_delete, self.auto_delete)]:
            if received != current:
                raise inequivalent(name, "queue", self.name, received, current)
        check_equivalent(self.name, arguments, self.arguments)

    def touch(self) -> None:
        """The queue is in use: its x-expires begins again."""
        self.used_at = self._now()
        if self.policy.expires is not None:
            self._host.deadline(self, self.used_at + self.policy.expires / 1000)

    # -- messages in -------------------------------------------------------------------------------------------------------

    def publish(self, message: Message, ttl: int | None = None) -> bool:
        """Take a message, to live at most `ttl` milliseconds. False where the queue is full and refuses."""
        policy = self.policy
        if policy.reject:
            self.expire()
            if (policy.max_length is not None and len(self.ready) >= policy.max_length) or (
                policy.max_bytes is not None and self.body_bytes + len(message.body) > policy.max_bytes
            ):
                if policy.reject_to_dead_letters and policy.dead_exchange is not None:
                    self._host.dead_letter(self, message, "maxlen")
                return False
        if policy.ttl is not None and (ttl is None or policy.ttl < ttl):
            ttl = policy.ttl
        self._host.retain(message)
        self._position += 1
        position = self._position
        if policy.max_priority:
            position -= min(message.priority(), policy.max_priority) * _ROOM
        entry = Entry(message, position, None if ttl is None else self._now() + ttl / 1000)
        if not self.ready and self.consumers and not self._stalled and not self._dispatching:
            consumer = self._next()
            if consumer is not None:
                self._deliver(consumer, entry)
                return True
            self._stalled = True
        if self.ready and self.ready[-1].position > position:
            insort(self.ready, entry, key=_position)
        else:
            self.ready.append(entry)
        self.body_bytes += len(message.body)
        if entry.expires_at is not None:
            self._host.deadline(self, entry.expires_at)
        if self.consumers and not self._stalled:
            self.dispatch()
        if policy.max_length is not None or policy.max_bytes is not None:
            self._drop_head()
        return True

    def requeue(self, entries: Iterable[Entry], *, rejected: bool = False) -> None:
        """Take messages back to where they were in the order, marked as redelivered.

        `rejected` ones, which a client sent back, go behind the others in a quorum queue without a limit of deliveries.
        """
        back = sorted(entries, key=_position)
        if self.policy.quorum and not self.deleted:
            back = self._count_returns(back, rejected)
            if not back:
                return
        if not back:
            return
        if self.deleted:
            for entry in back:
                self._host.release(entry.message)
            return
        for entry in back:
            entry.redelivered = True
            self.body_bytes += len(entry.message.body)
            if entry.expires_at is not None:
                self._host.deadline(self, entry.expires_at)
        ready = self.ready
        last = back[-1].position
        if ready and ready[0].position < last:
            while ready and ready[0].position < last:
                back.append(ready.popleft())
            back.sort(key=_position)
        ready.extendleft(reversed(back))
        self.dispatch()
        self._drop_head()

    def _count_returns(self, back: list[Entry], rejected: bool) -> list[Entry]:
        limit = self.policy.delivery_limit
        kept: list[Entry] = []
        for entry in back:
            entry.returns += 1
            if limit is not None and entry.returns > limit:
                self._give_up(entry, "delivery_limit")
                continue
            if rejected and limit is None:
                self._position += 1
                entry.position = self._position
            kept.append(entry)
        return kept

    # -- messages out ------------------------------------------------------------------------------------------------------

    def get(self) -> Entry | None:
        """Take the first message out, for basic.get."""
        self.touch()
        self.expire()
        return self._pop() if self.ready else None

    def dispatch(self) -> None:
        """Hand ready messages to consumers for as long as one can take them."""
        self._stalled = False
        if self._dispatching or self.deleted:
            return
        self._dispatching = True
        try:
            while self.ready:
                consumer = self._next()
                if consumer is None:
                    self._stalled = bool(self.consumers)
                    return
                self.expire()
                if self.ready:
                    self._deliver(consumer, self._pop())
        finally:
            self._dispatching = False

    def outgoing(self, entry: Entry) -> Message:
        """The message as a client gets it."""
        return entry.message.counted(entry.returns) if self.policy.quorum else entry.message

    def wants_dispatch(self) -> bool:
        """Whether messages wait because no consumer had room."""
        return self._stalled

    def purge(self) -> int:
        """Throw the ready messages away; returns how many."""
        self.expire()
        count = len(self.ready)
        for entry in self.ready:
            self._host.release(entry.message)
        self.ready.clear()
        self.body_bytes = 0
        return count

    def _deliver(self, consumer: Consumer, entry: Entry) -> None:
        consumer.deliver(entry)
        if consumer.no_ack:
            self._host.release(entry.message)

    def _pop(self) -> Entry:
        entry = self.ready.popleft()
        self.body_bytes -= len(entry.message.body)
        return entry

    def _next(self) -> Consumer | None:
        if self.policy.single_active:
            return self.active if self.active is not None and self.active.can_take() else None
        for group in self._groups:
            for _ in range(len(group)):
                consumer = group[0]
                group.rotate(-1)
                if consumer.can_take():
                    return consumer
        return None

    # -- limits ------------------------------------------------------------------------------------------------------------

    def _drop_head(self) -> None:
        policy = self.policy
        if policy.reject:
            return
        while self.ready and (
            (policy.max_length is not None and len(self.ready) > policy.max_length)
            or (policy.max_bytes is not None and self.body_bytes > policy.max_bytes)
        ):
            self._give_up(self._pop(), "maxlen")

    def expire(self) -> float | None:
        """Give up what has expired at the head, as RabbitMQ does: only there. Returns when the next one does."""
        ready = self.ready
        while ready:
            when = ready[0].expires_at
            if when is None:
                return None
            if when > self._now():
                return when
            self._give_up(self._pop(), "expired")
        return None

    def unused_until(self) -> float | None:
        """When the queue itself expires, as things stand."""
        if self.policy.expires is None or self.consumers:
            return None
        return self.used_at + self.policy.expires / 1000

    def reject(self, entry: Entry) -> None:
        """A consumer refused the message and it is not to come back."""
        self._give_up(entry, "rejected")

    def _give_up(self, entry: Entry, reason: str) -> None:
        if self.policy.dead_exchange is not None and not self.deleted:
            self._host.dead_letter(self, entry.message, reason)
        self._host.release(entry.message)

    # -- consumers ---------------------------------------------------------------------------------------------------------

    def add(self, consumer: Consumer) -> None:
        """Begin to serve a consumer; 403 where one of the two wants the queue for itself."""
        taken = self.consumers and (consumer.exclusive or self.consumers[0].exclusive)
        if taken or (consumer.exclusive and self.policy.single_active):
            raise AMQPError(403, f"queue '{self.name}' in vhost '/' in exclusive use")
        self.consumers.append(consumer)
        self._group()
        if self.active is None:
            self.active = consumer
        self.used_at = self._now()

    def remove(self, consumer: Consumer) -> None:
        """Stop serving a consumer; what it holds stays with its channel."""
        self.consumers.remove(consumer)
        self._group()
        if self.active is consumer:
            self.active = self.consumers[0] if self.consumers else None
        self.touch()
        self.dispatch()

    def _group(self) -> None:
        groups: dict[int, deque[Consumer]] = {}
        for consumer in self.consumers:
            groups.setdefault(consumer.priority, deque()).append(consumer)
        self._groups = [groups[priority] for priority in sorted(groups, reverse=True)]

    def delete(self) -> int:
        """Empty the queue for good and tell its consumers; returns how many messages were ready."""
        count = self.purge()
        self.deleted = True
        consumers, self.consumers, self._groups, self.active = self.consumers, [], [], None
        for consumer in consumers:
            consumer.cancelled()
        return count


def _position(entry: Entry) -> int:
    return entry.position
