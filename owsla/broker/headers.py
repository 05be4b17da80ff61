"""What a message from a back end says about itself: which connection it is for, its number, and what else was asked for. Pure.

Back ends are written in many languages, and their clients choose field types as they like: a connection id comes as a long
string or as a byte array, a number with any width and sign, as a double, a timestamp or decimal text. What leaves this module
is an exact `int`, `bytes` or `str`: a subclass (`wire.Timestamp`) may behave differently where it is compared or looked up.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from ..amqp import wire
from ..amqp.wire import WireError
from ..letter import BAD
from .message_properties import EXPIRATION_HEADER, REDELIVERED_HEADER

NOTICE: Final = "owsla_notice"
"""The header of messages between nodes, on their own queues."""

LOST_NOTICE: Final = "lost"
"""Value of that header with which the registrar tells a node that came back that it was announced as lost."""

_U32 = struct.Struct(">I").unpack_from
_I64 = struct.Struct(">q").unpack_from

_HEADERS: Final = wire.PROPERTIES["headers"][0]
_BEFORE_HEADERS: Final = wire.PROPERTIES["content_type"][0] | wire.PROPERTIES["content_encoding"][0]
_NEEDS_A_LOOK: Final = wire.PROPERTIES["reply_to"][0] | wire.PROPERTIES["expiration"][0]

_MOST: Final = 2**63 - 1
"""The greatest number of a message: what a field of AMQP's type `l` holds. Nobody counts further from 0."""

_MOST_AS_DOUBLE: Final = 2**53
"""The greatest number read from a double. Doubles above it skip whole numbers, so the one that was meant is not known."""


class Address:
    """What a delivery's headers say. Made for those that say more than a connection and a number."""

    __slots__ = ("close", "correlation_id", "expiration", "expires_at", "notice", "redelivered", "reply_to", "user_id")

    def __init__(self, properties: dict[str, bytes], headers: dict[str, Any]) -> None:
        self.close = headers.get("owsla_close") is True
        """Close the connection after this line."""
        self.expires_at = _expires_at(headers.get("expires_at"))
        """Milliseconds since the epoch past which it is not to be sent; `None`: no such moment; `BAD`: no moment at all."""
        expiration = properties["expiration"][1:] if "expiration" in properties else headers.get(EXPIRATION_HEADER)
        self.expiration = _number(expiration)
        """Milliseconds that it may still wait, counted from its arrival here; `None`: no bound."""
        self.reply_to = properties["reply_to"][1:] if "reply_to" in properties else None
        """Where a delivery report is to go."""
        self.correlation_id = properties.get("correlation_id")
        """As it stands on the wire, to be copied to the report."""
        self.user_id = properties["user_id"][1:].decode("utf-8", "replace") if "user_id" in properties else None
        """Who has published it, where that is said: the broker has made sure of it."""
        self.redelivered = headers.get(REDELIVERED_HEADER) is True
        """Whether the node that forwarded it had it delivered more than once."""
        notice = headers.get(NOTICE)
        self.notice = notice if isinstance(notice, str) and "connection_id" not in headers else None
        """What one node says to another, or to itself, in a message that is for no connection."""


def read(header: bytes) -> tuple[bytes | None, int | None, bool]:
    """Read a content header's payload: (connection id, number, whether `details` has more).

    The connection id is `None` where there is none, and `b""` where the header is of a type that cannot hold one; the number is
    `None` where there is none, and `BAD` where it is not a number. `WireError` where the headers are not a field table.
    """
    try:
        flags = header[12] << 8 | header[13]
        offset = 14
        if flags & _BEFORE_HEADERS:
            if flags & 0x8000:
                offset += 1 + header[offset]
            if flags & 0x4000:
                offset += 1 + header[offset]
        more = bool(flags & _NEEDS_A_LOOK)
        if not flags & _HEADERS:
            return None, None, more
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
            elif key in _NOTED:
                more = True
        if offset != end:
            raise WireError("a field table's last value goes past its end")
    except (IndexError, struct.error):
        raise WireError("the properties are cut off") from None
    return connection_id, seq, more


_NOTED: Final = frozenset(
    {b"expires_at", b"owsla_close", EXPIRATION_HEADER.encode(), NOTICE.encode(), REDELIVERED_HEADER.encode()}
)


def details(header: bytes) -> Address:
    """Read the rest of what a content header's payload says. `WireError` where it cannot be read."""
    properties = wire.split_properties(header, 12)
    headers = wire.decode_table(properties["headers"])[0] if "headers" in properties else {}
    return Address(properties, headers)


def _seq(header: bytes, offset: int) -> int:
    """Read a message's number; `BAD` where it is none."""
    number = _number(wire.decode_value(header, offset)[0])
    return BAD if number is None or number > _MOST else number


def _number(value: Any) -> int | None:
    """Read a number of any integer type, a timestamp's seconds, a whole double or decimal text; `None` where it is none."""
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
