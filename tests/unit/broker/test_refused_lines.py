"""Tests of refused and returned lines: whom they pause, and when they are republished."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import WireError
from owsla.broker.client import BrokerError
from owsla.broker.destination import Destination
from owsla.broker.packing import LinePacker
from owsla.broker.queues import Exchange, Queue
from owsla.broker.refused_lines import RefusedLines
from owsla.broker.waiting import WaitingConnections
from owsla.broker.window import Window
from owsla.events import Event, LinesAccepted, LinesRefused
from owsla.routing_key import RoutingKey


class Source:
    """Connection with lines in the window."""

    def __init__(self, name: str) -> None:
        self.connection_id = name.encode()
        self.seq = 1
        self.stalls = 0
        self.resumed = 0

    def stall(self) -> None:
        self.stalls += 1

    def resume(self) -> None:
        self.resumed += 1


def header(source: Source, seq: int) -> bytes:
    """Return the content header of a line of a connection."""
    headers = {"connection_id": source.connection_id.decode(), "from_device_seq": seq}
    return wire.header_payload(0, wire.encode_properties({"headers": headers}))


class RefusedLinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[Event] = []
        self.retries: list[bool] = []
        self.make()

    def make(self, routing_key: str | None = None) -> None:
        """Make what has one route, or, with a routing key, one for each connection."""
        self.clock: Any = Clock()
        self.window = Window(100, 10_000)
        self.waiting = WaitingConnections(self.clock, lambda: True)
        target = Queue("from_device") if routing_key is None else Exchange("lines")
        packer = LinePacker(
            seq_header="from_device_seq",
            channel=1,
            exchange="" if routing_key is None else "lines",
            routing_key="from_device" if routing_key is None else RoutingKey(routing_key),
            delivery_mode=2,
            reply_to=b"",
            frame_max=131072,
        )
        self.refused = RefusedLines(
            self.clock,
            self.events.append,
            Destination(target, lambda text: None, 2),
            self.window,
            self.waiting,
            door="meters",
            packer=packer,
            republish=self.retries.append,
        )
        self.a, self.b = (self.source(name) for name in "ab")

    def source(self, name: str) -> Any:
        """Return a connection with a published line."""
        source: Any = Source(name)
        self.window.add(source, 0, b"frames")
        return source

    def confirm(self, tag: int) -> list[Any]:
        """Confirm as a publisher does. Return the connections whose lines are safe."""
        entries = self.window.confirm(tag, False)
        if self.refused.watching:
            entries = self.refused.keep_returned(entries)
            self.refused.confirmed(entries)
        return [entry.source for entry in entries]

    def test_watching(self) -> None:
        """Confirms are of no concern once one has come on this channel, until a line is refused or returned."""
        self.assertTrue(self.refused.watching)
        self.confirm(1)
        self.assertFalse(self.refused.watching)
        self.refused.returned("from_device", header(self.b, 0), b"")
        self.assertTrue(self.refused.watching)
        self.refused.channel_opened()
        self.confirm(2)
        self.assertFalse(self.refused.watching, "the return was forgotten with its channel")

    def test_watching_a_returned_line(self) -> None:
        """Confirms are watched until that of a returned line, also past those of other lines."""
        self.confirm(1)
        self.source("c")
        self.refused.returned("from_device", header(self.b, 0), b"")
        self.assertEqual([len(self.confirm(3)), self.refused.watching], [1, True])
        self.assertEqual((self.confirm(2), self.refused.pausing_all), ([], True))

    def test_returned_by_one_route(self) -> None:
        """A returned line stays in the window when it is confirmed. With one route it pauses all devices until it is safe."""
        self.refused.returned("from_device", header(self.a, 0), b"")
        self.assertFalse(self.refused.pending)
        self.assertEqual(self.confirm(1), [])
        self.assertEqual((self.window.messages, self.window.refused_lines), (2, 1))
        self.assertEqual((self.refused.pausing_all, self.refused.holds(self.b)), (True, True))
        self.clock.advance(0.1)
        self.assertEqual(self.retries, [False])
        self.window.retry()
        self.refused.published_again()
        self.assertEqual((self.refused.holds(self.b), self.refused.refuses(self.b)), (False, True))
        self.assertEqual(self.confirm(3), [self.a])
        self.assertFalse(self.refused.pending)
        self.assertEqual(self.events, [
            LinesRefused(1, "there is no queue from_device", "meters"), LinesAccepted("queue from_device", "meters")
        ])  # fmt: skip

    def test_returned_by_a_route_of_its_own(self) -> None:
        """A line that is returned for its own routing key stalls its connection, and no other."""
        self.make("{connection_id}")
        self.refused.returned("a", header(self.a, 0), b"")
        self.assertEqual(self.confirm(1), [])
        self.assertEqual(self.confirm(2), [self.b])
        self.assertEqual((self.a.stalls, self.b.stalls, self.refused.pausing_all), (1, 0, False))
        self.assertEqual((self.refused.holds(self.a), self.refused.holds(self.b)), (True, False))
        self.assertEqual((self.refused.refuses(self.a), self.refused.refuses(self.b)), (True, False))
        self.assertEqual((self.refused.wait(self.a), self.refused.wait(self.b)), (True, False))

    def test_not_ours(self) -> None:
        """A returned message without the headers of a line is a fault of the protocol, and changes nothing."""
        self.confirm(1)
        for odd in (b"", wire.header_payload(0, wire.encode_properties({"headers": {"connection_id": "a"}}))):
            self.assertRaises(WireError, self.refused.returned, "from_device", odd, b"")
        self.assertEqual((self.refused.watching, self.confirm(2)), (False, [self.b]))

    def test_suspended(self) -> None:
        """A channel that cannot be opened is reported once for each fault, until a line was confirmed."""
        for text in ("no such exchange", "no such exchange", "not allowed"):
            self.refused.suspended(BrokerError(404, text, scope="channel"))
        self.assertEqual(len(self.events), 2)
        self.assertIn("queue from_device: ", str(self.events[0]))
        self.confirm(1)
        self.assertEqual(self.events[2:], [LinesAccepted("queue from_device", "meters")])
