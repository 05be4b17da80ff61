"""Tests of claims: one connection of a device in a cluster, whatever the clocks say and however notices arrive."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.claims import AHEAD, BATCH, BATCHES, Claim, DueClaims, HybridClock, settle
from owsla.device.identified import IdentifiedDevices
from owsla.device.replaced_connections import STAY
from owsla.events import DeviceContested, DeviceReplaced, Event
from owsla.routing import ConnectionIds

HOUR = 3600.0
TICK = 0.1


class Door:
    """Factory of a door."""

    door = "meters"


class Transport:
    def __init__(self, peer: str) -> None:
        self.peer = peer


class Connection:
    """Open connection of a device."""

    factory = Door()

    def __init__(self, node: Node, connection_id: bytes, device_id: str) -> None:
        self.node = node
        self.connection_id = connection_id
        self.device_id = device_id
        self.transport = Transport(f"device-of-{node.name}")
        self.traceparent: str | None = None
        self.since = 0
        self.identified = 0.0
        self.connected_at = node.clock.seconds()
        """Time at which the device was identified, by the clock of the test."""
        self.reason = ""

    @property
    def closing(self) -> bool:
        return bool(self.reason)

    def claim(self, since: int, identified: float) -> None:
        assert since >= self.since, "the time of a connection only grows"
        self.since, self.identified = since, identified

    def close(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.node.devices.remove(cast(Any, self))


class Node:
    """Connections of one node, whose wall clock is `ahead` of that of the test. All nodes have the same monotonic clock."""

    def __init__(
        self, clock: Clock, ahead: float = 0.0, *, replace: bool = True, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.clock = clock
        self.ahead = ahead
        self.ids = ConnectionIds(random)
        self.name = self.ids.node.decode()
        self.events: list[Event] = []
        self.sent: list[list[Claim]] = []
        """Announced messages that the test has not taken yet."""
        self.announced = 0
        """Number of claims that were announced."""
        self.devices = IdentifiedDevices(
            cast(Any, clock), lambda: 1_000_000_000.0 + clock.seconds() + self.ahead, self.events.append, replace
        )
        self.devices.announce_with(self._announce)

    def _announce(self, claims: Sequence[Claim]) -> bool:
        assert 0 < len(claims) <= BATCH
        self.announced += len(claims)
        self.sent.append(list(claims))
        return True

    def connect(self, device_id: str = "d1") -> Connection:
        connection = Connection(self, self.ids.new(), device_id)
        self.devices.add(cast(Any, connection), self.clock.seconds())
        self.devices.replace_previous(cast(Any, connection), connection.transport.peer)
        return connection

    def tick(self) -> None:
        self.devices.tick(self.clock.seconds())


class Cluster:
    """Nodes whose announcements arrive at all nodes at once, in the next tick."""

    def __init__(self, *ahead: float, replace: bool = True) -> None:
        self.clock = Clock()
        self.nodes = [Node(self.clock, each, replace=replace) for each in ahead]
        self.cut: set[Node] = set()
        """Nodes without a broker: what they announce, and what is announced to them, is lost."""

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.advance(TICK)
            for node in self.nodes:
                node.tick()
            for node in self.nodes:
                sent, node.sent = node.sent, []
                for claims in sent:
                    for other in self.nodes:
                        if not {node, other} & self.cut:
                            other.devices.heard(claims)

    def restore(self, node: Node) -> None:
        """Let a node return to the broker."""
        self.cut.discard(node)
        node.devices.announce_all()

    @property
    def announced(self) -> int:
        return sum(node.announced for node in self.nodes)


def claim(since: int, age: int, connection_id: str = "a") -> Claim:
    return Claim("d1", connection_id, since, age, "default")


class SettleTests(SynchronousTestCase):
    def test_by_since(self) -> None:
        """With ages that decide nothing, the greater time is newer, and then the greater connection id. Both nodes agree."""
        self.assertIsNone(settle(claim(10, 5), claim(11, 5)))
        self.assertEqual(settle(claim(11, 5), claim(10, 5)), 11)
        self.assertIsNone(settle(claim(10, 5, "a"), claim(10, 5, "b")))
        self.assertEqual(settle(claim(10, 5, "b"), claim(10, 5, "a")), 10)

    def test_by_age(self) -> None:
        """What says that it is older than mine is older, with whatever time: mine gets a greater one."""
        self.assertEqual(settle(claim(10, 5), claim(3_600_010, 6)), 3_600_011)
        self.assertEqual(settle(claim(10, 5), claim(10, 6)), 11)
        self.assertEqual(settle(claim(10, 5), claim(3, 6)), 10)

    def test_late(self) -> None:
        """What says that it is younger may be a claim that took long: the times decide."""
        self.assertEqual(settle(claim(10, 5), claim(3, 0)), 10)
        self.assertIsNone(settle(claim(10, 5), claim(11, 0)))


class HybridClockTests(SynchronousTestCase):
    def test_since(self) -> None:
        """The time is the present, unless this device was seen or heard of later."""
        clock = HybridClock()
        self.assertEqual(clock.since("d1", 5.0, 0), 5000)
        self.assertEqual(clock.since("d1", 5.0, 5000), 5001)
        clock.heard(claim(7000, 0), 5.0)
        clock.heard(claim(6000, 0), 5.0)
        self.assertEqual((clock.since("d1", 5.0, 0), clock.since("d2", 5.0, 0)), (7001, 5000))
        self.assertEqual(clock.since("d1", 9.0, 0), 9000)

    def test_bounded(self) -> None:
        """Times in the past are not kept, and of those ahead only the last ones."""
        clock = HybridClock()
        for number in range(AHEAD + 10):
            clock.heard(claim(1000, 0)._replace(device_id=f"p{number}"), 5.0)
            clock.heard(claim(7000, 0)._replace(device_id=f"d{number}"), 5.0)
        self.assertEqual((len(clock._ahead), clock.since("d9", 5.0, 0), clock.since("d10", 5.0, 0)), (AHEAD, 5000, 7001))


class DueTests(SynchronousTestCase):
    def test_batches(self) -> None:
        """A message has at most 500 claims, and at most four go at a time. New ones do not wait for those of an absence."""
        due = DueClaims()
        everybody = [f"d{number}" for number in range(5000)]
        due.announce_all(everybody)
        due.add("new")
        due.add("new")
        messages = due.take()
        self.assertEqual([len(ids) for ids in messages], [BATCH] * BATCHES)
        self.assertEqual(messages[0][0], "new")
        rest = [device_id for _ in range(2) for ids in due.take() for device_id in ids]
        self.assertEqual({*messages[0][1:], *messages[1], *messages[2], *messages[3], *rest}, {*everybody})
        self.assertEqual((len(due), due.take()), (0, []))


class ClusterTests(SynchronousTestCase):
    """Nodes that hear each other within a tenth of a second."""

    def test_moved(self) -> None:
        """A device that connects to another node loses its connection here, after one notice. Events name the other one."""
        cluster = Cluster(0.0, 0.0)
        here, there = cluster.nodes
        first = here.connect()
        cluster.tick(5)
        second = there.connect()
        cluster.tick(2)
        self.assertEqual((first.reason, second.reason), ("replaced", ""))
        ids = first.connection_id.decode(), second.connection_id.decode()
        self.assertEqual(here.events, [DeviceReplaced(ids[0], "d1", ids[1], "meters")])
        self.assertEqual((there.events, cluster.announced), ([], 2))
        cluster.tick(100)
        self.assertEqual(cluster.announced, 2)

    def test_clocks_an_hour_apart(self) -> None:
        """The newer connection stays, whichever clock is ahead, within a second and four notices."""
        for ahead in ((0.0, HOUR), (HOUR, 0.0), (0.0, -HOUR), (24 * HOUR, 0.0)):
            cluster = Cluster(*ahead)
            first = cluster.nodes[0].connect()
            cluster.tick(5)
            before = cluster.announced
            second = cluster.nodes[1].connect()
            cluster.tick(8)
            self.assertEqual((first.reason, second.reason), ("replaced", ""))
            self.assertLessEqual(cluster.announced - before, 4)
            third = cluster.nodes[0].connect()
            cluster.tick(8)
            self.assertEqual((second.reason, third.reason), ("replaced", ""))

    def test_not_heard_before(self) -> None:
        """Where the first claim was never heard, the node with the older connection says it again, and loses it."""
        for ahead in ((0.0, 0.0), (HOUR, 0.0), (0.0, HOUR)):
            cluster = Cluster(*ahead)
            cluster.cut.add(cluster.nodes[1])
            first = cluster.nodes[0].connect()
            cluster.tick(5)
            cluster.cut.clear()
            before = cluster.announced
            second = cluster.nodes[1].connect()
            cluster.tick(8)
            self.assertEqual((first.reason, second.reason), ("replaced", ""))
            self.assertLessEqual(cluster.announced - before, 4)

    def test_two_at_once(self) -> None:
        """Of two that are identified at the same time one stays, whichever node hears of the other first."""
        for ahead in ((0.0, 0.0), (HOUR, 0.0), (0.0, HOUR)):
            cluster = Cluster(*ahead)
            connections = [node.connect() for node in cluster.nodes]
            cluster.tick(8)
            self.assertEqual(sorted(each.reason for each in connections), ["", "replaced"])
            self.assertLessEqual(cluster.announced, 4)

    def test_many_at_once(self) -> None:
        """Of eight that are identified at the same time one stays."""
        cluster = Cluster(*(HOUR * number for number in range(8)))
        connections = [node.connect() for node in cluster.nodes]
        cluster.tick(10)
        self.assertEqual(sorted(each.reason for each in connections), ["", *["replaced"] * 7])
        self.assertLessEqual(cluster.announced, 8 * 4)

    def test_flapping(self) -> None:
        """A device that flaps between two nodes costs a bounded number of notices each time, and nothing when it rests."""
        for ahead in ((0.0, 0.0), (HOUR, 0.0)):
            cluster = Cluster(*ahead)
            connections = []
            for number in range(100):
                connections.append(cluster.nodes[number % 2].connect())
                cluster.tick(6)
            self.assertLessEqual(cluster.announced, 400)
            announced = cluster.announced
            cluster.tick(round(2 * STAY / TICK))
            self.assertEqual(cluster.announced, announced)
            self.assertEqual([each for each in connections if not each.reason], connections[-1:])

    def test_contested(self) -> None:
        """Two devices with one identity at two nodes take turns of some seconds, and a warning says so."""
        cluster = Cluster(0.0, 0.0)
        connections: dict[Node, Connection] = {}
        count = 0
        for _ in range(600):
            for node in cluster.nodes:
                if node not in connections or connections[node].reason:
                    connections[node] = node.connect()
                    count += 1
            cluster.tick()
        self.assertLess(count, 30)
        contested = [event for node in cluster.nodes for event in node.events if isinstance(event, DeviceContested)]
        self.assertTrue(contested)
        for event in contested:
            self.assertEqual(len([peer for peer in event.peers if peer.startswith("node ")]), 1)
        self.assertLess(cluster.announced, 4 * count)

    def test_replaced_stays_silent(self) -> None:
        """A connection of a contested device id that stays for a while is no address, and is not announced any more."""
        cluster = Cluster(0.0, 0.0)
        here, there = cluster.nodes
        for _ in range(6):
            last = here.connect()
            cluster.tick(2)
            there.connect()
            cluster.tick(2)
        self.assertEqual(last.reason, "")
        self.assertIsNone(here.devices.find("d1"))
        here.devices.announce_all()
        announced = cluster.announced
        cluster.tick(5)
        self.assertEqual(cluster.announced, announced)
        cluster.tick(round(STAY / TICK) + 5)
        self.assertEqual(last.reason, "replaced")

    def test_cut_off(self) -> None:
        """A node that was cut off loses its older connections when it returns, and keeps its newer ones."""
        for ahead in ((0.0, 0.0), (HOUR, 0.0), (0.0, HOUR)):
            cluster = Cluster(*ahead)
            here, there = cluster.nodes
            old, to_stay = here.connect("d1"), there.connect("d2")
            cluster.tick(5)
            cluster.cut.add(here)
            cluster.tick(20)
            new, newest = there.connect("d1"), here.connect("d2")
            cluster.tick(20)
            self.assertEqual([each.reason for each in (old, new, to_stay, newest)], ["", "", "", ""])
            cluster.restore(here)
            cluster.tick(8)
            self.assertEqual([each.reason for each in (old, new, to_stay, newest)], ["replaced", "", "replaced", ""])

    def test_keep(self) -> None:
        """Nodes that keep all connections announce nothing and close nothing."""
        cluster = Cluster(0.0, 0.0, replace=False)
        connections = [node.connect() for node in cluster.nodes]
        cluster.nodes[0].devices.announce_all()
        cluster.tick(5)
        connections[0].node.devices.heard([claim(2**60, 0)])
        self.assertEqual(([each.reason for each in connections], cluster.announced), (["", ""], 0))

    def test_reload(self) -> None:
        """After a reload to replace, connections stay until the next one: then all of them go. After one to keep, all stay."""
        cluster = Cluster(0.0, 0.0, replace=False)
        here, there = cluster.nodes
        connections = [here.connect() for _ in range(3)]
        for node in cluster.nodes:
            node.devices.configure(True)
        cluster.tick(10)
        self.assertEqual([each.reason for each in connections], [""] * 3)
        newest = there.connect()
        for node in cluster.nodes:
            node.devices.configure(False)
        cluster.tick(10)
        self.assertEqual([each.reason for each in connections], [""] * 3)
        for node in cluster.nodes:
            node.devices.configure(True)
        newest = there.connect()
        cluster.tick(10)
        self.assertEqual(([each.reason for each in connections], newest.reason), (["replaced"] * 3, ""))

    def test_own_echo(self) -> None:
        """A node hears its own claims: of a connection that it has replaced since, nothing follows."""
        cluster = Cluster(0.0)
        (node,) = cluster.nodes
        node.connect()
        node.tick()
        (claims,) = node.sent
        node.sent = []
        last = node.connect()
        node.tick()
        announced = node.announced
        node.devices.heard(claims)
        node.tick()
        self.assertEqual((node.announced, last.reason), (announced, ""))


class Network(RuleBasedStateMachine):
    """Nodes with wrong clocks, and notices that are late, lost, doubled and out of order."""

    @initialize(ahead=st.lists(st.sampled_from([0.0, 0.003, -0.2, HOUR, -HOUR, 48 * HOUR]), min_size=2, max_size=4))
    def begin(self, ahead: list[float]) -> None:
        self.clock = Clock()
        # Ids decide ties, so a repetition needs the same ones.
        self.nodes = [Node(self.clock, each, random=Random(number).randbytes) for number, each in enumerate(ahead)]
        self.connections: dict[str, Connection] = {}
        self.notices: list[tuple[float, Node, list[Claim]]] = []
        """Messages in flight: the time of sending, the receiver, the claims."""
        self.longest = 0.0
        """Time that the slowest message so far took."""

    @property
    def open(self) -> dict[str, list[Connection]]:
        """Open connections by device id."""
        found = defaultdict(list)
        for each in self.connections.values():
            if not each.reason:
                found[each.device_id].append(each)
        return found

    @property
    def replaced_by(self) -> dict[str, str]:
        events = [event for node in self.nodes for event in node.events if isinstance(event, DeviceReplaced)]
        return {event.connection_id: event.by for event in events}

    def tick(self) -> None:
        for node in self.nodes:
            node.tick()
            for claims in node.sent:
                self.notices += [(self.clock.seconds(), other, claims) for other in self.nodes]
            node.sent = []

    def deliver(self, number: int, *, keep: bool = False) -> None:
        sent, node, claims = self.notices[number] if keep else self.notices.pop(number)
        self.longest = max(self.longest, self.clock.seconds() - sent)
        node.devices.heard(claims)

    @rule(number=st.integers(0, 3), device_id=st.sampled_from(["d1", "d2"]))
    def connect(self, number: int, device_id: str) -> None:
        connection = self.nodes[number % len(self.nodes)].connect(device_id)
        self.connections[connection.connection_id.decode()] = connection

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.connections.values()))).close("left")

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 3.0, 40.0]))
    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.tick()

    @rule(number=st.integers(0, 3), seconds=st.sampled_from([-HOUR, 5.0, HOUR]))
    def set_clock(self, number: int, seconds: float) -> None:
        self.nodes[number % len(self.nodes)].ahead += seconds

    @precondition(lambda self: self.notices)
    @rule(data=st.data(), keep=st.booleans())
    def arrive(self, data: st.DataObject, keep: bool) -> None:
        self.deliver(data.draw(st.integers(0, len(self.notices) - 1)), keep=keep)

    @precondition(lambda self: self.notices)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        del self.notices[data.draw(st.integers(0, len(self.notices) - 1))]

    @invariant()
    def one_was_not_replaced(self) -> None:
        """From each connection that was closed, the one that replaced it, and so on, ends at one that no claim has closed."""
        replaced_by = self.replaced_by
        for each in replaced_by:
            seen = set()
            while each in replaced_by:
                assert each not in seen, "connections have replaced each other in a circle"
                seen.add(each)
                each = replaced_by[each]

    @invariant()
    def replaced_by_newer_ones(self) -> None:
        """No connection was closed for one that is older by more than the time that notices took."""
        for each, by in self.replaced_by.items():
            difference = self.connections[each].connected_at - self.connections[by].connected_at
            assert difference <= self.longest + 0.002, difference

    def teardown(self) -> None:
        """Let all claims arrive everywhere: one connection stays, one of the newest, after a bounded number of notices."""
        if not hasattr(self, "nodes"):
            return
        while self.notices:
            self.deliver(0)
        self.clock.advance(STAY + 1.0)  # replaced connections of contested device ids close
        self.tick()
        before = {device_id: list(each) for device_id, each in self.open.items()}
        announced = sum(node.announced for node in self.nodes)
        for node in self.nodes:
            node.devices.announce_all()
        for _ in range(12):
            self.clock.advance(TICK)
            self.tick()
            while self.notices:
                self.deliver(len(self.notices) // 2)
        assert not any(len(node.devices._due) for node in self.nodes), "notices never end"
        announced = sum(node.announced for node in self.nodes) - announced
        assert announced <= sum(4 * len(connections) for connections in before.values()), (announced, before)
        self.clock.advance(STAY + 1.0)
        self.tick()
        after = self.open
        assert after.keys() == before.keys(), "a device has lost its last connection"
        for device_id, (stays,) in after.items():
            newest = max(each.connected_at for each in before[device_id])
            assert stays.connected_at >= newest - TICK - 0.002, newest - stays.connected_at
        assert Counter(each for node in self.nodes for each in node.devices) == Counter(list(after))
        self.one_was_not_replaced()
        self.replaced_by_newer_ones()


class NetworkTests(SynchronousTestCase):
    def test_any_network(self) -> None:
        """Whatever happens to notices, never all connections of a device are closed; and when claims arrive, one of the newest
        stays.
        """
        run_state_machine_as_test(Network, settings=settings(deadline=None, max_examples=100, stateful_step_count=30))
