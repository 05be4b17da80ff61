"""Tests of all framings by themselves: what they make of bytes, and of payloads to devices."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import (
    Int8StringReceiver,
    Int16StringReceiver,
    Int32StringReceiver,
    IntNStringReceiver,
    NetstringReceiver,
)
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import Framing, MalformedFrame

from ._reference import FRAMINGS, WITH_LENGTH, cut, frame, framing, parse, payloads, pieces, stream

CUTS = st.lists(st.integers(0, 300), max_size=12)


def feed(framing: Framing, parts: list[bytes]) -> tuple[list[bytes], bytes]:
    """Return the payloads of bytes that arrive in parts, and the rest of an incomplete frame."""
    found: list[bytes] = []
    rest = b""
    for part in parts:
        more, rest = framing.split(rest + part)
        found += more
    return found, rest


def fault(framing: Framing, rest: bytes) -> str:
    """Return what is wrong with the frame at the start of a rest."""
    try:
        framing.unfinished(rest)
    except MalformedFrame as error:
        return str(error)
    return ""


class EachFramingTests(SynchronousTestCase):
    def test_pieces_of_every_size(self) -> None:
        """However the bytes are cut, the payloads are the same, those of no bytes among them."""
        for name in FRAMINGS:
            expected = payloads(name)
            data = stream(name, expected)
            for size in range(1, len(data) + 1):
                self.assertEqual(feed(framing(name), pieces(data, size)), (expected, b""), (name, size))

    def test_encode(self) -> None:
        """Payloads to a device are framed as those from it."""
        for name in FRAMINGS:
            self.assertEqual(framing(name).encode(payloads(name)), stream(name, payloads(name)), name)
            self.assertEqual(framing(name).encode(payloads(name)[:1]), frame(name, payloads(name)[0]), name)

    def test_limit(self) -> None:
        """No more payloads than the limit are returned, and the rest begins with the frame after them."""
        for name in FRAMINGS:
            some = payloads(name)
            for limit in range(1, len(some) + 2):
                found, rest = framing(name).split(stream(name, some), limit)
                self.assertEqual((found, rest), (some[:limit], stream(name, some[limit:])), (name, limit))
                self.assertEqual(framing(name).complete(rest), limit < len(some), (name, limit))

    def test_incomplete(self) -> None:
        """A frame without its last byte is kept as it is, and is no fault, wherever it breaks off."""
        for name in FRAMINGS:
            whole = frame(name, payloads(name)[5])
            for end in range(1, len(whole)):
                if name == "lines" and whole[end - 1 : end] == b"\n":
                    continue
                self.assertEqual(framing(name).split(whole[:end]), ([], whole[:end]), (name, end))
                self.assertFalse(framing(name).complete(whole[:end]))
                self.assertIsNone(framing(name).unfinished(whole[:end]), (name, end))

    def test_any_byte(self) -> None:
        """A framing that carries a length carries any bytes, in both directions."""
        every = bytes(range(256))[:254]
        for name in WITH_LENGTH:
            for payload in (every, every[::-1], b"", b"\n", b"\r\n\0", frame(name, b"abc") * 3):
                self.assertIsNone(framing(name).fault(payload))
                self.assertEqual(framing(name).split(framing(name).encode([payload])), ([payload], b""), name)

    @given(st.sampled_from(FRAMINGS), st.lists(st.binary(max_size=300), max_size=6), CUTS)
    def test_what_is_sent_is_received(self, name: str, bodies: list[bytes], cuts: list[int]) -> None:
        """Whatever bodies have no fault arrive at the other end as they were, and no others."""
        made = framing(name)
        fit = [body for body in bodies if made.fault(body) is None]
        self.assertEqual(feed(made, cut(made.encode(fit) if fit else b"", cuts)), (fit, b""))

    @given(st.sampled_from(FRAMINGS), st.binary(max_size=100), CUTS, st.integers(1, 5))
    def test_any_bytes(self, name: str, data: bytes, cuts: list[int], limit: int) -> None:
        """Whatever arrives, in whatever pieces, the payloads are those of all bytes at once, and nothing but malformed frames
        is raised.
        """
        made = framing(name)
        found, rest = made.split(data)
        self.assertEqual(feed(made, cut(data, cuts)), (found, rest))
        if rest:
            fault(made, rest)
        first, behind = made.split(data, limit)
        self.assertEqual(first, found[:limit])
        self.assertEqual(made.complete(behind), len(found) > limit)

    @given(
        st.sampled_from(FRAMINGS),
        st.lists(st.sampled_from([*b"\0\1\2\3\4~ :,0123\n\r\x0b\x1c"]), max_size=60).map(bytes),
        CUTS,
        st.integers(1, 5),
    )
    @example("octet-counting", b"0", [], 1)
    @example("octet-counting", b"10 0123456789", [], 1)
    @example("netstring", b"10:0123456789,10:0123456789:", [], 1)
    @example("between:7e7e:7e7e", b"~~~~~", [], 1)
    @example("between:02:03", b"\2\2\3", [], 1)
    def test_as_defined(self, name: str, data: bytes, cuts: list[int], limit: int) -> None:
        """Of bytes that look like frames, the payloads are those of the plainest implementation of the definition."""
        found, rest = parse(name, data)
        self.assertEqual(framing(name).split(data), (found, rest))
        self.assertEqual(feed(framing(name), cut(data, cuts)), (found, rest))
        self.assertEqual(framing(name).split(data, limit)[0], found[:limit])

    def test_too_long_to_send(self) -> None:
        """A body longer than the limit, or than the framing can express, is refused."""
        for name, longest in (
            ("lines", 1000), ("length:1", 255), ("length:1:inclusive", 254), ("length:2", 1000), ("netstring", 1000),
            ("octet-counting", 1000), ("between:02:03", 1000),
        ):  # fmt: skip
            made = framing(name, 1000)
            self.assertIsNone(made.fault(bytes(longest)), name)
            self.assertEqual(made.fault(bytes(longest + 1)), "too-long", name)
        made = framing("length:2", 70_000)
        self.assertIsNone(made.fault(bytes(65_535)))
        self.assertEqual(made.fault(bytes(65_536)), "too-long")

    def test_other_faults(self) -> None:
        """A body that would be taken for another, or for several, is refused."""
        for name, bad, reason in (
            ("lines", [b"\n", b"a\r"], "delimiter-in-body"),
            ("fixed:3", [b"", b"ab", b"abcd", bytes(20_000)], "bad-length"),
            ("between:02:03", [b"a\3b", b"a\2b"], "delimiter-in-body"),
            ("between:0b:1c0d", [b"\x1c\r", b"a\x0b"], "delimiter-in-body"),
            ("between:7e:7e", [b"~"], "delimiter-in-body"),
            ("between:7e7e:7e7e", [b"a~", b"~~", b"~"], "delimiter-in-body"),
            ("between:02:6162616263", [b"ab"], None),
            ("between:02:61626162", [b"xab", b"abab"], "delimiter-in-body"),
        ):
            for body in bad:
                self.assertEqual(framing(name).fault(body), reason, (name, body))
        for name, body in (("fixed:3", b"\r\n\0"), ("between:02:03", b"\r\n~"), ("between:0b:1c0d", b"\x1c\n\r\x1c")):
            self.assertIsNone(framing(name).fault(body))

    def test_unfit(self) -> None:
        """What the hot path asks is what `fault` says."""
        for name in FRAMINGS:
            made = framing(name, 300)
            for body in (b"", b"abc", b"\n", b"~", b"\2", bytes(300), bytes(301)):
                refused = len(body) > made.max_body or (made.unfit is not None and bool(made.unfit(body)))
                self.assertEqual(refused, made.fault(body) is not None, (name, body))


class MalformedTests(SynchronousTestCase):
    def test_malformed(self) -> None:
        """A malformed frame is found by its first bytes. Complete frames before it are payloads."""
        for name, bad, words in (
            ("length:2:inclusive", b"\0\1", "does not include the 2 bytes of its field"),
            ("length:4:little:inclusive", b"\3\0\0\0abc", "does not include the 4 bytes"),
            ("netstring", b"x", "no length at the start of a frame"),
            ("netstring", b":", "no length at the start of a frame"),
            ("netstring", b"05:hello,", "no length at the start of a frame"),
            ("netstring", b"+5:hello,", "no length at the start of a frame"),
            ("netstring", b"5 hello,", "no length at the start of a frame"),
            ("netstring", b"-1:,", "no length at the start of a frame"),
            ("netstring", b"1" * 20, "no length at the start of a frame"),
            ("netstring", b"5:hello;", "5 bytes are not followed by b','"),
            ("netstring", b"5:hello3:abc,", "5 bytes are not followed by b','"),
            ("octet-counting", b"<13>hello\n", "no length at the start of a frame"),
            ("octet-counting", b" 5 hello", "no length at the start of a frame"),
            ("octet-counting", b"5:hello", "no length at the start of a frame"),
            ("octet-counting", b"00 ", "no length at the start of a frame"),
            ("between:02:03", b"x", "where a frame must start"),
            ("between:02:03", b"\r\n\2abc\3", "where a frame must start"),
            ("between:02:03", b"\3", "where a frame must start"),
            ("between:02:03", b"\2abc\2", "a frame begins before the end of the one before"),
            ("between:02:03", b"\2abc\2abcdef\3", "a frame begins before the end of the one before"),
            ("between:0203:0d0a", b"\2x", "where a frame must start"),
            ("between:7e:7e", b"x", "where a frame must start"),
            ("between:7e:7e", b"x~abc~", "where a frame must start"),
        ):
            good = payloads(name)
            found, rest = framing(name).split(stream(name, good) + bad)
            self.assertEqual((found, rest), (good, bad), (name, bad))
            self.assertIn(words, fault(framing(name), rest), (name, bad))
            self.assertFalse(framing(name).complete(rest))

    def test_shown(self) -> None:
        """A fault shows the first byte, and nothing else that a device has sent."""
        faults = [
            fault(framing(name), b"Zsecret") for name in ("netstring", "octet-counting", "between:02:03", "between:7e:7e")
        ]
        self.assertEqual([("0x5A" in each, "secret" in each) for each in faults], [(True, False)] * 4)

    def test_octet_counting_of_nothing(self) -> None:
        """RFC 6587 has no message of length 0. It is accepted, and sent."""
        self.assertEqual(framing("octet-counting").split(b"0 0 1 a"), ([b"", b"", b"a"], b""))
        self.assertEqual(framing("octet-counting").encode([b""]), b"0 ")


LIMIT = IntNStringReceiver.MAX_LENGTH


class _Strings:
    """What a receiver has received."""

    def __init__(self) -> None:
        super().__init__()
        self.strings: list[bytes] = []

    def stringReceived(self, string: bytes) -> None:
        self.strings.append(string)


class _Int8(_Strings, Int8StringReceiver): ...


class _Int16(_Strings, Int16StringReceiver): ...


class _Int32(_Strings, Int32StringReceiver): ...


class _LittleInt32(_Int32):
    structFormat = "<I"
    prefixLength = struct.calcsize(structFormat)


class _Netstring(_Strings, NetstringReceiver):
    MAX_LENGTH = LIMIT


Oracle: TypeAlias = _Int8 | _Int16 | _Int32 | _Netstring

ORACLES: dict[str, Callable[[], Oracle]] = {
    "length:1": _Int8,
    "length:2": _Int16,
    "length:4": _Int32,
    "length:4:little": _LittleInt32,
    "netstring": _Netstring,
}


class OracleTests(SynchronousTestCase):
    """Twisted's receivers of the same framings agree."""

    @given(st.sampled_from(sorted(ORACLES)), st.lists(st.binary(max_size=255), max_size=6), CUTS)
    def test_sent_by_twisted(self, name: str, strings: list[bytes], cuts: list[int]) -> None:
        """What Twisted sends is received, and is what would be sent."""
        oracle, transport = ORACLES[name](), StringTransport()
        oracle.makeConnection(transport)
        for string in strings:
            oracle.sendString(string)
        data = transport.value()
        self.assertEqual(feed(framing(name), cut(data, cuts)), (strings, b""))
        self.assertEqual(framing(name).encode(strings), data)

    @given(st.sampled_from(sorted(ORACLES)), st.lists(st.binary(max_size=255), max_size=6), CUTS)
    def test_received_by_twisted(self, name: str, strings: list[bytes], cuts: list[int]) -> None:
        """What is sent, Twisted receives."""
        oracle = ORACLES[name]()
        oracle.makeConnection(StringTransport())
        for piece in cut(framing(name).encode(strings), cuts):
            oracle.dataReceived(piece)
        self.assertEqual(oracle.strings, strings)

    @given(
        st.sampled_from(sorted(ORACLES)),
        st.lists(st.sampled_from([b"\0", b"\1", b"\2", b"0", b"1", b"2", b":", b",", b"a", b"\0\0\0\3", b"3:abc,"])).map(
            b"".join
        ),
        CUTS,
    )
    def test_any_bytes(self, name: str, data: bytes, cuts: list[int]) -> None:
        """Of any bytes, Twisted takes the same payloads, and it finds fault with the same frames."""
        oracle, transport = ORACLES[name](), StringTransport()
        oracle.makeConnection(transport)
        for piece in cut(data, cuts):
            oracle.dataReceived(piece)
        made = framing(name, LIMIT)
        found, rest = feed(made, cut(data, cuts))
        self.assertEqual(found, oracle.strings)
        refused = bool(fault(made, rest))
        if not refused:
            unfinished = made.unfinished(rest)
            refused = unfinished is not None and unfinished.skipping
        self.assertEqual(refused, transport.disconnecting)
