"""Tests of line framing, alone and in a connection."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import LineFraming
from owsla.events import DeviceDisconnected, LineTooLong

from .._fakes import World, cpu

DELIMITERS = st.sampled_from([b"\n", b"\0", b"||", b"\r\n", b"aab", b"abab", b"--end--"])

# Few letters, so that delimiters, and prefixes of delimiters, are frequent.
STREAMS = st.lists(
    st.sampled_from([b"a", b"b", b"|", b"\r", b"\n", b"\0", b"aa", b"ab", b"\r\n", b"--end--", b"--en", b"\xff"]), max_size=60
).map(b"".join)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut the stream into pieces that are not empty."""
    places = sorted({0, len(stream), *(place for place in cuts if place < len(stream))})
    return [stream[start:end] for start, end in pairwise(places)]


def expected(stream: bytes, delimiter: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines by the plainest implementation of the contract: search for the delimiter from the left."""
    lines = []
    while (place := stream.find(delimiter)) >= 0:
        line, stream = stream[:place], stream[place + len(delimiter) :]
        if delimiter == b"\n" and line[-1:] == b"\r":
            line = line[:-1]
        lines.append(line)
    return lines, stream


class SplitTests(SynchronousTestCase):
    @given(STREAMS, DELIMITERS, st.lists(st.integers(0, 200), max_size=12))
    @example(b"ababab", b"abab", [2])
    @example(b"a\r\nb", b"\r\n", [2])
    @example(b"a\r\nb", b"\n", [2])
    def test_any_cuts(self, stream: bytes, delimiter: bytes, cuts: list[int]) -> None:
        """However the stream is cut, the lines and the incomplete rest are those of the whole stream."""
        framing = LineFraming(delimiter)
        lines: list[bytes] = []
        rest = b""
        for piece in cut(stream, cuts):
            more, rest = framing.split(rest + piece)
            lines += more
        self.assertEqual((lines, rest), expected(stream, delimiter))

    def test_carriage_return(self) -> None:
        r"""With the default delimiter exactly one `\r` before it is removed."""
        self.assertEqual(
            LineFraming().split(b"a\r\nb\r\r\n\rc\nd\re\n\r\n\nf\r"), ([b"a", b"b\r", b"\rc", b"d\re", b"", b""], b"f\r")
        )

    def test_custom_delimiter_keeps_carriage_return(self) -> None:
        r"""A configured delimiter is used unchanged: a `\r` before it belongs to the line."""
        self.assertEqual(LineFraming(b";").split(b"a\r;b"), ([b"a\r"], b"b"))

    def test_empty_lines(self) -> None:
        """Empty lines are lines."""
        self.assertEqual(LineFraming().split(b"\n\n"), ([b"", b""], b""))

    def test_any_bytes(self) -> None:
        """Lines are bytes, and are not decoded."""
        every = bytes(set(range(256)) - {10})
        self.assertEqual(LineFraming().split(every + b"\n"), ([every], b""))

    def test_ending(self) -> None:
        r"""Lines to the device end with `\r\n`, or with the configured delimiter."""
        self.assertEqual(LineFraming().ending, b"\r\n")
        self.assertEqual(LineFraming(b"||").ending, b"||")

    @given(STREAMS, DELIMITERS)
    def test_forbidden(self, body: bytes, delimiter: bytes) -> None:
        """A valid body arrives at the device as one line."""
        framing = LineFraming(delimiter)
        if framing.fault(body) is None:
            self.assertEqual(LineFraming(delimiter).split(framing.encode([body])), ([body], b""))
            if delimiter == b"\n":
                self.assertNotIn(b"\r", body)
        else:
            self.assertEqual(framing.fault(body), "delimiter-in-body")
            self.assertTrue((body + delimiter).index(delimiter) < len(body) or (delimiter == b"\n" and b"\r" in body))

    def test_delimiter_that_begins_in_the_body(self) -> None:
        """A body after which the delimiter would be found too early would reach the device as another line: it is refused."""
        for delimiter, body in ((b"abab", b"xab"), (b"||", b"a|"), (b"aba", b"xxab"), (b"aaa", b"aa"), (b"--end--", b"--end")):
            self.assertEqual(LineFraming(delimiter).fault(body), "delimiter-in-body")
            self.assertLess((body + delimiter).index(delimiter), len(body))
        for delimiter, body in ((b"abab", b"xa"), (b"aab", b"xa"), (b"--end--", b"--en")):
            self.assertIsNone(LineFraming(delimiter).fault(body))

    def test_forbidden_is_literal(self) -> None:
        """A delimiter is literal, not a pattern."""
        framing = LineFraming(b".*")
        self.assertIsNone(framing.fault(b"abc"))
        self.assertEqual(framing.fault(b"a.*c"), "delimiter-in-body")


class EndpointTests(SynchronousTestCase):
    """Framing in a connection."""

    @given(STREAMS, DELIMITERS, st.lists(st.integers(0, 200), max_size=12), st.integers(0, 12))
    @example(b"aaa||", b"||", [4], 3)
    @example(b"aaa\r\n", b"\n", [4], 3)
    @example(b"aaaa\r\n", b"\n", [5], 3)
    @example(b"a\naaaa\nb\n", b"\n", [], 3)
    def test_any_cuts(self, stream: bytes, delimiter: bytes, cuts: list[int], max_line: int) -> None:
        """However the stream is cut, each line is published once and in order, up to the first one that is too long. There the
        connection is closed, and nothing of that line or after it is published.
        """
        world = World(LineFraming(delimiter, max_line))
        endpoint, wire = world.connect()
        for piece in cut(stream, cuts):
            endpoint.dataReceived(piece)
        lines, rest = expected(stream, delimiter)
        allowed = []
        for line in lines:
            if len(line) > max_line:
                break
            allowed.append(line)
        self.assertEqual(world.sink.of(endpoint), allowed)
        if len(allowed) < len(lines):
            self.assertEqual(wire.closed, "lost")
            self.assertEqual(len(world.of_type(LineTooLong)), 1)
        elif len(rest) <= max_line:
            self.assertEqual((wire.closed, world.of_type(LineTooLong)), ("", []))
        elif len(rest) > max_line + len(delimiter):
            self.assertEqual(wire.closed, "lost")

    @given(STREAMS, DELIMITERS, st.lists(st.integers(0, 200), max_size=12), st.integers(0, 12), st.lists(st.integers(1, 3)))
    def test_any_cuts_and_pauses(
        self, stream: bytes, delimiter: bytes, cuts: list[int], max_line: int, rooms: list[int]
    ) -> None:
        """The same holds when the sink pauses in between: no line is lost, duplicated or out of order."""
        world = World(LineFraming(delimiter, max_line))
        endpoint, wire = world.connect()
        pieces = cut(stream, cuts)
        for room in rooms:
            world.sink.resume(room)
            if pieces and wire.reading and not wire.closed:
                endpoint.dataReceived(pieces.pop(0))
        world.sink.resume()
        while pieces and not wire.closed:
            self.assertTrue(wire.reading)
            endpoint.dataReceived(pieces.pop(0))
        allowed = []
        for line in expected(stream, delimiter)[0]:
            if len(line) > max_line:
                break
            allowed.append(line)
        self.assertEqual(world.sink.of(endpoint), allowed)
        self.assertEqual(world.totals.paused_connections, 0)

    def test_full_length_with_every_cut(self) -> None:
        r"""A line of exactly `max_line` bytes is accepted, wherever its `\r\n` is cut."""
        line = b"x" * 100
        stream = line + b"\r\n" + line + b"\n"
        for place in range(len(stream)):
            world = World(LineFraming(max_line=100))
            endpoint, wire = world.connect()
            for piece in cut(stream, [place]):
                endpoint.dataReceived(piece)
            self.assertEqual((world.sink.of(endpoint), wire.closed), ([line, line], ""))

    def test_full_length_custom_delimiter_with_every_cut(self) -> None:
        """A line of exactly `max_line` bytes is accepted, wherever a long delimiter is cut."""
        line = b"x" * 100
        stream = (line + b"--end--") * 2
        for place in range(len(stream)):
            world = World(LineFraming(b"--end--", max_line=100))
            endpoint, wire = world.connect()
            for piece in cut(stream, [place]):
                endpoint.dataReceived(piece)
            self.assertEqual((world.sink.of(endpoint), wire.closed), ([line, line], ""))

    def test_one_byte_more(self) -> None:
        """A line of one byte more closes the connection. Lines before it are published; it and later ones are not."""
        for limit in (100, 40_000):
            stream = b"before\n" + b"x" * (limit + 1) + b"\nafter\n"
            for cuts in ([], [3], [7], [limit], [limit + 8], [limit + 9], list(range(0, limit, 1000))):
                world = World(LineFraming(max_line=limit))
                endpoint, wire = world.connect(device_id="d1")
                for piece in cut(stream, cuts):
                    endpoint.dataReceived(piece)
                self.assertEqual((world.sink.of(endpoint), wire.closed), ([b"before"], "lost"))
                self.assertEqual(world.of_type(LineTooLong), [LineTooLong(endpoint.connection_id.decode(), "d1", limit)])

    def test_too_long_without_delimiter(self) -> None:
        """A line without an end closes the connection as soon as it exceeds the limit."""
        for limit in (100, 40_000):
            world = World(LineFraming(max_line=limit))
            endpoint, wire = world.connect()
            endpoint.dataReceived(b"x" * limit)
            endpoint.dataReceived(b"\r")
            self.assertEqual(wire.closed, "")
            endpoint.dataReceived(b"\r")
            self.assertEqual((world.sink.of(endpoint), wire.closed), ([], "lost"))

    def test_nothing_after_too_long(self) -> None:
        """Data after a line that was too long is ignored, and the line is reported once only."""
        world = World(LineFraming(max_line=10))
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"x" * 50)
        endpoint.dataReceived(b"x\nfine\n")
        world.end(endpoint)
        self.assertEqual(world.sink.of(endpoint), [])
        self.assertEqual(len(world.of_type(LineTooLong)), 1)

    def test_unterminated_rest_at_close(self) -> None:
        """An incomplete line at the end of the connection is not published, but counted and reported."""
        for size in (0, 7, 50_000):
            world = World(LineFraming(max_line=100_000))
            endpoint, _ = world.connect()
            endpoint.dataReceived(b"whole\n")
            for start in range(0, size, 1000):
                endpoint.dataReceived(b"r" * min(1000, size - start))
            world.end(endpoint)
            self.assertEqual(world.sink.of(endpoint), [b"whole"])
            (event,) = world.of_type(DeviceDisconnected)
            self.assertEqual((event.unterminated, event.lines_in), (size, 1))

    def test_unterminated_rest_with_room_for_another_line(self) -> None:
        """A long line that is completed can be followed by others in the same bytes."""
        world = World(LineFraming(max_line=100_000))
        endpoint, _ = world.connect()
        endpoint.dataReceived(b"a" * 60_000)
        endpoint.dataReceived(b"a" * 100 + b"\r\nb\n" + b"c" * 50_000)
        endpoint.dataReceived(b"\nd\n")
        self.assertEqual(world.sink.of(endpoint), [b"a" * 60_100, b"b", b"c" * 50_000, b"d"])

    def test_long_lines_in_linear_time(self) -> None:
        """A line of eight times the length, in pieces of the same size, takes about eight times as long."""

        def take(size: int) -> None:
            world = World(LineFraming(b"--end--", max_line=64 << 20))
            endpoint, _ = world.connect()
            piece = b"-" * 512
            for _ in range(size // len(piece)):
                endpoint.dataReceived(piece)
            endpoint.dataReceived(b"--end--")
            self.assertEqual([len(line) for line in world.sink.of(endpoint)], [size])

        take(1 << 17)
        short, long = (min(cpu(partial(take, size)) for _ in range(3)) for size in (1 << 17, 1 << 20))
        self.assertLess(long, 8 * 3 * short)  # quadratic would be 64 times

    def test_many_lines_at_once_in_linear_time(self) -> None:
        """The time for many short lines that the sink takes one by one is proportional to their number."""

        def take(count: int) -> None:
            world = World()
            endpoint, _ = world.connect()
            world.sink.room = 1
            endpoint.dataReceived(b"\n" * count)
            while world.sink.waiting:
                world.sink.resume(100)
            self.assertEqual(len(world.sink.lines), count)

        take(16384)  # the maximum of one TLS record
