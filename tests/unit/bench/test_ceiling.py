"""Batches as the C back end of the figures decodes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.c_program import MeasurementError, build
from tests import is_required

ID = b"5eed0000-0000-4000-8000-000000000001"


def line(seq: bytes, text: bytes = b"hello", *, id: bytes = b"\xd9\x24" + ID, device: bytes = b"\xc0") -> bytes:
    """Return an element of a batch, with the encoded number of a line."""
    return b"\x95" + id + seq + b"\xcf\x00\x00\x01\x97\x00\x00\x00\x00" + device + b"\xc4" + bytes([len(text)]) + text


class DecoderTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        try:
            self.program = build(folder)
        except MeasurementError as error:
            if is_required("LIBRABBITMQ"):
                raise AssertionError(f"OWSLA_REQUIRE_LIBRABBITMQ=1: {error}") from None
            raise SkipTest(str(error)) from None

    def run_decoder(self, body: bytes, count: int) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([self.program, "decode", str(count)], input=body, capture_output=True, timeout=60, check=False)

    def decoded(self, *lines: bytes) -> Any:
        found = self.run_decoder(b"".join(lines), len(lines))
        self.assertEqual((found.returncode, found.stderr), (0, b""))
        return json.loads(found.stdout)

    def refused(self, body: bytes, count: int = 1) -> str:
        found = self.run_decoder(body, count)
        self.assertEqual((found.returncode, found.stdout), (1, b""))
        return found.stderr.decode()

    def test_counts(self) -> None:
        """Lines and their bytes are counted."""
        found = self.decoded(line(b"\x00"), line(b"\x01", b""), line(b"\x02", b"four", device=b"\xa3dev"))
        self.assertEqual(found, {"lines": 3, "bytes": 9, "missing": 0, "repeated": 0})

    def test_sequence(self) -> None:
        """Lines are missing or repeated by the numbers of their own connection, also with very many connections."""
        found = self.decoded(line(b"\x00"), line(b"\x03"), line(b"\x03"), line(b"\x00", id=b"\xa5other"))
        self.assertEqual((found["missing"], found["repeated"]), (2, 1))
        ids = [b"\xa5%05d" % number for number in range(20_000)]
        found = self.decoded(*(line(bytes([seq]), id=id) for seq in (0, 1, 1) for id in ids))
        self.assertEqual((found["lines"], found["missing"], found["repeated"]), (60_000, 0, 20_000))

    def test_encodings(self) -> None:
        """Integers, strings, binary values and arrays may be encoded wider than needed."""
        wide = (
            b"\x01",
            b"\xcc\x01",
            b"\xcd\x00\x01",
            b"\xce\x00\x00\x00\x01",
            b"\xcf" + bytes(7) + b"\x01",
            b"\xd3" + bytes(7) + b"\x01",
        )
        for seq in wide:
            self.assertEqual(self.decoded(line(b"\x00"), line(seq))["missing"], 0, seq)
        element = line(b"\x00", id=b"\xda\x00\x24" + ID, device=b"\xdb\x00\x00\x00\x01d")
        for head in (b"\x95", b"\xdc\x00\x05", b"\xdd\x00\x00\x00\x05"):
            self.assertEqual(self.decoded(head + element[1:])["bytes"], 5)
        self.assertEqual(self.decoded(element[:-7] + b"\xc5\x00\x05hello")["bytes"], 5)
        self.assertEqual(self.decoded(element[:-7] + b"\xc6\x00\x00\x00\x05hello")["bytes"], 5)

    def test_malformed(self) -> None:
        """A batch that ends early, with other types, or with another number of lines is refused, with the reason."""
        body = line(b"\x00")
        for size in range(1, len(body)):
            self.assertIn("malformed batch", self.refused(body[:size]))
        self.assertIn("number of lines", self.refused(body, 2))
        self.assertIn("number of lines", self.refused(b""))
        self.assertIn("array", self.refused(b"\x94" + body[1:]))
        self.assertIn("not an integer", self.refused(line(b"\xc0")))
        self.assertIn("negative", self.refused(line(b"\xd0\xff")))
        self.assertIn("not a string", self.refused(line(b"\x00", device=b"\x07")))
        self.assertIn("size of a connection id", self.refused(line(b"\x00", id=b"\xa0")))
        self.assertIn("size of a connection id", self.refused(line(b"\x00", id=b"\xd9\x30" + b"x" * 48)))
