"""Packing of lines in batches: MessagePack from templates, with one formatting operation for a line.

The body of a message is a sequence of MessagePack arrays (https://github.com/msgpack/msgpack/blob/master/spec.md), one for each
line, one after the other:

    | 95                                                | array of 5
    | d9 24, connection id (36 bytes)                   | connection
    | ce, sequence number (32 bits; cf and 64 bits)     | line
    | cf, time of reading in ms since the epoch         | millisecond
    | device id (string), or c0 (nil)                   | connection
    | c4, c5 or c6, length, line (binary)               | line

Integers have a fixed width, which every decoder reads, so that they take no decision. The frames around the body are those of
a line (`packing`), with the headers `owsla_batch` (number of lines) and `door`, and the content type `application/x-msgpack`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Unpack
from weakref import WeakValueDictionary

from ..amqp import wire
from ..batch_format import CONTENT_TYPE, HEADER
from ..interfaces import LineSource
from .batch import Batch
from .packing import TRACEPARENT_HEADER, LineTooLarge, MessageArguments, MessagePacker

_U16 = struct.Struct(">H").pack
_U32 = struct.Struct(">I").pack
_U64 = struct.Struct(">Q").pack

_ARRAY_OF_5: Final = b"\x95"
_NIL: Final = b"\xc0"
_FLAGS = struct.pack(
    ">H",
    sum(wire.PROPERTIES[name][0] for name in ("content_type", "headers", "delivery_mode", "reply_to", "timestamp", "app_id")),
)


class BatchRoute:
    """Destination of lines with the same routing key: the frames before their batches, and the batch that is open."""

    __slots__ = ("__weakref__", "batch", "method", "number")

    def __init__(self, method: bytes) -> None:
        self.method = method
        """Frame of basic.publish."""
        self.batch: Batch | None = None
        """Batch that takes the next line; `None` if no line waits."""
        self.number = 0
        """Number of the last batch, counted from 1; 0 before the first one."""

    def open(self, received: int) -> Batch:
        """Open a batch, whose first line was received at this time in seconds since the epoch."""
        self.batch = Batch(received)
        return self.batch

    def close(self) -> int:
        """Close the open batch, and return its number on this route."""
        self.batch = None
        return self.take_number()

    def take_number(self) -> int:
        """Return the number of another batch, which is published behind all others of this route so far."""
        self.number += 1
        return self.number


class BatchTemplate:
    """The constant parts of the elements of a connection, and the route of its lines."""

    __slots__ = ("device", "route", "start", "traceparent")

    def __init__(self, connection_id: bytes, device_id: str | None, route: BatchRoute) -> None:
        self.start = _ARRAY_OF_5 + string(connection_id) + b"\xce"
        """Element up to the sequence number."""
        self.device = _NIL if device_id is None else string(device_id.encode())
        self.route = route
        self.traceparent: str | None = None
        """Header `traceparent` of the last line that had one."""


class BatchPacker(MessagePacker):
    """Packer of the lines of a door in batches."""

    __slots__ = ("_before_count", "_ms", "_received", "_route", "_routes", "most")

    def __init__(self, *, most: int, **message: Unpack[MessageArguments]) -> None:
        """Take the arguments of `MessagePacker`, and `most`, the maximum number of lines in a batch."""
        super().__init__(**message)
        self.most = most
        """Maximum number of lines in a batch."""
        self._route = BatchRoute(self._method) if self._key is None else None
        self._routes: WeakValueDictionary[bytes, BatchRoute] = WeakValueDictionary()
        self._before_count = wire.short_string(HEADER) + b"I"
        self._ms = -1
        self._received = b""

    def template(self, connection_id: bytes, device_id: str | None) -> BatchTemplate:
        """Make the template of a connection. Raise `KeyTooLong` if its routing key would exceed 255 bytes."""
        return BatchTemplate(connection_id, device_id, self._route or self._route_of(connection_id, device_id))

    def _route_of(self, connection_id: bytes, device_id: str | None) -> BatchRoute:
        """Return the route of a connection, where connections have different ones."""
        assert self._key is not None
        key = self._key.fill(connection_id, device_id)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = BatchRoute(self._publish(key))
        return route

    def route_of(self, source: LineSource) -> BatchRoute | None:
        """Return the route of a connection; `None` if its lines cannot be published."""
        route: BatchRoute | None = source.template.route
        return route

    def first_line(self, header: bytes, body: bytes) -> tuple[bytes, int]:
        return first_line(body)

    def element(self, template: BatchTemplate, seq: int, line: bytes, received: float) -> bytes:
        """Return the element of a line, received at this time in seconds since the epoch.

        Raise `LineTooLarge` if it exceeds the known size limit of the broker.
        """
        ms = int(received * 1000)
        if ms != self._ms:
            self._ms = ms
            self._received = b"\xcf" + _U64(ms)
        size = len(line)
        start = template.start
        try:
            number = _U32(seq)
        except struct.error:
            start, number = start[:-1] + b"\xcf", _U64(seq)
        if size < 256:
            element = b"%b%b%b%b\xc4%c%b" % (start, number, self._received, template.device, size, line)
        elif size < 65536:
            element = b"%b%b%b%b\xc5%b%b" % (start, number, self._received, template.device, _U16(size), line)
        else:
            element = b"%b%b%b%b\xc6%b%b" % (start, number, self._received, template.device, _U32(size), line)
        if self._largest is not None and len(element) > self._largest:
            raise LineTooLarge(
                f"a line of {size} bytes makes a batch of {len(element)}, and the limit of the broker is {self._largest}"
            )
        return element

    def elements(self, template: BatchTemplate, seq: int, lines: Sequence[bytes], received: float) -> list[bytes]:
        """Return the elements of lines of one connection, numbered from `seq` on. Raise `LineTooLarge` as `element` does."""
        if self._largest is not None or max(map(len, lines)) > 255 or seq + len(lines) > 1 << 32:
            return [self.element(template, number, line, received) for number, line in enumerate(lines, seq)]
        start, middle = template.start, b"\xcf" + _U64(int(received * 1000)) + template.device + b"\xc4"
        return [b"%b%b%b%c%b" % (start, _U32(number), middle, len(line), line) for number, line in enumerate(lines, seq)]

    def pack(self, route: BatchRoute, batch: Batch, traceparent: str | None = None) -> bytes:
        """Return the frames that publish a batch, and close it. With a `traceparent` of version 00 they have its header."""
        return self._frames(route, len(batch), batch.received, batch.close(), traceparent)

    def _frames(self, route: BatchRoute, lines: int, received: int, body: bytes, traceparent: str | None = None) -> bytes:
        headers = b"" if traceparent is None else TRACEPARENT_HEADER + traceparent.encode()
        headers += self._door + self._before_count + _U32(lines)
        properties = b"".join(
            (
                _FLAGS,
                wire.short_string(CONTENT_TYPE),
                _U32(len(headers)),
                headers,
                self._before_timestamp,
                _U64(received),
                self._after_reply_to,
            )
        )
        size = len(body)
        head = struct.pack(">BHIHHQ", wire.FRAME_HEADER, self.channel, 12 + len(properties), wire.BASIC, 0, size)
        return b"".join((route.method, head, properties, b"\xce", self._body_frames(body)))

    def cut(self, route: BatchRoute, batch: Batch, packed: bytes) -> tuple[list[tuple[Batch, bytes]], Batch]:
        """Cut a packed batch into batches within the size limit of the broker. Return these with their frames, and the lines
        whose elements exceed the limit.
        """
        body = packed_body(packed)
        pieces: list[Batch] = []
        hopeless = Batch(batch.received)
        for (source, seq), element in zip(batch.lines(), split_elements(body), strict=True):
            if self._largest is not None and len(element) > self._largest:
                hopeless.add(source, seq, element)
                continue
            if not pieces or pieces[-1].size + len(element) > self.room:
                pieces.append(Batch(batch.received))
            pieces[-1].add(source, seq, element)
        return [(piece, self.pack(route, piece)) for piece in pieces], hopeless


def string(text: bytes) -> bytes:
    """Encode a string of at most 255 bytes of UTF-8."""
    size = len(text)
    return bytes((0xA0 | size,)) + text if size < 32 else bytes((0xD9, size)) + text


def first_line(body: bytes) -> tuple[bytes, int]:
    """Return the connection id and the sequence number of the first element of a body that this module has encoded.

    Raise `ValueError` if it is not such a body.
    """
    try:
        if body[:1] != _ARRAY_OF_5:
            raise ValueError
        begin, end = _string_at(body, 1)
        after = _after_number(body, end)
        if after > len(body):
            raise ValueError
        return body[begin:end], int.from_bytes(body[end + 1 : after])
    except (IndexError, ValueError):
        raise ValueError("not a batch of lines") from None


def split_elements(body: bytes) -> list[bytes]:
    """Return the elements of a body that this module has encoded."""
    elements = []
    start = 0
    while start < len(body):
        at = _after_number(body, _after_number(body, _string_at(body, start + 1)[1]))
        at = at + 1 if body[at : at + 1] == _NIL else _string_at(body, at)[1]
        width = 1 << (body[at] - 0xC4)
        end = at + 1 + width + int.from_bytes(body[at + 1 : at + 1 + width])
        elements.append(body[start:end])
        start = end
    return elements


def _string_at(body: bytes, at: int) -> tuple[int, int]:
    """Return the begin and the end of the text of an encoded string."""
    if body[at] == 0xD9:
        return at + 2, at + 2 + body[at + 1]
    return at + 1, at + 1 + (body[at] & 0x1F)


def _after_number(body: bytes, at: int) -> int:
    return at + (9 if body[at] == 0xCF else 5)


def packed_body(packed: bytes) -> bytes:
    """Return the body of a message in packed frames."""
    parts = []
    offset = 0
    while offset < len(packed):
        kind, _, size = struct.unpack_from(">BHI", packed, offset)
        if kind == wire.FRAME_BODY:
            parts.append(packed[offset + 7 : offset + 7 + size])
        offset += size + wire.FRAME_OVERHEAD
    return b"".join(parts)
