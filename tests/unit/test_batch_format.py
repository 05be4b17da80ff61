"""Batches, as any MessagePack library may write them, and as nobody should."""

from __future__ import annotations

import struct
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.batch_format import BatchedLine, BatchError, decode

CONNECTION_ID = "01234567-89ab-8cde-8f01-23456789abcd"
RECEIVED = 1_763_805_600_123


def array(
    *, connection_id: Any = CONNECTION_ID, seq: Any = 0, at: Any = RECEIVED, device_id: Any = None, line: Any = b"x"
) -> bytes:
    """Return a line of a batch as the library writes it."""
    packed: bytes = msgpack.packb([connection_id, seq, at, device_id, line])
    return packed


NUMBERS = st.integers(0, 2**63 - 1)
LINES = st.lists(
    st.builds(
        BatchedLine,
        st.uuids().map(lambda each: str(each).encode()),
        NUMBERS,
        NUMBERS,
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
        st.binary(max_size=300) | st.just(b"long" * 20_000),
    ),
    min_size=1,
    max_size=5,
)


def _sized(raw: bytes, kinds: tuple[tuple[int, str], ...], fix: int | None = None) -> list[bytes]:
    """Return all encodings of a string or byte array."""
    found = [
        bytes([first]) + struct.pack(kind, len(raw)) + raw for first, kind in kinds if len(raw) < 256 ** struct.calcsize(kind)
    ]
    return [*found, bytes([fix + len(raw)]) + raw] if fix is not None and len(raw) < 32 else found


def strings(raw: bytes) -> list[bytes]:
    """Return all encodings of a string."""
    return _sized(raw, ((0xD9, ">B"), (0xDA, ">H"), (0xDB, ">I")), 0xA0)


def binaries(raw: bytes) -> list[bytes]:
    """Return all encodings of a byte array."""
    return _sized(raw, ((0xC4, ">B"), (0xC5, ">H"), (0xC6, ">I")))


def integers(number: int) -> list[bytes]:
    """Return all encodings of a number."""
    unsigned = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
    signed = ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    found = [bytes([number])] if number < 128 else []
    for kinds, bits in ((unsigned, 0), (signed, 1)):
        for first, kind in kinds:
            if number < 1 << 8 * struct.calcsize(kind) - bits:
                found.append(bytes([first]) + struct.pack(kind, number))
    return found


ARRAYS = [b"\x95", b"\xdc\x00\x05", b"\xdd\x00\x00\x00\x05"]


class DecodeTests(SynchronousTestCase):
    """Batches that can be read."""

    @given(LINES)
    def test_as_the_library_writes_it(self, lines: list[BatchedLine]) -> None:
        """Lines that the msgpack library packs, one after the other, are read as they were."""
        body = b"".join(msgpack.packb([line.connection_id.decode(), *line[1:]]) for line in lines)
        self.assertEqual(decode(body), lines)

    @given(LINES, st.data())
    def test_all_encodings(self, lines: list[BatchedLine], data: st.DataObject) -> None:
        """Each encoding that MessagePack has for a value is read, and the library reads the same from it."""

        def any_of(encodings: list[bytes]) -> bytes:
            return data.draw(st.sampled_from(encodings))

        body = b"".join(
            any_of(ARRAYS)
            + any_of(strings(line.connection_id))
            + any_of(integers(line.seq))
            + any_of(integers(line.received_ms))
            + (b"\xc0" if line.device_id is None else any_of(strings(line.device_id.encode())))
            + any_of(binaries(line.line))
            for line in lines
        )
        self.assertEqual(decode(body), lines)
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(body)
        self.assertEqual([BatchedLine(each[0].encode(), *each[1:]) for each in unpacker], lines)

    @given(LINES)
    def test_integers_of_fixed_width(self, lines: list[BatchedLine]) -> None:
        """Numbers in 32 bits and times in 64 bits, as the gateway writes them, are read, also beside numbers in 64 bits."""
        body = b""
        for each in lines:
            head = b"\x95\xd9\x24" + each.connection_id
            seq = b"\xce" + struct.pack(">I", each.seq) if each.seq < 2**32 else b"\xcf" + struct.pack(">Q", each.seq)
            device_id = msgpack.packb(each.device_id)
            body += head + seq + b"\xcf" + struct.pack(">Q", each.received_ms) + device_id + binaries(each.line)[0]
        self.assertEqual(decode(body), lines)

    def test_edges(self) -> None:
        """The greatest number, an empty line, an empty device id and a line of 64 KiB are read."""
        for fields in ({"seq": 2**63 - 1}, {"at": 0}, {"line": b""}, {"device_id": ""}, {"line": b"\n" * 65536}):
            packed = array(**fields)
            expected = msgpack.unpackb(packed)
            self.assertEqual(decode(packed * 2), [BatchedLine(CONNECTION_ID.encode(), *expected[1:])] * 2)


def _ext() -> Any:
    return msgpack.ExtType(1, b"x")


