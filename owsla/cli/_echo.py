"""`owsla echo`: an example of a back end, which answers each line.

    from_device ──▶ deliver ──▶ reply_to, or to_device ──▶ confirmed ──▶ the line is acknowledged
                                   └── returned ──▶ to_device ──┘

No line is lost: it is acknowledged only when the broker has confirmed its answer, so after any failure before that the broker
delivers it again. No device gets an answer twice, even if it is published twice: the answer carries the number of the line.

Of a stream it answers the lines that come while it runs. A stream does not know what was acknowledged: after a lost connection
the echo goes on with the first message that was not. If none had come, it goes on with those that came since it began, by the
clock of this process; the broker finds them to the second, so lines of the second before may be among them.

With batches, a message has many lines. Each is answered, and the message is acknowledged when the broker has confirmed all of
the answers. While too many answers are unconfirmed, batches wait undecoded.

`read_lines` and `answer_properties` are all that a back end needs to know about messages. The rest is publishing with confirms.

Consuming and publishing share a channel. That is discouraged, as a broker short of memory blocks connections that publish. It
makes no difference here: without confirms there is nothing to acknowledge.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure
from txamqp.client import Closed

from .. import trace_context
from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import Timestamp, WireError
from ..batch_format import HEADER, BatchError, decode
from ..broker import queues
from ..broker.acks import AckTracker
from ..broker.client import BaseHandler, BrokerClient, BrokerError, as_failure
from ..broker.retry_delay import RetryDelay
from ..interfaces import Clock, DelayedCall
from ..letter import Trace
from ..runtime.end_of_turn import EndOfTurn
from ..trace_context import TRACEPARENT, TRACESTATE
from ._running import Session
from ._stream_offset import OFFSET, UnfinishedOffsets
from ._tail import exists_as_stream

LINES: Final = 1
"""Number of the channel for lines and answers."""
SCRATCH: Final = 2
"""Number of the channel for declarations: a refused one closes its channel."""

PREFETCH: Final = 2000
"""Maximum number of unacknowledged messages.

