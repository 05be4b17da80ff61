"""Encoding of frames, field tables and properties, compared with pamqp as an independent codec."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, decode, encode
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp, WireError

from .values import (
    KEYS,
    RAW_ENTRIES,
    RAW_PROPERTIES,
    RAW_TABLES,
    RAW_VALUES,
    TABLES,
    TEXT,
    TIMESTAMPS,
    VALUES,
    as_pamqp_reads,
    as_pamqp_writes,
    as_we_read,
    hostile,
    kinds,
    raw_properties,
    raw_table,
)

PAMQP_NAMES = {"type": "message_type"}

PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        name: {"table": TABLES, "octet": st.integers(0, 255), "timestamp": TIMESTAMPS}.get(kind, TEXT)
        for name, (_, kind) in wire.PROPERTIES.items()
    },
)

# An encoded value of each type, and its decoded value.
LETTERS: list[tuple[bytes, Any]] = [
    (b"t\x00", False),
    (b"t\x01", True),
    (b"t\x07", True),
    (b"b\x80", -128),
    (b"B\xff", 255),
    (b"s\x80\x00", -(1 << 15)),
    (b"u\xff\xff", (1 << 16) - 1),
    (b"I\x80\x00\x00\x00", -(1 << 31)),
    (b"i\xff\xff\xff\xff", (1 << 32) - 1),
    (b"l\x80" + b"\x00" * 7, -(1 << 63)),
    (b"L" + b"\xff" * 8, (1 << 64) - 1),
    (b"f\x3f\xc0\x00\x00", 1.5),
    (b"d\xbf\xf8" + b"\x00" * 6, -1.5),
    (b"D\x02\xff\xff\xff\xff", Decimal("-0.01")),
    (b"D\x00\x00\x00\x00\x07", Decimal(7)),
    (b"S\x00\x00\x00\x02\xc3\xa9", "é"),
    (b"S\x00\x00\x00\x01\xff", b"\xff"),
    (b"x\x00\x00\x00\x01a", b"a"),
    (b"A\x00\x00\x00\x03Vt\x01", [None, True]),
    (b"T" + struct.pack(">Q", 1_700_000_000), Timestamp(1_700_000_000)),
    (b"F\x00\x00\x00\x03\x01aV", {"a": None}),
    (b"V", None),
]


class ValueTests(SynchronousTestCase):
    def test_every_letter(self) -> None:
        """Each type of the RabbitMQ grammar is decoded to the Python type that the module documents."""
        for raw, value in LETTERS:
            got, end = wire.decode_value(raw + b"rest")
            self.assertEqual(kinds(got), kinds(value), raw)
            self.assertEqual(end, len(raw), raw)
            self.assertEqual(wire.skip_value(raw + b"rest", 0), len(raw), raw)

    def test_every_letter_is_what_pamqp_reads(self) -> None:
        """pamqp decodes the same values (it reads `L` as signed)."""
        for raw, value in LETTERS:
            _, theirs = decode.embedded_value(raw)
            self.assertEqual(theirs, value if isinstance(value, Decimal) else as_pamqp_reads(value), raw)

    def test_unknown_letters(self) -> None:
        """An unknown type letter raises `WireError`, wherever a value is read."""
        known = {raw[0] for raw, _ in LETTERS}
        for letter in set(range(256)) - known:
            raw = bytes([letter]) + b"\0" * 20
            for read in (wire.decode_value, lambda data: wire.skip_value(data, 0)):
                with self.assertRaises(WireError):
                    read(raw)

    def test_numbers_are_written_as_the_contract_says(self) -> None:
        """Integers are encoded as `l`, or as `L` past its range; an integer that fits neither raises `WireError`."""
        self.assertEqual(wire.encode_value(0), b"l" + bytes(8))
        self.assertEqual(wire.encode_value((1 << 63) - 1)[:1], b"l")
        self.assertEqual(wire.encode_value(1 << 63), b"L\x80" + bytes(7))
        for number in (1 << 64, -(1 << 63) - 1):
            with self.assertRaises(WireError):
                wire.encode_value(number)
        for seconds in (Timestamp(-1), Timestamp(1 << 64)):
            with self.assertRaises(WireError):
                wire.encode_value(seconds)

    def test_byte_arrays(self) -> None:
        """`bytes`, `bytearray` and `memoryview` are encoded as a byte array."""
        for value in (b"a", bytearray(b"a"), memoryview(b"a")):
            self.assertEqual(wire.encode_value(value), b"x\x00\x00\x00\x01a")

    def test_decimals_that_do_not_fit(self) -> None:
        """A decimal with too many digits or places, or that is not a number, raises `WireError`; an exponent is expanded."""
        self.assertEqual(wire.decode_value(wire.encode_value(Decimal("12E2")))[0], Decimal(1200))
        for text in ("2147483648", "1E-256", "NaN", "Infinity", "-2147483649"):
            with self.assertRaises(WireError):
                wire.encode_value(Decimal(text))

    def test_the_lowest_decimal(self) -> None:
        """The lowest number that an AMQP decimal holds is encoded as it was decoded."""
        lowest = b"D\x00\x80\x00\x00\x00"
        self.assertEqual(wire.encode_value(wire.decode_value(lowest)[0]), lowest)

    def test_values_without_a_type(self) -> None:
        """A Python value that AMQP has no type for raises `WireError`."""
        for value in (object(), {1, 2}, 1j):
            with self.assertRaises(WireError):
                wire.encode_value(value)

    def test_text_that_is_no_text(self) -> None:
        """A string with a lone surrogate raises `WireError`."""
        for encode_it in (wire.encode_value, wire.short_string, wire.long_string, lambda text: wire.encode_table({text: 1})):
            with self.assertRaises(WireError):
                encode_it("\ud800")

    def test_nesting_is_bounded(self) -> None:
        """Tables and arrays nest 32 deep and no deeper, in both directions, so that no message can exhaust the stack."""
        for wrap, letter in ((lambda inner: [inner], b"A"), (lambda inner: {"k": inner}, b"F")):
            value: Any = None
            raw = b"V"
            for depth in range(1, 40):
                value = wrap(value)
                raw = letter + wire.long_string((b"\x01k" if letter == b"F" else b"") + raw)
                if depth <= wire.MAX_DEPTH:
                    self.assertEqual(wire.encode_value(value), raw)
                    self.assertEqual(wire.decode_value(raw), (value, len(raw)))
                else:
                    with self.assertRaises(WireError):
                        wire.encode_value(value)
                    with self.assertRaises(WireError):
                        wire.decode_value(raw)

    def test_thousands_of_levels(self) -> None:
        """A value nested thousands deep raises `WireError`, and never `RecursionError`."""
        for letter in (b"A", b"F"):
            raw = b"V"
            for _ in range(3000):
                raw = letter + wire.long_string((b"\x01k" if letter == b"F" else b"") + raw)
            with self.assertRaises(WireError):
                wire.decode_value(raw)

    @settings(deadline=None, max_examples=50)
    @given(VALUES)
    def test_round_trip(self, value: Any) -> None:
        """Decoding an encoded value returns the value with its types."""
        raw = wire.encode_value(value)
        got, end = wire.decode_value(b"??" + raw + b"!", 2)
        self.assertEqual(kinds(got), kinds(value))
        self.assertEqual(end, 2 + len(raw))
        self.assertEqual(wire.skip_value(b"??" + raw + b"!", 2), end)

    @settings(deadline=None, max_examples=50)
    @given(hostile(RAW_VALUES))
    def test_hostile_values(self, data: bytes) -> None:
        """Decoding and skipping a value end at the same offset inside the data, or raise `WireError`."""
        try:
            end = wire.decode_value(data)[1]
        except WireError:
            end = -1
        else:
            self.assertLessEqual(end, len(data))
        try:
            skipped = wire.skip_value(data, 0)
        except WireError:
            self.assertEqual(end, -1)
        else:
            self.assertLessEqual(skipped, len(data))
            self.assertIn(end, (skipped, -1))


class TableTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(TABLES)
    def test_pamqp_reads_what_we_write(self, table: dict[str, Any]) -> None:
        """pamqp decodes an encoded table to the same table."""
        raw = wire.encode_table(table)
        consumed, theirs = decode.field_table(raw)
        self.assertEqual(consumed, len(raw))
        self.assertEqual(theirs, as_pamqp_reads(table))

    @settings(deadline=None, max_examples=50)
    @given(TABLES)
    def test_we_read_what_pamqp_writes(self, table: dict[str, Any]) -> None:
        """A table encoded by pamqp, each number in its narrowest type, is decoded to the same table."""
        raw = encode.field_table(as_pamqp_writes(table))
        ours, end = wire.decode_table(b"?" + raw + b"!", 1)
        self.assertEqual(end, 1 + len(raw))
        self.assertEqual(kinds(ours), kinds(as_we_read(table)))

    @settings(deadline=None, max_examples=50)
    @given(RAW_ENTRIES)
    def test_split_and_join(self, entries: list[tuple[bytes, bytes]]) -> None:
        """A table split and joined again is the same bytes, whatever its types and keys."""
        raw = raw_table(entries)
        self.assertEqual(wire.split_table(raw), entries)
        self.assertEqual(wire.join_table(entries), raw)

    @settings(deadline=None, max_examples=50)
    @given(RAW_ENTRIES)
    def test_odd_keys(self, entries: list[tuple[bytes, bytes]]) -> None:
        """Any bytes may be a key; a key that comes twice has its last value."""
        table, end = wire.decode_table(raw_table(entries))
        self.assertEqual(end, len(raw_table(entries)))
        self.assertEqual(
            repr(table), repr({key.decode("utf-8", "surrogateescape"): wire.decode_value(raw)[0] for key, raw in entries})
        )

    @settings(deadline=None, max_examples=200)
    @given(hostile(RAW_TABLES))
    def test_hostile_tables(self, data: bytes) -> None:
        """Decoding or splitting any bytes as a table succeeds or raises `WireError`, and reads nothing past the end."""
        try:
            _, end = wire.decode_table(data)
        except WireError:
            end = -1
        else:
            self.assertLessEqual(end, len(data))
        try:
            entries = wire.split_table(data)
        except WireError:
            self.assertEqual(end, -1, "what decodes can be split")
        else:
            self.assertEqual(wire.join_table(entries), data[: len(wire.join_table(entries))])

    def test_values_do_not_reach_past_their_table(self) -> None:
        """A value that extends past the end of its table or array is an error, even if the data has bytes for it."""
        for inside in (b"\x01kl\0\0\0", b"\x01kS\0\0\0\x09a", b"\x01kt", b"\x01kD\0", b"\x01kT\0", b"\x01k", b"\x05k"):
            data = struct.pack(">I", len(inside)) + inside + bytes(40)
            with self.assertRaises(WireError):
                wire.decode_table(data)
            with self.assertRaises(WireError):
                wire.split_table(data)
        array = b"A\0\0\0\x02l\0" + bytes(40)
        with self.assertRaises(WireError):
            wire.decode_value(array)

    def test_long_keys(self) -> None:
        """A key has at most 255 bytes."""
        self.assertEqual(wire.decode_table(wire.encode_table({"k" * 255: 1}))[0], {"k" * 255: 1})
        with self.assertRaises(WireError):
            wire.encode_table({"é" * 128: 1})


class StringTests(SynchronousTestCase):
    def test_short_strings(self) -> None:
        """A short string holds 255 bytes, counted after encoding, and no more."""
        self.assertEqual(wire.short_string("é"), b"\x02\xc3\xa9")
        self.assertEqual(len(wire.short_string(b"a" * 255)), 256)
        with self.assertRaises(WireError):
            wire.short_string("a" * 256)

    @settings(deadline=None, max_examples=50)
    @given(st.binary(max_size=255), st.binary(max_size=3))
    def test_round_trip(self, raw: bytes, before: bytes) -> None:
        """Strings are decoded as they were encoded, and truncated at any byte they raise `WireError`."""
        for write, read in ((wire.short_string, wire.read_short_string), (wire.long_string, wire.read_long_string)):
            data = before + write(raw)
            self.assertEqual(read(data + b"!", len(before)), (raw, len(data)))
            for cut in {len(before), len(before) + 1, len(data) - 1}:
                with self.assertRaises(WireError):
                    read(data[: min(cut, len(data) - 1)], len(before))


class PropertiesTests(SynchronousTestCase):
    def test_pamqps_table(self) -> None:
        """Names, flags, types and order of the properties are the same as in pamqp."""
        theirs = commands.Basic.Properties
        self.assertEqual(
            [(PAMQP_NAMES.get(name, name), flag, kind) for name, (flag, kind) in wire.PROPERTIES.items()],
            [(name, theirs.flags[name], theirs.amqp_type(name)) for name in theirs.attributes()],
        )

    @settings(deadline=None, max_examples=50)
    @given(PROPERTIES)
    def test_pamqp_reads_what_we_write(self, properties: dict[str, Any]) -> None:
        """Encoded properties are decoded to the same values, by pamqp as well."""
        raw = wire.encode_properties(properties)
        header = ContentHeader()
        header.unmarshal(wire.header_payload(7, raw))
        self.assertEqual((header.class_id, header.weight, header.body_size), (60, 0, 7))
        for name in wire.PROPERTIES:
            expected = as_pamqp_reads(properties[name]) if name in properties else None
            got = header.properties[PAMQP_NAMES.get(name, name)]
            self.assertEqual(got, expected if name != "cluster_id" else expected or "", name)
        self.assertEqual(kinds(wire.decode_properties(b"?" + raw, 1)), kinds(properties))

    @settings(deadline=None, max_examples=50)
    @given(PROPERTIES)
    def test_we_read_what_pamqp_writes(self, properties: dict[str, Any]) -> None:
        """Properties encoded by pamqp are decoded to the same values."""
        theirs = commands.Basic.Properties()
        sent = {name: value for name, value in properties.items() if value != ""}  # pamqp omits empty strings
        for name, value in sent.items():
            setattr(theirs, PAMQP_NAMES.get(name, name), as_pamqp_writes(value) if name == "headers" else as_pamqp_reads(value))
        payload = ContentHeader(body_size=3, properties=theirs).marshal()
        self.assertEqual(wire.read_header_payload(payload), (wire.BASIC, 3))
        expected = {name: as_we_read(value) if name == "headers" else value for name, value in sent.items()}
        self.assertEqual(kinds(wire.decode_properties(payload, 12)), kinds(expected))

    @settings(deadline=None, max_examples=50)
    @given(RAW_PROPERTIES)
    def test_split_and_join(self, values: dict[str, bytes]) -> None:
        """Properties split and joined again are the same bytes, whatever is in them."""
        raw = raw_properties(values)
        self.assertEqual(wire.split_properties(b"??" + raw, 2), values)
        self.assertEqual(wire.join_properties(values), raw)

    @settings(deadline=None, max_examples=200)
    @given(hostile(RAW_PROPERTIES.map(raw_properties)))
    def test_hostile_properties(self, data: bytes) -> None:
        """Splitting and decoding any bytes as properties succeeds or raises `WireError`."""
        for read in (wire.split_properties, wire.decode_properties):
            try:
                read(data)
            except WireError:
                continue

    def test_what_is_left_out(self) -> None:
        """`None` is omitted; without any property there are only the flags. An unknown name raises `WireError`."""
        self.assertEqual(wire.encode_properties({"priority": None}), b"\0\0")
        with self.assertRaises(WireError):
            wire.encode_properties({"colour": "red"})

    def test_values_that_do_not_fit(self) -> None:
        """A value out of its property's range raises `WireError`."""
        for name, value in (("priority", 256), ("priority", -1), ("priority", "2"), ("timestamp", -1), ("app_id", "x" * 256)):
            with self.assertRaises(WireError):
                wire.encode_properties({name: value})

    def test_what_follows(self) -> None:
        """Bytes after the last property, and flags that no property has, raise `WireError`."""
        for raw in (b"\0\0!", b"\0\x01", b"\0\x02", b"\x10\0", b"\x10\0\x01\x01"):
            with self.assertRaises(WireError):
                wire.split_properties(raw)

    def test_text_that_is_not_utf8(self) -> None:
        """A property that is not UTF-8 is `bytes`."""
        self.assertEqual(wire.decode_properties(b"\x80\0\x01\xff"), {"content_type": b"\xff"})


class FrameTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.binary(min_size=1, max_size=30), st.integers(0, 65535))
    def test_pamqp_reads_our_frames(self, payload: bytes, channel: int) -> None:
        """pamqp reads the channel and the payload of an encoded frame."""
        raw = wire.frame(wire.FRAME_BODY, channel, payload)
        self.assertEqual(len(raw), len(payload) + wire.FRAME_OVERHEAD)
        consumed, their_channel, body = pamqp_frame.unmarshal(raw)
        assert isinstance(body, ContentBody)
        self.assertEqual((consumed, their_channel, body.value), (len(raw), channel, payload))

    def test_the_constant_ones(self) -> None:
        """The protocol header and the heartbeat frame are the same as in pamqp."""
        self.assertEqual(wire.PROTOCOL_HEADER, ProtocolHeader(0, 9, 1).marshal())
        self.assertEqual(wire.HEARTBEAT_FRAME, Heartbeat().marshal())

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 100).map(lambda size: bytes(range(size))), st.integers(9, 60), TABLES)
    def test_content(self, body: bytes, frame_max: int, headers: dict[str, Any]) -> None:
        """A body is split into frames of at most `frame_max` bytes; an empty body has none."""
        header = wire.header_payload(len(body), wire.encode_properties({"headers": headers}))
        data = wire.content_frames(5, header, body, frame_max)
        consumed, channel, first = pamqp_frame.unmarshal(data)
        assert isinstance(first, ContentHeader)
        self.assertEqual((channel, first.body_size, first.properties.headers), (5, len(body), as_pamqp_reads(headers)))
        parts = []
        while consumed < len(data):
            size, channel, part = pamqp_frame.unmarshal(data[consumed:])
            assert isinstance(part, ContentBody)
            assert part.value is not None
            self.assertLessEqual(size, frame_max)
            self.assertEqual(channel, 5)
            parts.append(part.value)
            consumed += size
        self.assertEqual(b"".join(parts), body)
        self.assertEqual(len(parts), -(-len(body) // (frame_max - wire.FRAME_OVERHEAD)))

    @settings(deadline=None, max_examples=50)
    @given(hostile(st.binary(min_size=14, max_size=30)))
    def test_hostile_headers(self, payload: bytes) -> None:
        """A content header is read, or raises `WireError`."""
        try:
            class_id, size = wire.read_header_payload(payload)
        except WireError:
            return
        self.assertEqual(struct.pack(">HHQ", class_id, 0, size), payload[:12])

    def test_headers_with_a_weight(self) -> None:
        """A content header's weight is 0, and there are two bytes of flags at the least."""
        self.assertEqual(wire.read_header_payload(struct.pack(">HHQH", 60, 0, 1 << 40, 0)), (60, 1 << 40))
        for payload in (struct.pack(">HHQH", 60, 1, 1, 0), struct.pack(">HHQ", 60, 0, 1) + b"\0"):
            with self.assertRaises(WireError):
                wire.read_header_payload(payload)


class TimestampTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, (1 << 64) - 1), KEYS)
    def test_any_second(self, seconds: int, key: str) -> None:
        """A timestamp of any encodable second stays a timestamp."""
        table = wire.decode_table(wire.encode_table({key: Timestamp(seconds)}))[0]
        self.assertEqual(kinds(table), {key: (Timestamp, seconds)})

    def test_pamqps_seconds(self) -> None:
        """A timestamp is in seconds, not milliseconds: pamqp decodes the same moment."""
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.assertEqual(wire.encode_value(Timestamp(moment.timestamp())), encode.encode_table_value(moment))
