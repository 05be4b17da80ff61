"""AMQP 0-9-1 encodings below the level of methods: frames, field tables and basic properties.

A frame is

    type(1) channel(2) size(4) payload(size) 0xCE

and a message is a method frame, a content header frame and as many body frames as its body needs:

    header payload = class(2) weight(2) body-size(8) property-flags(2) property-values

Field tables follow the grammar of RabbitMQ, which differs from the specification in several type letters:
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
| `V`    | void (no value)          | `None`                                         |
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
"""Number of bytes that a frame adds to its payload: type, channel, size, end."""
FRAME_MIN_SIZE: Final = 4096
"""Lowest `frame_max` that either side may insist on, in bytes (specification, 4.2.3)."""

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

BASIC: Final = 60
"""Number of the class `basic`, whose methods carry content."""

BARE_HEADER: Final = 12
"""Number of bytes of a content header before its properties: class, weight and body size."""

MAX_DEPTH: Final = 32
"""Nesting limit of tables and arrays. The specification sets none, but each level takes a frame of the Python stack."""

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
    """Error for bytes that are not valid AMQP, and for values that AMQP cannot represent."""


class Timestamp(int):
    """Seconds since the epoch, as a type of its own so that it is encoded as a timestamp and not as an integer."""

    __slots__ = ()


Value: TypeAlias = Any
"""Value of a field table; the docstring of this module lists the Python types."""


# -- strings ---------------------------------------------------------------------------------------------------------------


def _bytes(value: str | bytes) -> bytes:
    """Encode text as UTF-8, and surrogate escapes as the bytes that they were decoded from."""
    if isinstance(value, bytes):
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError("a string cannot be encoded as UTF-8") from None


def short_string(value: str | bytes) -> bytes:
    """Encode a short string: one length byte, then at most 255 bytes. Raise `WireError` if it is longer."""
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
    """Read a short string and return its bytes and the offset of the next field."""
    if offset >= len(data):
        raise WireError("a short string is truncated")
    end = offset + 1 + data[offset]
    if end > len(data):
        raise WireError("a short string is truncated")
    return data[offset + 1 : end], end


def read_long_string(data: bytes, offset: int) -> tuple[bytes, int]:
    """Read a long string and return its bytes and the offset of the next field."""
    if offset + 4 > len(data):
        raise WireError("a long string is truncated")
    end = offset + 4 + _U32.unpack_from(data, offset)[0]
    if end > len(data):
        raise WireError("a long string is truncated")
    return data[offset + 4 : end], end


# -- field tables ----------------------------------------------------------------------------------------------------------


def encode_table(table: Mapping[str | bytes, Value] | Mapping[str, Value]) -> bytes:
    """Encode a field table with its four length bytes."""
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
    raise WireError(f"AMQP has no type for {type(value).__name__}")


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise WireError(f"AMQP cannot represent {value}")
    number = int("".join(map(str, digits)) or "0")
    if exponent > 0:
        number, exponent = number * 10**exponent, 0
    if -exponent > 255 or number >= (1 << 31) + sign:
        raise WireError(f"{value} does not fit an AMQP decimal")
    return _U8.pack(-exponent) + struct.pack(">i", -number if sign else number)


def _pack(form: struct.Struct, value: int) -> bytes:
    try:
        return form.pack(value)
    except struct.error as error:
        raise WireError(f"{value} does not fit: {error}") from None


def decode_table(data: bytes, offset: int = 0) -> tuple[dict[str, Value], int]:
    """Decode a field table (from its length bytes on) and return it with the offset of the next byte.

    Bytes of a key that are not UTF-8 become surrogate escapes. Of a repeated key the last value counts.
    """
    return _decode_table(data, offset, 0)


def _decode_table(data: bytes, offset: int, depth: int) -> tuple[dict[str, Value], int]:
    table: dict[str, Value] = {}
    start, end = _extent(data, offset, depth)
    while start < end:
        key, start = read_short_string(data, start)
        table[key.decode("utf-8", "surrogateescape")], start = _decode_value(data, start, end, depth)
    if start != end:
        raise WireError("the last value of a field table goes past its end")
    return table, end


def _extent(data: bytes, offset: int, depth: int) -> tuple[int, int]:
    """Return the offsets of the first byte inside a table or an array, and of the first byte after it."""
    if depth > MAX_DEPTH:
        raise WireError(f"tables and arrays nest more than {MAX_DEPTH} deep")
    if offset + 4 > len(data):
        raise WireError("a field table is truncated")
    start = offset + 4
    end = start + _U32.unpack_from(data, offset)[0]
    if end > len(data):
        raise WireError("a field table is truncated")
    return start, end


def decode_value(data: bytes, offset: int = 0) -> tuple[Value, int]:
    """Decode one value of a field table (from its type letter on) and return it with the offset of the next byte."""
    return _decode_value(data, offset, len(data), 0)


def _decode_value(data: bytes, offset: int, limit: int, depth: int) -> tuple[Value, int]:
    if offset >= limit:
        raise WireError("a value of a field table is missing")
    kind = data[offset]
    offset += 1
    if kind == 0x53:  # S
        raw, offset = read_long_string(data, offset)
        return _text(raw), offset
    form = _FIXED.get(kind)
    if form is not None:
        end = offset + form.size
        if end > limit:
            raise WireError("a number is truncated")
        return form.unpack_from(data, offset)[0], end
    if kind == 0x74:  # t
        if offset >= limit:
            raise WireError("a boolean is truncated")
        return data[offset] != 0, offset + 1
    if kind == 0x78:  # x
        return read_long_string(data, offset)
    if kind == 0x54:  # T
        if offset + 8 > limit:
            raise WireError("a timestamp is truncated")
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
            raise WireError("the last value of an array goes past its end")
        return items, end
    if kind == 0x56:  # V
        return None, offset
    if kind == 0x44:  # D
        if offset + 5 > limit:
            raise WireError("a decimal is truncated")
        number: int = struct.unpack_from(">i", data, offset + 1)[0]
        digits = tuple(map(int, str(abs(number))))
        return Decimal((int(number < 0), digits, -data[offset])), offset + 5
    raise WireError(f"unknown type of a field table value: {chr(kind)!r}")


def skip_value(data: bytes, offset: int) -> int:
    """Return the offset of the first byte after the value at `offset` (its type letter first), without decoding it."""
    if offset >= len(data):
        raise WireError("a value of a field table is missing")
    kind = data[offset]
    if kind in b"SxFA":  # the types with four length bytes
        if offset + 5 > len(data):
            raise WireError("a value of a field table is truncated")
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
        raise WireError(f"unknown type of a field table value: {chr(kind)!r}")
    if end > len(data):
        raise WireError("a value of a field table is truncated")
    return end


def split_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an encoded table (length bytes first) into pairs of raw key and raw value with its type letter.

    Splitting and joining keeps every type and every byte. Decoding and encoding does not: it loses the width of integers.
    """
    entries: list[tuple[bytes, bytes]] = []
    offset, end = _extent(data, 0, 0)
    while offset < end:
        key, offset = read_short_string(data, offset)
        stop = skip_value(data, offset)
        entries.append((key, data[offset:stop]))
        offset = stop
    if offset != end:
        raise WireError("the last value of a field table goes past its end")
    return entries


