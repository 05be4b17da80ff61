"""Tests of the headers read from a message of a back end, for every field type of its client."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp, WireError
from owsla.broker import headers as delivery
from owsla.letter import BAD, Trace

from ..amqp.values import RAW_ENTRIES, RAW_PROPERTIES, RAW_VALUES, hostile, raw_properties, raw_table

ID = b"0123abcd-0000-8000-8000-000000000001"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def with_raw_headers(*entries: tuple[bytes, bytes], **properties: Any) -> bytes:
    values = wire.split_properties(wire.encode_properties(properties))
    values["headers"] = raw_table(list(entries))
    return wire.header_payload(5, wire.join_properties(values))


def with_headers(headers: dict[str, Any], **properties: Any) -> bytes:
    return wire.header_payload(5, wire.encode_properties({"headers": headers, **properties}))


INTEGERS = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">Q"}


class ConnectionIdTests(SynchronousTestCase):
    def test_strings_and_byte_arrays(self) -> None:
        """A connection id is the bytes of a long string or a byte array."""
        for kind in (b"S", b"x"):
            for raw in (ID, b"", b"\xff\xfe"):
                header = with_raw_headers((b"connection_id", kind + wire.long_string(raw)))
                self.assertEqual(delivery.read(header), (raw, None, False))

    def test_none(self) -> None:
        """Without the header, without headers, and without any property there is no connection id. Then there may be more: the
        message may name a device.
        """
        for header in (with_headers({}), with_headers({"other": 1}), wire.header_payload(0, b"\0\0")):
            self.assertEqual(delivery.read(header), (None, None, True))

    def test_types_that_cannot_hold_one(self) -> None:
        """A connection id of any other type is `BAD`, and not missing."""
        values: list[Any] = [1, 1.5, True, None, [ID], {"a": ID}, Timestamp(1), 1 << 63]
        for value in values:
            self.assertEqual(delivery.read(with_headers({"connection_id": value}))[0], b"", value)
        for letter, form in INTEGERS.items():
            header = with_raw_headers((b"connection_id", letter.encode() + struct.pack(form, 1)))
            self.assertEqual(delivery.read(header)[0], b"", letter)

    def test_other_properties_before_and_after(self) -> None:
        """The headers are found behind the properties that precede them in the frame."""
        for before in ({}, {"content_type": "a"}, {"content_encoding": "bc"}, {"content_type": "a", "content_encoding": "bc"}):
            header = with_headers({"connection_id": ID, "to_device_seq": 3}, **before, app_id="x", priority=1)
            self.assertEqual(delivery.read(header), (ID, 3, False))


class NumberTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=60)
    @given(st.sampled_from(sorted(INTEGERS)), st.integers(0, (1 << 64) - 1))
    def test_every_integer_type(self, letter: str, number: int) -> None:
        """A number may be of any integer type. A negative one is `BAD`."""
        raw = number.to_bytes(8)[-struct.calcsize(INTEGERS[letter]) :]
        value = struct.unpack(INTEGERS[letter], raw)[0]
        header = with_raw_headers((b"to_device_seq", letter.encode() + raw), (b"connection_id", b"S" + wire.long_string(ID)))
        self.assertEqual(delivery.read(header), (ID, value if 0 <= value < 1 << 63 else BAD, False))

    def test_negative_numbers(self) -> None:
        """A negative number is `BAD`, in any type."""
        for letter in "bsIl":
            for number in (-1, -2, -100):
                header = with_raw_headers((b"to_device_seq", letter.encode() + struct.pack(INTEGERS[letter], number)))
                self.assertEqual(delivery.read(header)[1], BAD, (letter, number))

    def test_decimal_text(self) -> None:
        """A number may be decimal text, as a long string or a byte array."""
        for kind in (b"S", b"x"):
            for text, number in ((b"0", 0), (b"17", 17), (b"007", 7), (b"9007199254740993", 9007199254740993)):
                header = with_raw_headers((b"to_device_seq", kind + wire.long_string(text)))
                self.assertEqual(delivery.read(header)[1], number)

    def test_whole_doubles(self) -> None:
        """A double is a number if it is integral and exact: languages without integers write numbers in this way."""
        for value, number in ((0.0, 0), (-0.0, 0), (17.0, 17), (2.0**53, 2**53)):
            self.assertEqual(delivery.read(with_headers({"to_device_seq": value}))[1], number)
        header = with_raw_headers((b"to_device_seq", b"f" + struct.pack(">f", 12.0)))
        self.assertEqual(delivery.read(header)[1], 12)

    def test_numbers_are_exact(self) -> None:
        """A number is an exact `int` for every type: `x in range` is a linear search for a subclass."""
        for value in (Timestamp(2**40), 2**40, float(2**40), str(2**40), str(2**40).encode()):
            header = with_headers({"to_device_seq": value, "expires_at": value, "owsla_expiration": value})
            address = delivery.details(header)
            for number in (delivery.read(header)[1], address.expires_at, address.expiration):
                self.assertIs(type(number), int, value)
            self.assertEqual(delivery.read(header)[1], 2**40)

    def test_what_is_no_number(self) -> None:
        """Any other value is `BAD`: neither a number nor missing."""
        values: list[Any] = [True, False, None, [1], {}, -1, b"\xb2", b"\xff"]
        values += [1.5, -1.0, float("nan"), float("inf"), 2.0**53 + 2, 1e300]
        values += ["-1", "+1", "", " 1", "1 ", "1.0", "0x1", "1_0", "x", "\u0663", "\xb2", "1" * 20, "9" * 500]
        values += [1 << 63, "9" * 19]
        for value in values:
            self.assertEqual(delivery.read(with_headers({"to_device_seq": value}))[1], BAD, value)

    def test_names_that_only_resemble(self) -> None:
        """Only the exact names of the contract count."""
        header = with_headers({"Connection_id": ID, "connection_id2": ID, "to_device_se": 1, "expires_a": 1})
        self.assertEqual(delivery.read(header), (None, None, True))
        self.assertFalse(delivery.read(with_headers({"connection_id": ID, "expires_a": 1}))[2])


class MoreTests(SynchronousTestCase):
    def test_what_asks_for_a_look(self) -> None:
        """A message that expires, closes the connection or requests a report is read in full."""
        plain = {"connection_id": ID}
        self.assertFalse(delivery.read(with_headers(plain, correlation_id="c", message_id="m"))[2])
        for headers, properties in (
            ({"expires_at": 1}, {}),
            ({"owsla_close": True}, {}),
            ({"owsla_expiration": "1"}, {}),
            ({}, {"reply_to": "q"}),
            ({}, {"expiration": "1"}),
        ):
            self.assertEqual(delivery.read(with_headers({**headers, **plain}, **properties)), (ID, None, True))

    def test_without_headers(self) -> None:
        """A message without headers may request a report."""
        header = wire.header_payload(0, wire.encode_properties({"reply_to": "q"}))
        self.assertEqual(delivery.read(header), (None, None, True))
        self.assertEqual(delivery.details(header).reply_to, b"q")

    def test_expires_at(self) -> None:
        """A number or decimal text is milliseconds, a timestamp is seconds. Any other value is invalid, and a missing one is no
        limit.
        """
        for value, expected in (
            (1_700_000_000_123, 1_700_000_000_123),
            (Timestamp(1_700_000_000), 1_700_000_000_000),
            ("1700000000123", 1_700_000_000_123),
            (b"1700000000123", 1_700_000_000_123),
            (1_700_000_000_123.0, 1_700_000_000_123),
            (0, 0),
            (-1, BAD),
            (True, BAD),
            (1.5, BAD),
            ("2026-11-27T12:00:00Z", BAD),
            (Timestamp(2**63), BAD),
            (None, None),
        ):
            self.assertEqual(delivery.details(with_headers({"expires_at": value})).expires_at, expected, value)

    def test_expiration(self) -> None:
        """`expiration` counts, or else the header to which another node moved it."""
        self.assertEqual(delivery.details(with_headers({}, expiration="250")).expiration, 250)
        self.assertEqual(delivery.details(with_headers({"owsla_expiration": "300"})).expiration, 300)
        self.assertEqual(delivery.details(with_headers({"owsla_expiration": "300"}, expiration="250")).expiration, 250)
        for odd in ("", "soon", "-1", "1" * 20):
            self.assertIsNone(delivery.details(with_headers({}, expiration=odd)).expiration)

    def test_close(self) -> None:
        """Only a true `owsla_close` closes."""
        for value, expected in ((True, True), (False, False), (1, False), ("true", False), (None, False)):
            self.assertIs(delivery.details(with_headers({"owsla_close": value})).close, expected)

    def test_reports(self) -> None:
        """`reply_to` is the bytes of a name. The correlation id is kept as encoded."""
        address = delivery.details(with_headers({}, reply_to=b"\xff", correlation_id=b"\xfe!"))
        self.assertEqual((address.reply_to, address.correlation_id), (b"\xff", b"\x02\xfe!"))
        nothing = delivery.details(wire.header_payload(0, b"\0\0"))
        self.assertEqual((nothing.reply_to, nothing.correlation_id, nothing.close), (None, None, False))


class TraceTests(SynchronousTestCase):
    def test_trace(self) -> None:
        """The trace context is read of strings and of byte arrays, whatever else the message has."""
        both = {"traceparent": TRACE, "tracestate": "a=1"}
        self.assertEqual(delivery.trace(with_headers({"n": 1, **both}, reply_to="q")), Trace(TRACE, "a=1"))
        arrays = {name: value.encode() for name, value in both.items()}
        self.assertEqual(delivery.trace(with_headers(arrays)), Trace(TRACE, "a=1"))
        self.assertEqual(delivery.trace(with_headers({"traceparent": TRACE, "tracestate": 7})), Trace(TRACE))

    def test_none(self) -> None:
        """Without a valid one there is none: no headers, invalid or malformed ones, other types, and any size."""
        hostile: list[Any] = [None, 7, [TRACE], {"a": TRACE}, "0" * 200_000, b"\xff" * 200_000, TRACE + "\n", "00-\x1b[2J\0"]
        for value in hostile:
            self.assertIsNone(delivery.trace(with_headers({"traceparent": value, "tracestate": value})))
        self.assertIsNone(delivery.trace(with_headers({"tracestate": "a=1"})))
        for header in (wire.header_payload(0, b"\0\0"), wire.header_payload(4, b"\0\2"), b""):
            self.assertIsNone(delivery.trace(header))

    def test_of_no_concern_on_the_way(self) -> None:
        """A message with a trace context is a plain one: it takes the short way to its device."""
        header = with_headers({"connection_id": ID, "to_device_seq": 3, "traceparent": TRACE, "tracestate": "a=1"})
        self.assertEqual(delivery.read(header), (ID, 3, False))


OURS = st.sampled_from(
    [b"connection_id", b"to_device_seq", b"expires_at", b"owsla_close", b"owsla_expiration", b"other", b""]
)
MESSAGES = st.builds(
    lambda values, entries: wire.header_payload(5, raw_properties({**values, "headers": raw_table(entries)})),
    RAW_PROPERTIES,
    st.lists(st.tuples(OURS, RAW_VALUES), max_size=4) | RAW_ENTRIES,
)


class GroupTests(SynchronousTestCase):
    def test_selector_and_group(self) -> None:
        """A message for many has a selector and, from a node, the id of the group. Other types are an empty selector, no id."""
        found = delivery.details(with_headers({"owsla_to": "all", "owsla_group": "some-group"}))
        self.assertEqual((found.selector, found.group_id), ("all", "some-group"))
        for value in (7, b"all", True, ["all"], {"all": 1}):
            found = delivery.details(with_headers({"owsla_to": value, "owsla_group": value}))
            self.assertEqual((found.selector, found.group_id), ("", None), value)
        found = delivery.details(with_headers({}))
        self.assertEqual((found.selector, found.group_id), (None, None))


class HostileTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=100)
    @given(MESSAGES)
    def test_any_message_is_read(self, header: bytes) -> None:
        """Every well-formed message is read, with the result of the slow parser."""
        connection_id, seq, more = delivery.read(header)
        values = wire.split_properties(header, 12)
        headers = dict(wire.split_table(values["headers"]))
        raw = headers.get(b"connection_id")
        if raw is None:
            self.assertIsNone(connection_id)
        else:
            self.assertEqual(connection_id, raw[5:] if raw[:1] in (b"S", b"x") else b"")
        self.assertEqual(seq is None, b"to_device_seq" not in headers)
        self.assertTrue(seq is None or seq == BAD or seq >= 0)
        noted = {b"expires_at", b"owsla_close", b"owsla_expiration"} & headers.keys()
        self.assertEqual(more, bool(raw is None or noted or {"reply_to", "expiration"} & values.keys()))
        delivery.details(header)

    @settings(deadline=None, max_examples=300)
    @given(hostile(MESSAGES))
    def test_hostile_headers(self, header: bytes) -> None:
        """For any bytes the parser works or raises `WireError`."""
        for read in (delivery.read, delivery.details, delivery.trace):
            try:
                read(header)
            except WireError:
                continue

    def test_cut_off_anywhere(self) -> None:
        """A header cut at any byte raises `WireError`, or is read if the cut is behind its headers."""
        whole = with_headers({"connection_id": ID, "to_device_seq": 1, "a": [1], "b": "x"}, content_type="t")
        for cut in range(len(whole)):
            with self.assertRaises(WireError):
                delivery.read(whole[:cut])
