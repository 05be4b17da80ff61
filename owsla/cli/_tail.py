"""The command `owsla tail`: show the messages of a queue, and return them to the queue or take them.

Each line of a device is a line of the output, whether it came in a message of its own or in a batch.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypedDict, Unpack

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..batch_format import HEADER, BatchError, decode
from ..broker import queues
from ..broker.arguments import counts_returns
from ..broker.client import BaseHandler, BrokerClient, BrokerError, Getter
from ..broker.queue_state import inspect_queue
from ..runtime.end_of_turn import EndOfTurn
from ..trace_context import TRACEPARENT
from ._output import Output
from ._running import Session
from ._stream_offset import OFFSET
from ._text import printable
from ._units import counted

LINES: Final = 1
"""Channel for the messages."""

SCRATCH: Final = 2
"""Channel for declarations, which the broker closes if they fail."""

LOOK: Final = 3
"""Channel for a passive declaration, which the broker closes if there is no such queue."""

PREFETCH: Final = 500
"""Limit on messages that have arrived and are not written yet. Meanwhile no other consumer gets them."""

OFFSETS: Final = "use --offset, such as --offset first for all of it, or --offset next for what comes"
"""Advice for a stream."""

Properties = Mapping[str, Any]
"""Properties of a message, as `wire.decode_properties` returns them."""


class Format(Protocol):
    """Function that formats a message with one line of a device as a line of the output."""

    def __call__(self, properties: Properties, body: bytes, redelivered: bool, *, seq_header: str) -> bytes: ...


# -- Formats --------------------------------------------------------------------------------------------------------------


def as_text(properties: Properties, body: bytes, redelivered: bool, *, seq_header: str) -> bytes:
    """Return `TIME CONNECTION_ID NUMBER DEVICE_ID TEXT`, with `-` for a missing field. Only the last column contains spaces."""
    headers = properties.get("headers", {})
    columns = (
        _local_time(properties.get("timestamp")),
        *(_column(headers.get(name)) for name in ("connection_id", seq_header, "device_id")),
        printable(body),
    )
    return (" ".join(columns) + "\n").encode("utf-8", "backslashreplace")


def _local_time(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _column(value: Any) -> str:
    if value is None or value == "":
        return "-"
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return printable(raw).replace(" ", "\\x20")


def as_json(properties: Properties, body: bytes, redelivered: bool, *, seq_header: str) -> bytes:
    """Return a JSON object on a line, in ASCII. A missing field is `null`."""
    headers = properties.get("headers", {})
    shown: dict[str, Any] = {
        "timestamp": properties.get("timestamp"),
        "connection_id": _json_value(headers.get("connection_id")),
        "seq": _json_value(headers.get(seq_header)),
        "device_id": _json_value(headers.get("device_id")),
        "traceparent": _json_value(headers.get(TRACEPARENT)),
        "reply_to": _json_value(properties.get("reply_to")),
        "redelivered": redelivered,
    }
    try:
        shown["body"] = body.decode()
    except UnicodeDecodeError:
        shown["body_base64"] = base64.b64encode(body).decode()
    if OFFSET in headers:
        shown["offset"] = _json_value(headers[OFFSET])
    return json.dumps(shown).encode() + b"\n"


def _json_value(value: Any) -> Any:
    """Return the value of a header for JSON: numbers, strings and `None` unchanged, anything else as text."""
    if isinstance(value, bytes):
        return printable(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def _properties(header: bytes) -> Properties:
    """Return the properties in the payload of a content header, or none if they are malformed."""
    try:
        return wire.decode_properties(header, wire.BARE_HEADER)
    except WireError:
        return {}


def split_batch(properties: Properties, body: bytes, seq_header: str) -> list[tuple[Properties, bytes]]:
    """Return properties and body of each line of a batch, as the line has them in a message of its own. Raise `BatchError`."""
    headers = properties.get("headers", {})
    return [
        (
            {
                **properties,
                "timestamp": line.received_ms // 1000,
                "headers": {**headers, "connection_id": line.connection_id, seq_header: line.seq, "device_id": line.device_id},
            },
            line.line,
        )
        for line in decode(body)
    ]


class Formatter:
    """Formatter of messages from devices."""

    def __init__(self, form: Format, seq_header: str, warn: Callable[[str], None]) -> None:
        """`warn` is called with a sentence for each batch that cannot be decoded."""
        self._form = form
        self._seq_header = seq_header
        self._warn = warn

    def lines(self, header: bytes, body: bytes, redelivered: bool) -> list[bytes]:
        """Return the lines of the output for a message: one, or for a batch one for each of its lines.

        A batch that cannot be decoded is shown as a message with one line, so that `--take` loses no byte of it.
        """
        properties = _properties(header)
        parts: list[tuple[Properties, bytes]] = [(properties, body)]
        if HEADER in properties.get("headers", {}):
            try:
                parts = split_batch(properties, body, self._seq_header)
            except BatchError as error:
                self._warn(f"a batch cannot be decoded, and is shown as one line: {error}")
        return [self._form(each, line, redelivered, seq_header=self._seq_header) for each, line in parts]


# -- Consuming -------------------------------------------------------------------------------------------------------------


class TakeHandler(BaseHandler):
    """Handler of a channel that consumes: it shows messages, and acknowledges each once it is written."""

    def __init__(
        self, turn: EndOfTurn, output: Output, client: BrokerClient, formatter: Formatter, shown: Callable[[int], None]
    ) -> None:
        """`shown` is called with a number of lines each time that many were written and acknowledged."""
        self._turn = turn
        self._output = output
        self._client = client
        self._formatter = formatter
        self._shown = shown
        self._lines: list[bytes] = []
        self._last = 0
        self._wanted: int | None = None

    async def start(self, queue: str, wanted: int | None, arguments: Mapping[str, Any] | None = None) -> None:
        """Consume until there are `wanted` lines, or without a limit if it is `None`. A batch is consumed as a whole.

        `arguments` are those of the consumer.
        """
        self._wanted = wanted
        channel = await self._client.open_channel(LINES, self)
        await channel.basic_qos(prefetch_count=PREFETCH if wanted is None else min(wanted, PREFETCH))
        await channel.basic_consume(queue=queue, consumer_tag="owsla tail", arguments=dict(arguments or {}))

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        if self._wanted is not None and self._wanted <= 0:
            return  # not acknowledged, so the broker requeues it when the connection ends
        lines = self._formatter.lines(header, body, redelivered)
        if self._wanted is not None:
            self._wanted -= len(lines)
        if not self._lines:
            self._turn.call_first(self._write)
        self._lines += lines
        self._last = tag

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        last = self._last
        self._output.write(b"".join(lines), lambda: self._written(last, len(lines)))

    def _written(self, last: int, count: int) -> None:
        if not self._client.closed:
            self._client.ack(LINES, last, True)
        self._shown(count)

    def cancelled(self, consumer_tag: str) -> None:
        self._client.abort(BrokerError(0, "the broker cancelled the consumer: the queue was deleted or moved", scope="channel"))

    def closed(self, reason: Failure) -> None:
        if not self._client.closed:
            self._client.abort(reason.value or BrokerError(0, "the channel was closed", scope="channel"))


async def is_stream(client: BrokerClient, queue: str) -> bool:
    """Return whether an existing queue is a stream.

    A plain queue is told from one by its declaration, which is accepted. A refused probe is a warning in the log of the broker.
    """
    if await queues.has_arguments(client, SCRATCH, queues.Queue(queue, {"x-queue-type": "classic"})):
        return False
    return bool(await queues.is_stream(client, SCRATCH, queue))


async def exists_as_stream(client: BrokerClient, queue: str) -> bool:
    """Return whether there is a queue with this name, and it is a stream. Nothing is declared."""
    return await inspect_queue(client, LOOK, queue) is not None and await is_stream(client, queue)


class Shown(TypedDict):
    """Messages to show: those of a queue, up to `count` lines and the rest of their batch, or all if it is `None`."""

    queue: str
    count: int | None


class ArrivingLines:
    """Base of the `Role`s that show messages as they arrive, up to a number of lines."""

    name = "tail"

    def __init__(
        self, reactor: Any, turn: EndOfTurn, session: Session, *, queue: str, formatter: Formatter, count: int | None
    ) -> None:
        """End after `count` lines and the rest of their batch, or never if it is `None`."""
        self._turn = turn
        self._session = session
        self._queue = queue
        self._formatter = formatter
        self._count = count
        self._output = Output(reactor, lambda why: session.finish(1 if why else 0, why))

    async def up(self, client: BrokerClient) -> None:
        """Check the queue, and `show` its messages."""
        raise NotImplementedError

    async def show(self, client: BrokerClient, arguments: Mapping[str, Any] | None = None) -> None:
        """Consume the queue, with arguments of basic.consume."""
        handler = TakeHandler(self._turn, self._output, client, self._formatter, self._shown)
        await handler.start(self._queue, self._count, arguments)

    def _shown(self, count: int) -> None:
        if self._count is not None:
            self._count -= count
            if self._count <= 0:
                self._session.finish(0)

    def down(self) -> None: ...

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...


class Tail(ArrivingLines):
    """The `Role` of `owsla tail --take`: it shows messages as they arrive, and takes them."""

    def __init__(
        self, reactor: Any, turn: EndOfTurn, session: Session, *, form: Format, seq_header: str, **what: Unpack[Shown]
    ) -> None:
        super().__init__(reactor, turn, session, formatter=Formatter(form, seq_header, session.log), **what)

    async def up(self, client: BrokerClient) -> None:
        if await exists_as_stream(client, self._queue):
            self._session.finish(1, f"{self._queue} is a stream, from which nothing is taken: {OFFSETS}")
            return
        self._session.log_when_ready(f"taking the messages of {self._queue}: no other back end gets them")
        await queues.declare(client, SCRATCH, queues.Queue(self._queue), self._session.log)
        await self.show(client)


class Peek(Getter):
    """The `Role` of `owsla tail`, and the handler of its channel: it shows the messages in the queue, and requeues them.

    A quorum queue counts how often a message was requeued, and drops it above its delivery limit: 20 since RabbitMQ 4.0, unless
    the queue or a policy sets another. So a quorum queue with a limit is refused without `--force`.
    """

    name = "tail"

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        queue: str,
        form: Format,
        seq_header: str,
        count: int,
        force: bool = False,
    ) -> None:
        """Show `count` lines and the rest of their batch; with `force`, also of a quorum queue with a delivery limit."""
        self._session = session
        self._queue = queue
        self._formatter = Formatter(form, seq_header, session.log)
        self._count = count
        self._force = force
        self._client: BrokerClient | None = None
        self._counted = False
        self._messages = 0
        self._lines: list[bytes] = []
        self._last = 0
        self._output = Output(reactor, lambda why: session.finish(1 if why else 0, why))

    async def up(self, client: BrokerClient) -> None:
        if await inspect_queue(client, LOOK, self._queue) is None:
            self._session.finish(1, f"there is no queue {self._queue}")
            return
        if await is_stream(client, self._queue):
            self._session.finish(1, f"{self._queue} is a stream, which is read from a position: {OFFSETS}")
            return
        self._counted = await counts_returns(client, SCRATCH, self._queue)
        if self._counted and not self._force:
            self._session.finish(
                1,
                f"{self._queue} may be a quorum queue with a delivery limit: RabbitMQ counts each look at a message, and drops "
                "it at the limit, 20 by default; --force looks all the same, --take takes the messages",
            )
            return
        await client.open_channel(LINES, self)
        self._client = client
        client.get(LINES, self._queue)

    def got(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._last = tag
        self._messages += 1
        self._lines += self._formatter.lines(header, body, redelivered)
        if self._client is not None and len(self._lines) < self._count:
            # `basic.get`, because a consumer is not told that the queue is empty.
            self._client.get(LINES, self._queue)
        else:
            self.got_nothing()

    def got_nothing(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.run(self._give_back(client))

    async def _give_back(self, client: BrokerClient) -> None:
        """Requeue all messages and then write them: a slow reader of standard output must not delay the requeueing."""
        if self._counted and self._last:
            # Later versions of RabbitMQ count a message that is requeued by the end of its channel, but not by `basic.nack`.
            nack = encode_method("basic.nack", delivery_tag=self._last, multiple=True, requeue=True)
            client.write(wire.frame(wire.FRAME_METHOD, LINES, nack))
        await client.end_channel(LINES)
        messages = counted(self._messages, "message")
        if len(self._lines) != self._messages:
            messages = f"{messages} with {counted(len(self._lines), 'line')}"
        self._session.log(f"{messages} of {self._queue}, given back")
        if self._lines:
            self._output.write(b"".join(self._lines), lambda: self._session.finish(0))
        else:
            self._session.finish(0)

    def closed(self, reason: Failure) -> None:
        self._session.finish(1, str(reason.value))

    def down(self) -> None:
        self._client = None

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...
