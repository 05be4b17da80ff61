"""Tests of the open batches: which lines travel together, and in which order they are published."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.batch_pacing import BatchPacing
from owsla.broker.batch_packing import BatchPacker, packed_body
from owsla.broker.batch_window import BatchWindow
from owsla.broker.open_batches import OpenBatches
from owsla.broker.window import Entry
from owsla.routing_key import RoutingKey
from owsla.runtime.end_of_turn import EndOfTurn

ELEMENT = b"e" * 10


class OpenBatchesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.packer = BatchPacker(
            most=4,
            channel=1,
            exchange="lines",
            routing_key=RoutingKey("{connection_id}"),
            delivery_mode=2,
            reply_to=b"",
            frame_max=128,
        )
        self.window = BatchWindow(100, 100_000)
        self.published: list[Entry] = []
        pacing = BatchPacing(self.clock, EndOfTurn(self.clock), 0.0)
        self.batches = OpenBatches(self.packer, self.window, pacing, self.published.append)
        self.a, self.b = (self.packer.template(name, None).route for name in (b"a", b"b"))

    def add(self, route: Any, source: str, seq: int, element: bytes = ELEMENT) -> None:
        device: Any = source
        self.batches.add(route, device, seq, element, 1000.5)

    def add_lines(self, route: Any, source: str, seq: int, elements: list[bytes]) -> None:
        device: Any = source
        self.batches.add_lines(route, device, seq, elements, sum(map(len, elements)), 1000.5)

    def taken(self) -> list[list[tuple[Any, int]]]:
        """Take the published batches, and return the lines of each."""
        published, self.published[:] = list(self.published), []
        return [list(entry.batch.lines()) for entry in published if entry.batch is not None]

    def held(self) -> tuple[int, int, int]:
        """Return the number of open batches, and what the window counts."""
        return len(self.batches), self.window.messages, self.window.size

    def test_routes(self) -> None:
        """Each route has a batch. All are published at the end of the turn, in the order in which they were opened."""
        for route, source, seq in ((self.b, "x", 0), (self.a, "y", 5), (self.b, "z", 7)):
            self.add(route, source, seq)
        self.assertEqual(self.held(), (2, 3, 30))
        self.assertEqual(sorted(self.batches.sources()), ["x", "y", "z"])
        self.clock.advance(0)
        self.assertEqual([entry.source for entry in self.published], [self.b, self.a])
        self.assertEqual(self.taken(), [[("x", 0), ("z", 7)], [("y", 5)]])
        self.assertEqual((self.held(), list(self.batches.sources())), ((0, 0, 0), []))
        self.assertFalse(self.batches.publish_all())

    def test_full_of_lines(self) -> None:
        """A batch is published with its last line, alone or among others; the rest begins the next one."""
        for seq in range(5):
            self.add(self.a, "x", seq)
        self.assertEqual(self.taken(), [[("x", seq) for seq in range(4)]])
        self.add_lines(self.a, "y", 0, [ELEMENT] * 8)
        self.assertEqual(self.taken(), [[("x", 4), ("y", 0), ("y", 1), ("y", 2)], [("y", seq) for seq in range(3, 7)]])
        self.assertEqual(self.held(), (1, 1, 10))
        self.assertTrue(self.batches.publish_all())
        self.assertEqual(self.taken(), [[("y", 7)]])

    def test_few_lines(self) -> None:
        """Lines that an open batch has room for are added to it, and the window counts them."""
        self.add(self.a, "x", 0)
        self.add_lines(self.a, "y", 5, [ELEMENT, ELEMENT * 2])
        self.assertEqual((self.taken(), self.held()), ([], (1, 3, 40)))
        self.assertTrue(self.batches.publish_all())
        self.assertEqual((self.taken(), self.held()), ([[("x", 0), ("y", 5), ("y", 6)]], (0, 0, 0)))

    def test_lines_that_fill_the_open_batch(self) -> None:
        """Lines with which an open batch has as many as it may are published with it."""
        self.add(self.a, "x", 0)
        self.add_lines(self.a, "y", 0, [ELEMENT] * 3)
        self.assertEqual((self.taken(), self.held()), ([[("x", 0), ("y", 0), ("y", 1), ("y", 2)]], (0, 0, 0)))

    def test_lines_beyond_the_room(self) -> None:
        """Of lines that have too many bytes for the open batch together, those that have room are added to it. Lines that
        take exactly the room are one batch.
        """
        room = self.packer.room
        self.add(self.a, "x", 0)
        self.add_lines(self.a, "y", 0, [bytes(room - 20), bytes(11)])
        self.assertEqual((self.taken(), self.held()), ([[("x", 0), ("y", 0)]], (1, 1, 11)))
        self.assertTrue(self.batches.publish_all())
        self.taken()
        self.add_lines(self.a, "y", 2, [bytes(room - 10), bytes(10)])
        self.assertEqual((self.taken(), self.held()), ([], (1, 2, room)))
        self.assertTrue(self.batches.publish_all())
        self.taken()
        self.add_lines(self.a, "y", 4, [bytes(room - 10), bytes(11)])
        self.assertEqual((self.taken(), self.held()), ([[("y", 4)]], (1, 1, 11)))

    def test_full_of_bytes(self) -> None:
        """A batch is published before the line for which it has no room, and a line without room in any is one by itself."""
        room = self.packer.room
        first, second = bytes(room - 10), bytes(11)
        self.add_lines(self.a, "x", 0, [first, ELEMENT, second])
        self.assertEqual(self.taken(), [[("x", 0), ("x", 1)]])
        self.add(self.a, "x", 3, bytes(room + 1))
        self.assertEqual(self.taken(), [[("x", 2)]])
        self.add(self.a, "x", 4)
        self.assertEqual(self.taken(), [[("x", 3)]])

    def test_traced(self) -> None:
        """A line that begins a trace is a batch of its own behind the open one of its route; others stay open."""
        self.add(self.a, "x", 0)
        self.add(self.b, "y", 0)
        device: Any = "x"
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        self.batches.add_traced(self.a, device, 1, ELEMENT, 1000, parent)
        self.assertEqual([parent.encode() in entry.packed for entry in self.published], [False, True])
        self.assertEqual(self.taken(), [[("x", 0)], [("x", 1)]])
        self.assertEqual(self.held(), (1, 1, 10))

    def test_close_all(self) -> None:
        """Closed batches are the caller's, packed, with the numbers of their routes, and not published."""
        self.add(self.a, "x", 0)
        self.batches.publish_all()
        self.add(self.a, "x", 1)
        self.add(self.b, "y", 0)
        entries = list(self.batches.close_all())
        self.assertEqual([(entry.source, entry.seq) for entry in entries], [(self.a, 2), (self.b, 1)])
        self.assertEqual([packed_body(entry.packed) for entry in entries], [ELEMENT, ELEMENT])
        self.assertEqual((self.held(), len(self.published)), ((0, 0, 0), 1))
