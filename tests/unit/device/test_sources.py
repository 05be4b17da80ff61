"""Tests of the limit on connections for each source address."""

from __future__ import annotations

import ipaddress
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.attacks import AttackReports
from owsla.device.sources import BURST, DENIED_INTERVAL, REMEMBERED, SourceLimits, Sources, source_of
from owsla.events import AddressDenied, Event


class SourcesTests(SynchronousTestCase):
    def test_limit(self) -> None:
        """The limit holds for each address. When a connection is lost, another one of its address is accepted."""
        sources = Sources(SourceLimits(2), lambda: 0.0)
        self.assertEqual([sources.enter("192.0.2.1") for _ in range(4)], [True, True, False, False])
        self.assertTrue(sources.enter("192.0.2.2"))
        sources.leave("192.0.2.1")
        self.assertEqual([sources.enter("192.0.2.1") for _ in range(2)], [True, False])

    def test_one_address(self) -> None:
        """A source is an IPv4 address in any notation, a /64 of IPv6, or a link-local address."""
        for host, source in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
            ("fe80::1", "fe80::1"),
            ("fe80::2%eth0", "fe80::2"),
            ("fec0::1", "fec0::/64"),
            ("unix:/run/owsla.sock", "unix:/run/owsla.sock"),
        ):
            self.assertEqual(source_of(host), source)

    @given(st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1))
    def test_any_address(self, number: int, other: int) -> None:
        """All addresses of a /64 are the same source, which is written as the network."""
        address, neighbour = (ipaddress.IPv6Address(number >> 64 << 64 | low) for low in (number & (2**64 - 1), other))
        if address.is_link_local or address.ipv4_mapped or neighbour.ipv4_mapped:
            return
        self.assertEqual(source_of(str(address)), source_of(str(neighbour)))
        self.assertIn(address, ipaddress.IPv6Network(source_of(str(address))))

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c"]))))
    def test_any_history(self, steps: list[tuple[bool, str]]) -> None:
        """No address exceeds the limit, and an address without connections uses no memory."""
        sources = Sources(SourceLimits(3), lambda: 0.0)
        there: Counter[str] = Counter()
        for comes, host in steps:
            if comes:
                self.assertEqual(sources.enter(host), there[host] < 3)
                there[host] = min(3, there[host] + 1)
            elif there[host]:
                sources.leave(host)
                there[host] -= 1
            self.assertEqual(len(sources), sum(count > 0 for count in there.values()))


class ConnectRateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0

    def sources(self, rate: float | None, connections: int | None = None) -> Sources:
        return Sources(SourceLimits(connections, rate), lambda: self.now)

    def entered(self, sources: Sources, attempts: int, host: str = "192.0.2.1") -> int:
        """Return how many of some connections at one moment may enter. Each leaves at once."""
        count = 0
        for _ in range(attempts):
            if sources.enter(host):
                count += 1
                sources.leave(host)
        return count

    def test_rate(self) -> None:
        """A source may open the connections of a second at once, and the rest at the rate. Others are not affected."""
        sources = self.sources(20.0)
        self.assertEqual(self.entered(sources, 50), 20)
        self.assertEqual(self.entered(sources, 50, "192.0.2.2"), 20)
        self.now += 0.5
        self.assertEqual(self.entered(sources, 50), 10)
        self.now += 100.0
        self.assertEqual(self.entered(sources, 50), 20)
        self.assertEqual((sources.too_fast.count, sources.too_fast.last, sources.too_many.count), (130, "192.0.2.1", 0))

    def test_low_rate(self) -> None:
        """With a low rate some connections may follow each other all the same: a device tries again, and another one starts."""
        sources = self.sources(0.1)
        self.assertEqual(self.entered(sources, 50), BURST)
        self.now += 10.0
        self.assertEqual(self.entered(sources, 50), 1)

    def test_network(self) -> None:
        """The addresses of an IPv6 /64 have one rate, and an IPv4-mapped address has that of its IPv4 address."""
        sources = self.sources(5.0)
        self.assertEqual(sum(self.entered(sources, 1, f"2001:db8::{number:x}") for number in range(50)), 5)
        self.assertEqual(self.entered(sources, 3, "::ffff:192.0.2.1") + self.entered(sources, 50, "192.0.2.1"), 5)

    def test_refused_by_the_other_limit(self) -> None:
        """A connection beyond the limit on connections does not count for the rate."""
        sources = self.sources(5.0, 1)
        self.assertTrue(sources.enter("192.0.2.1"))
        self.assertEqual(self.entered(sources, 50), 0)
        sources.leave("192.0.2.1")
        self.assertEqual(self.entered(sources, 50), 4)
        self.assertEqual((sources.too_many.count, sources.too_fast.count), (50, 46))

    def test_memory(self) -> None:
        """An attack from any number of addresses takes some megabytes."""
        sources = self.sources(1.0)
        for number in range(3 * REMEMBERED):
            self.entered(sources, 1, f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")
        assert sources._recent is not None
        self.assertEqual((len(sources._recent), len(sources)), (REMEMBERED, 0))
        recent = sources._recent._empty_at
        size = sys.getsizeof(recent) + sum(sys.getsizeof(source) + sys.getsizeof(time) for source, time in recent.items())
        self.assertLess(size, 4_000_000)

    def test_configure(self) -> None:
        """Another rate holds at once, and the same one goes on."""
        sources = self.sources(5.0)
        self.entered(sources, 50)
        sources.configure(SourceLimits(None, 5.0))
        self.assertEqual(self.entered(sources, 50), 0)
        sources.configure(SourceLimits(None, 10.0))
        self.assertEqual(self.entered(sources, 50), 10)
        sources.configure(SourceLimits())
        self.assertEqual(self.entered(sources, 50), 50)


class DeniedTests(SynchronousTestCase):
    def test_denied(self) -> None:
        """A denied address does not enter, and does not count for any limit."""
        denied = {"192.0.2.1"}
        sources = Sources(SourceLimits(2, 100.0), lambda: 0.0, denied.__contains__)
        self.assertFalse(sources.enter("192.0.2.1") or sources.enter("192.0.2.1"))
        self.assertTrue(sources.enter("192.0.2.2"))
        self.assertEqual((sources.denied.count, sources.denied.last, len(sources)), (2, "192.0.2.1", 1))
        denied.clear()
        self.assertTrue(sources.enter("192.0.2.1") and sources.enter("192.0.2.1"))

    def test_shown(self) -> None:
        """The event shows an IPv4 address in IPv6 form as IPv4, like all events."""
        sources = Sources(SourceLimits(), lambda: 0.0, lambda host: True)
        events: list[Event] = []
        reports = AttackReports(events.append, lambda: 0.0, sources)
        for count, (host, shown) in enumerate((("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1")), 1):
            sources.enter(host)
            reports.report(DENIED_INTERVAL * count)
            self.assertEqual(events[-1], AddressDenied(1, shown))

    def test_reports(self) -> None:
        """Connections from denied addresses are reported at once, and then once a minute."""
        sources = Sources(SourceLimits(), lambda: 0.0, lambda host: True)
        sources.enter("192.0.2.1")
        self.assertEqual(sources.denied.due(0.0), 1)
        sources.enter("192.0.2.1")
        self.assertEqual([sources.denied.due(time) for time in (DENIED_INTERVAL - 1, DENIED_INTERVAL)], [0, 1])