With a line in each message and 10,000 lines per second, those of 0.2 seconds, far longer than a confirm takes. The gateway
makes batches of some 128 KiB at most.
"""

UNCONFIRMED: Final = 2000
"""Number of unconfirmed answers from which on messages wait. The answers to one batch may exceed it."""

QUEUES: Final = 1024
"""Maximum number of queues whose `basic.publish` is kept encoded. Each node of the gateway has one."""


class Line(NamedTuple):
    """The properties of a line that its answer needs."""

    connection_id: str
    seq: int | None
    reply_to: str
    trace: Trace | None = None


def read_line(header: bytes, seq_header: str) -> Line | None:
    """Read the content header of a message. Return `None` if the message is not a line from a device."""
    return _line(_properties(header), seq_header)


def read_lines(header: bytes, body: bytes, seq_header: str) -> list[tuple[Line, bytes]]:
    """Read a message from a gateway: a line, or a batch of lines. Return each with its bytes.

    Raise `ValueError` with the reason if the message is neither.
    """
    properties = _properties(header)
    headers = properties.get("headers", {})
    if HEADER in headers:
        try:
            batch = decode(body)
        except BatchError as error:
            raise ValueError(f"a batch that cannot be decoded: {error}") from None
        reply_to, trace = _reply_to(properties), _trace(headers)
        return [(Line(one.connection_id.decode(), one.seq, reply_to, trace), one.line) for one in batch]
    line = _line(properties, seq_header)
    if line is None:
        raise ValueError("a message without a connection_id")
    return [(line, body)]


def _properties(header: bytes) -> dict[str, Any]:
    """Return the properties in the payload of a content header, or none if they are malformed."""
    try:
        return wire.decode_properties(header, wire.BARE_HEADER)
    except WireError:
        return {}


def _line(properties: dict[str, Any], seq_header: str) -> Line | None:
    headers = properties.get("headers", {})
    connection_id = headers.get("connection_id")
    if not isinstance(connection_id, str):
        return None  # not from a gateway
    seq = headers.get(seq_header)
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 1 << 63:
        seq = None
    return Line(connection_id, seq, _reply_to(properties), _trace(headers))


def _reply_to(properties: dict[str, Any]) -> str:
    reply_to = properties.get("reply_to")
    return reply_to if isinstance(reply_to, str) else ""


def _trace(headers: dict[str, Any]) -> Trace | None:
    return trace_context.read(headers.get(TRACEPARENT), headers.get(TRACESTATE))


def answer_properties(connection_id: str, seq: int | None, trace: Trace | None = None) -> dict[str, Any]:
    """Return the properties of an answer to a line: persistent, for its connection, with its number and in its trace."""
    headers: dict[str, Any] = {"connection_id": connection_id}
    if seq is not None:
        headers["to_device_seq"] = seq
    headers.update(trace_context.headers(trace))
    return {"headers": headers, "delivery_mode": 2}


class PendingAnswer(NamedTuple):
    """An answer that was published and not confirmed yet."""

    tag: int
    """Delivery tag of the message with the line."""
    queue: str
    connection_id: str
    seq: int | None
    body: bytes
    trace: Trace | None = None


class Answerer(BaseHandler):
    """The handler of a channel: answers each line, and acknowledges a message when the answers to its lines are confirmed."""

    def __init__(
        self,
        clock: Clock,
        turn: EndOfTurn,
        session: Session,
        client: BrokerClient,
        *,
        to_device: str,
        seq_header: str,
        prefix: bytes,
        position: int | None = None,
    ) -> None:
        """`position`: offset or time at which to begin in a stream; `None` for a queue, or for the messages that come."""
        self._clock = clock
        self._turn = turn
        self._session = session
        self._client = client
        self._to_device = to_device
        self._seq_header = seq_header
        self._prefix = prefix
        self._waiting: deque[tuple[int, bytes, bytes]] = deque()
        self._publishes: dict[str, bytes] = {}
        self._sent: dict[int, PendingAnswer] = {}
        self._lowest = self._next = 1  # publish tags: the lowest one that may be unconfirmed, and the next one
        self._returned: Counter[tuple[str, int | None]] = Counter()
        self._again: list[PendingAnswer] = []
        self._retry_call: DelayedCall | None = None
        self._retry_wait = RetryDelay(first=0.1, most=5.0)
        self._unanswered: dict[int, int] = {}
        self._acks = AckTracker()
        self._acknowledging = False
        self._unfinished = UnfinishedOffsets(position)

    async def start(self, from_device: str) -> None:
        """Open the channel and consume."""
        channel = await self._client.open_channel(LINES, self)
        await channel.confirm_select()
        await channel.basic_qos(prefetch_count=PREFETCH)
        arguments = {} if self.position is None else {OFFSET: self.position}
        await channel.basic_consume(queue=from_device, consumer_tag="owsla echo", arguments=arguments)

    @property
    def position(self) -> int | None:
        """Position of the first message of a stream that is not acknowledged; if none has come, that of the constructor."""
        return self._unfinished.first

    def stop(self) -> None:
        """Stop after the end of the connection. The broker delivers unacknowledged lines again on the next one."""
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        self._retry_call = None

    # -- lines and answers -------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._unfinished.add(tag, header)
        self._waiting.append((tag, header, body))
        self._answer_waiting()

    def _answer_waiting(self) -> None:
        """Answer messages in their order, until too many answers are unconfirmed."""
        while self._waiting and len(self._sent) + len(self._again) < UNCONFIRMED:
            self._answer(*self._waiting.popleft())

    def _answer(self, tag: int, header: bytes, body: bytes) -> None:
        try:
            lines = read_lines(header, body, self._seq_header)
        except ValueError as error:
            self._session.log(f"dropped {error}")
            self._done(tag)
            return
        if len(lines) > 1:
            self._unanswered[tag] = len(lines)
        for line, text in lines:
            # The gateway names no queue that begins with "amq.", and for some of those names RabbitMQ closes the connection.
            to_reply_to = line.reply_to and not line.reply_to.startswith("amq.")
            queue = line.reply_to if to_reply_to else self._to_device
            self._publish(PendingAnswer(tag, queue, line.connection_id, line.seq, self._prefix + text, line.trace))

    def _publish(self, answer: PendingAnswer) -> None:
        publish = self._publishes.get(answer.queue)
        if publish is None:
            if len(self._publishes) >= QUEUES:
                self._publishes.clear()
            payload = encode_method("basic.publish", routing_key=answer.queue, mandatory=True)
            publish = self._publishes[answer.queue] = wire.frame(wire.FRAME_METHOD, LINES, payload)
        self._sent[self._next] = answer
        self._next += 1
        body = answer.body
        properties = wire.encode_properties(answer_properties(answer.connection_id, answer.seq, answer.trace))
        header = wire.header_payload(len(body), properties)
        self._client.write(publish + wire.content_frames(LINES, header, body, self._client.frame_max))

    def confirmed(self, tag: int, multiple: bool) -> None:
        for answer in self._take(tag, multiple):
            key = answer.connection_id, answer.seq
            if not self._returned or not self._returned[key]:
                self._answered(answer.tag)
                continue
            self._returned[key] -= 1
            if not self._returned[key]:
                del self._returned[key]
            if answer.queue != self._to_device:
                self._publish(answer._replace(queue=self._to_device))
            else:
                self._publish_later(answer, f"there is no queue {self._to_device}")
        self._answer_waiting()

    def refused(self, tag: int, multiple: bool) -> None:
        for answer in self._take(tag, multiple):
            self._publish_later(answer, "the broker refuses answers")

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        # The confirm of a returned message follows, with its tag. Until then it is known by its connection and number only.
        line = read_line(header, "to_device_seq")
        if line is not None:
            self._returned[line.connection_id, line.seq] += 1

    def _take(self, tag: int, multiple: bool) -> list[PendingAnswer]:
        if not multiple:
            answer = self._sent.pop(tag, None)
            return [] if answer is None else [answer]
        last = self._next - 1
        tags = range(self._lowest, (min(tag, last) if tag else last) + 1)
        self._lowest = max(self._lowest, tags.stop)
        return [answer for one in tags if (answer := self._sent.pop(one, None)) is not None]

    def _answered(self, tag: int) -> None:
        """Count a confirmed answer. The message with this tag is done when the answers to all of its lines are confirmed."""
        left = self._unanswered.pop(tag, 1) - 1
        if left:
            self._unanswered[tag] = left
        else:
            self._done(tag)

    def _done(self, tag: int) -> None:
        self._unfinished.done(tag)
        self._acks.done(tag)
        if not self._acknowledging:
            self._acknowledging = True
            self._turn.call_last(self._acknowledge)

    def _acknowledge(self) -> None:
        self._acknowledging = False
        if not self._client.closed:
            top, alone = self._acks.take()
            if top:
                self._client.ack(LINES, top, True)
            for tag in alone:
                self._client.ack(LINES, tag, False)

    # -- answers returned or refused ----------------------------------------------------------------------------------------

    def _publish_later(self, answer: PendingAnswer, why: str) -> None:
        self._again.append(answer)
        if self._retry_call is None:
            wait = self._retry_wait.next()
            self._session.log(f"{why}; trying again in {wait:.1f} s")
            self._retry_call = self._clock.callLater(wait, lambda: ensureDeferred(self._publish_again()))

    async def _publish_again(self) -> None:
        try:
            await queues.declare(self._client, SCRATCH, queues.Queue(self._to_device), self._session.log)
        except (BrokerError, Closed) as error:
            self._client.abort(as_failure(error).value or error)
            return
        self._retry_call = None
        again, self._again = self._again, []
        for answer in again:
            self._publish(answer)

    def cancelled(self, consumer_tag: str) -> None:
        self._client.abort(BrokerError(0, "the broker cancelled the consumer: the queue was deleted or moved", scope="channel"))

    def closed(self, reason: Failure) -> None:
        # Only the channel has ended. A new connection starts again, after its back-off.
        if not self._client.closed:
            self._client.abort(reason.value or BrokerError(0, "the channel was closed", scope="channel"))


class Echo:
    """The `Role` of `owsla echo`: starts an `Answerer` on each connection."""

    name = "echo"

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        from_device: str,
        to_device: str,
        seq_header: str,
        prefix: bytes = b"",
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` returns the time in seconds since the epoch."""
        self._reactor = reactor
        self._turn = turn
        self._session = session
        self._from_device = from_device
        self._to_device = to_device
        self._seq_header = seq_header
        self._prefix = prefix
        self._answerer: Answerer | None = None
        self._now = now
        self._began: Timestamp | None = None
        self._position: int | None = None
        session.log_when_ready(f"answering the lines of {from_device}")

    async def up(self, client: BrokerClient) -> None:
        from_stream = await exists_as_stream(client, self._from_device)
        for queue in (self._to_device,) if from_stream else (self._from_device, self._to_device):
            await queues.declare(client, SCRATCH, queues.Queue(queue), self._session.log)
        if self._began is None:
            self._began = Timestamp(self._now())
        elif self._position is None and from_stream:
            # No message has come yet. Those that came while there was no connection would not come by themselves.
            self._position = self._began
        self._answerer = Answerer(
            self._reactor,
            self._turn,
            self._session,
            client,
            to_device=self._to_device,
            seq_header=self._seq_header,
            prefix=self._prefix,
            position=self._position,
        )
        await self._answerer.start(self._from_device)

    def down(self) -> None:
        if self._answerer is not None:
            self._position = self._answerer.position
            self._answerer.stop()
            self._answerer = None

    def blocked(self, reason: str) -> None:
        """Do nothing: the answers wait in the socket, and the prefetch limits their number."""

    def unblocked(self) -> None: ...
