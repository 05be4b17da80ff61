"""Hypothesis strategies for AMQP values, and their translation to and from the types of pamqp."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)

TIMESTAMPS = st.integers(0, 0xFFFFFFFF).map(Timestamp)
"""Latest second that pamqp reads as seconds: it takes greater numbers for milliseconds."""

DECIMALS = st.builds(
    lambda number, scale: Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale)),
    st.integers(-(1 << 31) + 1, (1 << 31) - 1),
    st.integers(0, 255),
)

SCALARS: st.SearchStrategy[Any] = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=12),
    st.none(),
    TIMESTAMPS,
    DECIMALS,
)

VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)

TABLES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(KEYS, VALUES, max_size=5)

RAW_FIXED = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8, "f": 4, "d": 8, "D": 5, "T": 8, "V": 0}
"""Size in bytes of each type of a fixed size, by its letter."""


def _raw_scalar(letter: str) -> st.SearchStrategy[bytes]:
    size = RAW_FIXED[letter]
    return st.binary(min_size=size, max_size=size).map(lambda raw: letter.encode() + raw)


RAW_VALUES: st.SearchStrategy[bytes] = st.recursive(
    st.one_of(
        *(_raw_scalar(letter) for letter in RAW_FIXED),
        st.binary(max_size=12).map(lambda raw: b"S" + wire.long_string(raw)),
        st.binary(max_size=12).map(lambda raw: b"x" + wire.long_string(raw)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"A" + wire.long_string(b"".join(items))),
        st.lists(st.tuples(st.binary(max_size=6), inner), max_size=3).map(lambda entries: b"F" + raw_table(entries)),
    ),
    max_leaves=6,
)
"""Encoded values of every type, with any bytes in strings."""

RAW_ENTRIES = st.lists(st.tuples(st.binary(max_size=20), RAW_VALUES), max_size=5)


def raw_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Encode a field table without the code under test."""
    inside = b"".join(bytes([len(key)]) + key + value for key, value in entries)
    return struct.pack(">I", len(inside)) + inside


RAW_TABLES = RAW_ENTRIES.map(raw_table)

_RAW_PROPERTY: dict[str, st.SearchStrategy[bytes]] = {
    "shortstr": st.binary(max_size=20).map(lambda raw: bytes([len(raw)]) + raw),
    "octet": st.binary(min_size=1, max_size=1),
    "timestamp": st.binary(min_size=8, max_size=8),
    "table": RAW_TABLES,
}

RAW_PROPERTIES: st.SearchStrategy[dict[str, bytes]] = st.fixed_dictionaries(
    {}, optional={name: _RAW_PROPERTY[kind] for name, (_, kind) in wire.PROPERTIES.items()}
)
"""Encoded properties by name."""


def raw_properties(values: dict[str, bytes]) -> bytes:
    """Encode property flags and values without the code under test."""
    names = list(wire.PROPERTIES)
    flags = sum(1 << (15 - names.index(name)) for name in values)
    return struct.pack(">H", flags) + b"".join(values[name] for name in names if name in values)


@st.composite
def mutated(draw: Callable[[st.SearchStrategy[Any]], Any], valid: st.SearchStrategy[bytes]) -> bytes:
    """Draw valid bytes with a few of them changed, removed, repeated or inserted."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.integers(0, 4))
        if what == 0 and data:
            data[position] = draw(st.integers(0, 255))
        elif what == 1:
            del data[position:]
        elif what == 2:
            data[position:position] = draw(st.binary(max_size=6))
        elif what == 3:
            del data[position : position + draw(st.integers(1, 6))]
        elif data:
            data[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def hostile(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Draw hostile bytes: random, or valid bytes with a few changes."""
    return st.binary(max_size=60) | mutated(valid) | valid


def as_pamqp_reads(value: Any) -> Any:
    """Return the value that pamqp decodes from our encoding of `value`."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Timestamp):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, int):
        return value - (1 << 64) if value >= 1 << 63 else value  # pamqp reads `L` as signed
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, dict):
        return {key: as_pamqp_reads(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_pamqp_reads(item) for item in value]
    return value


def as_pamqp_writes(value: Any) -> Any:
    """Return the value that pamqp has to encode to test decoding; `as_we_read` returns the expected result."""
    if isinstance(value, int) and not isinstance(value, bool | Timestamp):
        return value if value < 1 << 63 else value - (1 << 63)
    if isinstance(value, float):
        return narrow(value)
    if isinstance(value, dict):
        return {key: as_pamqp_writes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_pamqp_writes(item) for item in value]
    if isinstance(value, bytes | Timestamp):
        return as_pamqp_reads(value)
    return value


def as_we_read(value: Any) -> Any:
    """Return the value that has to be decoded from the encoding of `as_pamqp_writes(value)` by pamqp."""
    if isinstance(value, int) and not isinstance(value, bool | Timestamp):
        return as_pamqp_writes(value)
    if isinstance(value, float):
        return narrow(value)
    if isinstance(value, dict):
        return {key: as_we_read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_we_read(item) for item in value]
    return value


def narrow(value: float) -> float:
    """Round a float to 32 bits, which is the size that pamqp encodes."""
    if math.isinf(value) or abs(value) > 3e38:
        return 1.5
    narrowed: float = struct.unpack(">f", struct.pack(">f", value))[0]
    return narrowed


def kinds(value: Any) -> Any:
    """Return a value with the types of all its parts, to compare values that are `==` (True and 1, Timestamp and int)."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    if isinstance(value, Decimal):
        return Decimal, value.as_tuple()
    return type(value), value
