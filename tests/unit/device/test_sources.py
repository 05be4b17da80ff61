"""Tests of the limit on connections for each source address."""

from __future__ import annotations

import ipaddress
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.sources import Sources, source_of


class SourcesTests(SynchronousTestCase):
    def test_limit(self) -> None:
        """The limit holds for each address. When a connection is lost, another one of its address is accepted."""
        sources = Sources(2)
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
        sources = Sources(3)
        there: Counter[str] = Counter()
        for comes, host in steps:
            if comes:
                self.assertEqual(sources.enter(host), there[host] < 3)
                there[host] = min(3, there[host] + 1)
            elif there[host]:
                sources.leave(host)
                there[host] -= 1
            self.assertEqual(len(sources), sum(count > 0 for count in there.values()))
