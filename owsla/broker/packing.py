"""Packing of device lines: the frames of a basic.publish from a template, with one formatting operation.

All fields of the three frames are the same for every line of a connection, except four: the size of the body (twice), the
sequence number and the time. Apart from the connection's own headers, the rest is the same for the whole node.

    | method frame: basic.publish, mandatory            | connection (its routing key)
    | header frame: type, channel, size                 | connection
    |   class, weight                                   | connection
    |   body size                                       | line
    |   flags, headers {connection_id, device_id,       | connection
    |     door, seq:                                    |
    |     sequence number ('l', or 'I' with --seq-type) | line
    |   } delivery_mode, reply_to, timestamp, app_id    | node, once a second
    | body frame: type, channel                         | node, once a second
    |   size, body, end                                 | line

A line that begins a trace has one more header, `traceparent`, before the others.

AMQP 0-9-1 has no delivery tag in basic.publish (it is implied by the order), so republishing a line is writing the same bytes
again.
"""

from __future__ import annotations

import struct
from typing import Any, Final, TypedDict, Unpack

from ..amqp import wire
from ..amqp.methods import encode_method
from ..interfaces import LineSource
from ..routing_key import KeyTooLong, RoutingKey
from ..trace_context import TRACEPARENT

APP_ID: Final = "owsla"

_U32 = struct.Struct(">I").pack
_read_u32 = struct.Struct(">I").unpack_from
_U64 = struct.Struct(">Q").pack
_I32 = struct.Struct(">i").pack
_I64 = struct.Struct(">q").pack

_WIDER: Final = 4
"""Difference in bytes of the field types `l` (64 bits) and `I` (32 bits)."""

_CONNECTION_ID: Final = wire.short_string("connection_id") + b"S"

_DEVICE_ID: Final = wire.short_string("device_id") + b"S"

TRACEPARENT_HEADER: Final = wire.short_string(TRACEPARENT) + b"S" + _U32(55)
"""Start of the header `traceparent`, whose value has 55 bytes."""

_FLAGS = struct.pack(
    ">H", sum(wire.PROPERTIES[name][0] for name in ("headers", "delivery_mode", "reply_to", "timestamp", "app_id"))
)


class Template:
    """The constant parts of the frames of a connection's lines."""

    __slots__ = ("before_seq", "before_size", "traceparent")

    def __init__(self, before_size: bytes, before_seq: bytes) -> None:
        self.before_size = before_size
        """Method frame, and start of the header frame: frame header, class and weight."""
        self.before_seq = before_seq
        """Property flags, and headers up to the sequence number."""
        self.traceparent: str | None = None
        """Header `traceparent` of the last line that had one."""


class LineTooLarge(ValueError):
    """A line above the size limit of the broker."""


class Unroutable(Template):
    """Template of a connection whose lines cannot be published: packing with it raises the reason.

    So publishing a line needs no check for this case.
    """

    __slots__ = ("reason", "reported")

    def __init__(self, reason: KeyTooLong | LineTooLarge, traceparent: str | None = None) -> None:
        self.reason = reason
        self.traceparent = traceparent
        self.reported = False
        """True if the reason was logged."""

    @property
    def before_size(self) -> bytes:  # type: ignore[override]
        raise self.reason

    @property
    def start(self) -> bytes:
        """Raise the reason, as for the start of an element of a batch (`BatchTemplate`)."""
        raise self.reason

    @property
    def route(self) -> None:
        """The route of the lines: none."""
        return None


class _Door(TypedDict, total=False):
    door: str | None


class MessageArguments(_Door):
    """Arguments of `MessagePacker`."""

    channel: int
    exchange: str
    routing_key: str | RoutingKey
    delivery_mode: int
    reply_to: bytes
    frame_max: int


