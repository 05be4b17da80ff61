"""The headers of messages from back ends: connection id, number, and requests such as delivery reports. Pure.

Client libraries of different languages choose different field types: a connection id arrives as a long string or byte array; a
number with any width and sign, as a double, a timestamp or decimal text. The results here are exact `int`, `bytes` or `str`
values. A subclass (`wire.Timestamp`) could compare and hash differently.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

from .. import trace_context
from ..amqp import wire
from ..amqp.wire import WireError
from ..letter import BAD, Hop, Trace
from ..trace_context import TRACEPARENT, TRACESTATE
from .message_properties import (
    ASKER_HEADER,
    EXPIRATION_HEADER,
    GROUP_HEADER,
    NOT_RELAYED_HEADERS,
    REDELIVERED_HEADER,
    RETURNED_BY_HEADER,
    RETURNS_HEADER,
)

NOTICE: Final = "owsla_notice"
"""Header of messages between nodes, on the queues of nodes."""

WHO_HAS: Final = "who-has"
"""Notice that asks which node has a device: of the header `device_id`, or of those in the body, a JSON array."""

HAS: Final = "has"
"""Notice that answers it: its body is a JSON array of claims."""

HERE: Final = "here"
"""Notice that a node has devices: its body is a JSON array of claims."""

NODES: Final = "nodes"
"""Notice of the registrar to all nodes: its body is a JSON object with the nodes of the register and their states."""

LOST_NOTICE: Final = "lost"
"""Value of that header: the registrar tells a node that returned that it was announced as lost."""

_U32 = struct.Struct(">I").unpack_from
_I64 = struct.Struct(">q").unpack_from

_NODE = re.compile(r"[0-9a-f]{8}")

_HEADERS: Final = wire.PROPERTIES["headers"][0]
_BEFORE_HEADERS: Final = wire.PROPERTIES["content_type"][0] | wire.PROPERTIES["content_encoding"][0]
_NEEDS_DETAILS: Final = wire.PROPERTIES["reply_to"][0] | wire.PROPERTIES["expiration"][0]

_MOST: Final = 2**63 - 1
"""Greatest number of a message, which is that of the field type `l`."""

_MOST_AS_DOUBLE: Final = 2**53
"""Greatest number read from a double. Above it doubles skip integers, so the intended number is unknown."""


class MessageDetails:
    """Headers and properties of a message beyond connection id and number."""

    __slots__ = (
        "close",
        "correlation_id",
        "device_id",
        "expiration",
        "expires_at",
        "group_id",
        "hop",
        "notice",
        "redelivered",
        "reply_to",
        "selector",
        "trace",
        "user_id",
    )

    def __init__(self, properties: dict[str, bytes], headers: dict[str, Any]) -> None:
        self.close = headers.get("owsla_close") is True
        """True if the connection is to be closed after this message."""
        self.expires_at = _expires_at(headers.get("expires_at"))
        """Time limit for delivery in milliseconds since the epoch; `None`: no limit; `BAD`: not a time."""
        expiration = properties["expiration"][1:] if "expiration" in properties else headers.get(EXPIRATION_HEADER)
        self.expiration = _number(expiration)
        """Time limit for delivery in milliseconds from its arrival here; `None`: no limit."""
        self.reply_to = properties["reply_to"][1:] if "reply_to" in properties else None
        """Queue for the delivery report."""
        self.correlation_id = properties.get("correlation_id")
        """Encoded property, to be copied to the report."""
        self.user_id = properties["user_id"][1:].decode("utf-8", "replace") if "user_id" in properties else None
        """User that published the message, if set. The broker validates this property."""
        self.redelivered = headers.get(REDELIVERED_HEADER) is True
        """True if it was redelivered to the node that forwarded it."""
        notice = headers.get(NOTICE)
        self.notice = notice if isinstance(notice, str) and "connection_id" not in headers else None
        """Notice in a message without a connection id; `None` for messages to devices."""
        self.device_id = _device_id(headers["device_id"]) if "device_id" in headers else None
        """Device id; empty if the header cannot be one. Bytes that are not UTF-8 are surrogate escapes."""
        self.selector = _text(headers["owsla_to"]) if "owsla_to" in headers else None
        """Selector of devices; empty if the header is not text."""
        self.group_id = _text(headers.get(GROUP_HEADER)) or None
        """Id of the copies of a message for many devices."""
        self.hop = _hop(headers)
        """Way of a message to a device between nodes."""
        self.trace = trace_context.read(headers.get(TRACEPARENT), headers.get(TRACESTATE))
        """Trace context."""


def read(header: bytes) -> tuple[bytes | None, int | None, bool]:
    """Read the payload of a content header. Return connection id, number, and whether there is more than in a plain message:
    details, or headers that are not relayed as they are.

    The connection id is `None` if missing, and `b""` if its field type cannot hold one. The number is `None` if missing, and
    `BAD` if it is not a number. A message without a connection id always has more, since it may name a device, or many. Raise
    `WireError` if the headers are not a field table. Written out for speed: it runs for every message.
    """
    try:
        flags = header[12] << 8 | header[13]
        offset = 14
        if flags & _BEFORE_HEADERS:
            if flags & 0x8000:
                offset += 1 + header[offset]
            if flags & 0x4000:
                offset += 1 + header[offset]
        more = bool(flags & _NEEDS_DETAILS)
        if not flags & _HEADERS:
            return None, None, True
        end = offset + 4 + _U32(header, offset)[0]
        if end > len(header):
            raise WireError("a field table is cut off")
        offset += 4
        connection_id: bytes | None = None
        seq: int | None = None
        while offset < end:
            stop = offset + 1 + header[offset]
            key = header[offset + 1 : stop]
            kind = header[stop]
            if kind == 0x53 or kind == 0x78:  # S, x: what nearly all headers are
                offset = stop + 5 + _U32(header, stop + 1)[0]
                if offset > end:
                    raise WireError("a field table's value is cut off")
                if key == b"connection_id":
                    connection_id = header[stop + 5 : offset]
                    continue
            elif kind == 0x6C:  # l
                offset = stop + 9
                if key == b"to_device_seq":
                    seq = _I64(header, stop + 1)[0]
                    if seq < 0:
                        seq = BAD
                    continue
                if key == b"connection_id":
                    connection_id = b""
                    continue
            else:
                offset = wire.skip_value(header, stop)
                if key == b"connection_id":
                    connection_id = b""
                    continue
            if key == b"to_device_seq":
                seq = _seq(header, stop)
            elif key in _DETAIL_HEADERS:
                more = True
        if offset != end:
            raise WireError("a field table's last value goes past its end")
    except (IndexError, struct.error):
        raise WireError("the properties are cut off") from None
    return connection_id, seq, more or connection_id is None


_DETAIL_HEADERS: Final = (
    frozenset({b"expires_at", b"owsla_close", EXPIRATION_HEADER.encode(), NOTICE.encode(), REDELIVERED_HEADER.encode()})
    | NOT_RELAYED_HEADERS
)


_TRACE_HEADERS: Final = (TRACEPARENT.encode(), TRACESTATE.encode())


def details(header: bytes) -> MessageDetails:
    """Read all of the payload of a content header. Raise `WireError` if it is malformed."""
    properties = wire.split_properties(header, 12)
    headers = wire.decode_table(properties["headers"])[0] if "headers" in properties else {}
    return MessageDetails(properties, headers)


def _device_id(value: Any) -> str:
    """Read a device id: a string or byte array. Return an empty text for other values."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _text(value: Any) -> str:
    """Read text. Return an empty one for other values."""
    return value if isinstance(value, str) else ""


