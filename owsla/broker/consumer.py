"""A channel that consumes a queue: messages are read, routed, and acknowledged when their outcome is certain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..interfaces import Clock, DelayedCall, MessageSink
from ..letter import BAD, DeliverySource, Letter
from ..runtime.end_of_turn import EndOfTurn
from . import headers as delivery
from . import message_properties
from . import queues as topology
from .acks import AckTracker
from .client import BaseHandler, BrokerClient, BrokerError, channel_refusal
from .own_queue import NodeNotice
from .recent_writes import RecentWrites

INDIVIDUAL_DELAY: Final = 0.02
"""Seconds after which a finished message is acknowledged individually, if an earlier one is still not finished. A confirm of a
forward mostly takes less."""

INDIVIDUAL_SHARE: Final = 8
"""Share of the prefetch, as a divisor, from which on finished messages behind an unfinished one are acknowledged at once."""


class Consumer(BaseHandler):
    """A channel that consumes a queue, with one or several AMQP consumers.

    RabbitMQ delivers the messages of a queue to a channel in the order of the queue, whichever consumer of the channel they are
    for. On separate channels, the consumers would overtake each other.
    """

    __slots__ = (
        "_acks",
        "_channel",
        "_client",
        "_clock",
        "_delivered",
        "_flushing",
        "_individual_call",
        "_lost",
        "_router",
        "_stopping",
        "_tags",
        "_told",
        "_turn",
        "_written",
        "open",
        "own",
        "prefetch",
        "queue",
        "started",
    )

    def __init__(
        self,
        client: BrokerClient,
        channel: int,
        queue: topology.Queue,
        router: MessageSink,
        turn: EndOfTurn,
        clock: Clock,
        lost: Callable[[Consumer, str], None],
        told: Callable[[NodeNotice], bool] | None = None,
    ) -> None:
        """`lost(consumer, reason)` is called when the channel ends or the consumer is cancelled.

        `told(notice)` receives notices, if the queue is the node's own. It returns whether it accepted the notice.
        """
        self._client = client
        self._channel = channel
        self.queue = queue
        self._router = router
        self._turn = turn
        self._clock = clock
        self._lost = lost
        self._told = told
        self.own = told is not None
        self._acks = AckTracker()
        self._delivered = 0  # tag of the last delivery
        self._flushing = False
        self._individual_call: DelayedCall | None = None
        self._tags: list[str] = []
        self._written = RecentWrites(0)
        self._stopping = False
        self.prefetch = 0
        self.open = True
        """True while messages arrive and can be acknowledged."""
        self.started = False
        """True once `start` has succeeded."""

    async def start(self, count: int, prefetch: int, wanted: Callable[[], bool]) -> None:
        """Open the channel and start `count` consumers, each with `prefetch`. Stop starting them once `wanted()` is false.

        Raise `BrokerError` if the queue is a stream, and `Closed` if the broker refuses a consumer or the connection ends.
        """
        self.prefetch = count * prefetch
        self._written = RecentWrites(self.prefetch)
        channel = await self._client.open_channel(self._channel, self)
        await channel.basic_qos(prefetch_count=prefetch)
        for number in range(count):
            if not wanted():
                break
            self._tags.append(f"owsla-{number}")
            await self._consume(channel, self._tags[-1])
        if not self.open:
            raise BrokerError(0, f"a consumer of {self.queue.name} ended while others were started", scope="channel")
        self.started = True

    async def _consume(self, channel: Any, tag: str) -> None:
        try:
            await channel.basic_consume(queue=self.queue.name, consumer_tag=tag, arguments=dict(topology.NO_STREAM))
        except Closed as closed:
            if topology.is_stream_consumed(channel_refusal(closed)):
                raise topology.consumed_stream(self.queue.name) from None
            raise

    async def stop(self) -> None:
        """Cancel the consumers. Delivered messages are still acknowledged when their outcome is certain, and at once."""
        self._stopping = True
        self._flush()
        channel = self._client.channels[self._channel]
        while self.open and self._tags:
            await channel.basic_cancel(consumer_tag=self._tags.pop())

    @property
    def handled(self) -> int:
        """Highest finished delivery tag."""
        return self._acks.high

    @property
    def settled(self) -> bool:
        """True if all messages that arrived are finished."""
        return self._acks.settled(self._delivered)

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._delivered = tag
        try:
            connection_id, seq, more = delivery.read(header)
            if not more and (not redelivered or seq is not None):
                self._router.route(self, tag, connection_id, seq, header, body)
                return
            details = delivery.details(header)
        except WireError:
            # The headers are not a field table, so nothing in them is reliable.
            self._router.refuse(Letter(self, tag, header, body, None, None), "bad-connection-id")
            return
        if details.notice is not None and self._told is not None and self._told(node_notice(details.notice, details, body)):
            self.done(tag)
            return
        one = letter(self, tag, header, body, connection_id, seq, details, self._clock)
        if seq is None and (redelivered or details.redelivered):
            one.identity = message_properties.identity(header, body)
        self._router.route_letter(one)

    def written(self, header: bytes, body: bytes) -> None:
        self._written.add(header, body)

    def forgotten(self) -> None:
        """Tell the router that the messages of this consumer will be redelivered."""
        self._router.forget(self, self._written.identities())

    def done(self, tag: int) -> None:
        self._acks.done(tag)
        if not self._flushing:
            self._flushing = True
            self._turn.call_last(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._acknowledge(individually=self._stopping or self._acks.ahead >= self.prefetch // INDIVIDUAL_SHARE)
        if self._acks.ahead and self._individual_call is None and self.open:
            self._individual_call = self._clock.callLater(INDIVIDUAL_DELAY, self._flush_individually)

    def _flush_individually(self) -> None:
        self._individual_call = None
        self._acknowledge(individually=True)

    def _acknowledge(self, *, individually: bool) -> None:
        if self.open:
            top, beyond = self._acks.take(individually=individually)
            if top:
                self._client.ack(self._channel, top, True)
            for tag in beyond:
                self._client.ack(self._channel, tag, False)

    def cancelled(self, consumer_tag: str) -> None:
        self._end("the broker cancelled the consumer: the queue was deleted or moved")

    def closed(self, reason: Failure) -> None:
        self._end(str(reason.value))

    def _end(self, reason: str) -> None:
        if self._individual_call is not None:
            self._individual_call.cancel()
            self._individual_call = None
        if self.open:
            self.open = False
            self._lost(self, reason)


def node_notice(text: str, details: delivery.MessageDetails, body: bytes) -> NodeNotice:
    """Return a notice with all values from the headers of a message."""
    return NodeNotice(text, details.user_id, details.device_id, details.reply_to, details.correlation_id, body)


def letter(
    source: DeliverySource,
    tag: int,
    header: bytes,
    body: bytes,
    connection_id: bytes | None,
    seq: int | None,
    details: delivery.MessageDetails,
    clock: Clock,
) -> Letter:
    """Return a `Letter` with all values from the headers of a message."""
    named = connection_id is None and details.notice is None
    expires_at = None if details.expires_at is None else details.expires_at / 1000 if details.expires_at != BAD else BAD
    return Letter(
        source,
        tag,
        header,
        body,
        connection_id,
        seq,
        close=details.close,
        expires_at=expires_at,
        deadline=None if details.expiration is None else clock.seconds() + details.expiration / 1000,
        reply_to=details.reply_to,
        correlation_id=details.correlation_id,
        to_device_id=details.device_id if named else None,
        selector=details.selector if named and details.device_id is None else None,
        group_id=details.group_id if source.own else None,
        hop=details.hop if named and details.device_id is not None else None,
        trace=details.trace,
    )
