"""Tests of the question `ends`."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from typing import Any, cast
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import JSON, BadArgument, Ends, EndSearch, Slices, _end_search
from owsla.desk._end_search import MAX_LIMIT, merge_ends
from owsla.desk._ends import IDENTIFIED, REFUSED
from owsla.desk._refusals import Refusals, Remembered, host_of
from owsla.desk._ring import PastEvent, unpack
from owsla.device.sliced_check import SLICE
from owsla.events import (
    AddressDenied,
    BrokerWarning,
    DeviceConnected,
    DeviceContested,
    DeviceDisconnected,
    DeviceHeldOff,
    DeviceKicked,
    DeviceReplaced,
    DialectFailed,
    Event,
    EventManager,
    HandshakeFailed,
    LoginFailed,
)

PEER = "192.0.2.1:4711"
EXPIRED = "TLS: the device's certificate is refused: it has expired"


def ended(key: str = "c-1", device_id: str | None = None, peer: str = PEER, reason: str = "lost") -> DeviceDisconnected:
    return DeviceDisconnected(key, device_id, peer, reason, 3, 4, 5.0, 0)


def refused(
    peer: str = PEER, reason: str = EXPIRED, subject: str | None = "CN=meter-7,O=Example", serial: str = "0AF3"
) -> Event:
    return HandshakeFailed(peer, reason, subject, serial)


class SteppedClock(Clock):
    """A clock on which each look at it takes some time."""

    step = 0.0

    def seconds(self) -> float:
        self.rightNow += self.step
        return self.rightNow


class EndsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SteppedClock()
        self.denied: list[Remembered] = []
        self.ends = Ends()
        self.search = EndSearch(self.ends, Slices(cast("Any", self.clock)), lambda: self.denied)
        self.time = 1000.0
        self.manager = EventManager(lambda: "0123abcd", now=lambda: self.time)
        self.manager.add(self.ends)

    def happen(self, *events: Event) -> None:
        for event in events:
            self.time += 1.0
            self.manager.emit(event)

    def ask(self, **args: Any) -> list[JSON]:
        found: list[JSON] = []
        self.search.answer(args).addCallback(found.append)
        while not found:
            self.clock.advance(0)
        ends: list[JSON] = found[0]["ends"]
        return ends

    def of(self, id: str, limit: int = 20) -> list[JSON]:
        found: list[list[JSON]] = []
        self.search.of(id, limit).addCallback(found.append)
        while not found:
            self.clock.advance(0)
        return found[0]

    def names(self, ends: Sequence[JSON]) -> list[str]:
        return [end["event"] for end in ends]

    def test_newest_first(self) -> None:
        """Ends and refusals come newest first, with their times, their texts and their fields."""
        self.happen(ended("c-1"), refused(), ended("c-2", "d"))
        ends = self.ask()
        self.assertEqual([end["time"] for end in ends], [1003000, 1002000, 1001000])
        self.assertEqual([(end["count"], end["first"]) for end in ends], [(1, end["time"]) for end in ends])
        self.assertEqual(
            {name: value for name, value in ends[2].items() if name != "fields"},
            {
                "time": 1001000, "first": 1001000, "count": 1, "node": "0123abcd", "worker": None, "warning": False,
                "event": "device-disconnected", "text": str(ended("c-1")),
            },
        )  # fmt: skip
        self.assertEqual(ends[2]["fields"], dict(ended("c-1").fields()))

    def test_limit(self) -> None:
        """An answer has as many events as it may, the newest."""
        self.happen(*(ended(f"c-{number}", device_id) for number in range(5) for device_id in (None, "d")), refused())
        self.assertEqual([end["fields"].get("connection_id") for end in self.ask(limit=4)], [None, "c-4", "c-4", "c-3"])
        self.assertEqual(len(self.of("d", 3)), 3)

    def test_kinds(self) -> None:
        """Only ends and refusals are kept."""
        self.happen(DeviceConnected("c-1", "d", PEER, ""), BrokerWarning("x"))
        self.assertEqual(self.ask(), [])

    def test_found(self) -> None:
        """An end is found by connection id, device id, address with or without the port, serial number, and name in a
        certificate.
        """
        other = "198.51.100.9:1"
        for event, ids in (
            (ended("c-9", "door-7"), ("c-9", "door-7", PEER, "192.0.2.1")),
            (
                ended("c-9", None, "[2001:db8::7]:5"),
                ("c-9", "[2001:db8::7]:5", "2001:db8::7", "2001:DB8:0::7", "[2001:db8::7]"),
            ),
            (ended("c-9", None, "unix:/run/d.sock"), ("unix:/run/d.sock",)),
            (refused(), (PEER, "192.0.2.1", "0AF3", "0af3", "meter-7", "Example")),
            (refused(subject="CN=alpha+OU=beta,O=gamma"), ("alpha", "beta", "gamma")),
            (LoginFailed("c-9", None, "door-7", PEER, "wrong password", 0), ("c-9", "door-7", PEER, "192.0.2.1")),
            (LoginFailed("c-9", "meter-5", "door-7", PEER, "wrong", 0), ("meter-5", "door-7")),
            (DeviceHeldOff("door-7", 9, 60.0, PEER), ("door-7", PEER, "192.0.2.1")),
            (DeviceReplaced("c-9", "door-7", "c-10"), ("c-9", "c-10", "door-7")),
            (DeviceContested("door-7", 3, (PEER, other)), ("door-7", PEER, other, "198.51.100.9")),
            (DeviceKicked("c-9", "door-7", "user ada (uid 5)"), ("c-9", "door-7")),
            (DialectFailed("c-9", "door-7", "login", "E"), ("c-9", "door-7")),
        ):
            self.setUp()
            self.happen(ended("x", "y", "203.0.113.1:1"), event)
            for id in ids:
                self.assertEqual(self.names(self.of(id)), [event.name], (event, id))
                if "0::" not in id:
                    self.assertEqual(self.names(self.ask(query=id[:-1].lower())), [event.name], (event, id))

    def test_whole(self) -> None:
        """A part of an id finds nothing, nor does the id of another, or a text that is not meant."""
        self.happen(ended("c-17", "door-77", "192.0.2.17:4711", "replaced"), refused("192.0.2.17:1"))
        self.happen(ended("c-2", "192.0.2.17", "203.0.113.1:1"))
        for id in (
            "c-1",
            "c-2x",
            "door-7",
            "192.0.2.1",
            "2.17",
            ":4711",
            "replaced",
            "meter",
            "CN=meter-7",
            "AF3",
            "default",
            "",
            "DOOR-77",
        ):
            self.assertEqual(self.of(id), [], id)

    def test_address_forms(self) -> None:
        """An address is found in each of its forms: with brackets, with zeros, and an IPv4 address in IPv6 form."""
        self.happen(refused("192.0.2.17:1"), refused("[2001:db8::7]:1"))
        for id in ("::ffff:192.0.2.17", "[2001:db8::7]", "2001:DB8:0::7", "[2001:db8::7]:1"):
            self.assertEqual(len(self.of(id)), 1, id)

    def test_part(self) -> None:
        """A query in `ends` is a part of what an event is found by, in any case, and not of its reason."""
        self.happen(
            ended("c-1", "Zähler-7"), ended("c-2", None, reason="zähler"), refused(subject="CN=ZÄHLER"), refused("192.0.2.8:1")
        )
        self.assertEqual([end["time"] for end in self.ask(query="zÄHL")], [1003000, 1001000])
        self.assertEqual([end["time"] for end in self.ask(query="METER")], [1004000])
        self.assertEqual(len(self.ask(query="")), 4)

    def test_repeated(self) -> None:
        """A device that is refused again and again is one entry, with the number, the last and the first time."""
        self.happen(refused("192.0.2.1:1"), refused("192.0.2.1:2"), refused("192.0.2.2:1"), refused("192.0.2.1:3"))
        ends = self.ask()
        self.assertEqual([(end["fields"]["peer"], end["count"]) for end in ends], [("192.0.2.1:3", 3), ("192.0.2.2:1", 1)])
        self.assertEqual([(end["time"], end["first"]) for end in ends], [(1004000, 1001000), (1003000, 1003000)])

    def test_not_repeated(self) -> None:
        """A refusal for another reason, of another certificate or at another door is another one."""
        self.happen(
            refused(), refused(reason="other"), refused(subject="CN=x"), refused(serial="FF"),
            HandshakeFailed(PEER, EXPIRED, "CN=meter-7,O=Example", "0AF3", "meters"),
        )  # fmt: skip
        self.assertEqual([end["count"] for end in self.ask()], [1] * 5)

    def test_refused_addresses(self) -> None:
        """Connections that were refused for their address, which are no events of their own, are among the refusals."""
        self.denied = [Remembered(PastEvent(AddressDenied(7, "192.0.2.5"), "0123abcd", 1001.5), 7, 900.0)]
        self.happen(ended(), ended())
        ends = self.ask()
        self.assertEqual([(end["time"], end["count"], end["first"]) for end in ends][1], (1001500, 7, 900000))
        for found in (self.of("192.0.2.5"), self.ask(query="2.0.2.5")):
            self.assertEqual(self.names(found), ["address-denied"])
        self.assertEqual(self.of("192.0.2.6"), [])

    def test_nobody_else(self) -> None:
        """Neither peers that are refused nor connections without a device id make it forget the ends of devices."""
        self.happen(ended("c-1", "door-7"), refused("192.0.2.9:1"))
        for number in range(20_000):
            self.happen(ended(f"c-{number}", None, f"198.51.100.1:{number}"))
        self.assertEqual(len(self.of("192.0.2.9")), 1)
        for number in range(6_000):
            self.happen(refused(f"198.51.{number // 256}.{number % 256}:1"))
        self.assertEqual(self.of("192.0.2.9"), [])
        self.assertEqual(len(self.of("door-7")), 1)
        self.assertLessEqual(self.ends.size, 8 << 20)

    def test_bound(self) -> None:
        """The ends of devices take 4 MiB at most; the oldest are forgotten."""
        for number in range(25_000):
            self.happen(ended(f"0123abcd-{number:08x}", f"door-{number}"))
        self.assertEqual(self.of("door-0"), [])
        self.assertEqual(len(self.of("door-24999")), 1)
        self.assertLessEqual(self.ends.size, IDENTIFIED)
        self.assertGreater(self.ends.size, 0.999 * IDENTIFIED)

    def test_slices(self) -> None:
        """A long search leaves the reactor time for other work. Events that come meanwhile do no harm."""
        self.happen(*(ended(f"c-{number}", "d") for number in range(640)))
        self.clock.step = SLICE / 3
        found: list[int] = []
        self.search.answer({"limit": 1000}).addCallback(lambda answer: found.append(len(answer["ends"])))
        turns = 0
        while not found:
            self.happen(ended("c", "d"), refused())
            (call,) = self.clock.getDelayedCalls()
            self.clock.calls.clear()
            call.func()
            turns += 1
        self.assertEqual(found, [642])
        self.assertGreater(turns, 5)

    def test_enough(self) -> None:
        """With enough events found a search ends."""
        self.happen(*(ended(f"c-{number}", "d") for number in range(640)))
        with patch.object(_end_search, "unpack", wraps=unpack) as unpacked:
            self.assertEqual(len(self.of("d", 20)), 20)
        self.assertLess(unpacked.call_count, 100)

    def test_bad_arguments(self) -> None:
        """A limit that is no number of events, and a query that is no text, are refused with a sentence."""
        for args in ({"limit": 0}, {"limit": MAX_LIMIT + 1}, {"limit": "5"}, {"query": 5}):
            error = self.assertRaises(BadArgument, self.search.answer, args)
            self.assertRegex(str(error), "^`(limit|query)` is ")


class RefusalsTests(SynchronousTestCase):
    def test_bound(self) -> None:
        """Refusals take a number of bytes at most. The one that is the longest ago is forgotten first."""
        refusals = Refusals(2000)
        for number in range(10):
            refusals.add(HandshakeFailed("192.0.2.1:1", "always"), "n", float(number))
            refusals.add(HandshakeFailed(f"198.51.100.{number}:1", "once"), "n", float(number))
            self.assertLessEqual(refusals.size, 2000)
        kept = [(unpack(packed).event.fields()["peer"], count) for packed, count, _ in refusals.newest_first()]
        self.assertEqual(kept[:3], [("198.51.100.9:1", 1), ("192.0.2.1:1", 10), ("198.51.100.8:1", 1)])
        self.assertEqual(len(kept), len(refusals))
        size = refusals.size
        refusals.add(HandshakeFailed("198.51.100.9:12345", "once"), "n", 10.0)
        self.assertEqual((refusals.size, len(refusals)), (size + 4, len(kept)))
        self.assertLess(len(kept), 10)

    def test_estimate(self) -> None:
        """The estimate of the memory is at least the memory that is allocated, and at most half as much again."""
        for number in (4_000, 15_000, 21_000):
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            refusals = Refusals(REFUSED)
            for each in range(number):
                event = HandshakeFailed(f"198.51.{each // 256}.{each % 256}:1", EXPIRED, f"CN=meter-{each}", f"{each:016X}")
                refusals.add(event, "0123abcd", 1.7e9 + each)
            allocated = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            self.assertLessEqual(allocated, refusals.size)
            self.assertGreaterEqual(1.5 * allocated, refusals.size)

    def test_hosts(self) -> None:
        """The host of a peer is its address without the port; a unix socket has none."""
        for peer, host in (("192.0.2.1:5", "192.0.2.1"), ("[2001:db8::1]:5", "2001:db8::1"), ("unix:/s:1", "unix:/s:1")):
            self.assertEqual(host_of(peer), host)


class MergeTests(SynchronousTestCase):
    def test_merge(self) -> None:
        """The ends of several workers are one list, newest first, each with the name of its worker."""
        answers = [
            ("worker-1", {"ends": [{"time": 5, "x": 1}, {"time": 2, "x": 2}]}),
            ("worker-2", {"ends": [{"time": 3, "x": 3}]}),
        ]
        merged = merge_ends(answers, {})
        self.assertEqual(
            [(end["x"], end["worker"]) for end in merged["ends"]], [(1, "worker-1"), (3, "worker-2"), (2, "worker-1")]
        )
        self.assertEqual(len(merge_ends(answers, {"limit": 2})["ends"]), 2)
        self.assertRaises(BadArgument, merge_ends, answers, {"limit": -1})
