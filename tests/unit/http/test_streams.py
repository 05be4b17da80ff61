"""Streams: server-sent events and lines of JSON."""

from __future__ import annotations

import json
import socket
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Request

from owsla.desk import BadArgument, TooManyTraces
from owsla.http import Tokens
from owsla.http._access import Caller, TokenAccess
from owsla.http._connections import REQUEST_TIMEOUT, UNACKNOWLEDGED, LimitedFactory
from owsla.http._feeds import EVENTS_AT_ONCE
from owsla.http._snapshot import Snapshots, snapshot_of
from owsla.http._streams import HEARTBEAT, STALLED

from ._fakes import NOW
from .test_api import BY, FULL, READING, ApiCase

BUFFER = 1 << 16
"""Bytes that a transport of Twisted buffers before it pauses its producer."""


class Transport(StringTransport):
    """A connection whose client reads when a test says so."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        self.protocol: Any = None
        self.socket: Any = None
        self.unread = 0
        self.paused = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        super().write(data)
        self.unread += len(data)
        if self.unread > BUFFER and not self.paused and self.producer is not None:
            self.paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def read(self) -> None:
        """Let the client read everything."""
        self.unread = 0
        if self.paused and self.producer is not None:
            self.paused = False
            self.producer.resumeProducing()

    def abortConnection(self) -> None:
        self.aborted = True


def event(number: int, text: str = "x") -> dict[str, Any]:
    return {"time": number, "event": "device-connected", "text": text, "cursor": f"c{number + 1}"}


class StreamCase(ApiCase):
    def setUp(self) -> None:
        super().setUp()
        self.factory = LimitedFactory(self.clock, self.site, 5)
        self.factory.doStart()
        self.addCleanup(self.factory.doStop)

    def open(self, path: str, headers: str = "") -> Transport:
        """Request a stream."""
        transport = Transport()
        self.connect(transport, path, headers)
        return transport

    def connect(self, transport: Transport, path: str, headers: str = "") -> None:
        """Send a request on a connection."""
        transport.protocol = protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(f"GET {path} HTTP/1.1\r\nHost: here\r\n{headers}\r\n".encode())

    def lose(self, transport: Transport) -> None:
        """Have the client disconnect."""
        transport.protocol.connectionLost(Failure(ConnectionResetError()))

    def timers(self) -> list[Any]:
        """Return the delayed calls of streams."""
        return [call for call in self.clock.getDelayedCalls() if "Stream." in str(call)]

    def text(self, transport: Transport) -> str:
        """Return the body so far."""
        body = transport.value().partition(b"\r\n\r\n")[2]
        chunks = []
        while body:
            size, _, body = body.partition(b"\r\n")
            chunks.append(body[: int(size, 16)])
            body = body[int(size, 16) + 2 :]
        return b"".join(chunks).decode()

    def messages(self, transport: Transport) -> list[tuple[str, Any]]:
        """Return the kinds and the data of the server-sent events so far."""
        found = []
        for block in self.text(transport).split("\n\n"):
            fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
            if "data" in fields:
                found.append((fields["event"], json.loads(fields["data"])))
        return found


class EventsTests(StreamCase):
    EVENT_STREAM = "Accept: text/event-stream\r\n"

    def setUp(self) -> None:
        super().setUp()
        self.last = 0
        """Number of the event that comes next."""
        self.lost = 0
        self.desk.answers["events"] = self.answer

    def answer(self, args: Any) -> dict[str, Any]:
        after, limit = args.get("after"), args["limit"]
        begin = max(0, self.last - limit) if after is None else int(after[1:])
        end = min(self.last, begin + limit)
        lost, self.lost = self.lost, 0
        events = [event(number, "x" * 300) for number in range(begin, end)]
        return {"events": events, "next": f"c{end}", "lost": lost, "missing": []}

    def numbers(self, transport: Transport) -> list[int]:
        return [data["time"] for kind, data in self.messages(transport) if kind == "event"]

    def test_to_come(self) -> None:
        """The stream begins with the next event, and each has its cursor as id."""
        self.last = 3
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.assertIn(b"Content-Type: text/event-stream", transport.value())
        self.assertEqual(self.text(transport), "retry: 2000\n\n")
        self.last = 5
        self.clock.advance(0.5)
        self.assertEqual(self.numbers(transport), [3, 4])
        self.assertIn("id: c5\nevent: event\ndata: {", self.text(transport))

    def test_again(self) -> None:
        """A client that connects again goes on where it was: by Last-Event-ID, before `after`."""
        self.last = 9
        self.assertEqual(self.numbers(self.open("/api/events?after=c2", self.EVENT_STREAM)), [2, 3, 4, 5, 6, 7, 8])
        transport = self.open("/api/events?after=c2", self.EVENT_STREAM + "Last-Event-ID: c7\r\n")
        self.assertEqual(self.numbers(transport), [7, 8])

    def test_filter(self) -> None:
        """Parameters filter the stream."""
        self.open("/api/events?kind=a&warnings=1&query=q", self.EVENT_STREAM)
        self.clock.advance(0.5)
        expected = {"kinds": ["a"], "warnings": True, "query": "q", "after": "c0", "limit": EVENTS_AT_ONCE}
        self.assertEqual(self.desk.asked[-1], ("events", expected))

    def test_lost(self) -> None:
        """The client is told how many events it has missed."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.lost, self.last = 7, 1
        self.clock.advance(0.5)
        self.assertEqual(self.messages(transport)[0], ("lost", {"kind": "lost", "lost": 7}))

    def test_many(self) -> None:
        """Many events are sent at once, and not a part every half second."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.last = 2 * EVENTS_AT_ONCE + 1
        self.clock.advance(0.5)
        for _ in range(2):
            transport.read()
            self.clock.advance(0)
        self.assertEqual(self.numbers(transport), list(range(self.last)))

    def test_slow_client(self) -> None:
        """For a client that does not read, no more than the buffer of a connection and one answer wait. It misses nothing."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.last = 2000
        self.clock.advance(0.5)
        for _ in range(20):
            self.clock.advance(1)
        self.assertLess(transport.unread, BUFFER + 1000)
        asked = len(self.desk.asked)
        self.clock.advance(1)
        self.assertEqual(len(self.desk.asked), asked)
        for _ in range(100):
            transport.read()
            self.clock.advance(0)
        self.assertEqual(self.numbers(transport), list(range(self.last)))

    def test_stopped_client(self) -> None:
        """A client that reads nothing for a while is disconnected. One that reads now and then is not."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.last = 5000
        self.clock.advance(0.5)
        self.clock.pump([1.0] * int(STALLED - 1))
        transport.read()
        self.clock.pump([1.0] * int(STALLED - 1))
        self.assertFalse(transport.aborted)
        self.clock.advance(1)
        self.clock.advance(1)
        self.assertTrue(transport.aborted)
        self.assertEqual((len(self.streams), self.timers()), (0, []))

    def test_heartbeat(self) -> None:
        """A comment follows some time without events."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.clock.pump([0.5] * int(2 * HEARTBEAT - 1))
        self.assertEqual(self.text(transport), "retry: 2000\n\n")
        self.clock.advance(0.5)
        self.assertEqual(self.text(transport), "retry: 2000\n\n:\n\n")

    def test_client_goes(self) -> None:
        """Nothing is asked any more for a client that has gone, also if it goes during a question."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        answer: Deferred[Any] = Deferred()
        self.desk.answers["events"] = lambda args: answer
        self.clock.advance(0.5)
        self.lose(transport)
        self.assertEqual(len(self.streams), 0)
        answer.callback({"events": [event(1)], "next": "c1", "lost": 0})
        self.assertEqual(self.messages(transport), [])
        waiting: Deferred[Any] = Deferred()
        self.desk.answers["events"] = lambda args: waiting
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.lose(transport)
        waiting.callback({"events": [], "next": "c1", "lost": 0})
        self.assertEqual((transport.value(), len(self.streams)), (b"", 0))
        self.assertEqual(self.timers(), [])

    def test_refused(self) -> None:
        """A failure at the beginning is an ordinary error; one later ends the stream, and is in the log."""

        def refuse(args: Any) -> Any:
            raise BadArgument("`after` is not a cursor")

        answer, self.desk.answers["events"] = self.desk.answers["events"], refuse
        status, _, body = self.read(self.open("/api/events?after=x", self.EVENT_STREAM))
        self.assertEqual((status, body, len(self.streams)), (400, {"error": "`after` is not a cursor."}, 0))
        self.desk.answers["events"] = answer
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.desk.answers["events"] = refuse
        self.clock.advance(0.5)
        reason = "an internal error, which the log describes"
        self.assertEqual(self.messages(transport), [("end", {"kind": "end", "text": reason})])
        self.assertTrue(transport.value().endswith(b"\r\n0\r\n\r\n"))
        self.assertEqual(len(self.flushLoggedErrors(BadArgument)), 1)

    def test_limit(self) -> None:
        """There are only so many streams at an address. Further ones are refused until one has ended."""
        transports = [self.open("/api/events", self.EVENT_STREAM) for _ in range(3)]
        status, _, body = self.read(self.open("/api/events", self.EVENT_STREAM))
        self.assertEqual((status, body), (503, {"error": "There are 3 streams open; close one of them first."}))
        self.lose(transports[0])
        self.assertIn(b" 200 ", self.open("/api/events", self.EVENT_STREAM).value())

    def test_close(self) -> None:
        """When the gateway stops, clients are told."""
        transport = self.open("/api/events", self.EVENT_STREAM)
        self.streams.close("the gateway stops")
        self.assertEqual(self.messages(transport), [("end", {"kind": "end", "text": "the gateway stops"})])
        self.assertEqual(self.timers(), [])

    def test_spared(self) -> None:
        """A stream is not closed for other requests, and has no time limit. Ordinary connections make way for each other."""
        stream = self.open("/api/events", self.EVENT_STREAM)
        stream.protocol.dataReceived(b"GET /next HTTP/1.1\r\n")
        others = []
        for _ in range(8):
            self.clock.advance(1)
            others.append(self.open("/api/history"))
        self.clock.advance(10)
        self.factory.end_overdue()
        self.assertFalse(stream.aborted)
        self.assertEqual([other.aborted for other in others], [True] * 4 + [False] * 4)

    def test_vanished_client(self) -> None:
        """The kernel closes the connection of a stream whose client does not acknowledge what was sent."""
        with socket.socket() as sock:
            transport = Transport()
            transport.socket = sock
            self.connect(transport, "/api/events", self.EVENT_STREAM)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), UNACKNOWLEDGED * 1000)

    def test_slow_reload(self) -> None:
        """A reload may take longer than another request."""
        transport = Transport()
        protocol: Any = self.factory.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(b"POST /api/reload HTTP/1.1\r\nHost: here\r\n\r\n")
        self.clock.advance(60)
        self.factory.end_overdue()
        self.assertFalse(transport.aborted)
        self.actions.reloads[0][1].callback((True, "x"))
        self.assertIn(b" 200 ", transport.value())


class SamplesTests(StreamCase):
    def add(self, time: int) -> None:
        """Take a sample."""
        self.history.add(time, time, Snapshots(snapshot_of(self.world.readings)))

    def times(self, transport: Transport) -> list[int]:
        return [data["time"] for kind, data in self.messages(transport) if kind == "sample"]

    def test_samples(self) -> None:
        """Each sample is sent once. A client that does not read misses samples."""
        transport = self.open("/api/live")
        for time in (1, 2, 3):
            self.add(time)
            self.clock.pump([0.25] * 4)
        self.assertEqual(self.times(transport), [1000, 2000, 3000])
        transport.unread = BUFFER
        for time in (4, 5, 6):
            self.add(time)
            self.clock.pump([0.25] * 4)
        transport.read()
        self.clock.advance(0.5)
        self.assertEqual(self.times(transport), [1000, 2000, 3000, 4000, 6000])


class TraceTests(StreamCase):
    def setUp(self) -> None:
        super().setUp()
        self.records: list[Any] = []
        self.connections: list[str] = []
        self.dropped = 0
        self.ended: str | None = None
        self.more = False
        self.polls = 0
        self.desk.answers["trace"] = self.answer
        self.desk.answers["end-trace"] = {}

    def answer(self, args: Any) -> dict[str, Any]:
        self.polls += 1
        records, self.records = self.records, []
        more, self.more = self.more, False
        dropped, self.dropped = self.dropped, 0
        return {
            "records": records,
            "dropped": dropped,
            "connections": list(self.connections),
            "next": {"p": [self.polls, 0]},
            "ended": self.ended,
            "more": more,
            "missing": [],
        }

    def test_arguments(self) -> None:
        """The trace has its target, end and reader, and each question the position of the one before."""
        self.open("/api/trace/a%2Fb?minutes=2&bodies=1")
        what, args = self.desk.asked[-1]
        identity = args.pop("id")
        self.assertRegex(identity, "^[0-9a-f]{16}$")
        until = round(NOW * 1000) + 120_000
        self.assertEqual((what, args), ("trace", {"target": "a/b", "until": until, "bodies": True, "by": BY}))
        self.clock.advance(0.25)
        self.assertEqual(self.desk.asked[-1][1]["after"], {"p": [1, 0]})
        self.assertEqual(self.desk.asked[-1][1]["id"], identity)

    def test_messages(self) -> None:
        """Records, dropped records, and each change of the connections are sent: after the record that says why."""
        transport = self.open("/api/trace/a")
        self.connections = ["c1"]
        self.records = [{"kind": "in", "size": 3}, {"kind": "out", "size": 4}]
        self.dropped = 7
        self.clock.advance(0.25)
        self.clock.advance(0.25)
        self.assertEqual(
            self.messages(transport),
            [
                ("connections", {"kind": "connections", "connections": [], "missing": []}),
                ("record", {"kind": "in", "size": 3}),
                ("record", {"kind": "out", "size": 4}),
                ("dropped", {"kind": "dropped", "dropped": 7}),
                ("connections", {"kind": "connections", "connections": ["c1"], "missing": []}),
            ],
        )

    def test_lines(self) -> None:
        """With Accept: application/x-ndjson each message is a line of JSON, and an empty line is the heartbeat."""
        transport = self.open("/api/trace/a", "Accept: application/x-ndjson\r\n")
        self.assertIn(b"Content-Type: application/x-ndjson", transport.value())
        self.records = [{"kind": "in"}]
        self.clock.pump([0.25] * 61)
        lines = self.text(transport).split("\n")
        self.assertEqual(lines[1:], ['{"kind":"connections","connections":[],"missing":[]}', '{"kind":"in"}', "", ""])

    def test_more(self) -> None:
        """More records that are there already are asked for at once, unless the client does not read."""
        transport = self.open("/api/trace/a")
        self.more, self.records = True, [{"kind": "in", "body": "x" * BUFFER}]
        self.clock.advance(0.25)
        self.records = [{"kind": "out"}]
        self.clock.advance(1)
        self.assertEqual(self.polls, 2)
        transport.read()
        self.clock.advance(0)
        self.assertEqual([data["kind"] for kind, data in self.messages(transport) if kind == "record"], ["in", "out"])

    def test_over(self) -> None:
        """A trace ends when its time is over, after its last records."""
        transport = self.open("/api/trace/a")
        self.ended, self.records = "its time is over", [{"kind": "in"}]
        self.clock.advance(0.25)
        self.clock.advance(0.25)
        end = ("end", {"kind": "end", "text": "its time is over"})
        self.assertEqual(self.messages(transport)[1:], [("record", {"kind": "in"}), end])
        what, args = self.desk.asked[-1]
        self.assertEqual((what, args["reason"], args["after"]), ("end-trace", self.ended, {"p": [3, 0]}))

    def test_connection_after_it(self) -> None:
        """The connection of a trace that has ended is like any other: a request takes at most ten seconds."""
        transport = self.open("/api/trace/a")
        self.ended = "its time is over"
        self.clock.advance(0.25)
        transport.protocol.dataReceived(b"GET /next HTTP/1.1\r\n")
        self.clock.advance(REQUEST_TIMEOUT)
        self.factory.end_overdue()
        self.assertTrue(transport.aborted)

    def test_client_goes(self) -> None:
        """When the client goes, its trace ends."""
        transport = self.open("/api/trace/a")
        trace = self.desk.asked[-1][1]["id"]
        self.lose(transport)
        what, args = self.desk.asked[-1]
        self.assertEqual((what, args["id"]), ("end-trace", trace))
        self.assertEqual([each for each, _ in self.desk.asked].count("end-trace"), 1)

    def test_too_many(self) -> None:
        """If there are too many traces, the client is told at once."""

        def refuse(args: Any) -> Any:
            raise TooManyTraces("16 traces run already, which is the limit")

        self.desk.answers["trace"] = refuse
        status, headers, body = self.read(self.open("/api/trace/a"))
        self.assertEqual((status, headers["retry-after"]), (503, "5"))
        self.assertEqual(body, {"error": "16 traces run already, which is the limit."})


class TokenTests(StreamCase):
    def setUp(self) -> None:
        self.tokens = Tokens(FULL, READING)
        self.access = TokenAccess(lambda: self.tokens)
        super().setUp()

    def test_replaced(self) -> None:
        """The streams of a token end when a reload replaces it, and those of the other token go on."""
        full, reading = (self.open("/api/live", f"Authorization: Bearer {token}\r\n") for token in (FULL, READING))
        self.clock.advance(0.5)
        self.assertEqual(len(self.streams), 2)
        self.tokens = Tokens("full-another-token", READING)
        self.clock.advance(0.5)
        end = {"kind": "end", "text": "the token has been replaced"}
        self.assertEqual((self.messages(full), self.messages(reading)), ([("end", end)], []))


class LateName:
    """Access of an operator whose name comes later, from a thread."""

    def __init__(self) -> None:
        self.name: Deferred[str] = Deferred()

    def caller(self, request: Request) -> Caller:
        return Caller(True, lambda: self.name)


class LateNameTests(StreamCase):
    def setUp(self) -> None:
        self.access = self.late = LateName()
        super().setUp()
        self.desk.answers["trace"] = {"records": [], "dropped": 0, "connections": [], "next": {}, "ended": None, "more": False}

    def test_client_goes(self) -> None:
        """A client that goes before its name is known gets no trace, and takes none of the streams that there may be."""
        self.lose(self.open("/api/trace/a"))
        self.late.name.callback(BY)
        self.assertEqual((len(self.streams), self.desk.asked), (0, []))
