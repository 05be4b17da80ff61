"""Device lines as bytes on the wire: a publish packed from a template, at the cost of one join.

Of the three frames of a publish, all but four fields are the same for every line of a connection: the body's size (twice), the
sequence number and the time. And of what remains, all but the connection's own headers are the same for a whole node.

    | method frame: basic.publish, mandatory            | connection (its routing key)
    | header frame: type, channel, size                 | connection
    |   class, weight                                   | connection
    |   body size                                       | line
    |   flags, headers {connection_id, device_id, seq:  | connection
    |     sequence number ('l', or 'I' where asked for)   | line
    |   } delivery_mode, reply_to, timestamp, app_id    | node, once a second
    | body frame: type, channel                         | node, once a second
    |   size, body, end                                 | line

A packed line holds no delivery tag, so that publishing it again means writing the same bytes again.
"""

from __future__ import annotations

import struct
from typing import Final

from ..amqp import wire
from ..amqp.methods import encode_method
from ..routing_key import KeyTooLong, RoutingKey

APP_ID: Final = "owsla"

_U32 = struct.Struct(">I").pack
_U64 = struct.Struct(">Q").pack
_I32 = struct.Struct(">i").pack
_I64 = struct.Struct(">q").pack

_WIDER: Final = 4
"""Bytes by which AMQP's 64-bit integer (`l`) is wider than its 32-bit one (`I`)."""

_FLAGS = struct.pack(
    ">H", sum(wire.PROPERTIES[name][0] for name in ("headers", "delivery_mode", "reply_to", "timestamp", "app_id"))
)


class Template:
    """How one connection's lines are packed."""

    __slots__ = ("before_seq", "before_size")

    def __init__(self, before_size: bytes, before_seq: bytes) -> None:
        self.before_size = before_size
        """Method frame, header frame's head, class and weight."""
        self.before_seq = before_seq
        """Property flags, and the headers up to the sequence number."""


class LineTooLarge(ValueError):
    """The broker takes no message of this size."""


class Unroutable(Template):
    """In a template's place, for a connection whose lines cannot be published. To pack with it raises why.

    So that a template is all that is looked at for a line, and a line costs nothing for it.
    """

    __slots__ = ("said", "why")

    def __init__(self, why: KeyTooLong | LineTooLarge) -> None:
        self.why = why
        self.said = False
        """Whether that was told."""

    @property
    def before_size(self) -> bytes:  # type: ignore[override]
        raise self.why


