"""AMQP methods by name and by number, compared with the tables of pamqp."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import base, commands
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import methods, wire
from owsla.amqp.methods import BY_NAME, METHODS, Method, decode_method, encode_method
from owsla.amqp.wire import WireError

from .values import TABLES, TEXT, as_pamqp_reads, hostile, kinds

RENAMED = {"type": "exchange_type", "global": "global_"}
"""Fields that have another name in pamqp, because the names of the specification are Python keywords or built-ins."""

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.integers(0, 255),
    "short": st.integers(0, (1 << 16) - 1),
    "long": st.integers(0, (1 << 32) - 1),
    "longlong": st.integers(0, (1 << 63) - 1),  # pamqp encodes them as signed
    "timestamp": st.integers(0, (1 << 32) - 1),
    "shortstr": TEXT,
    "longstr": st.binary(max_size=20),
    "table": TABLES,
}


@st.composite
def calls(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Method, dict[str, Any]]:
    """Draw a method with values for all its fields."""
    method = draw(st.sampled_from(sorted(METHODS.values(), key=lambda method: method.name)))
    return method, {name: draw(FIELDS[kind]) for name, kind in method.fields}


VALID = calls().map(lambda call: encode_method(call[0].name, **call[1]))


def theirs(method: Method) -> type[base.Frame]:
    found: type[base.Frame] = commands.INDEX_MAPPING[method.class_id << 16 | method.method_id]
    return found


def made(kind: type[base.Frame]) -> base.Frame:
    """Make a pamqp frame, without the warnings that pamqp gives about deprecated methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind()


def text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


class SpecificationTests(SynchronousTestCase):
    def test_no_method_is_missing(self) -> None:
        """The methods are those of pamqp, including the extensions of RabbitMQ, with the same numbers and names."""
        ours = {number: method.name.replace("-", "") for number, method in METHODS.items()}
        frames: dict[int, type[base.Frame]] = commands.INDEX_MAPPING
        pamqps = {(index >> 16, index & 0xFFFF): frame.name.lower() for index, frame in frames.items()}
        self.assertEqual(ours, pamqps)
        for name in ("confirm.select", "basic.nack", "connection.blocked", "connection.unblocked", "exchange.bind"):
            self.assertIn(name, BY_NAME)

    def test_fields(self) -> None:
        """The fields of each method have the types and the order of pamqp, and fields in use have the same names."""
        for method in METHODS.values():
            frame = theirs(method)
            kinds_of_theirs = [frame.amqp_type(name) for name in frame.attributes()]
            self.assertEqual([kind for _, kind in method.fields], kinds_of_theirs, method)
            for (ours, _), pamqps in zip(method.fields, frame.attributes(), strict=True):
                if not ours.startswith("reserved"):
                    self.assertEqual(RENAMED.get(ours, ours), pamqps, method.name)

    def test_answers(self) -> None:
        """Each method waits for the answers that pamqp names."""
        for (class_id, method_id), method in METHODS.items():
            spec = methods.SPEC.classes.byid[class_id].methods.byid[method_id]
            answers = {f"{answer.klass.name}.{answer.name}".replace("-", "") for answer in spec.responses}
            frame = theirs(method)
            self.assertEqual(answers, {name.lower() for name in frame.valid_responses})

    def test_content(self) -> None:
        """Four methods carry a message."""
        self.assertEqual(
            {method.name for method in METHODS.values() if method.has_content},
            {"basic.publish", "basic.return", "basic.deliver", "basic.get-ok"},
        )


class CodecTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=80)
    @given(calls())
    def test_round_trip(self, call: tuple[Method, dict[str, Any]]) -> None:
        """Decoding an encoded method returns the method and each field."""
        method, fields = call
        payload = encode_method(method.name, **fields)
        self.assertEqual(payload[:4], method.prefix)
        got, values = decode_method(payload)
        self.assertIs(got, method)
        self.assertEqual(kinds(values), kinds(fields))

    @settings(deadline=None, max_examples=80)
    @given(calls())
    def test_pamqp_reads_what_we_write(self, call: tuple[Method, dict[str, Any]]) -> None:
        """pamqp decodes an encoded method to the same fields, each bit included."""
        method, fields = call
        frame = made(theirs(method))
        frame.unmarshal(encode_method(method.name, **fields)[4:])
        for (ours, kind), pamqps in zip(method.fields, frame.attributes(), strict=True):
            value = fields[ours]
            if kind == "table":
                value = as_pamqp_reads(value)
            elif kind == "longstr":
                value = text(value)
            self.assertEqual(frame[pamqps], value, ours)

    @settings(deadline=None, max_examples=80)
    @given(calls())
    def test_we_read_what_pamqp_writes(self, call: tuple[Method, dict[str, Any]]) -> None:
        """A method encoded by pamqp is decoded to the same fields."""
        method, fields = call
        # pamqp refuses to encode values in reserved fields, although the encoding has room for them.
        lenient: type[base.Frame] = type("Lenient", (theirs(method),), {"validate": lambda self: None})
        frame = made(lenient)
        expected = dict(fields)
        for (ours, kind), pamqps in zip(method.fields, frame.attributes(), strict=True):
            if kind == "longstr":
                expected[ours] = b"plain"
                setattr(frame, pamqps, "plain")
            elif kind == "table":
                expected[ours] = {"k": "v"}
                setattr(frame, pamqps, {"k": "v"})
            else:
                setattr(frame, pamqps, fields[ours])
        got, values = decode_method(method.prefix + frame.marshal())
        self.assertIs(got, method)
        self.assertEqual(values, expected)

    def test_bits_share_bytes(self) -> None:
        """Consecutive bits share a byte, the lowest first, and a field after them begins a new one."""
        payload = encode_method("queue.declare", queue="q", durable=True, nowait=True)
        self.assertEqual(payload, b"\0\x32\0\x0a" + b"\0\0" + b"\x01q" + bytes([0b10010]) + bytes(4))

    def test_more_than_eight_bits(self) -> None:
        """Nine bits take two bytes."""
        method = Method("test.bits", 1, 1, tuple((f"b{index}", "bit") for index in range(9)), False)
        values = [index in (0, 8) for index in range(9)]
        self.assertEqual(methods.encode_arguments(method, values), b"\x01\x01")

    def test_fields_left_out(self) -> None:
        """Fields left out are zero, false or empty, and a field that the method lacks is a `TypeError`."""
        for method in METHODS.values():
            got, values = decode_method(encode_method(method.name))
            self.assertIs(got, method)
            self.assertFalse(any(values.values()))
        with self.assertRaises(TypeError):
            encode_method("basic.ack", tag=1)

    def test_values_that_do_not_fit(self) -> None:
        """A value that a field cannot hold raises `WireError`."""
        for name, fields in (
            ("basic.ack", {"delivery_tag": -1}),
            ("basic.ack", {"delivery_tag": 1 << 64}),
            ("basic.qos", {"prefetch_count": 1 << 16}),
            ("queue.declare", {"queue": "é" * 128}),
            ("queue.declare", {"queue": "\ud800"}),
        ):
            with self.assertRaises(WireError):
                encode_method(name, **fields)

    def test_odd_short_strings(self) -> None:
        """A short string that is not UTF-8 keeps its bytes as surrogate escapes."""
        payload = BY_NAME["basic.cancel"].prefix + b"\x02a\xff\0"
        self.assertEqual(decode_method(payload)[1]["consumer_tag"].encode("utf-8", "surrogateescape"), b"a\xff")

    @settings(deadline=None, max_examples=50)
    @given(calls(), st.data())
    def test_no_byte_too_few_or_too_many(self, call: tuple[Method, dict[str, Any]], data: st.DataObject) -> None:
        """A method truncated at any byte, or followed by a byte, raises `WireError`."""
        payload = encode_method(call[0].name, **call[1])
        with self.assertRaises(WireError):
            decode_method(payload + b"\0")
        with self.assertRaises(WireError):
            decode_method(payload[: data.draw(st.integers(0, len(payload) - 1))])

    @settings(deadline=None, max_examples=200)
    @given(hostile(VALID))
    def test_hostile_methods(self, payload: bytes) -> None:
        """Any bytes either decode to a method or raise `WireError`."""
        try:
            method, fields = decode_method(payload)
        except WireError:
            return
        self.assertEqual(list(fields), [name for name, _ in method.fields])

    def test_unknown_methods(self) -> None:
        """An unknown method number raises `WireError`."""
        for payload in (b"\0\x3c\0\0", b"\xff\xff\xff\xff", wire.HEARTBEAT_FRAME):
            with self.assertRaises(WireError):
                decode_method(payload)
