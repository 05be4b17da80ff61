"""`owsla echo`: a back end that answers each line, as a back end should.

    from_device ──▶ deliver ──▶ reply_to, or to_device ──▶ confirmed ──▶ the line is acknowledged
                                   └── returned ──▶ to_device ──┘

Nothing is lost: a line is acknowledged when the broker has its answer, so that whatever happens before brings it again. And no
answer reaches a device twice, though it may be published twice: it carries the line's own number.

Consuming and publishing share a channel. The usual reason against that, a broker short of memory that reads nothing of those
who publish, makes no difference here: without a confirm there is nothing to acknowledge.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any, Final, NamedTuple

from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..broker import queues as topology
from ..broker.acks import AckTracker
from ..broker.client import BaseHandler, BrokerError, BrokerProtocol, as_failure
from ..broker.retry_delay import RetryDelay
from ..interfaces import Clock, DelayedCall
from ..runtime.end_of_turn import Turn
from ._running import Session

LINES: Final = 1
"""The channel for lines and answers."""
SCRATCH: Final = 2
"""The channel for declarations."""

PREFETCH: Final = 2000
"""Lines unacknowledged at most: those of a fifth of a second at 10,000 a second, far longer than a confirm takes."""

QUEUES: Final = 1024
"""Queues whose publish is kept packed. There is one for each node of the gateway."""

_U32 = struct.Struct(">I").unpack_from
_I64 = struct.Struct(">q").unpack_from


class Line(NamedTuple):
    """What a message says of itself, as far as its answer needs it."""

    connection_id: bytes | None
    seq: int | None
    reply_to: bytes | None


def read_line(header: bytes, seq_header: bytes) -> Line:
    """Read a content header's payload. `WireError` where it cannot be read."""
    connection_id: bytes | None = None
    seq: int | None = None
    reply_to: bytes | None = None
    try:
        flags = header[12] << 8 | header[13]
        offset = 14
        for flag in (0x8000, 0x4000):  # content_type, content_encoding
            if flags & flag:
                offset += 1 + header[offset]
        if flags & 0x2000:  # headers
            end = offset + 4 + _U32(header, offset)[0]
            offset += 4
            while offset < end:
                stop = offset + 1 + header[offset]
                key = header[offset + 1 : stop]
                offset = wire.skip_value(header, stop)
                kind = header[stop]
                if key == b"connection_id":
                    if kind in b"Sx":
                        connection_id = header[stop + 5 : offset]
                elif key == seq_header:
                    value = _I64(header, stop + 1)[0] if kind == 0x6C else wire.decode_value(header, stop)[0]
                    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
                        seq = value
            if offset != end:
                raise WireError("a field table's last value goes past its end")
        if flags & 0x1000:  # delivery_mode
            offset += 1
        if flags & 0x0800:  # priority
            offset += 1
        if flags & 0x0400:  # correlation_id
            offset += 1 + header[offset]
        if flags & 0x0200:
            reply_to = wire.read_short_string(header, offset)[0] or None
    except (IndexError, struct.error):
        raise WireError("the properties are cut off") from None
    return Line(connection_id, seq, reply_to)


_FLAGS = struct.pack(">H", wire.PROPERTIES["headers"][0] | wire.PROPERTIES["delivery_mode"][0])
_CONNECTION_ID = wire.short_string("connection_id") + b"S"
_SEQ = wire.short_string("to_device_seq") + b"l"
_PERSISTENT = b"\x02"


def answer_header(connection_id: bytes, seq: int | None, size: int) -> bytes:
    """The content header's payload of an answer of `size` bytes."""
    headers = _CONNECTION_ID + wire.long_string(connection_id)
    if seq is not None:
        headers += _SEQ + seq.to_bytes(8)
    return wire.header_payload(size, _FLAGS + wire.long_string(headers) + _PERSISTENT)


class Answer(NamedTuple):
    """An answer on its way."""

    tag: int
    """The delivery tag of the line that it answers."""
    queue: bytes
    connection_id: bytes
    seq: int | None
    body: bytes


