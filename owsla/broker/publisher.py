"""Confirmed publishing: messages that the broker has to take, on a channel with publisher confirms.

Theory of operation
===================

A `Publisher` owns the publishing side of one channel. Every message is published with `mandatory`, under the next delivery tag,
and is *unconfirmed* until the broker answers:

    published ──basic.ack────────────────▶ accepted     the broker has it
              ──basic.return, basic.ack──▶ unroutable   there is no such queue, or none is bound to the exchange
              ──basic.nack───────────────▶ refused      the queue is full, or the channel cannot reach it
              ──end of the channel───────▶ withdrawn    it may have arrived or not

What each of these means differs between the roles that publish, and is the business of their `PublishPolicy`. The publisher
keeps what does not differ: delivery tags, the matching of returns, and the `Retry` of what was refused.

Invariants:

- Each message gets exactly one of the four answers. A confirm of several messages reaches the policy as one call.
- A delivery tag that was never published is a `WireError`, which ends the connection. A tag that was answered or withdrawn
before is ignored: answers of a channel may still be on their way when its messages have been withdrawn.
- A `Retry` is pending at most once. While it is, the role publishes nothing that it was refused.

A `basic.return` has no delivery tag. RabbitMQ sends the message back as it was published, before its confirm. So the first
unconfirmed message with the same routing key, properties and body is taken for the one that was returned. Messages to an
exchange have an empty routing key, which no queue has.

The lines of devices have a window of their own (`window`), which packs lines ahead of the channel and republishes them in
order. Their publisher shares `Retry` (`refused_lines`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, Generic, Protocol, TypeVar

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..interfaces import Clock, DelayedCall
from .client import BaseHandler, BrokerClient, BrokerError, ChannelHandler
from .refusals import RefusalHistory
from .retry_delay import RetryDelay

M = TypeVar("M")


class PublishPolicy(Protocol[M]):
    """The decisions of a role about the messages that it publishes."""

    def messages_confirmed(self, accepted: list[M], unroutable: list[M]) -> None:
        """Handle a confirm: the broker has `accepted`, and returned `unroutable` since their queue does not exist."""

    def messages_refused(self, messages: list[M]) -> None:
        """Handle a negative acknowledgement."""

    def channel_closed(self, reason: BaseException) -> None:
        """Handle the end of the channel, alone or with its connection: `Publisher.withdraw` returns what was unconfirmed."""

    def retry_due(self, new_channel: bool) -> None:
        """Publish again what was refused, on another channel if `new_channel`. Call `Retry.done` when that has begun."""


class Retry:
    """The next attempt after a refusal: its delay, and whether it needs a new channel."""

    def __init__(self, clock: Clock, due: Callable[[bool], None], delay: RetryDelay) -> None:
        """Call `due(new_channel)` when an attempt is due."""
        self._clock = clock
        self._due = due
        self._delay = delay
        self._call: DelayedCall | None = None
        self._new_channel = False
        self.refusals = RefusalHistory()

    @property
    def pending(self) -> bool:
        """Return whether an attempt is scheduled, or has begun and is not `done`."""
        return self._call is not None

    def schedule(self, *, new_channel: bool = False) -> None:
        """Schedule an attempt, unless one is pending; with `new_channel` in any case on a new channel."""
        self._new_channel = self._new_channel or new_channel
        if self._call is None:
            self._call = self._clock.callLater(self._delay.next(), self._attempt)

    def _attempt(self) -> None:
        # Each attempt counts, also one that gets a new channel for another reason.
        new_channel = self.refusals.needs_new_channel() or self._new_channel
        self._new_channel = False
        self._due(new_channel)

    def done(self) -> None:
        """End the attempt that is due: the next refusal schedules another one."""
        self._call = None

    def cancel(self) -> None:
        """Cancel a pending attempt: the channel is gone."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._new_channel = False

    def reset_delay(self) -> None:
        """Begin again with the shortest delay: the broker accepts messages."""
        self._delay.reset()


class _Publication(Generic[M]):
    """A message that is published and unconfirmed."""

    __slots__ = ("body", "message", "properties", "queue", "returned")

    def __init__(self, message: M, queue: str, properties: bytes, body: bytes) -> None:
        self.message = message
        self.queue = queue
        self.properties = properties
        self.body = body
        self.returned = False


