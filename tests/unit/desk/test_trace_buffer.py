"""Tests of the buffer of a trace: its bounds, its reader, and the form of records."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._trace_buffer import ENTRY, TraceBuffer, body_json, record_json
from owsla.device.tracing import LONGEST_BODY, TraceRecord


def line(number: int, body: bytes = b"", **fields: Any) -> TraceRecord:
    fields = {"kind": "in", "size": len(body), "seq": number, "body": body, "room": len(body), **fields}
    return TraceRecord(1_700_000_000.1234, connection_id="c", device_id="d", **fields)


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [record["seq"] for record in records]


class BufferTests(SynchronousTestCase):
    def test_each_once(self) -> None:
        """A reader without a position gets each record once, in order."""
        buffer = TraceBuffer(bodies=False)
        for number in range(3):
            buffer.add(line(number))
        self.assertEqual(numbers(buffer.take()[0]), [0, 1, 2])
        buffer.add(line(3))
        self.assertEqual([numbers(buffer.take()[0]) for _ in range(2)], [[3], []])

    def test_position(self) -> None:
        """A reader that gives its position gets what follows, once more if the answer was lost."""
        buffer = TraceBuffer(bodies=False)
        buffer.add(line(0))
        buffer.take()
        before = buffer.position
        buffer.add(line(1))
        buffer.add(line(2))
        self.assertEqual([numbers(buffer.take(before)[0]) for _ in range(2)], [[1, 2], [1, 2]])
        self.assertEqual(numbers(buffer.take(buffer.position)[0]), [])
        self.assertEqual(numbers(buffer.take((0, 0))[0]), [])  # what was confirmed is forgotten

    def test_bounds(self) -> None:
        """Beyond its number of records, or its bytes, records are dropped and counted until the reader has taken some."""
        for buffer in (TraceBuffer(True, records=3), TraceBuffer(True, size=3 * (ENTRY + 100))):
            for number in range(5):
                buffer.add(line(number, b"x" * 100))
            records, dropped = buffer.take()
            self.assertEqual((numbers(records), dropped, buffer.position), ([0, 1, 2], 2, (5, 2)))
            position = buffer.position
            buffer.add(line(5, b"x" * 100))  # what was taken without a position still has its place
            self.assertEqual(buffer.take(position), ([], 1))
            buffer.add(line(6, b"x" * 100))
            self.assertEqual((numbers(buffer.take(position)[0]), buffer.take((6, 3))[1]), ([6], 0))

    def test_size_of_answer(self) -> None:
        """An answer ends after some 128 KiB, and tells that there is more. Nothing is lost."""
        buffer = TraceBuffer(True)
        for number in range(40):
            buffer.add(line(number, b"x" * LONGEST_BODY))
        taken = [len(buffer.take()[0])]
        while buffer.more:
            taken.append(len(buffer.take()[0]))
        self.assertEqual(taken, [16, 16, 8])

    def test_size_of_bodies(self) -> None:
        """A body counts as far as it is kept, also one that is kept for another trace, or that comes later."""
        for bodies in (True, False):
            buffer = TraceBuffer(bodies, size=2 * (ENTRY + LONGEST_BODY))
            for _ in range(3):
                buffer.add(line(0, size=1 << 24, room=LONGEST_BODY))
            self.assertEqual((len(buffer.take()[0]), buffer.dropped), (2, 1))


class RecordTests(SynchronousTestCase):
    def test_fields(self) -> None:
        """A record has its time in milliseconds; body, text and name of an event only where there is one."""
        common = {"time": 1_700_000_000_123, "connection_id": "c", "device_id": "d"}
        self.assertEqual(record_json(line(7, b"one"), True), {**common, "kind": "in", "size": 3, "seq": 7, "body": "one"})
        self.assertEqual(record_json(line(7, b"one"), False), {**common, "kind": "in", "size": 3, "seq": 7})
        event = TraceRecord(1_700_000_000.1234, "event", "c", "d", text="Gone", event="device-disconnected")
        self.assertEqual(
            record_json(event, True),
            {**common, "kind": "event", "size": None, "seq": None, "text": "Gone", "event": "device-disconnected"},
        )

    def test_cut(self) -> None:
        """A body that was cut is marked, and has the size of the whole."""
        record = record_json(line(0, b"abc", size=10_000), True)
        self.assertEqual((record["size"], record["body"], record["cut"]), (10_000, "abc", True))

    def test_texts(self) -> None:
        """A body is text if it is printable UTF-8, tabs included, and otherwise base64: also if it would change a terminal."""
        for body, text in ((b"", ""), ("grün 漢".encode(), "grün 漢"), (b"a\tb", "a\tb")):
            self.assertEqual(body_json(body), {"body": text})
        for body, encoded in ((b"\xff\x00", "/wA="), (b"\x1b[2J", "G1sySg=="), (b"a\nb", "YQpi"), ("\u202e".encode(), "4oCu")):
            self.assertEqual(body_json(body), {"body_base64": encoded})

    @given(st.text(st.characters(categories=["L", "N"]), min_size=10), st.integers(4, 10))
    def test_cut_within_a_character(self, text: str, size: int) -> None:
        """A text that is cut within a character ends before it. Bytes that are no text are not repaired."""
        cut = text.encode()[:size]
        shown = body_json(cut, cut=True)["body"]
        self.assertTrue(text.startswith(shown))
        self.assertLess(len(cut) - len(shown.encode()), 4)
        self.assertIn("body_base64", body_json(b"abc\xff" + cut, cut=True))
        self.assertIn("body_base64", body_json("ä".encode()[:1]))