class Answerer(BaseHandler):
    """Answers the lines of one channel, for as long as the channel lasts."""

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        session: Session,
        client: BrokerProtocol,
        *,
        to_device: str,
        seq_header: bytes,
        prefix: bytes,
    ) -> None:
        self._clock = clock
        self._turn = turn
        self._session = session
        self._client = client
        self._to_device = to_device
        self._fallback = to_device.encode()
        self._seq_header = seq_header
        self._prefix = prefix
        self._publishes: dict[bytes, bytes] = {}
        self._sent: dict[int, Answer] = {}
        self._lowest = self._next = 1  # publish tags: the lowest that may be unconfirmed, and the next one
        self._returned: Counter[tuple[bytes | None, int | None]] = Counter()
        self._again: list[Answer] = []
        self._retry_call: DelayedCall | None = None
        self._retry_wait = RetryDelay(first=0.1, most=5.0)
        self._acks = AckTracker()
        self._acknowledging = False

    async def start(self, from_device: str) -> None:
        """Open the channel and consume."""
        channel = await self._client.open_channel(LINES, self)
        await channel.confirm_select()
        await channel.basic_qos(prefetch_count=PREFETCH)
        await channel.basic_consume(queue=from_device, consumer_tag="owsla echo")

    def stop(self) -> None:
        """The connection is gone: what was not acknowledged comes again to the next."""
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        self._retry_call = None

    # -- lines and answers -------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        try:
            connection_id, seq, reply_to = read_line(header, self._seq_header)
        except WireError:
            connection_id = seq = reply_to = None
        if connection_id is None:
            self._session.say("dropped a message without a connection_id")
            self._done(tag)
        else:
            # No gateway names a queue of RabbitMQ's own, and over some of those names RabbitMQ closes the connection.
            known = reply_to is not None and not reply_to.startswith(b"amq.")
            queue = reply_to if known and reply_to is not None else self._fallback
            self._publish(Answer(tag, queue, connection_id, seq, self._prefix + body))

    def _publish(self, answer: Answer) -> None:
        publish = self._publishes.get(answer.queue)
        if publish is None:
            if len(self._publishes) >= QUEUES:
                self._publishes.clear()
            payload = encode_method("basic.publish", routing_key=answer.queue, mandatory=True)
            publish = self._publishes[answer.queue] = wire.frame(wire.FRAME_METHOD, LINES, payload)
        self._sent[self._next] = answer
        self._next += 1
        body = answer.body
        header = answer_header(answer.connection_id, answer.seq, len(body))
        self._client.write(publish + wire.content_frames(LINES, header, body, self._client.frame_max))

    def confirmed(self, tag: int, multiple: bool) -> None:
        for answer in self._take(tag, multiple):
            key = answer.connection_id, answer.seq
            if not self._returned or not self._returned[key]:
                self._done(answer.tag)
                continue
            self._returned -= Counter([key])
            if answer.queue != self._fallback:
                self._publish(answer._replace(queue=self._fallback))
            else:
                self._publish_later(answer, f"there is no queue {self._to_device}")

    def refused(self, tag: int, multiple: bool) -> None:
        for answer in self._take(tag, multiple):
            self._publish_later(answer, "the broker refuses answers")

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        # It is acknowledged in a moment all the same; then it is known which one it is.
        line = read_line(header, b"to_device_seq")
        self._returned[line.connection_id, line.seq] += 1

    def _take(self, tag: int, multiple: bool) -> list[Answer]:
        if not multiple:
            answer = self._sent.pop(tag, None)
            return [] if answer is None else [answer]
        last = self._next - 1
        tags = range(self._lowest, (min(tag, last) if tag else last) + 1)
        self._lowest = max(self._lowest, tags.stop)
        return [answer for one in tags if (answer := self._sent.pop(one, None)) is not None]

    def _done(self, tag: int) -> None:
        self._acks.done(tag)
        if not self._acknowledging:
            self._acknowledging = True
            self._turn.broker(self._acknowledge)

    def _acknowledge(self) -> None:
        self._acknowledging = False
        if not self._client.closed:
            top, alone = self._acks.take()
            if top:
                self._client.ack(LINES, top, True)
            for tag in alone:
                self._client.ack(LINES, tag, False)

    # -- what the broker does not take -------------------------------------------------------------------------------------

    def _publish_later(self, answer: Answer, why: str) -> None:
        self._again.append(answer)
        if self._retry_call is None:
            wait = self._retry_wait.next()
            self._session.say(f"{why}; trying again in {wait:.1f} s")
            self._retry_call = self._clock.callLater(wait, lambda: ensureDeferred(self._publish_again()))

    async def _publish_again(self) -> None:
        try:
            await topology.declare(self._client, SCRATCH, topology.Queue(self._to_device), self._session.say)
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
        # The channel alone: begin anew with the whole connection, which backs off.
        if not self._client.closed:
            self._client.abort(reason.value or BrokerError(0, "the channel was closed", scope="channel"))


class Echo:
    """Keeps an `Answerer` on the connection. A `Role`."""

    name = "echo"

    def __init__(
        self,
        reactor: Any,
        turn: Turn,
        session: Session,
        *,
        from_device: str,
        to_device: str,
        seq_header: bytes,
        prefix: bytes = b"",
    ) -> None:
        self._reactor = reactor
        self._turn = turn
        self._session = session
        self._from_device = from_device
        self._to_device = to_device
        self._seq_header = seq_header
        self._prefix = prefix
        self._answerer: Answerer | None = None
        session.on_up = f"answering the lines of {from_device}"

    async def up(self, client: BrokerProtocol) -> None:
        for queue in (self._from_device, self._to_device):
            await topology.declare(client, SCRATCH, topology.Queue(queue), self._session.say)
        self._answerer = Answerer(
            self._reactor,
            self._turn,
            self._session,
            client,
            to_device=self._to_device,
            seq_header=self._seq_header,
            prefix=self._prefix,
        )
        await self._answerer.start(self._from_device)

    def down(self) -> None:
        if self._answerer is not None:
            self._answerer.stop()
            self._answerer = None

    def blocked(self, reason: str) -> None:
        """Nothing to do: answers wait in the socket, no more than the prefetch of them."""

    def unblocked(self) -> None: ...
