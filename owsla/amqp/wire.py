"""The AMQP 0-9-1 encodings that have no names: frames, field tables and basic properties.

A frame is

    type(1) channel(2) size(4) payload(size) 0xCE

and a message on the wire is a method frame, a content header frame and as many body frames as it takes:

    header payload = class(2) weight(2) body-size(8) property-flags(2) property-values

The field table's grammar is RabbitMQ's, which differs from the specification's in several type letters:
https://www.rabbitmq.com/amqp-0-9-1-errata.html#section_3.

| letter | value                    | in Python                                      |
|--------|--------------------------|------------------------------------------------|
| `t`    | boolean                  | `bool`                                         |
| `b` `B`| 8 bits, signed, unsigned | `int`                                          |
| `s` `u`| 16 bits                  | `int`                                          |
| `I` `i`| 32 bits                  | `int`                                          |
| `l` `L`| 64 bits                  | `int` (written as `l`, or `L` past its range)  |
| `f` `d`| float, double            | `float` (written as `d`)                       |
| `D`    | decimal                  | `decimal.Decimal`                              |
| `S`    | long string              | `str`; `bytes` where it is not UTF-8           |
| `x`    | byte array               | `bytes` (written as `x`)                       |
| `A`    | array                    | `list`                                         |
| `T`    | timestamp, seconds       | `Timestamp`                                    |
| `F`    | table                    | `dict`                                         |
| `V`    | nothing                  | `None`                                         |
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias

FRAME_METHOD: Final = 1
FRAME_HEADER: Final = 2
FRAME_BODY: Final = 3
FRAME_HEARTBEAT: Final = 8
FRAME_END: Final = 206
FRAME_OVERHEAD: Final = 8
"""Bytes that a frame adds to its payload: type, channel, size, end."""
FRAME_MIN_SIZE: Final = 4096
"""The least `frame_max` that either side may insist on, in bytes (specification, 4.2.3)."""

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

BASIC: Final = 60
"""The class whose messages carry content."""

BARE_HEADER: Final = 12
"""Bytes of a content header before its properties: class, weight and the body's size."""

MAX_DEPTH: Final = 32
"""How deep tables and arrays may nest. The specification sets no bound; a stack does."""

_HEADER = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_I64 = struct.Struct(">q")
_DOUBLE = struct.Struct(">d")

_FIXED: Final[Mapping[int, struct.Struct]] = {
    ord("b"): struct.Struct(">b"),
    ord("B"): _U8,
    ord("s"): struct.Struct(">h"),
    ord("u"): _U16,
    ord("I"): struct.Struct(">i"),
    ord("i"): _U32,
    ord("l"): _I64,
    ord("L"): _U64,
    ord("f"): struct.Struct(">f"),
    ord("d"): _DOUBLE,
}


class WireError(ValueError):
    """Bytes that are not AMQP, or a value that AMQP cannot carry."""


class Timestamp(int):
    """Seconds since the epoch, so that they are written as a timestamp and not as a number."""

    __slots__ = ()


Value: TypeAlias = Any
"""A value of a field table; the module's docstring says which Python types those are."""


# -- strings ---------------------------------------------------------------------------------------------------------------


def _bytes(value: str | bytes) -> bytes:
    """Text as it is written; odd bytes that were read as surrogate escapes are written as they were."""
    if isinstance(value, bytes):
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError("a string holds what cannot be written as UTF-8") from None


def short_string(value: str | bytes) -> bytes:
    """Encode a short string: one length byte, then at most 255 bytes; `WireError` for a longer one."""
    raw = _bytes(value)
    if len(raw) > 255:
        raise WireError(f"a short string holds at most 255 bytes, not {len(raw)}")
    return _U8.pack(len(raw)) + raw


def long_string(value: str | bytes) -> bytes:
    """Encode a long string: four length bytes, then the bytes."""
    raw = _bytes(value)
    return _U32.pack(len(raw)) + raw


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def read_short_string(data: bytes, offset: int) -> tuple[bytes, int]:
    """Read a short string: its bytes, and where the next field begins."""
    if offset >= len(data):
        raise WireError("a short string is cut off")
    end = offset + 1 + data[offset]
    if end > len(data):
        raise WireError("a short string is cut off")
    return data[offset + 1 : end], end