class LinePacker:
    """Packs the lines of one node for one queue, or one exchange.

    The channel is part of what is packed, so a node publishes its lines on that channel number for life.
    """

    __slots__ = (
        "_after_reply_to",
        "_before_timestamp",
        "_body_room",
        "_channel",
        "_exchange",
        "_frame_room",
        "_heads",
        "_key",
        "_largest",
        "_method",
        "_number",
        "_second",
        "_seq_key",
        "_tail",
        "_tail_size",
    )

    def __init__(
        self,
        *,
        channel: int,
        exchange: str,
        routing_key: str | RoutingKey,
        seq_header: str,
        delivery_mode: int,
        reply_to: bytes,
        frame_max: int,
        narrow: bool = False,
    ) -> None:
        """`routing_key` is a queue's name, the same for all, or a template for each connection's.

        `narrow`: sequence numbers are 32-bit integers as far as they fit, for clients that cannot read 64-bit ones in a table.

        `frame_max` in bytes, a frame's overhead included: what the broker will take in one frame, at the least.
        """
        self._channel = channel
        self._exchange = exchange
        self._key: RoutingKey | None = None
        self._method = b""
        if isinstance(routing_key, str):
            self._method = self._publish(routing_key)
        elif routing_key.fixed:
            self._method = self._publish(routing_key.text)
        else:
            self._key = routing_key
        self._seq_key = wire.short_string(seq_header) + (b"I" if narrow else b"l")
        self._number = _I32 if narrow else _I64
        self._before_timestamp = bytes([delivery_mode]) + wire.short_string(reply_to)
        self._after_reply_to = wire.short_string(APP_ID)
        self._tail_size = len(self._before_timestamp) + 8 + len(self._after_reply_to)
        self._frame_room = frame_max - wire.FRAME_OVERHEAD
        self._largest: int | None = None
        self._body_room = self._frame_room  # what needs no second look: one frame, which the broker takes
        self._second = -1
        self._tail = b""
        self._heads: dict[int, bytes] = {}

    @property
    def one_route(self) -> bool:
        """Whether all lines have the same routing key, so that what is refused of one connection would be of any."""
        return self._key is None

    def _publish(self, routing_key: str | bytes) -> bytes:
        return wire.frame(
            wire.FRAME_METHOD,
            self._channel,
            encode_method("basic.publish", exchange=self._exchange, routing_key=routing_key, mandatory=True),
        )

    def template(self, connection_id: bytes, device_id: str | None) -> Template:
        """Prepare a connection: once, when its handshake is complete. `KeyTooLong` where its routing key would be that."""
        method = self._method if self._key is None else self._publish(self._key.fill(connection_id, device_id))
        headers = wire.short_string("connection_id") + b"S" + wire.long_string(connection_id)
        if device_id is not None:
            headers += wire.short_string("device_id") + b"S" + wire.long_string(device_id)
        headers += self._seq_key
        width = len(self._number(0))
        before_seq = _FLAGS + _U32(len(headers) + width) + headers
        size = 12 + len(before_seq) + width + self._tail_size
        before_size = method + struct.pack(">BHIHH", wire.FRAME_HEADER, self._channel, size, wire.BASIC, 0)
        if self._key is None:
            # The same for all whose device ids are of one length: 110 bytes less for each of them.
            before_size = self._heads.setdefault(size, before_size)
        return Template(before_size, before_seq)

    def pack(self, template: Template, seq: int, line: bytes, second: int) -> bytes:
        """The frames that publish a line. `second` is when it was received, in seconds since the epoch.

        `LineTooLarge` where the broker is known not to take it.
        """
        if second != self._second:
            self._second = second
            self._tail = (
                self._before_timestamp
                + _U64(second)
                + self._after_reply_to
                + b"\xce"
                + struct.pack(">BH", wire.FRAME_BODY, self._channel)
            )
        try:
            number = self._number(seq)
        except struct.error:
            template, number = _widened(template), _I64(seq)
        size = len(line)
        if 0 < size <= self._body_room:
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
            raise LineTooLarge(f"a line of {size} bytes, and the broker takes {self._largest}")
        # An empty body has no frame at all, a large one has several.
        head = b"".join((template.before_size, _U64(size), template.before_seq, number, self._tail[:-3]))
        room = self._frame_room
        return head + b"".join(
            wire.frame(wire.FRAME_BODY, self._channel, line[start : start + room]) for start in range(0, size, room)
        )

    def answer_to(self, reply_to: bytes) -> None:
        """Ask for answers on another queue from now on. Its name is as long as the one before: templates hold the size."""
        before_timestamp = self._before_timestamp[:1] + wire.short_string(reply_to)
        if len(before_timestamp) != len(self._before_timestamp):
            raise ValueError("a node's queue has a name as long as every other node's")
        self._before_timestamp = before_timestamp
        self._second = -1

    def limit(self, frame_max: int) -> None:
        """Make frames no larger than this many bytes from now on."""
        self._frame_room = frame_max - wire.FRAME_OVERHEAD
        self._body_room = self._frame_room if self._largest is None else min(self._frame_room, self._largest)

    def largest(self, size: int) -> None:
        """The broker takes no body of more than this many bytes."""
        self._largest = size
        self._body_room = min(self._frame_room, size)


def _widened(template: Template) -> Template:
    """Return a template of 32-bit numbers for a number that needs 64 bits."""
    head, (size, *rest) = template.before_size[:-8], struct.unpack(">IHH", template.before_size[-8:])
    (length,) = struct.unpack(">I", template.before_seq[2:6])
    return Template(
        head + struct.pack(">IHH", size + _WIDER, *rest),
        template.before_seq[:2] + _U32(length + _WIDER) + template.before_seq[6:-1] + b"l",
    )


def body_size(packed: bytes) -> int:
    """How long the line is that these frames publish."""
    (method,) = struct.unpack_from(">I", packed, 3)
    (size,) = struct.unpack_from(">Q", packed, method + wire.FRAME_OVERHEAD + 7 + 4)
    return int(size)


def refit(packed: bytes, frame_max: int) -> bytes:
    """Packed frames again, none of them larger than `frame_max` bytes: for a broker that takes less than the last one did."""
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
