"""Addresses of connections that were closed at once."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.attacks import AttackReports, RefusedAddress
from owsla.device.proxy_senders import ProxySenders
from owsla.device.refused_hosts import HOSTS, RefusedHost, RefusedHosts
from owsla.device.sources import SourceLimits, Sources
from owsla.events import AddressDenied, ConnectRateExceeded, Event, ProxyUntrusted, SilentEvicted, TurnedAway


class RefusedHostsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.hosts = RefusedHosts(lambda: self.now)

    def refuse(self, *hosts: str) -> None:
        for host in hosts:
            self.now += 1.0
            self.assertFalse(self.hosts.refuse(host))

    def test_remembered(self) -> None:
        """Each address is there with the number of its connections, and the times of the first and the last one."""
        self.refuse("a", "b", "a", "c", "a")
        self.assertEqual(
            list(self.hosts.hosts()),
            [RefusedHost("a", 3, 1.0, 5.0), RefusedHost("c", 1, 4.0, 4.0), RefusedHost("b", 1, 2.0, 2.0)],
        )
        self.assertEqual((self.hosts.count, self.hosts.last), (5, "a"))

    def test_bound(self) -> None:
        """An attack from many addresses uses up no memory. The address that is the longest ago is forgotten."""
        self.refuse("a", *(str(number) for number in range(HOSTS - 1)), "a", "b")
        hosts = [each.host for each in self.hosts.hosts()]
        self.assertEqual((len(hosts), hosts[:2], hosts[-1]), (HOSTS, ["b", "a"], "1"))
        self.assertEqual(self.hosts.count, HOSTS + 2)

    def test_changes_meanwhile(self) -> None:
        """Connections may come while somebody reads the addresses."""
        self.refuse("a", "b")
        hosts = self.hosts.hosts()
        next(hosts)
        self.refuse("c")
        self.assertEqual([each.host for each in hosts], ["a"])


class RefusedAddressesTests(SynchronousTestCase):
    def test_each_reason(self) -> None:
        """Each reason has its addresses, whole, as the events that would report them alone; none that is not known."""
        now = 5.0
        sources = Sources(SourceLimits(1, 1.0), lambda: now, lambda host: host.endswith("66"))
        senders = ProxySenders([ip_network("10.0.0.0/8")], lambda: now)
        events: list[Event] = []
        reports = AttackReports(events.append, lambda: now, sources, senders, "meters")
        for host in ("::ffff:192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2", "192.0.2.66", "192.0.2.67"):
            sources.enter(host)
        for _ in range(10):
            sources.enter("192.0.2.5")
            sources.leave("192.0.2.5")
        senders.trusts("192.0.2.9")
        reports.silent_evicted(7, "192.0.2.8")
        reports.silent_evicted(7, None)
        self.assertEqual(
            list(reports.refused_addresses()),
            [
                RefusedAddress(event, number, 5.0, 5.0)
                for event, number in (
                    (SilentEvicted(1, 7, "meters", "192.0.2.8"), 1),
                    (TurnedAway(1, 1, "2001:db8::2", "meters"), 1),
                    (TurnedAway(1, 1, "192.0.2.1", "meters"), 1),
                    (ConnectRateExceeded(5, 1.0, "192.0.2.5", "meters"), 5),
                    (AddressDenied(1, "192.0.2.66", "meters"), 1),
                    (ProxyUntrusted(1, "192.0.2.9", "meters"), 1),
                )
            ],
        )
        reports.report(now)
        self.assertEqual(events[1], TurnedAway(2, 1, "2001:db8::/64", "meters"))

    def test_without_limits(self) -> None:
        """Limits that are no more have no addresses; nor has a door without a proxy."""
        sources = Sources(SourceLimits(1), lambda: 0.0)
        events: list[Event] = []
        reports = AttackReports(events.append, lambda: 0.0, sources)
        sources.enter("192.0.2.1")
        sources.enter("192.0.2.1")
        self.assertEqual(len(list(reports.refused_addresses())), 1)
        sources.configure(SourceLimits())
        self.assertEqual(list(reports.refused_addresses()), [])
