"""Tests of framings in a connection: what is published, what closes it, and what is written to the device."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.framing import MalformedFrame
from owsla.events import BadFrame, DeviceDisconnected, LinesSkipped, LineTooLong

from .._fakes import Source, World, cpu
from ._reference import FRAMINGS, WITH_LENGTH, cut, frame, framing, payloads, pieces, stream

VARIABLE = tuple(name for name in FRAMINGS if not name.startswith("fixed"))
"""Framings of payloads of any length."""

CLAIMS = {
    "length:4": [(2**31).to_bytes(4, "big"), (2**32 - 1).to_bytes(4, "big")],
    "length:4:inclusive": [(2**31).to_bytes(4, "big")],
    "length:8": [(2**31).to_bytes(8, "big"), (2**63).to_bytes(8, "big"), (2**64 - 1).to_bytes(8, "big")],
    "length:8:little:inclusive": [(2**63).to_bytes(8, "little")],
    "netstring": [b"2147483648:", b"9223372036854775808:"],
    "octet-counting": [b"2147483648 ", b"9223372036854775808 "],
}
"""Headers of frames that claim 2^31 bytes, and 2^63 or more."""


def world(name: str, max_line: int = 16384, **options: Any) -> World:
    return World(framing(name, max_line), **options)


def published(world: World) -> list[bytes]:
    return [line for _, _, line in world.sink.lines]


class PublishTests(SynchronousTestCase):
    def test_pieces_of_every_size(self) -> None:
        """Each payload is the body of a line, exactly, however the bytes of the frames arrive. Empty payloads are lines."""
        for name in FRAMINGS:
            data = stream(name, payloads(name))
            for size in (*range(1, 12), len(data)):
                made = world(name)
                endpoint, wire = made.connect()
                for piece in pieces(data, size):
                    endpoint.dataReceived(piece)
                self.assertEqual((made.sink.of(endpoint), wire.closed), (payloads(name), ""), (name, size))
                self.assertEqual((endpoint.lines_in, made.totals.bytes_in), (6, len(data)))

    @given(
        st.sampled_from(FRAMINGS),
        st.lists(st.integers(0, 60), max_size=8),
        st.lists(st.integers(0, 200), max_size=8),
        st.lists(st.integers(1, 3), max_size=8),
        st.integers(1, 4),
    )
    def test_pauses(self, name: str, sizes: list[int], cuts: list[int], rooms: list[int], share: int) -> None:
        """No payload is lost, repeated or changed when the sink pauses between any two of them, and at the end of a share."""
        some = payloads(name) if name.startswith("fixed") else [b"\xff" * size for size in sizes]
        made = world(name)
        made.sink.share = share
        endpoint, wire = made.connect()
        parts = cut(stream(name, some), cuts)
        for room in rooms:
            made.sink.settled = len(made.sink.lines)
            made.sink.resume(room)
            if parts and wire.reading:
                endpoint.dataReceived(parts.pop(0))
        while parts or made.sink.waiting:
            made.sink.settled = len(made.sink.lines)
            made.sink.resume()
            if parts and wire.reading:
                endpoint.dataReceived(parts.pop(0))
        self.assertEqual(made.sink.of(endpoint), some)
        self.assertEqual((wire.closed, made.totals.paused_connections), ("", 0))

    def test_unfinished_at_the_end(self) -> None:
        """An incomplete frame at the end of the connection is not published. Its bytes are counted in the event."""
        for name, payload in (
            *((name, b"x" * 200) for name in VARIABLE),
            ("fixed:200", b"x" * 200),
            ("netstring", b"x" * 50_000),
        ):
            made = world(name, 100_000)
            endpoint, _ = made.connect()
            data = frame(name, payload)[:-1] if name != "lines" else payload
            for piece in pieces(data, 16_000):
                endpoint.dataReceived(piece)
            made.end(endpoint)
            (event,) = made.of_type(DeviceDisconnected)
            self.assertEqual((published(made), event.unterminated), ([], len(data)), name)

    def test_rate(self) -> None:
        """--max-rate counts payloads."""
        made = world("length:2", max_rate=2.0)
        endpoint, wire = made.connect()
        endpoint.dataReceived(stream("length:2", [b"a"] * 3))
        self.assertFalse(wire.reading)


class LimitTests(SynchronousTestCase):
    def test_full_length(self) -> None:
        """A payload of --max-line bytes is published, wherever its frame is cut."""
        for name in VARIABLE:
            full = b"x" * 100
            data = stream(name, [full, full])
            for place in range(len(data)):
                made = world(name, 100)
                endpoint, wire = made.connect()
                for piece in cut(data, [place]):
                    endpoint.dataReceived(piece)
                self.assertEqual((made.sink.of(endpoint), wire.closed), ([full, full], ""), (name, place))

    def test_one_byte_more(self) -> None:
        """A payload of one byte more closes the connection. What was complete before it is published, and nothing else."""
        for name in VARIABLE:
            for limit in (100, 40_000):
                if limit > 250 and name == "length:1":
                    continue
                data = stream(name, [b"before", b"x" * (limit + 1), b"after"])
                for cuts in ([], [3], [9], [limit // 2], [limit + 9], [limit + 18], list(range(0, limit + 18, 1000))):
                    made = world(name, limit)
                    endpoint, wire = made.connect(device_id="d1")
                    for piece in cut(data, cuts):
                        endpoint.dataReceived(piece)
                    self.assertEqual((published(made), wire.closed), ([b"before"], "lost"), (name, cuts))
                    self.assertEqual(made.events, [LineTooLong(endpoint.connection_id.decode(), "d1", limit)], (name, cuts))
                    self.assertIn(f"a line longer than {limit} bytes", endpoint._closing)

    def test_claims(self) -> None:
        """A frame that claims 2^31 bytes or more is refused at its header, and costs nothing but its connection."""
        for name, headers in CLAIMS.items():
            for header in headers:
                for size in (1, len(header)):
                    made = world(name)
                    endpoint, wire = made.connect()
                    endpoint.dataReceived(frame(name, b"before"))
                    tracemalloc.start()
                    try:
                        for piece in pieces(header, size):
                            self.assertEqual(wire.closed, "")
                            endpoint.dataReceived(piece)
                        endpoint.dataReceived(b"x" * 16_000)
                        peak = tracemalloc.get_traced_memory()[1]
                    finally:
                        tracemalloc.stop()
                    self.assertLess(peak, 100_000)
                    self.assertEqual((published(made), wire.closed), ([b"before"], "lost"), (name, header))
                    self.assertEqual(len(made.of_type(LineTooLong)), 1)
                    self.assertEqual(endpoint._buffer, b"")

    def test_large_frames_in_linear_time(self) -> None:
        """A frame of eight times the length, in pieces of the same size, takes about eight times as long."""

        def take(name: str, size: int) -> None:
            if name == "fixed":
                name = f"fixed:{size}"
            made = world(name, 64 << 20)
            endpoint, _ = made.connect()
            for piece in pieces(frame(name, b"x" * size), 512):
                endpoint.dataReceived(piece)
            self.assertEqual([len(line) for line in published(made)], [size])

        for name in ("length:4", "netstring", "between:02:03", "fixed"):
            take(name, 1 << 17)
            short, long = (min(cpu(partial(take, name, size)) for _ in range(3)) for size in (1 << 17, 1 << 20))
            self.assertLess(long, 8 * 3 * short, name)  # quadratic would be 64 times

    def test_in_a_backlog(self) -> None:
        """A payload that is too long closes the connection also when it was read before the sink stopped, and at the end of
        the connection.
        """
        for name in ("length:2", "between:02:03"):
            for resumed in (True, False):
                made = world(name, 5)
                endpoint, wire = made.connect()
                made.sink.room = 1
                endpoint.dataReceived(stream(name, [b"one", b"two", b"x" * 6, b"three"]))
                self.assertEqual((published(made), wire.closed), ([b"one"], ""))
                if resumed:
                    made.sink.resume()
                    self.assertEqual(wire.closed, "lost")
                else:
                    made.end(endpoint)
                self.assertEqual(published(made), [b"one", b"two"])
                self.assertEqual(len(made.of_type(LineTooLong)), 1)


class MalformedTests(SynchronousTestCase):
    def test_closes(self) -> None:
        """A malformed frame closes the connection with an event. Frames before it are published, and nothing after it."""
        for name, bad in (
            ("length:2:inclusive", b"\0\1"),
            ("netstring", b"3:abcd"),
            ("netstring", b"x"),
            ("octet-counting", b"01 a"),
            ("between:02:03", b"a\2b\3"),
            ("between:02:03", b"\2a\2b\3"),
            ("between:7e:7e", b"a~b~"),
        ):
            data = stream(name, [b"one", b"two"]) + bad
            for cuts in ([], list(range(len(data)))):
                made = world(name)
                endpoint, wire = made.connect(device_id="d1")
                for piece in cut(data, cuts):
                    endpoint.dataReceived(piece)
                endpoint.dataReceived(frame(name, b"after"))
                self.assertEqual((published(made), wire.closed), ([b"one", b"two"], "lost"), (name, cuts))
                (event,) = made.events
                assert isinstance(event, BadFrame)
                self.assertEqual((event.connection_id, event.device_id), (endpoint.connection_id.decode(), "d1"))
                with self.assertRaises(MalformedFrame) as raised:
                    framing(name).unfinished(framing(name).split(bad)[1])
                if not cuts:
                    self.assertEqual(event.why, str(raised.exception))
                self.assertIn(event.why, endpoint._closing)
                made.end(endpoint)
                self.assertEqual(made.of_type(DeviceDisconnected)[0].unterminated, 0)

    def test_after_a_pause(self) -> None:
        """Frames before a malformed one have their turn, and then it closes the connection."""
        made = world("netstring")
        made.sink.share = 2
        endpoint, wire = made.connect()
        made.sink.room = 1
        endpoint.dataReceived(stream("netstring", [b"one", b"two", b"three"]) + b"bad")
        self.assertEqual((published(made), wire.closed), ([b"one"], ""))
        while made.sink.waiting:
            made.sink.settled = len(made.sink.lines)
            made.sink.resume()
        self.assertEqual((published(made), wire.closed), ([b"one", b"two", b"three"], "lost"))
        self.assertEqual(len(made.of_type(BadFrame)), 1)

    def test_discarded(self) -> None:
        """A malformed frame of a closed connection is not reported: what follows a close is discarded."""
        made = world("netstring")
        endpoint, _ = made.connect()
        endpoint.dataReceived(b"x")
        endpoint.dataReceived(b"x")
        self.assertEqual(len(made.of_type(BadFrame)), 1)


class SkipTests(SynchronousTestCase):
    def test_skipped(self) -> None:
        """With --on-long skip, a payload that is too long is left out, wherever its frame is cut. The others have numbers
        without a gap.
        """
        for name in VARIABLE:
            for limit in (100, 40_000):
                if limit > 250 and name == "length:1":
                    continue
                data = stream(name, [b"one", b"x" * (limit + 1), b"two", b"y" * limit, b"z" * (limit + 50), b"three"])
                for cuts in ([], [9], [limit // 2], [limit + 9], list(range(0, len(data), 7 if limit == 100 else 7000))):
                    made = world(name, limit, skip_long=True)
                    endpoint, wire = made.connect()
                    for piece in cut(data, cuts):
                        endpoint.dataReceived(piece)
                    self.assertEqual(made.sink.of(endpoint), [b"one", b"two", b"y" * limit, b"three"], (name, cuts))
                    self.assertEqual((wire.closed, made.totals.skipped_lines, endpoint.lines_in), ("", 2, 4))

    def test_bounded_memory(self) -> None:
        """What is skipped is discarded as it arrives, also of a frame that claims 2^62 bytes; and of a line without an end."""
        headers = {
            "lines": b"",
            "length:8": (2**62).to_bytes(8, "big"),
            "netstring": str(2**62).encode() + b":",
            "octet-counting": str(2**62).encode() + b" ",
            "between:02:03": b"\2",
        }
        for name, header in headers.items():
            made = world(name, skip_long=True)
            endpoint, wire = made.connect()
            piece = b"x" * 16_000
            endpoint.dataReceived(header + piece)
            endpoint.dataReceived(piece)
            tracemalloc.start()
            try:
                for _ in range(1000):
                    endpoint.dataReceived(piece)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 100_000, name)
            self.assertEqual((wire.closed, wire.reading, made.totals.skipped_lines), ("", True, 1), name)
            made.end(endpoint)
            self.assertEqual(made.of_type(DeviceDisconnected)[0].unterminated, 0)

    def test_malformed_behind(self) -> None:
        """A netstring that is skipped and does not end with a comma closes the connection."""
        made = world("netstring", 100, skip_long=True)
        endpoint, wire = made.connect()
        for piece in pieces(b"1:a,200:" + b"x" * 200 + b";", 50):
            endpoint.dataReceived(piece)
        self.assertEqual((published(made), wire.closed), ([b"a"], "lost"))
        self.assertEqual(len(made.of_type(BadFrame)), 1)

    def test_idle(self) -> None:
        """A skipped line is no sign of life: a device that sends nothing else is closed as idle."""
        made = world("length:8", skip_long=True, idle_timeout=60.0)
        endpoint, wire = made.connect()
        endpoint.dataReceived((2**62).to_bytes(8, "big"))
        for _ in range(120):
            endpoint.dataReceived(b"x" * 1000)
            made.later(1)
            made.services.housekeeping.sweep()
        self.assertEqual(wire.closed, "lost")

    def test_in_a_backlog(self) -> None:
        """What was read while the sink accepted nothing is skipped in its turn, and at the end of the connection."""
        for resumed in (True, False):
            made = world("length:2", 5, skip_long=True)
            endpoint, wire = made.connect()
            made.sink.room = 1
            endpoint.dataReceived(stream("length:2", [b"one", b"x" * 6, b"two", b"x" * 6, b"three"]))
            self.assertEqual(published(made), [b"one"])
            if resumed:
                made.sink.resume()
                self.assertEqual(wire.closed, "")
            else:
                made.end(endpoint)
            self.assertEqual((published(made), made.totals.skipped_lines), ([b"one", b"two", b"three"], 2))

    def test_acknowledgements(self) -> None:
        """Acknowledgements count the lines that are published: a skipped line has no number."""
        made = world("length:2", 5, skip_long=True, device_ack=lambda seq: b"%d" % seq)
        endpoint, wire = made.connect()
        endpoint.dataReceived(stream("length:2", [b"one", b"x" * 6, b"two"]))
        endpoint.confirmed(0)
        endpoint.confirmed(1)
        made.turns()
        self.assertEqual(wire.data, b"1")

    def test_a_lower_limit(self) -> None:
        """A frame that has begun is skipped when the limit is lowered below it."""
        made = world("length:4", 100_000, skip_long=True)
        endpoint, wire = made.connect()
        data = stream("length:4", [b"x" * 90_000, b"two"])
        endpoint.dataReceived(data[:50_000])
        made.change(framing=framing("length:4", 10))
        endpoint.dataReceived(data[50_000:])
        self.assertEqual((published(made), wire.closed, made.totals.skipped_lines), ([b"two"], "", 1))


class SkipEventTests(SynchronousTestCase):
    def reports(self, made: World) -> list[int]:
        """Return the numbers of lines in the events so far."""
        return [event.lines for event in made.of_type(LinesSkipped)]

    def test_once_a_minute(self) -> None:
        """The first skipped line of a connection is an event at once. Further ones are one event a minute later."""
        made = world("lines", 5, skip_long=True)
        endpoint, _ = made.connect(device_id="d1")
        other, _ = made.connect()
        endpoint.dataReceived(b"x" * 6 + b"\n")
        self.assertEqual(made.events, [LinesSkipped(endpoint.connection_id.decode(), "d1", 5, 1)])
        for _ in range(50):
            endpoint.dataReceived(b"x" * 6 + b"\n")
            made.later(1)
        self.assertEqual(self.reports(made), [1])
        other.dataReceived(b"x" * 6 + b"\n")
        self.assertEqual(self.reports(made), [1, 1])
        made.later(11)
        self.assertEqual(self.reports(made), [1, 1, 50])
        made.later(200)
        self.assertEqual(self.reports(made), [1, 1, 50])
        endpoint.dataReceived(b"x" * 6 + b"\n")
        self.assertEqual(self.reports(made), [1, 1, 50, 1])
        self.assertEqual(made.totals.skipped_lines, 53)

    def test_at_the_end(self) -> None:
        """What was not reported is reported when the connection ends, and nothing is kept of it."""
        made = world("lines", 5, skip_long=True)
        endpoint, _ = made.connect()
        endpoint.dataReceived(b"x" * 6 + b"\n")
        made.end(endpoint)
        self.assertEqual(self.reports(made), [1])
        endpoint, _ = made.connect()
        endpoint.dataReceived((b"x" * 6 + b"\n") * 4)
        made.end(endpoint)
        self.assertEqual(self.reports(made), [1, 1, 3])
        self.assertEqual(type(made.events[-1]), DeviceDisconnected)
        self.assertEqual(made.services.skipped._accounts, {})
        made.later(100)
        self.assertEqual(self.reports(made), [1, 1, 3])

    def test_minute_without_lines(self) -> None:
        """A connection that skips no further line is forgotten after the minute."""
        made = world("lines", 5, skip_long=True)
        endpoint, _ = made.connect()
        endpoint.dataReceived(b"x" * 6 + b"\n")
        made.later(61)
        self.assertEqual(made.services.skipped._accounts, {})


class SendTests(SynchronousTestCase):
    def test_framed(self) -> None:
        """Messages are written in frames, those of one turn together; each is exactly its body. Empty ones too."""
        for name in FRAMINGS:
            made, source = world(name), Source()
            endpoint, wire = made.connect()
            for body in payloads(name):
                made.send(endpoint, source, body)
            made.turns()
            made.send(endpoint, source, payloads(name)[1])
            made.turns()
            self.assertEqual(wire.written, [stream(name, payloads(name)), frame(name, payloads(name)[1])], name)
            self.assertEqual(source.outstanding, 0)

    def test_undeliverable(self) -> None:
        """A body that cannot be sent in the framing is recorded with the reason, and uses up its number."""
        for name, bad, reason in (
            ("lines", b"a\nb", "delimiter-in-body"),
            ("lines", b"x" * 1001, "too-long"),
            ("length:1", b"x" * 256, "too-long"),
            ("length:2", b"x" * 1001, "too-long"),
            ("netstring", b"x" * 1001, "too-long"),
            ("fixed:3", b"ab", "bad-length"),
            ("fixed:3", b"", "bad-length"),
            ("between:02:03", b"a\3", "delimiter-in-body"),
            ("between:02:03", b"a\2", "delimiter-in-body"),
        ):
            made, source = world(name, 1000), Source()
            endpoint, wire = made.connect()
            good = payloads(name)[2]
            made.send(endpoint, source, good, 0)
            made.send(endpoint, source, bad, 1)
            made.send(endpoint, source, good, 2)
            made.send(endpoint, source, bad)
            made.turns()
            self.assertEqual(wire.data, frame(name, good) * 2, name)
            self.assertEqual(made.courier.reasons, [(bad, reason)] * 2, name)
            self.assertEqual((source.outstanding, wire.closed), (0, ""))
            self.assertEqual(endpoint.body_fault(bad), reason)
            self.assertIsNone(endpoint.body_fault(good))

    def test_undeliverable_out_of_order(self) -> None:
        """A body that cannot be sent is also recorded when it had to wait for its turn, or for the socket."""
        made, source = world("fixed:3"), Source()
        endpoint, wire = made.connect()
        made.send(endpoint, source, b"bad!", 1)
        made.send(endpoint, source, b"two", 2)
        made.send(endpoint, source, b"one", 0)
        made.turns()
        self.assertEqual((wire.data, made.courier.reasons), (b"onetwo", [(b"bad!", "bad-length")]))
        endpoint.pauseProducing()
        made.send(endpoint, source, b"bad!", 3)
        made.send(endpoint, source, b"six", 4)
        self.assertEqual(len(made.courier.reasons), 1)
        endpoint.resumeProducing()
        made.turns()
        self.assertEqual((wire.data, made.courier.reasons), (b"onetwosix", [(b"bad!", "bad-length")] * 2))

    def test_two_doors(self) -> None:
        """Each connection has the framing of its own door."""
        made, source = world("lines"), Source()
        door = made.door("meters", framing=framing("length:2"))
        line, line_wire = made.connect()
        meter, meter_wire = made.connect(factory=door)
        line.dataReceived(b"a\n")
        meter.dataReceived(b"\0\3b\nc")
        made.send(line, source, b"x\ny")
        made.send(meter, source, b"x\ny")
        made.turns()
        self.assertEqual(published(made), [b"a", b"b\nc"])
        self.assertEqual((line_wire.data, meter_wire.data), (b"", b"\0\3x\ny"))
        self.assertEqual(made.courier.reasons, [(b"x\ny", "delimiter-in-body")])


class DelimiterTests(SynchronousTestCase):
    def test_delimiter(self) -> None:
        """The delimiter of `LineReceiver` is empty where there are no lines."""
        self.assertEqual([world(name).connect()[0].delimiter for name in ("lines", *WITH_LENGTH[:1])], [b"\n", b""])