class MessagePacker:
    """Common parts of the packers of lines: the frames of a basic.publish on one channel, to one queue or exchange.

    The channel number is part of the packed bytes, so a node always publishes the lines of a door on the same channel number.
    """

    __slots__ = (
        "_after_reply_to",
        "_before_timestamp",
        "_door",
        "_exchange",
        "_frame_room",
        "_key",
        "_largest",
        "_method",
        "_second",
        "channel",
        "room",
    )

    def __init__(
        self,
        *,
        channel: int,
        exchange: str,
        routing_key: str | RoutingKey,
        delivery_mode: int,
        reply_to: bytes,
        frame_max: int,
        door: str | None = None,
    ) -> None:
        """`routing_key`: the name of a queue, or a template for the keys of connections. `frame_max`: in bytes, with the
        frame's overhead.

        `door` is the value of the header `door`; without it, lines do not have the header.
        """
        self.channel = channel
        """Number of the channel that the frames are for."""
        self._door = b"" if door is None else wire.short_string("door") + b"S" + wire.long_string(door)
        self._exchange = exchange
        self._key: RoutingKey | None = None
        self._method = b""
        if isinstance(routing_key, str):
            self._method = self._publish(routing_key)
        elif routing_key.fixed:
            self._method = self._publish(routing_key.text)
        else:
            self._key = routing_key
        self._before_timestamp = bytes([delivery_mode]) + wire.short_string(reply_to)
        self._after_reply_to = wire.short_string(APP_ID)
        self._frame_room = frame_max - wire.FRAME_OVERHEAD
        self._largest: int | None = None
        self.room = self._frame_room
        """Size in bytes up to which a body is one frame and within the known limit of the broker."""
        self._second = -1

    @property
    def one_route(self) -> bool:
        """True if all lines have the same routing key, so that a refusal would meet any connection."""
        return self._key is None

    def route_of(self, source: LineSource) -> Any:
        """Return the route of a connection: what the broker refuses together, and what keeps its order."""
        raise NotImplementedError

    def first_line(self, header: bytes, body: bytes) -> tuple[bytes, int]:
        """Return the connection id and the number of the first line of a message that was packed. Raise `WireError`,
        `KeyError`, `TypeError` or a kind of `ValueError` if it was not.
        """
        raise NotImplementedError

    def _publish(self, routing_key: str | bytes) -> bytes:
        return wire.frame(
            wire.FRAME_METHOD,
            self.channel,
            encode_method("basic.publish", exchange=self._exchange, routing_key=routing_key, mandatory=True),
        )

    def _body_frames(self, body: bytes) -> bytes:
        """Return the frames of a body: none for an empty one, several for a large one (AMQP 0-9-1, 4.2.6)."""
        room = self._frame_room
        return b"".join(
            wire.frame(wire.FRAME_BODY, self.channel, body[start : start + room]) for start in range(0, len(body), room)
        )

    def answer_to(self, reply_to: bytes) -> None:
        """Set another reply_to for later lines. It must have the same length, because templates contain the size."""
        before_timestamp = self._before_timestamp[:1] + wire.short_string(reply_to)
        if len(before_timestamp) != len(self._before_timestamp):
            raise ValueError("the names of node queues have the same length")
        self._before_timestamp = before_timestamp
        self._second = -1

    def limit(self, frame_max: int) -> bool:
        """Limit the size of later frames, in bytes with overhead. Return whether the limit is lower than before."""
        before, self._frame_room = self._frame_room, frame_max - wire.FRAME_OVERHEAD
        self.room = self._frame_room if self._largest is None else min(self._frame_room, self._largest)
        return self._frame_room < before

    def largest(self, size: int) -> None:
        """Set the size limit of the broker for bodies, in bytes."""
        self._largest = size
        self.room = min(self._frame_room, size)