class Publisher(BaseHandler, Generic[M]):
    """A channel's publishing side. It can be the `ChannelHandler` of the channel, or be called by that."""

    def __init__(self, clock: Clock, channel: int, policy: PublishPolicy[M], *, longest_delay: float) -> None:
        """Publish on `channel`. `longest_delay` bounds the delay between two attempts, in seconds."""
        self._channel = channel
        self._policy = policy
        self._client: BrokerClient | None = None
        self._unconfirmed: dict[int, _Publication[M]] = {}  # by delivery tag, ascending
        # The same without those that were returned. A dead node has thousands returned at once: a search among the messages of
        # all queues for each of them would take quadratic time.
        self._returnable: dict[str, dict[int, _Publication[M]]] = {}
        self._next_tag = 1
        self._method = b""
        self._method_address: tuple[str, str] | None = None
        self.retry = Retry(clock, policy.retry_due, RetryDelay(first=0.2, most=longest_delay))

    def __len__(self) -> int:
        """Return the number of unconfirmed messages."""
        return len(self._unconfirmed)

    @property
    def messages(self) -> list[M]:
        """The unconfirmed messages, in the order in which they were published."""
        return [publication.message for publication in self._unconfirmed.values()]

    # -- the channel -----------------------------------------------------------------------------------------------------

    async def open(self, client: BrokerClient, handler: ChannelHandler | None = None) -> Any:
        """Open the channel with confirms, and return it. `handler` takes its frames, if not the publisher itself.

        Fails with `txamqp.client.Closed` when the channel or the connection ends first.
        """
        channel = await client.open_channel(self._channel, self if handler is None else handler)
        self._next_tag = 1
        self.retry.refusals.channel_opened()
        await channel.confirm_select()
        self._client = client
        return channel

    def withdraw(self) -> list[M]:
        """Give the channel up. Return the unconfirmed messages, in the order in which they were published."""
        withdrawn = self.messages
        self._client = None
        self._unconfirmed.clear()
        self._returnable.clear()
        self.retry.cancel()
        return withdrawn

    @property
    def frame_max(self) -> int:
        """The largest frame that the broker takes, in bytes; 0 without a channel."""
        return 0 if self._client is None else self._client.frame_max

    def publish(self, message: M, queue: str, properties: bytes, body: bytes, exchange: str = "") -> None:
        """Publish a message to a queue, or with an empty `queue` to a fanout exchange. `properties` are encoded, and fit into a
        frame.
        """
        client = self._client
        if client is None:
            raise RuntimeError("publishing without a channel")
        publication = _Publication(message, queue, properties, body)
        self._unconfirmed[self._next_tag] = publication
        self._returnable.setdefault(queue, {})[self._next_tag] = publication
        self._next_tag += 1
        if (exchange, queue) != self._method_address:
            self._method_address = exchange, queue
            routing_key = queue.encode("utf-8", "surrogateescape")
            method = encode_method("basic.publish", exchange=exchange, routing_key=routing_key, mandatory=True)
            self._method = wire.frame(wire.FRAME_METHOD, self._channel, method)
        header = wire.header_payload(len(body), properties)
        client.write(self._method + wire.content_frames(self._channel, header, body, client.frame_max))

    # -- answers of the broker -------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        accepted: list[M] = []
        unroutable: list[M] = []
        for publication in self._take(tag, multiple):
            (unroutable if publication.returned else accepted).append(publication.message)
        if accepted or unroutable:
            self._policy.messages_confirmed(accepted, unroutable)

    def refused(self, tag: int, multiple: bool) -> None:
        refused = [publication.message for publication in self._take(tag, multiple)]
        if refused:
            self._policy.messages_refused(refused)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        publications = self._returnable.get(routing_key)
        if publications is None:
            if self._client is not None:
                raise WireError("the broker returned a message that was not published")
            return
        properties = header[12:]
        equal = (tag for tag, one in publications.items() if one.properties == properties and one.body == body)
        tag = next(equal, next(iter(publications)))
        publications[tag].returned = True
        self._not_returnable(routing_key, tag)

    def closed(self, reason: Failure) -> None:
        if self._client is not None:
            self._policy.channel_closed(reason.value or BrokerError(0, "the channel was closed", scope="channel"))

    def _take(self, tag: int, multiple: bool) -> list[_Publication[M]]:
        """Remove the messages that an answer is about. `WireError` for a tag that was not published; nothing changes then."""
        if tag >= self._next_tag:
            raise WireError(f"the broker answers delivery tag {tag}, which was not published")
        if not multiple:
            tags = [tag] if tag in self._unconfirmed else []
        else:
            tags = list(takewhile(tag.__ge__, self._unconfirmed) if tag else self._unconfirmed)
        taken = []
        for one in tags:
            publication = self._unconfirmed.pop(one)
            taken.append(publication)
            if not publication.returned:
                self._not_returnable(publication.queue, one)
        return taken

    def _not_returnable(self, queue: str, tag: int) -> None:
        publications = self._returnable[queue]
        del publications[tag]
        if not publications:
            del self._returnable[queue]