class RefusedTests(SynchronousTestCase):
    """Bodies that are no batches."""

    def refused(self, body: bytes, offset: int, reason: str) -> None:
        """Check that a body is refused, with this position and reason."""
        with self.assertRaises(BatchError) as raised:
            decode(body)
        self.assertEqual(str(raised.exception), f"byte {offset}: {reason}")

    def test_types(self) -> None:
        """A value of another type is refused, with the offset of the byte and the name of the type."""
        first = len(array())
        values: tuple[tuple[Any, str], ...] = (
            (-1, "a negative integer"),
            (1.0, "a floating-point number"),
            (True, "a boolean"),
            ({}, "a map"),
            ([1], "an array"),
            (_ext(), "an extension"),
        )
        for value, kind in (*values, (b"x", "a byte array"), (7, "an integer"), (None, "nil")):
            if value is not None:
                self.refused(array() + array(device_id=value), first + 49, f"the device id is {kind}, not a string")
            self.refused(array() + array(connection_id=value), first + 1, f"the connection id is {kind}, not a string")
        for value, kind in (*values, (None, "nil"), ("x", "a string")):
            expected = f"{kind}, not an integer from 0 to 2^63-1"
            self.refused(array() + array(seq=value), first + 39, f"the number of the line is {expected}")
            self.refused(array() + array(at=value), first + 40, f"the time is {expected}")
            self.refused(array() + array(line=value), first + 50, f"the line is {kind}, not a byte array")

    def test_numbers(self) -> None:
        """A number that is negative or above 2^63-1 is refused."""
        for number in (-128, -(2**31), -(2**63), 2**63, 2**64 - 1):
            self.refused(array(seq=number), 39, f"the number of the line is {number}, outside 0 to 2^63-1")

    def test_connection_ids(self) -> None:
        """A connection id is a UUID in canonical text form."""
        for text in (
            "",
            "x",
            CONNECTION_ID.upper(),
            CONNECTION_ID + "0",
            CONNECTION_ID.replace("-", ""),
            "é" * 18,
            f"{CONNECTION_ID[:35]}\n",
        ):
            self.refused(array(connection_id=text), 1, "the connection id is not a UUID in canonical text form")

    def test_faults_in_fixed_width(self) -> None:
        """The same faults are found where integers have the widths of the gateway."""

        def fixed(connection_id: bytes, at: int) -> bytes:
            return b"\x95\xd9\x24" + connection_id + b"\xce\x00\x00\x00\x07\xcf" + struct.pack(">Q", at) + b"\xc0\xc4\x01x"

        good = fixed(CONNECTION_ID.encode(), RECEIVED)
        self.assertEqual(decode(good), [BatchedLine(CONNECTION_ID.encode(), 7, RECEIVED, None, b"x")])
        self.refused(good + fixed(b"x" * 36, 1), len(good) + 1, "the connection id is not a UUID in canonical text form")
        self.refused(fixed(CONNECTION_ID.encode(), 2**63), 44, f"the time is {2**63}, outside 0 to 2^63-1")
        for length in range(1, len(good)):
            with self.assertRaises(BatchError):
                decode(good + good[:length])

    def test_device_id(self) -> None:
        """A device id is UTF-8."""
        packed = array(device_id="AB").replace(b"AB", b"\xff\xfe")
        self.refused(packed, 49, "the device id is not UTF-8")

    def test_arrays(self) -> None:
        """Each line is an array of five elements, and nothing is between the lines or behind them."""
        for value, kind in (({}, "a map"), (0, "an integer"), (None, "nil"), ("", "a string"), (b"", "a byte array")):
            self.refused(array() + msgpack.packb(value), len(array()), f"an array is expected, not {kind}")
        self.refused(array() + b"\xc1", len(array()), "an array is expected, not a byte that MessagePack does not use")
        for count in (0, 4, 6, 15, 16, 65536):
            self.refused(msgpack.packb([None] * count), 0, f"an array of 5 elements is expected, not of {count}")

    def test_empty(self) -> None:
        """An empty body is refused: a batch has a line."""
        self.refused(b"", 0, "there is no line")

    def test_cut_off(self) -> None:
        """A body that was cut off anywhere, except between two lines, is refused."""
        one = array(device_id="pump", seq=70_000)
        for body in (one, b"\xdd\x00\x00\x00\x05" + one[1:]):
            for length in range(1, len(body)):
                with self.assertRaises(BatchError):
                    decode(one + body[:length])

    def test_hostile_lengths(self) -> None:
        """A length of 4 GiB that was only announced takes no memory."""
        head = array()[:1]
        bodies: tuple[Callable[[bytes], bytes], ...] = (
            lambda length: head + b"\xdb" + length,
            lambda length: array()[:48] + b"\xdb" + length,
            lambda length: array()[:-3] + b"\xc6" + length,
            lambda length: b"\xdd" + length,
        )
        tracemalloc.start()
        try:
            for body in bodies:
                for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x10\x00"):
                    with self.assertRaises(BatchError):
                        decode(body(length))
            self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)
        finally:
            tracemalloc.stop()

    def test_memory(self) -> None:
        """A body of the smallest possible lines takes a few times its own size."""
        body = array(seq=1, at=1, line=b"") * 20_000
        self.assertEqual(len(body), 44 * 20_000)
        tracemalloc.start()
        try:
            lines = decode(body)
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        self.assertEqual(len(lines), 20_000)
        self.assertLess(used, 8 * len(body))

    @given(st.binary(max_size=200))
    def test_nonsense(self, data: bytes) -> None:
        """Any bytes are a batch or a `BatchError`, and the library agrees on what a batch has in it."""
        for body in (data, array()[: len(data) % 50] + data, array() + data):
            try:
                lines = decode(body)
            except BatchError:
                continue
            unpacker = msgpack.Unpacker(raw=True, max_buffer_size=0)
            unpacker.feed(body)
            self.assertEqual([each[4] for each in unpacker], [line.line for line in lines])

    def test_another_uuid(self) -> None:
        """Any UUID in canonical form is a connection id, of whatever version."""
        for each in (uuid.uuid4(), uuid.uuid1(), uuid.UUID(int=0)):
            self.assertEqual(decode(array(connection_id=str(each)))[0].connection_id, str(each).encode())