def _hop(headers: dict[str, Any]) -> Hop | None:
    asker, returns, returned_by = (headers.get(name) for name in (ASKER_HEADER, RETURNS_HEADER, RETURNED_BY_HEADER))
    if not isinstance(asker, str) or not _NODE.fullmatch(asker):
        return None
    back = returned_by.encode() if isinstance(returned_by, str) and _NODE.fullmatch(returned_by) else None
    return Hop(asker.encode(), min(_number(returns) or 0, _MOST), back)


def trace(header: bytes) -> Trace | None:
    """Read the trace context in the payload of a content header. Return `None` if there is no valid one.

    `read` does not look for it: of most messages nobody wants to know it.
    """
    try:
        properties = wire.split_properties(header, 12)
        found = dict(wire.split_table(properties["headers"])) if "headers" in properties else {}
        traceparent, tracestate = (wire.decode_value(found[key])[0] if key in found else None for key in _TRACE_HEADERS)
    except WireError:
        return None
    return trace_context.read(traceparent, tracestate)


def _seq(header: bytes, offset: int) -> int:
    """Read a message number; `BAD` if the value is not one."""
    number = _number(wire.decode_value(header, offset)[0])
    return BAD if number is None or number > _MOST else number


def _number(value: Any) -> int | None:
    """Read an integer of any type, the seconds of a timestamp, an integral double or decimal text; `None` for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value) if value >= 0 else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and 0 <= value <= _MOST_AS_DOUBLE else None
    if isinstance(value, str | bytes) and len(value) < 20:
        text = value if isinstance(value, bytes) else value.encode()
        if text.isdigit():
            return int(text)
    return None


def _expires_at(value: Any) -> int | None:
    if value is None:
        return None
    moment = int(value) * 1000 if isinstance(value, wire.Timestamp) else _number(value)
    return BAD if moment is None or moment > _MOST else moment
