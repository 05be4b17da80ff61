"""Tests of large frames that arrive in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import MalformedFrame, Unfinished

from ._reference import FRAMINGS, WITH_LENGTH, cut, frame, framing, pieces

LARGE = tuple(name for name in FRAMINGS if name not in ("length:1", "fixed:3"))
"""Framings of frames that can be large, besides `fixed`."""


def unfinished(name: str, rest: bytes, max_line: int) -> Unfinished:
    """Return what collects or skips a frame."""
    found = framing(name, max_line).unfinished(rest)
    assert found is not None, (name, rest[:20])
    return found


def feed(unfinished: Unfinished, data: bytes, size: int, max_line: int) -> list[bytes | None]:
    return [unfinished.feed(piece, max_line) for piece in pieces(data, size)]


def feed_to_end(unfinished: Unfinished, parts: list[bytes], max_line: int) -> bytes | None:
    """Return what the frame leaves of these parts; `None` if it does not end in them."""
    for number, part in enumerate(parts):
        rest = unfinished.feed(part, max_line)
        if rest is not None:
            return rest + b"".join(parts[number + 1 :])
    return None


class CollectTests(SynchronousTestCase):
    def test_collected(self) -> None:
        """A large frame is collected. At its end everything from its start on is returned, and what came behind it."""
        payload = b"x" * 60_000
        for name in (*LARGE, "fixed:60000"):
            data = frame(name, payload)
            for behind in (b"", frame(name, payload)[:7]):
                collected = unfinished(name, data[:40_000], 60_000)
                self.assertFalse(collected.skipping)
                self.assertEqual(collected.size, 40_000)
                self.assertEqual(set(feed(collected, data[40_000:-5], 7000, 60_000)), {None})
                self.assertEqual(collected.feed(data[-5:] + behind, 60_000), data + behind, name)

    def test_small(self) -> None:
        """A small frame needs no buffer of its own."""
        for name in LARGE:
            self.assertIsNone(framing(name).unfinished(frame(name, b"x" * 1000)[:-1]), name)

    def test_at_the_limit(self) -> None:
        """A frame of the maximum length is collected, to its last byte."""
        for name in LARGE:
            data = frame(name, b"x" * 50_000)
            collected = unfinished(name, data[:40_000], 50_000)
            self.assertEqual(feed(collected, data[40_000:-1], 1, 50_000)[-1], None)
            self.assertFalse(collected.skipping)
            self.assertEqual(collected.feed(data[-1:], 50_000), data)

    def test_a_lower_limit(self) -> None:
        """When the limit is lowered meanwhile, the frame is skipped from there."""
        for name in LARGE:
            data = frame(name, b"x" * 50_000)
            collected = unfinished(name, data[:40_000], 50_000)
            self.assertIsNone(collected.feed(data[40_000:45_000], 1000))
            self.assertTrue(collected.skipping)
            self.assertEqual(collected.size, 0)
            self.assertEqual(collected.feed(data[45_000:] + b"behind", 1000), b"behind")


class SkipTests(SynchronousTestCase):
    def test_at_the_header(self) -> None:
        """A frame that claims to be too long is found out by its header, for any number that fits into it."""
        for name in WITH_LENGTH:
            if name == "length:1":
                continue
            for claim in (1001, 2**16 - 9, 2**31, 2**32 - 9, 2**62, 2**63, 2**63 - 1, 2**64 - 9):
                header = _header(name, claim)
                if header is None:
                    continue
                skipped = unfinished(name, header, 1000)
                self.assertTrue(skipped.skipping, (name, claim))
                self.assertEqual(skipped.size, 0)
                for _ in range(100 if claim > 50_000 else 1):
                    self.assertIsNone(skipped.feed(bytes(500), 1000))
                self.assertEqual(skipped.size, 0)
        self.assertTrue(unfinished("length:1", b"\xff", 254).skipping)

    def test_to_its_end(self) -> None:
        """A frame that is too long is skipped to its end, in pieces of any size, and nothing after it."""
        behind = b"behind"
        for name in (*LARGE, "length:1"):
            data = frame(name, b"x" * 200)
            for size in (1, 2, 3, 7, 50, 1000):
                skipped = unfinished(name, data[:150], 100)
                self.assertTrue(skipped.skipping)
                self.assertEqual(feed_to_end(skipped, pieces(data[150:] + behind, size), 100), behind, (name, size))
                self.assertEqual(skipped.size, 0)

    def test_nothing_behind(self) -> None:
        """At the end of what is skipped there may be nothing."""
        for name in LARGE:
            data = frame(name, b"x" * 200)
            skipped = unfinished(name, data[:-1], 100)
            self.assertEqual(skipped.feed(data[-1:], 100), b"", name)

    def test_malformed_at_its_end(self) -> None:
        """A netstring that is skipped must end with its comma, too."""
        for size in (1, 5, 300):
            skipped = unfinished("netstring", b"200:", 100)
            with self.assertRaises(MalformedFrame):
                feed(skipped, b"x" * 200 + b";", size, 100)

    @given(st.sampled_from([b"||", b"aab", b"abab", b"--end--"]), st.integers(0, 30), st.lists(st.integers(0, 60)))
    def test_terminator_in_pieces(self, terminator: bytes, more: int, cuts: list[int]) -> None:
        """The delimiter at the end of what is skipped may come in pieces, after bytes that look like a part of it."""
        made = framing("lines", 20, terminator)
        data = (terminator[:-1] * 30)[: 30 + more]
        place = (data + terminator).index(terminator)
        if place <= 20 + len(terminator):
            return
        skipped = made.unfinished(data[: 20 + len(terminator)])
        assert skipped is not None
        rest = feed_to_end(skipped, cut(data[20 + len(terminator) :] + terminator + b"behind", cuts), 20)
        self.assertEqual(rest, (data + terminator + b"behind")[place + len(terminator) :])


def _header(name: str, claim: int) -> bytes | None:
    """Return the header of a frame that claims so many bytes of payload, or `None` if there is none."""
    kind, *parameters = name.split(":")
    if kind == "length":
        size = int(parameters[0])
        number = claim + (size if "inclusive" in parameters else 0)
        if number >= 256**size:
            return None
        return number.to_bytes(size, "little" if "little" in parameters else "big")
    if claim >= 10**19:
        return None
    return str(claim).encode() + (b":" if kind == "netstring" else b" ")
