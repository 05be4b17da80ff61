"""Tests of the bounded memory of events."""

from __future__ import annotations

import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._ring import ENTRY, EventRing, pack, unpack
from owsla.events import (
    BrokerUnblocked,
    ChildRestarted,
    DeviceConnected,
    DeviceDisconnected,
    DeviceIdentified,
    NodeStopped,
    UnknownEvent,
)

from ..events.test_events import KINDS, sample


class Name(str):
    """A device id of a dialect that has a type of its own for it."""

    __slots__ = ()


class PackTests(SynchronousTestCase):
    def test_every_kind(self) -> None:
        """Each kind of event comes out of its bytes as it was, with its node and its time."""
        for kind in KINDS:
            past = unpack(pack(sample(kind), "0123abcd", 1.25))
            self.assertEqual((past.event, past.node, past.when), (sample(kind), "0123abcd", 1.25))
            self.assertIs(type(past.event), kind)

    @given(st.text(st.characters()))
    def test_any_text(self, text: str) -> None:
        """Any text of a peer comes out as it was: halves of surrogate pairs, NUL and line ends among it."""
        event = DeviceConnected("c", text, text, "")
        self.assertEqual(unpack(pack(event, "n", 0.0)).event, event)

    def test_whole_texts(self) -> None:
        """Texts are in the bytes in UTF-8, so that a search can look for them there."""
        self.assertIn("zähler-7".encode(), pack(DeviceConnected("c", "zähler-7", "p", ""), "n", 0.0))

    def test_unknown_kind(self) -> None:
        """An event that this version does not know comes out as it was."""
        event = UnknownEvent("new-thing", True, "New: 5", {"count": 5, "names": ["a"]})
        self.assertEqual(unpack(pack(event, "n", 0.0)).event, event)

    def test_foreign_type(self) -> None:
        """A text of another type than `str` does no harm: it comes out as text."""
        past = unpack(pack(DeviceConnected("c", Name("d"), "p", ""), "n", 0.0))
        self.assertEqual(str(past.event), "Device connected: c (device d) from p, TCP")
        self.assertEqual(past.event.name, "device-connected")
        self.assertIs(type(past.event.fields()["device_id"]), str)

    def test_json(self) -> None:
        """As JSON an event has its time in milliseconds since the epoch, and lists in place of tuples."""
        event = ChildRestarted("owsla/http", "E: x", 1, 0.5, ("a", "b"))
        self.assertEqual(
            unpack(pack(event, "0123abcd", 1700000000.1234)).json(),
            {
                "time": 1700000000123,
                "node": "0123abcd",
                "worker": None,
                "event": "child-restarted",
                "warning": True,
                "text": "Restarting owsla/http in 0.5 s, and with it a, b (restart 1): E: x",
                "fields": {"path": "owsla/http", "reason": "E: x", "restarts": 1, "delay": 0.5, "siblings": ["a", "b"]},
            },
        )


class EventRingTests(SynchronousTestCase):
    def test_order(self) -> None:
        """Events come oldest first, or newest first."""
        ring = EventRing(10_000)
        self.assertEqual((len(ring), list(ring.oldest_first()), list(ring.newest_first())), (0, [], []))
        for each in (b"a", b"b", b"c"):
            ring.append(each)
        self.assertEqual((list(ring.oldest_first()), list(ring.newest_first())), ([b"a", b"b", b"c"], [b"c", b"b", b"a"]))

    def test_number_limit(self) -> None:
        """Beyond the number of events the oldest is forgotten."""
        ring = EventRing(10_000, 2)
        for each in (b"a", b"b", b"c"):
            ring.append(each)
        self.assertEqual((len(ring), list(ring.oldest_first())), (2, [b"b", b"c"]))

    def test_byte_limit(self) -> None:
        """Beyond the number of bytes the oldest events are forgotten, as many as it takes."""
        ring = EventRing(3 * (10 + ENTRY))
        for each in (b"a" * 10, b"b" * 10, b"c" * 10):
            ring.append(each)
        self.assertEqual((len(ring), ring.size), (3, 3 * (10 + ENTRY)))
        ring.append(b"d" * 11)
        self.assertEqual([each[:1] for each in ring.oldest_first()], [b"c", b"d"])
        self.assertEqual(ring.size, 21 + 2 * ENTRY)

    def test_too_large(self) -> None:
        """An event that is larger than the limit is not kept, and no other in its place."""
        ring = EventRing(200)
        ring.append(b"a")
        ring.append(bytes(200))
        self.assertEqual((len(ring), ring.size), (0, 0))
        ring.append(b"b")
        self.assertEqual(list(ring.oldest_first()), [b"b"])

    @given(st.lists(st.binary(max_size=300)), st.integers(0, 1000), st.integers(1, 20))
    def test_bounds(self, entries: list[bytes], size: int, events: int) -> None:
        """Whatever comes, the bounds hold, the estimate is that of the events kept, and these are the last ones."""
        ring = EventRing(size, events)
        for entry in entries:
            ring.append(entry)
            kept = list(ring.oldest_first())
            self.assertEqual(ring.size, sum(len(each) + ENTRY for each in kept))
            self.assertLessEqual(ring.size, size)
            self.assertLessEqual(len(kept), events)
        self.assertEqual(list(ring.oldest_first()), entries[len(entries) - len(ring) :])

    def test_estimate(self) -> None:
        """The estimate of the memory is at least the memory that is allocated, and at most 10 % more."""
        gc.collect()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        ring = EventRing(1 << 20)
        for number in range(8000):
            peer = f"198.51.100.17:{number}"
            event = DeviceDisconnected(f"0123abcd-{number:08x}", f"meter-{number}", peer, "lost", number, 3, 12.5, 0)
            ring.append(pack(event, "0123abcd", 1.7e9 + number))
        allocated = tracemalloc.get_traced_memory()[0] - before
        self.assertLess(len(ring), 8000)
        self.assertLessEqual(allocated, ring.size)
        self.assertGreaterEqual(allocated, 0.9 * ring.size)

    def test_short_events(self) -> None:
        """Events with one field, or without any, are kept as others are."""
        for event in (BrokerUnblocked(), NodeStopped(3), DeviceIdentified("c", "d")):
            self.assertEqual(unpack(pack(event, "n", 0.0)).event, event)