def join_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Join raw entries to an encoded table: the inverse of `split_table`."""
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
"""Flag and type of each basic property by its name, in the order of the encoding."""

KNOWN_PROPERTIES: Final = sum(flag for flag, _ in PROPERTIES.values())
"""Flags of all basic properties."""


def split_properties(data: bytes, offset: int = 0) -> dict[str, bytes]:
    """Split property flags and values into the raw value of each property by its name."""
    if offset + 2 > len(data):
        raise WireError("the property flags are truncated")
    flags = _U16.unpack_from(data, offset)[0]
    if flags & ~KNOWN_PROPERTIES:
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
            raise WireError(f"the property {name} is truncated")
        values[name] = data[offset:end]
        offset = end
    if offset != len(data):
        raise WireError("unexpected bytes after the last property")
    return values


def join_properties(values: Mapping[str, bytes]) -> bytes:
    """Join raw values to property flags and values: the inverse of `split_properties`."""
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
    """Encode basic properties: two flag bytes, then the values. Names are the keys of `PROPERTIES`; `None` is left out."""
    values: dict[str, bytes] = {}
    for name, value in properties.items():
        try:
            kind = PROPERTIES[name][1]
        except KeyError:
            raise WireError(f"unknown property {name!r}") from None
        if value is not None:
            values[name] = encode_field(kind, value)
    return join_properties(values)


def decode_properties(data: bytes, offset: int = 0) -> dict[str, Any]:
    """Decode basic properties, from the flags on, into values by name. Strings are `str`, or `bytes` if not UTF-8."""
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
    """Encode a value of a type of the specification, except `bit`: several bits share a byte."""
    if kind == "shortstr":
        return short_string(value)
    if kind == "longstr":
        return long_string(value)
    if kind == "table":
        return encode_table(value)
    return _pack(NUMBERS[kind], value)


NUMBERS: Final[Mapping[str, struct.Struct]] = {"octet": _U8, "short": _U16, "long": _U32, "longlong": _U64, "timestamp": _U64}
"""Encodings of the numeric types of the specification, by the names of the types."""


# -- frames ----------------------------------------------------------------------------------------------------------------


def frame(frame_type: int, channel: int, payload: bytes) -> bytes:
    """Wrap a payload in a frame."""
    return _HEADER.pack(frame_type, channel, len(payload)) + payload + b"\xce"


def header_payload(body_size: int, properties: bytes) -> bytes:
    """Build the payload of a content header frame: class 60, weight 0, body size in bytes, property flags and values."""
    return _CONTENT.pack(BASIC, 0, body_size) + properties


def read_header_payload(payload: bytes) -> tuple[int, int]:
    """Read the class and the body size in bytes of a content header. Its properties begin at `BARE_HEADER`."""
    # 14 bytes: the fixed fields, and two bytes of property flags.
    if len(payload) < 14:
        raise WireError("a content header is truncated")
    class_id, weight, size = _CONTENT.unpack_from(payload)
    if weight:
        raise WireError(f"a content header has the weight {weight}")
    return class_id, size


def content_frames(channel: int, header: bytes, body: bytes, frame_max: int) -> bytes:
    """Build the frames of a content header and a body, each at most `frame_max` bytes long. An empty body has no frame."""
    room = frame_max - FRAME_OVERHEAD
    if len(body) <= room:
        if not body:
            return frame(FRAME_HEADER, channel, header)
        return frame(FRAME_HEADER, channel, header) + frame(FRAME_BODY, channel, body)
    parts = [frame(FRAME_HEADER, channel, header)]
    parts.extend(frame(FRAME_BODY, channel, body[start : start + room]) for start in range(0, len(body), room))
    return b"".join(parts)