def read_long_string(data: bytes, offset: int) -> tuple[bytes, int]:
    """Read a long string: its bytes, and where the next field begins."""
    if offset + 4 > len(data):
        raise WireError("a long string is cut off")
    end = offset + 4 + _U32.unpack_from(data, offset)[0]
    if end > len(data):
        raise WireError("a long string is cut off")
    return data[offset + 4 : end], end


# -- field tables ----------------------------------------------------------------------------------------------------------


def encode_table(table: Mapping[str | bytes, Value] | Mapping[str, Value]) -> bytes:
    """Encode a field table, its four length bytes included."""
    return _encode_table(table, 0)


def _encode_table(table: Mapping[Any, Value], depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise WireError(f"tables nest at most {MAX_DEPTH} deep")
    return long_string(b"".join(short_string(key) + _encode_value(value, depth) for key, value in table.items()))


def encode_value(value: Value) -> bytes:
    """Encode one value of a field table: its type letter, then its bytes."""
    return _encode_value(value, 0)


def _encode_value(value: Value, depth: int) -> bytes:
    if isinstance(value, str):
        return b"S" + long_string(value)
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, Timestamp):
        return b"T" + _pack(_U64, value)
    if isinstance(value, int):
        return b"l" + _I64.pack(value) if -(1 << 63) <= value < 1 << 63 else b"L" + _pack(_U64, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return b"x" + long_string(bytes(value))
    if value is None:
        return b"V"
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value, depth + 1)
    if isinstance(value, Sequence):
        if depth >= MAX_DEPTH:
            raise WireError(f"arrays nest at most {MAX_DEPTH} deep")
        return b"A" + long_string(b"".join(_encode_value(item, depth + 1) for item in value))
    if isinstance(value, Decimal):
        return b"D" + _encode_decimal(value)
    raise WireError(f"AMQP has no type for a {type(value).__name__}")


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise WireError(f"AMQP has no {value}")
    number = int("".join(map(str, digits)) or "0")
    if exponent > 0:
        number, exponent = number * 10**exponent, 0
    if -exponent > 255 or number >= (1 << 31) + sign:
        raise WireError(f"{value} does not fit AMQP's decimal")
    return _U8.pack(-exponent) + struct.pack(">i", -number if sign else number)


def _pack(form: struct.Struct, value: int) -> bytes:
    try:
        return form.pack(value)
    except struct.error as error:
        raise WireError(f"{value} does not fit: {error}") from None


def decode_table(data: bytes, offset: int = 0) -> tuple[dict[str, Value], int]:
    """Read a field table (its length bytes first): the table, and the offset of what follows it.

    A key that is not UTF-8 keeps its odd bytes as surrogate escapes. A key that comes twice has its last value.
    """
    return _decode_table(data, offset, 0)


def _decode_table(data: bytes, offset: int, depth: int) -> tuple[dict[str, Value], int]:
    table: dict[str, Value] = {}
    start, end = _extent(data, offset, depth)
    while start < end:
        key, start = read_short_string(data, start)
        table[key.decode("utf-8", "surrogateescape")], start = _decode_value(data, start, end, depth)
    if start != end:
        raise WireError("a field table's last value goes past its end")
    return table, end


def _extent(data: bytes, offset: int, depth: int) -> tuple[int, int]:
    """Where the inside of a table or an array begins and ends."""
    if depth > MAX_DEPTH:
        raise WireError(f"tables and arrays nest more than {MAX_DEPTH} deep")
    if offset + 4 > len(data):
        raise WireError("a field table is cut off")
    start = offset + 4
    end = start + _U32.unpack_from(data, offset)[0]
    if end > len(data):
        raise WireError("a field table is cut off")
    return start, end


def decode_value(data: bytes, offset: int = 0) -> tuple[Value, int]:
    """Read one value of a field table (its type letter first): the value, and the offset of what follows it."""
    return _decode_value(data, offset, len(data), 0)


