"""The body of a batch: several lines of devices in one message. Pure.

A batch is a message with the header `owsla_batch`, the number of its lines. Its body is a sequence of MessagePack arrays, one
for each line, with nothing between or behind them:

| element | MessagePack | value                                                     |
|---------|-------------|-----------------------------------------------------------|
| 0       | str         | connection id: a UUID in canonical text form              |
| 1       | integer     | number of the line on its connection, 0 to 2^63-1         |
| 2       | integer     | when the line was read, in milliseconds since the epoch   |
| 3       | str or nil  | device id; nil if the device did not prove an identity    |
| 4       | bin         | bytes of the line, without the delimiter                  |

`decode` reads these types in each of the encodings that MessagePack has for them, as any library may write them, and refuses
all else: https://github.com/msgpack/msgpack/blob/master/spec.md. The gateway writes batches from templates, without a library.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple, NoReturn

HEADER: Final = "owsla_batch"
"""Header of a batch. Its value is the number of lines."""

CONTENT_TYPE: Final = "application/x-msgpack"
"""Value of the property `content_type` of a batch. MessagePack has no registered one; this is the most common."""

_ELEMENTS: Final = 5
_FIX_ARRAY: Final = 0x90 | _ELEMENTS
"""First byte of an array of five elements in its shortest encoding."""
_FIX_STR: Final = range(0xA0, 0xC0)
_NIL: Final = 0xC0
_MOST: Final = 2**63 - 1

_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

_ARRAYS: Final[Mapping[int, struct.Struct]] = {0xDC: _U16, 0xDD: _U32}
_STRINGS: Final[Mapping[int, struct.Struct]] = {0xD9: _U8, 0xDA: _U16, 0xDB: _U32}
_BINARIES: Final[Mapping[int, struct.Struct]] = {0xC4: _U8, 0xC5: _U16, 0xC6: _U32}
"""Encoding of the length by the first byte of a value."""

_INTEGERS: Final[Mapping[int, struct.Struct]] = {
    0xCC: _U8,
    0xCD: _U16,
    0xCE: _U32,
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
"""Encoding of an integer by its first byte."""

_USUAL: Final = struct.Struct(">3s36scIcQ")
"""A line up to its time as the gateway encodes it, with the number in 32 bits and the time in 64: read by one operation."""
_USUAL_HEAD: Final = b"\x95\xd9\x24"
_USUAL_SEQ: Final = b"\xce"
_USUAL_TIME: Final = b"\xcf"

_CONNECTION_ID: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class BatchError(ValueError):
    """Error for a body that is not a batch. Its text has the offset of the byte at fault, and the reason."""


class BatchedLine(NamedTuple):
    """A line of a batch."""

    connection_id: bytes
    """UUID in canonical text form."""
    seq: int
    """Number of the line on its connection."""
    received_ms: int
    """Time at which the gateway read the line, in milliseconds since the epoch."""
    device_id: str | None
    line: bytes


def decode(body: bytes) -> list[BatchedLine]:
    """Return the lines of a batch. Raise `BatchError` if the body is not a batch as a whole.

    A length is compared with the bytes that there are before anything of that length is made. No line takes less than 44 bytes
    of the body, so the result is at most some eight times as large as the body.
    """
    if not body:
        raise BatchError("byte 0: there is no line")
    lines: list[BatchedLine] = []
    checked: set[bytes] = set()
    offset = 0
    try:
        while offset < len(body):
            head = seq_kind = time_kind = b""
            if len(body) - offset >= _USUAL.size:
                head, connection_id, seq_kind, seq, time_kind, received_ms = _USUAL.unpack_from(body, offset)
            if head == _USUAL_HEAD and seq_kind == _USUAL_SEQ and time_kind == _USUAL_TIME and received_ms <= _MOST:
                start = offset + 1
                offset += _USUAL.size
            else:
                start = _array(body, offset)
                connection_id, after = _sized(body, start, _STRINGS, "connection id")
                seq, after = _integer(body, after, "number of the line")
                received_ms, offset = _integer(body, after, "time")
            if connection_id not in checked:
                if _CONNECTION_ID.fullmatch(connection_id) is None:
                    _fail(start, "the connection id is not a UUID in canonical text form")
                checked.add(connection_id)
            device_id: str | None = None
            if body[offset] == _NIL:
                offset += 1
            else:
                raw, after = _sized(body, offset, _STRINGS, "device id")
                device_id = _text(raw, offset)
                offset = after
            line, offset = _sized(body, offset, _BINARIES, "line")
            lines.append(BatchedLine(connection_id, seq, received_ms, device_id, line))
    except (IndexError, struct.error):
        raise BatchError(f"byte {len(body)}: the body ends within a line") from None
    return lines


def _array(body: bytes, offset: int) -> int:
    """Read the beginning of an array of five elements. Return the offset of the first one."""
    first = body[offset]
    after = offset + 1
    if first in _ARRAYS:
        length = _ARRAYS[first]
        count = length.unpack_from(body, after)[0]
        after += length.size
    elif first & 0xF0 == 0x90:
        count = first & 0x0F
    else:
        _fail(offset, f"an array is expected, not {_kind(first)}")
    if count != _ELEMENTS:
        _fail(offset, f"an array of {_ELEMENTS} elements is expected, not of {count}")
    return after


def _sized(body: bytes, offset: int, lengths: Mapping[int, struct.Struct], name: str) -> tuple[bytes, int]:
    """Read a string or a byte array. Return its bytes and the offset of the next value."""
    first = body[offset]
    start = offset + 1
    length = lengths.get(first)
    if length is not None:
        start += length.size
        stop = start + length.unpack_from(body, offset + 1)[0]
    elif first in _FIX_STR and lengths is _STRINGS:
        stop = start + first - _FIX_STR.start
    else:
        expected = "a string" if lengths is _STRINGS else "a byte array"
        _fail(offset, f"the {name} is {_kind(first)}, not {expected}")
    if stop > len(body):
        _fail(offset, f"the {name} of {stop - start} bytes goes past the end of the body")
    return body[start:stop], stop


def _integer(body: bytes, offset: int, name: str) -> tuple[int, int]:
    """Read an integer from 0 to 2^63-1. Return it and the offset of the next value."""
    first = body[offset]
    number = _INTEGERS.get(first)
    if number is not None:
        value = number.unpack_from(body, offset + 1)[0]
        if not 0 <= value <= _MOST:
            _fail(offset, f"the {name} is {value}, outside 0 to 2^63-1")
        return value, offset + 1 + number.size
    if first >= 0x80:
        _fail(offset, f"the {name} is {_kind(first)}, not an integer from 0 to 2^63-1")
    return first, offset + 1


def _text(raw: bytes, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        _fail(offset, "the device id is not UTF-8")


def _kind(first: int) -> str:
    """Return the kind of the value that begins with this byte, for a message."""
    for last, kind in _KINDS:
        if first <= last:
            return kind
    raise AssertionError(first)


_KINDS: Final = (
    (0x7F, "an integer"),
    (0x8F, "a map"),
    (0x9F, "an array"),
    (0xBF, "a string"),
    (0xC0, "nil"),
    (0xC1, "a byte that MessagePack does not use"),
    (0xC3, "a boolean"),
    (0xC6, "a byte array"),
    (0xC9, "an extension"),
    (0xCB, "a floating-point number"),
    (0xD3, "an integer"),
    (0xD8, "an extension"),
    (0xDB, "a string"),
    (0xDD, "an array"),
    (0xDF, "a map"),
    (0xFF, "a negative integer"),
)
"""Kinds of values, each with the highest first byte, in ascending order."""


def _fail(offset: int, reason: str) -> NoReturn:
    raise BatchError(f"byte {offset}: {reason}")
