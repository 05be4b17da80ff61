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

A `basic.return` has no delivery tag. RabbitMQ sends the message back before its confirm, and returns messages in the order in
which they were published. So the returned one is searched for behind the one that was returned last: a dead node has thousands
returned at once, and a search from the beginning for each of them would take quadratic time. It is the first unconfirmed one
with the same routing key, body and properties, or else the first one with that routing key. Messages to an exchange have an
empty routing key, which no queue has.

The hot path is `relay`, for a message that goes on to another queue as it was delivered: its content header is that of the
delivery, and the method frames of the last queues are kept.

The lines of devices have a window of their own (`window`), which packs lines ahead of the channel and republishes them in
order. Their publisher shares `Retry` (`refused_lines`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from struct import Struct
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..interfaces import Clock, DelayedCall
from .client import BaseHandler, BrokerClient, BrokerError, ChannelHandler
from .refusals import RefusalHistory
from .retry_delay import RetryDelay

M = TypeVar("M")

METHODS_KEPT: Final = 1000
"""Number of queues and exchanges whose method frames are kept. Reports go to as many queues as back ends name."""

_PROPERTIES: Final = 12
"""Offset of the properties in the payload of a content header."""

_NO_HEADERS: Final = bytes(4)

_ADDED: Final = (b"x-", b"timestamp_in_ms")
"""Beginnings of the names of headers that message interceptors of RabbitMQ add."""

_head = Struct(">BHI").pack


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


_Publication: TypeAlias = tuple[M, str, bytes, int, bytes]
"""Message that is published and unconfirmed: itself, its queue, bytes with its properties, their offset in these, and its body.
A tuple costs a tenth of the CPU of an object.
"""


class Publisher(BaseHandler, Generic[M]):
    """A channel's publishing side. It can be the `ChannelHandler` of the channel, or be called by that."""

    def __init__(self, clock: Clock, channel: int, policy: PublishPolicy[M], *, longest_delay: float) -> None:
        """Publish on `channel`. `longest_delay` bounds the delay between two attempts, in seconds."""
        self._channel = channel
        self._policy = policy
        self._client: BrokerClient | None = None
        self._unconfirmed: dict[int, _Publication[M]] = {}  # by delivery tag, ascending
        self._first_tag = 1  # no lower tag is unconfirmed
        self._next_tag = 1
        self._returned: set[int] = set()  # of the unconfirmed ones
        self._search_from = 1  # the tag behind the one that was returned last
        self._methods: dict[tuple[str, str], bytes] = {}
        self.retry = Retry(clock, policy.retry_due, RetryDelay(first=0.2, most=longest_delay))

    def __len__(self) -> int:
        """Return the number of unconfirmed messages."""
        return len(self._unconfirmed)

    @property
    def messages(self) -> list[M]:
        """The unconfirmed messages, in the order in which they were published."""
        return [message for message, *_ in self._unconfirmed.values()]

    # -- the channel -----------------------------------------------------------------------------------------------------

    async def open(self, client: BrokerClient, handler: ChannelHandler | None = None) -> Any:
        """Open the channel with confirms, and return it. `handler` takes its frames, if not the publisher itself.

        Fails with `txamqp.client.Closed` when the channel or the connection ends first.
        """
        channel = await client.open_channel(self._channel, self if handler is None else handler)
        self._first_tag = self._next_tag = self._search_from = 1
        self.retry.refusals.channel_opened()
        await channel.confirm_select()
        self._client = client
        return channel

    def withdraw(self) -> list[M]:
        """Give the channel up. Return the unconfirmed messages, in the order in which they were published."""
        withdrawn = self.messages
        self._client = None
        self._unconfirmed.clear()
        self._returned.clear()
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
        method = self._methods.get((exchange, queue)) or self._encode_method(exchange, queue)
        self._unconfirmed[self._next_tag] = message, queue, properties, 0, body
        self._next_tag += 1
        header = wire.header_payload(len(body), properties)
        client.write(method + wire.content_frames(self._channel, header, body, client.frame_max))

    def relay(self, message: M, queue: str, header: bytes, body: bytes) -> None:
        """Publish a message to a queue as it was delivered. `header` is the payload of its content header, and fits into a
        frame.
        """
        client = self._client
        if client is None:
            raise RuntimeError("publishing without a channel")
        method = self._methods.get(("", queue)) or self._encode_method("", queue)
        tag = self._next_tag
        self._unconfirmed[tag] = message, queue, header, _PROPERTIES, body
        self._next_tag = tag + 1
        size, channel = len(body), self._channel
        if 0 < size <= client.frame_max - wire.FRAME_OVERHEAD:
            client.write(
                b"%b%b%b\xce%b%b\xce" % (method, _head(2, channel, len(header)), header, _head(3, channel, size), body)
            )
        else:
            client.write(method + wire.content_frames(channel, header, body, client.frame_max))

    def _encode_method(self, exchange: str, queue: str) -> bytes:
        if len(self._methods) >= METHODS_KEPT:
            self._methods.clear()
        routing_key = queue.encode("utf-8", "surrogateescape")
        method = encode_method("basic.publish", exchange=exchange, routing_key=routing_key, mandatory=True)
        frame = self._methods[exchange, queue] = wire.frame(wire.FRAME_METHOD, self._channel, method)
        return frame

    # -- answers of the broker -------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        tags, messages = self._take(tag, multiple)
        unroutable: list[M] = []
        if self._returned:
            returned = [one in self._returned for one in tags]
            self._returned.difference_update(tags)
            unroutable = [message for message, back in zip(messages, returned, strict=True) if back]
            messages = [message for message, back in zip(messages, returned, strict=True) if not back]
        if messages or unroutable:
            self._policy.messages_confirmed(messages, unroutable)

    def refused(self, tag: int, multiple: bool) -> None:
        tags, messages = self._take(tag, multiple)
        self._returned.difference_update(tags)
        if messages:
            self._policy.messages_refused(messages)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        if self._client is None:
            return
        tag = self._find(routing_key, header, body)
        if tag is None:
            raise WireError("the broker returned a message that was not published")
        self._returned.add(tag)
        self._search_from = tag + 1

    def _find(self, queue: str, header: bytes, body: bytes) -> int | None:
        """Return the tag of the message that was returned with this queue, content header and body; `None` if there is none."""
        found = None
        behind = range(max(self._search_from, self._first_tag), self._next_tag)
        for tag in chain(behind, range(self._first_tag, self._search_from)):
            entry = self._unconfirmed.get(tag)
            if entry is not None and entry[1] == queue and tag not in self._returned:
                if entry[4] == body and _same(entry[2][entry[3] :], header[_PROPERTIES:]):
                    return tag
                if found is None:
                    found = tag
        return found

    def closed(self, reason: Failure) -> None:
        if self._client is not None:
            self._policy.channel_closed(reason.value or BrokerError(0, "the channel was closed", scope="channel"))

    def _take(self, tag: int, multiple: bool) -> tuple[Sequence[int], list[M]]:
        """Remove the messages that an answer is about. Return their tags and the messages. `WireError` for a tag that was not
        published; nothing changes then.
        """
        unconfirmed = self._unconfirmed
        if tag >= self._next_tag:
            raise WireError(f"the broker answers delivery tag {tag}, which was not published")
        if not multiple:
            entry = unconfirmed.pop(tag, None)
            if tag == self._first_tag:
                self._first_tag = self._next_unconfirmed(tag)
            return ([], []) if entry is None else ([tag], [entry[0]])
        last = tag or self._next_tag - 1
        tags: Sequence[int] = range(self._first_tag, last + 1)
        self._first_tag = max(self._first_tag, last + 1)
        entries = [unconfirmed.pop(one, None) for one in tags]
        if None in entries:  # some were answered before
            tags = [one for one, entry in zip(tags, entries, strict=True) if entry is not None]
        return tags, [entry[0] for entry in entries if entry is not None]

    def _next_unconfirmed(self, tag: int) -> int:
        """Return the first tag behind this one that is unconfirmed or not published yet.

        Those between were confirmed out of order, each by itself. Without this step one such tag would stay the first one until
        a confirm of several, and each return would search from it.
        """
        tag += 1
        while tag < self._next_tag and tag not in self._unconfirmed:
            tag += 1
        return tag


def _same(published: bytes, returned: bytes) -> bool:
    """Return whether the properties of a returned message are the published ones.

    RabbitMQ 4 sorts headers, and leaves out all but the first of a name. Message interceptors of RabbitMQ add headers, and a
    timestamp where there is none.
    """
    if published == returned:
        return True
    try:
        sent, back = (wire.split_properties(properties) for properties in (published, returned))
        headers, found = (dict(reversed(wire.split_table(one.pop("headers", _NO_HEADERS)))) for one in (sent, back))
    except WireError:
        return False
    if "timestamp" not in sent:
        back.pop("timestamp", None)
    for name in [*found]:
        if name not in headers and name.startswith(_ADDED):
            del found[name]
    return sent == back and headers == found
