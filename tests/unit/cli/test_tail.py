"""The formats of `owsla tail`."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp
from owsla.cli._tail import Formatter, as_json, as_text
from owsla.cli._text import printable

CONNECTION_ID = "01234567-89ab-8cde-8f01-23456789abcd"


def message(**headers: Any) -> dict[str, Any]:
    """Return properties as the gateway sends them."""
    return {
        "headers": {"connection_id": CONNECTION_ID, "from_device_seq": 7, **headers},
        "timestamp": Timestamp(1763805600),
        "reply_to": "to_device.01234567",
    }


class PrintableTests(SynchronousTestCase):
    """Bytes as text."""

    def test_text_stays(self) -> None:
        """Printable text stays, in any script."""
        self.assertEqual(printable("Grüße, 世界".encode()), "Grüße, 世界")

    def test_escapes(self) -> None:
        """Characters that cannot be shown, or would control a terminal, become escaped bytes."""
        self.assertEqual(printable(b"a\x1b[2J\r\n\t\0\x7f"), "a\\x1b[2J\\x0d\\x0a\\x09\\x00\\x7f")
        self.assertEqual(printable(b"\xff\xfe"), "\\xff\\xfe")
        self.assertEqual(printable("\u202e\x9b".encode()), "\\xe2\\x80\\xae\\xc2\\x9b")
        self.assertEqual(printable(rb"a\x1b"), r"a\\x1b")

    @given(st.binary())
    def test_is_printable_and_loses_nothing(self, raw: bytes) -> None:
        """The result is printable, and the bytes can be restored from it."""
        shown = printable(raw)
        self.assertTrue(shown.isprintable())
        back = b""
        rest = shown
        while rest:
            if rest.startswith("\\\\"):
                back, rest = back + b"\\", rest[2:]
            elif rest.startswith("\\x"):
                back, rest = back + bytes.fromhex(rest[2:4]), rest[4:]
            else:
                back, rest = back + rest[0].encode(), rest[1:]
        self.assertEqual(back, raw)


class TextTests(SynchronousTestCase):
    """A message as a line of text."""

    def setUp(self) -> None:
        before = os.environ.get("TZ")
        os.environ["TZ"] = "UTC0"
        time.tzset()

        def restore() -> None:
            os.environ.pop("TZ")
            if before is not None:
                os.environ["TZ"] = before
            time.tzset()

        self.addCleanup(restore)

    def test_columns(self) -> None:
        """A line has the columns time, connection, number, device, and text."""
        self.assertEqual(
            as_text(message(device_id="pump 1"), b"a line", False, seq_header="from_device_seq").decode(),
            f"2025-11-22T10:00:00 {CONNECTION_ID} 7 pump\\x201 a line\n",
        )

    def test_missing_fields(self) -> None:
        """A `-` stands for a missing field, so that columns stay in place."""
        self.assertEqual(as_text({}, b"", False, seq_header="from_device_seq"), b"- - - - \n")

    def test_other_header(self) -> None:
        """The header of the number may have another name."""
        self.assertIn(b" 8 - x\n", as_text(message(nr=8), b"x", False, seq_header="nr"))

    def test_odd_values(self) -> None:
        """Values of unexpected types are shown on one line, too."""
        odd = {"headers": {"connection_id": b"\xff\n", "device_id": ["a"]}, "timestamp": Timestamp(1 << 63)}
        shown = as_text(odd, b"\n", False, seq_header="from_device_seq")
        self.assertEqual(shown, b"9223372036854775808 \\xff\\x0a - ['a'] \\x0a\n")


class JSONTests(SynchronousTestCase):
    """A message as a JSON object."""

    def shown(self, properties: dict[str, Any], body: bytes, redelivered: bool = False) -> Any:
        line = as_json(properties, body, redelivered, seq_header="from_device_seq")
        self.assertEqual(line.count(b"\n"), 1)
        self.assertTrue(line.isascii())
        return json.loads(line)

    def test_text(self) -> None:
        """A UTF-8 body is text."""
        self.assertEqual(
            self.shown(message(device_id="pump"), "grüße\n".encode()),
            {
                "timestamp": 1763805600,
                "connection_id": CONNECTION_ID,
                "seq": 7,
                "device_id": "pump",
                "traceparent": None,
                "reply_to": "to_device.01234567",
                "redelivered": False,
                "body": "grüße\n",
            },
        )

    def test_trace(self) -> None:
        """The traceparent of a message is shown as it is, as text."""
        for value, shown in (("00-0af7-01", "00-0af7-01"), (b"\x1b[2J", "\\x1b[2J"), ([1], "[1]")):
            self.assertEqual(self.shown(message(traceparent=value), b"")["traceparent"], shown)

    def test_bytes(self) -> None:
        """Another body is base64, under another key."""
        shown = self.shown(message(), b"\xff\x00", redelivered=True)
        self.assertEqual((shown["body_base64"], shown["redelivered"]), ("/wA=", True))
        self.assertNotIn("body", shown)

    def test_odd_values(self) -> None:
        """Values that JSON does not have become text, and missing fields null."""
        shown = self.shown({"headers": {"connection_id": b"\xff", "from_device_seq": 1.5, "device_id": [b"x"]}}, b"")
        self.assertEqual(
            [shown[name] for name in ("connection_id", "seq", "device_id", "timestamp", "body")],
            ["\\xff", "1.5", "[b'x']", None, ""],
        )


class FormatterTests(SynchronousTestCase):
    """Messages with one line, and batches."""

    def setUp(self) -> None:
        self.warnings: list[str] = []
        self.formatter = Formatter(as_json, "nr", self.warnings.append)

    def shown(self, body: bytes, redelivered: bool = False, **headers: Any) -> list[Any]:
        properties = {"headers": headers, "timestamp": Timestamp(7), "reply_to": "to_device.01234567"}
        header = wire.header_payload(len(body), wire.encode_properties(properties))
        return [json.loads(line) for line in self.formatter.lines(header, body, redelivered)]

    def test_batch(self) -> None:
        """Each line of a batch is shown as it is when it comes in a message of its own."""
        lines = [
            (CONNECTION_ID, 5, 1_763_805_600_999, "pump", b"one"),
            (CONNECTION_ID.replace("0", "a"), 6, 1_763_805_601_000, None, b""),
            (CONNECTION_ID, 7, 1_763_805_601_001, "pump", b"\xff"),
        ]
        shown = self.shown(b"".join(map(msgpack.packb, lines)), True, owsla_batch=3, door="meters")
        alone: list[Any] = []
        for connection_id, seq, received_ms, device_id, line in lines:
            headers = {"connection_id": connection_id, "nr": seq, "door": "meters"}
            headers |= {} if device_id is None else {"device_id": device_id}
            properties = {"headers": headers, "timestamp": received_ms // 1000, "reply_to": "to_device.01234567"}
            alone.append(json.loads(as_json(properties, line, True, seq_header="nr")))
        self.assertEqual((shown, self.warnings), (alone, []))

    def test_traced(self) -> None:
        """The line of a batch that begins a trace has its traceparent."""
        body = msgpack.packb((CONNECTION_ID, 5, 0, None, b"one"))
        (shown,) = self.shown(body, owsla_batch=1, traceparent="00-0af7-01")
        self.assertEqual((shown["traceparent"], shown["timestamp"]), ("00-0af7-01", 0))

    def test_cannot_be_decoded(self) -> None:
        """A batch that cannot be decoded is shown as it is, in one line, with a warning."""
        whole: bytes = msgpack.packb((CONNECTION_ID, 5, 0, None, b"one"))
        for body in (b"", whole[:-1], whole + b"\xff"):
            (shown,) = self.shown(body, owsla_batch=1)
            self.assertEqual((shown["connection_id"], shown["timestamp"]), (None, 7))
            self.assertTrue("body" in shown or "body_base64" in shown)
        self.assertEqual(len(self.warnings), 3)
        self.assertEqual(self.warnings[0], "a batch cannot be decoded, and is shown as one line: byte 0: there is no line")

    def test_line(self) -> None:
        """A message without the header of batches is a line, whatever its body is."""
        body: bytes = msgpack.packb((CONNECTION_ID, 5, 0, None, b"one"))
        (shown,) = self.shown(body, connection_id="c", nr=1)
        self.assertEqual((shown["connection_id"], shown["seq"]), ("c", 1))
        self.assertEqual(self.warnings, [])

    @given(st.binary(max_size=80))
    def test_nonsense(self, data: bytes) -> None:
        """Malformed properties and bodies raise nothing, and each message is shown."""
        header = wire.header_payload(len(data), wire.encode_properties({"headers": {"owsla_batch": 1}}))
        for payload in (header, header[:20] + data):
            self.assertGreaterEqual(len(self.formatter.lines(payload, data, False)), 1)