def _decode_value(data: bytes, offset: int, limit: int, depth: int) -> tuple[Value, int]:
    if offset >= limit:
        raise WireError("a field table's value is missing")
    kind = data[offset]
    offset += 1
    if kind == 0x53:  # S
        raw, offset = read_long_string(data, offset)
        return _text(raw), offset
    form = _FIXED.get(kind)
    if form is not None:
        end = offset + form.size
        if end > limit:
            raise WireError("a number is cut off")
        return form.unpack_from(data, offset)[0], end
    if kind == 0x74:  # t
        if offset >= limit:
            raise WireError("a boolean is cut off")
        return data[offset] != 0, offset + 1
    if kind == 0x78:  # x
        return read_long_string(data, offset)
    if kind == 0x54:  # T
        if offset + 8 > limit:
            raise WireError("a timestamp is cut off")
        return Timestamp(_U64.unpack_from(data, offset)[0]), offset + 8
    if kind == 0x46:  # F
        return _decode_table(data, offset, depth + 1)
    if kind == 0x41:  # A
        items: list[Value] = []
        offset, end = _extent(data, offset, depth + 1)
        while offset < end:
            item, offset = _decode_value(data, offset, end, depth + 1)
            items.append(item)
        if offset != end:
            raise WireError("an array's last value goes past its end")
        return items, end
    if kind == 0x56:  # V
        return None, offset
    if kind == 0x44:  # D
        if offset + 5 > limit:
            raise WireError("a decimal is cut off")
        number: int = struct.unpack_from(">i", data, offset + 1)[0]
        digits = tuple(map(int, str(abs(number))))
        return Decimal((int(number < 0), digits, -data[offset])), offset + 5
    raise WireError(f"a field table has a value of the unknown type {chr(kind)!r}")


def skip_value(data: bytes, offset: int) -> int:
    """Where the value that begins at `offset` (with its type letter) ends. Nothing is decoded."""
    if offset >= len(data):
        raise WireError("a field table's value is missing")
    kind = data[offset]
    if kind in b"SxFA":
        if offset + 5 > len(data):
            raise WireError("a field table's value is cut off")
        end = offset + 5 + int(_U32.unpack_from(data, offset + 1)[0])
    elif kind in _FIXED:
        end = offset + 1 + _FIXED[kind].size
    elif kind == 0x56:  # V
        end = offset + 1
    elif kind == 0x74:  # t
        end = offset + 2
    elif kind == 0x54:  # T
        end = offset + 9
    elif kind == 0x44:  # D
        end = offset + 6
    else:
        raise WireError(f"a field table has a value of the unknown type {chr(kind)!r}")
    if end > len(data):
        raise WireError("a field table's value is cut off")
    return end


def split_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an encoded table (length bytes first) into (key, type letter and value), each as it stands on the wire.

    What is split and joined again keeps every type and every odd byte, which decoding and encoding does not.
    """
    entries: list[tuple[bytes, bytes]] = []
    offset, end = _extent(data, 0, 0)
    while offset < end:
        key, offset = read_short_string(data, offset)
        stop = skip_value(data, offset)
        entries.append((key, data[offset:stop]))
        offset = stop
    if offset != end:
        raise WireError("a field table's last value goes past its end")
    return entries


def join_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The inverse of `split_table`."""
    return long_string(b"".join(short_string(key) + value for key, value in entries))


# -- basic properties ------------------------------------------------------------------------------------------------------

PROPERTIES: Final[Mapping[str, tuple[int, str]]] = {
    name: (1 << (15 - index), kind)
    for index, (name, kind) in enumerate(
        [
            ("content_type", "shortstr"),
            ("content_encoding", "shortstr"),
            ("headers", "table"),
            ("delivery_mode", "octet"),
            ("priority", "octet"),
            ("correlation_id", "shortstr"),
            ("reply_to", "shortstr"),
            ("expiration", "shortstr"),
            ("message_id", "shortstr"),
            ("timestamp", "timestamp"),
            ("type", "shortstr"),
            ("user_id", "shortstr"),
            ("app_id", "shortstr"),
            ("cluster_id", "shortstr"),
        ]
    )
}
"""Basic properties in the order of the wire: name, to (its flag, its type)."""

_PROPERTY_FLAGS = sum(flag for flag, _ in PROPERTIES.values())