class LinePacker(MessagePacker):
    """Packer of the lines of a door, each as a message."""

    __slots__ = ("_fixed", "_heads", "_number", "_seq_header", "_seq_key", "_tail", "_tail_size")

    def __init__(self, *, seq_header: str, narrow: bool = False, **message: Unpack[MessageArguments]) -> None:
        """Take the arguments of `MessagePacker`, and `seq_header`, the name of the header with the number of the line.

        `narrow`: sequence numbers are 32-bit integers as long as they fit, for clients that cannot read 64-bit ones in a table.
        """
        super().__init__(**message)
        self._seq_header = seq_header
        self._seq_key = wire.short_string(seq_header) + (b"I" if narrow else b"l")
        self._number = _I32 if narrow else _I64
        self._fixed = len(self._door) + len(self._seq_key) + len(self._number(0))
        self._tail_size = len(self._before_timestamp) + 8 + len(self._after_reply_to)
        self._tail = b""
        self._heads: dict[int, bytes] = {}

    def template(self, connection_id: bytes, device_id: str | None) -> Template:
        """Make the template of a connection. Raise `KeyTooLong` if its routing key would exceed 255 bytes."""
        method = self._method if self._key is None else self._publish(self._key.fill(connection_id, device_id))
        device = b"" if device_id is None else _DEVICE_ID + wire.long_string(device_id)
        length = len(connection_id)
        headers = len(_CONNECTION_ID) + 4 + length + len(device) + self._fixed
        before_seq = b"%b%b%b%b%b%b%b" % (
            _FLAGS, _U32(headers), _CONNECTION_ID, _U32(length), connection_id, device, self._door + self._seq_key
        )  # fmt: skip
        size = 12 + len(_FLAGS) + 4 + headers + self._tail_size
        # With one key, share the bytes among connections with device ids of the same length: saves 110 bytes each.
        before_size = self._heads.get(size) if self._key is None else None
        if before_size is None:
            before_size = method + struct.pack(">BHIHH", wire.FRAME_HEADER, self.channel, size, wire.BASIC, 0)
            if self._key is None:
                self._heads[size] = before_size
        return Template(before_size, before_seq)

    def route_of(self, source: LineSource) -> Any:
        return source

    def first_line(self, header: bytes, body: bytes) -> tuple[bytes, int]:
        headers = wire.decode_table(wire.split_properties(header, 12)["headers"])[0]
        return str(headers["connection_id"]).encode(), int(headers[self._seq_header])

    def pack(self, template: Template, seq: int, line: bytes, second: int) -> bytes:
        """Return the frames that publish a line, received at `second` (since the epoch).

        Raise `LineTooLarge` if the line exceeds the known size limit of the broker.
        """
        if second != self._second:
            self._second = second
            self._tail = (
                self._before_timestamp
                + _U64(second)
                + self._after_reply_to
                + b"\xce"
                + struct.pack(">BH", wire.FRAME_BODY, self.channel)
            )
        try:
            number = self._number(seq)
        except struct.error:
            template, number = _widened(template), _I64(seq)
        size = len(line)
        if 0 < size <= self.room:
            return b"%b%b%b%b%b%b%b\xce" % (
                template.before_size,
                _U64(size),
                template.before_seq,
                number,
                self._tail,
                _U32(size),
                line,
            )
        if self._largest is not None and size > self._largest:
            raise LineTooLarge(f"a line of {size} bytes, and the limit of the broker is {self._largest}")
        head = b"".join((template.before_size, _U64(size), template.before_seq, number, self._tail[:-3]))
        return head + self._body_frames(line)

    def pack_traced(self, template: Template, seq: int, line: bytes, second: int, traceparent: str) -> bytes:
        """Return the frames that publish a line with a traceparent of version 00. Raise `LineTooLarge` as `pack` does."""
        packed = self.pack(_with_headers(template, TRACEPARENT_HEADER + traceparent.encode()), seq, line, second)
        template.traceparent = traceparent
        return packed


def _widened(template: Template) -> Template:
    """Convert a template for 32-bit numbers to one for 64-bit numbers."""
    before_size, flags, headers = _enlarged(template, _WIDER)
    return Template(before_size, flags + headers[:-1] + b"l")


def _with_headers(template: Template, headers: bytes) -> Template:
    """Add encoded headers to a template, before the others."""
    before_size, flags, others = _enlarged(template, len(headers))
    return Template(before_size, flags + headers + others)


def _enlarged(template: Template, by: int) -> tuple[bytes, bytes, bytes]:
    """Return the parts of a template whose headers grow by some bytes: those before the size, the flags with the size of the
    headers, and the headers up to the sequence number.
    """
    before_size, before_seq = template.before_size, template.before_seq
    return (
        before_size[:-8] + _U32(_read_u32(before_size, len(before_size) - 8)[0] + by) + before_size[-4:],
        before_seq[:2] + _U32(_read_u32(before_seq, 2)[0] + by),
        before_seq[6:],
    )


def body_size(packed: bytes) -> int:
    """Return the length in bytes of the body in packed frames."""
    (method,) = struct.unpack_from(">I", packed, 3)
    (size,) = struct.unpack_from(">Q", packed, method + wire.FRAME_OVERHEAD + 7 + 4)
    return int(size)


def refit(packed: bytes, frame_max: int) -> bytes:
    """Repack frames to at most `frame_max` bytes, for a broker whose limit is lower than that of the last one."""
    parts: list[bytes] = []
    offset = 0
    room = frame_max - wire.FRAME_OVERHEAD
    while offset < len(packed):
        kind, channel, size = struct.unpack_from(">BHI", packed, offset)
        payload = packed[offset + 7 : offset + 7 + size]
        step = room if kind == wire.FRAME_BODY else size
        parts.extend(wire.frame(kind, channel, payload[start : start + step]) for start in range(0, size, step))
        offset += size + wire.FRAME_OVERHEAD
    return b"".join(parts)
