"""Tests of the trace context: which headers are valid, and what new ones are like."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.letter import Trace
from owsla.trace_context import LONGEST_TRACESTATE, NewTraces, headers, read

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
VALID = f"00-{IDS}-01"


class ReadTests(SynchronousTestCase):
    def test_version_00(self) -> None:
        """A traceparent of version 00 is kept as it is, from a string or a byte array, with any flags."""
        for flags in ("00", "01", "03", "ff"):
            text = f"00-{IDS}-{flags}"
            self.assertEqual(read(text), Trace(text))
            self.assertEqual(read(text.encode()), Trace(text))

    def test_later_versions(self) -> None:
        """Of a later version the known fields count, and nothing that follows them, however long. The result has version 00."""
        for version in ("01", "cc", "fe"):
            for rest in ("", "-", "-what the future will be like", "-" + "x" * 200_000, "-\0\r\n\ud800"):
                self.assertEqual(read(f"{version}-{IDS}-01{rest}"), Trace(VALID), (version, rest[:9]))
            self.assertEqual(read(f"{version}-{IDS}-fe"), Trace(f"00-{IDS}-00"), "the other flags may mean something else")
            self.assertIsNone(read(f"{version}-{IDS}-01x"))
            self.assertIsNone(read(f"{version}-{IDS}-0"))

    def test_invalid(self) -> None:
        """An invalid traceparent is ignored."""
        trace_id, parent_id = IDS.split("-")
        for text in (
            "",
            "00",
            VALID[:-1],
            VALID + "-",
            VALID + "-00",
            VALID + "\n",
            " " + VALID,
            VALID.upper(),
            VALID.replace("-", "_"),
            "ff" + VALID[2:],
            "0" + VALID[2:],
            f"00-{'0' * 32}-{parent_id}-01",
            f"00-{trace_id}-{'0' * 16}-01",
            f"00-{trace_id[:-1]}g-{parent_id}-01",
            f"00-{trace_id[:-1]}\u0661-{parent_id}-01",
            f"00-{trace_id[1:]}-{parent_id}0-01",
            f"00-{IDS}-0\0",
            VALID + "0" * 200_000,
            "\0" * 200_000,
        ):
            self.assertIsNone(read(text), text[:80])
            self.assertIsNone(read(text.encode("utf-8", "surrogatepass")), text[:80])

    def test_other_types(self) -> None:
        """A header of another type is ignored."""
        values: list[Any] = [None, 0, 1.5, True, [VALID], {"a": VALID}, (), 1 << 63]
        for value in values:
            self.assertIsNone(read(value))
            self.assertEqual(read(VALID, value), Trace(VALID))

    @given(
        st.text(max_size=60) | st.binary(max_size=60) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?")
    )
    def test_anything(self, value: object) -> None:
        """Whatever the header contains: the result is a valid traceparent of version 00, which reads as itself, or none."""
        trace = read(value, value)
        if trace is not None:
            self.assertRegex(trace.traceparent, r"\A00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
            self.assertEqual(read(trace.traceparent), Trace(trace.traceparent))


class TracestateTests(SynchronousTestCase):
    def tracestate(self, value: object) -> str | None:
        trace = read(VALID, value)
        assert trace is not None
        self.assertEqual(trace.traceparent, VALID)
        return trace.tracestate

    def test_valid(self) -> None:
        """A valid tracestate is kept, without spaces around its members and without empty ones."""
        for value in ("congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "t@v=1,0a_-*/=! ~", "a=" + "b" * 256):
            self.assertEqual(self.tracestate(value), value)
            self.assertEqual(self.tracestate(value.encode()), value)
        self.assertEqual(self.tracestate(" a=1 ,\t, ,b=2,"), "a=1,b=2")
        self.assertEqual(self.tracestate(",".join(f"k{n}={n}" for n in range(32))), ",".join(f"k{n}={n}" for n in range(32)))

    def test_invalid(self) -> None:
        """An invalid tracestate is left out, and the traceparent counts all the same."""
        for value in (
            "", ",", " ", "a", "=1", "a=", "A=1", "a=1,b", "a=1=2", "a=\u00e4", "a=\0", "a=1\n", "\ud800=1", "a=1,a=2",
            "k" * 257 + "=1", "a=" + "b" * 257, ",".join(f"k{n}={n}" for n in range(33)), "x" * 200_000, "a=1," * 50_000,
        ):  # fmt: skip
            self.assertIsNone(self.tracestate(value), value[:20])

    def test_without_traceparent(self) -> None:
        """A tracestate without a valid traceparent counts for nothing."""
        self.assertIsNone(read(None, "a=1"))
        self.assertIsNone(read("00", "a=1"))

    def test_too_long(self) -> None:
        """A tracestate beyond the limit loses its long members first, from the end, and then those at the end."""
        long, short = "l=" + "x" * 200, "s=" + "y" * 100
        self.assertEqual(self.tracestate(f"{long},{short},m={'z' * 220}"), f"{long},{short}")
        members = [f"k{n}={'v' * 100}" for n in range(10)]
        self.assertEqual(self.tracestate(",".join(members)), ",".join(members[:4]))
        for number in range(1, 32):
            shortened = self.tracestate(",".join(f"{'k' * 200}{n}={'v' * 256}" for n in range(number)))
            assert shortened is not None
            self.assertLessEqual(len(shortened), LONGEST_TRACESTATE)
        exact = "a=" + "b" * 253 + ",c=" + "d" * 254
        self.assertEqual(len(exact), LONGEST_TRACESTATE)
        self.assertEqual(self.tracestate(exact), exact)


class HeadersTests(SynchronousTestCase):
    def test_headers(self) -> None:
        """The headers of a message are those that are known."""
        self.assertEqual(headers(None), {})
        self.assertEqual(headers(Trace(VALID)), {"traceparent": VALID})
        self.assertEqual(headers(Trace(VALID, "a=1")), {"traceparent": VALID, "tracestate": "a=1"})


class NewTracesTests(SynchronousTestCase):
    def test_valid_and_different(self) -> None:
        """New traces are valid, sampled, and differ in both ids."""
        new = NewTraces()
        made = [new.make() for _ in range(1000)]
        for one in made:
            self.assertEqual(read(one), Trace(one))
            self.assertTrue(one.endswith("-01"))
        for start, stop in ((3, 35), (36, 52)):
            self.assertEqual(len({one[start:stop] for one in made}), 1000)

    def test_blocks(self) -> None:
        """Random bytes are read in blocks, and each is used once."""
        sizes: list[int] = []
        data: list[bytes] = []

        def random_bytes(size: int) -> bytes:
            sizes.append(size)
            data.append(os.urandom(size))
            return data[-1]

        new = NewTraces(random_bytes)
        made = [new.make() for _ in range(300)]
        self.assertEqual(len(sizes), 3)
        self.assertEqual("".join(one[3:-3].replace("-", "") for one in made), b"".join(data).hex()[: 300 * 48])

    def test_zeros(self) -> None:
        """Ids of zeros are invalid, and never used."""
        blocks = [bytes(24 * 128), bytes(16) + b"\1" * 8 + bytes(24 * 127), b"\1" * 16 + bytes(8) + b"\2" * 24 * 127]
        self.assertEqual(NewTraces(lambda size: blocks.pop(0)).make(), f"00-{'02' * 16}-{'02' * 8}-01")