def split_properties(data: bytes, offset: int = 0) -> dict[str, bytes]:
    """Split property flags and values into name, to the value's bytes as they stand on the wire."""
    if offset + 2 > len(data):
        raise WireError("the property flags are cut off")
    flags = _U16.unpack_from(data, offset)[0]
    if flags & ~_PROPERTY_FLAGS:
        raise WireError(f"unknown property flags: {flags:#06x}")
    offset += 2
    values: dict[str, bytes] = {}
    for name, (flag, kind) in PROPERTIES.items():
        if not flags & flag:
            continue
        if kind == "shortstr":
            end = read_short_string(data, offset)[1]
        elif kind == "octet":
            end = offset + 1
        elif kind == "timestamp":
            end = offset + 8
        else:
            end = _extent(data, offset, 0)[1]
        if end > len(data):
            raise WireError(f"the property {name} is cut off")
        values[name] = data[offset:end]
        offset = end
    if offset != len(data):
        raise WireError("something follows the last property")
    return values


def join_properties(values: Mapping[str, bytes]) -> bytes:
    """The inverse of `split_properties`: flags, then values in the order of the wire."""
    flags = 0
    parts = [b""]
    for name, (flag, _) in PROPERTIES.items():
        raw = values.get(name)
        if raw is not None:
            flags |= flag
            parts.append(raw)
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Encode basic properties: two flag bytes, then the values. Names are those of `PROPERTIES`; `None` is left out."""
    values: dict[str, bytes] = {}
    for name, value in properties.items():
        try:
            kind = PROPERTIES[name][1]
        except KeyError:
            raise WireError(f"there is no property {name!r}") from None
        if value is not None:
            values[name] = encode_field(kind, value)
    return join_properties(values)


def decode_properties(data: bytes, offset: int = 0) -> dict[str, Any]:
    """Decode basic properties, from the flags on: name, to value. Strings are `str`, or `bytes` where not UTF-8."""
    return {name: _decode_property(name, raw) for name, raw in split_properties(data, offset).items()}


def _decode_property(name: str, raw: bytes) -> Any:
    kind = PROPERTIES[name][1]
    if kind == "shortstr":
        return _text(raw[1:])
    if kind == "octet":
        return raw[0]
    if kind == "timestamp":
        return Timestamp(_U64.unpack(raw)[0])
    return decode_table(raw)[0]


def encode_field(kind: str, value: Any) -> bytes:
    """Encode a value of one of the specification's own types (all but `bit`, which share a byte)."""
    if kind == "shortstr":
        return short_string(value)
    if kind == "longstr":
        return long_string(value)
    if kind == "table":
        return encode_table(value)
    return _pack(NUMBERS[kind], value)


NUMBERS: Final[Mapping[str, struct.Struct]] = {"octet": _U8, "short": _U16, "long": _U32, "longlong": _U64, "timestamp": _U64}
"""The specification's numbers, by the names of their types."""


# -- frames ----------------------------------------------------------------------------------------------------------------


def frame(frame_type: int, channel: int, payload: bytes) -> bytes:
    """Put a payload into a frame."""
    return _HEADER.pack(frame_type, channel, len(payload)) + payload + b"\xce"


def header_payload(body_size: int, properties: bytes) -> bytes:
    """The payload of a content header frame: class 60, weight 0, the body's size in bytes, property flags and values."""
    return _CONTENT.pack(BASIC, 0, body_size) + properties


def read_header_payload(payload: bytes) -> tuple[int, int]:
    """A content header's class and body size in bytes. Its properties begin at offset 12."""
    if len(payload) < 14:
        raise WireError("a content header is cut off")
    class_id, weight, size = _CONTENT.unpack_from(payload)
    if weight:
        raise WireError(f"a content header has the weight {weight}")
    return class_id, size


def content_frames(channel: int, header: bytes, body: bytes, frame_max: int) -> bytes:
    """A content header's frame and the body's, each at most `frame_max` bytes with its overhead. An empty body has none."""
    room = frame_max - FRAME_OVERHEAD
    if len(body) <= room:
        if not body:
            return frame(FRAME_HEADER, channel, header)
        return frame(FRAME_HEADER, channel, header) + frame(FRAME_BODY, channel, body)
    parts = [frame(FRAME_HEADER, channel, header)]
    parts.extend(frame(FRAME_BODY, channel, body[start : start + room]) for start in range(0, len(body), room))
    return b"".join(parts)
