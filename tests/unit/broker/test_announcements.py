"""Announcements: what is published of connections, when, and when again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.announcements import Announcement, AnnouncementQueue
from owsla.events import DeviceIdentified

from ..events.doubles import connected, disconnected


def told(announcements: list[Announcement]) -> list[str]:
    marks = {"connected": "+", "disconnected": "-", "node-lost": "!"}
    return [marks[one.change] + one.key + ("*" if one.resync else "") + ("~" if one.coalesced else "") for one in announcements]


class Tagged(AnnouncementQueue):
    """Announcement queue with answers by delivery tag, as from a publisher."""

    def begin(self) -> None:
        self.tag = 0
        self.published: dict[int, Announcement] = {}
        super().begin()

    def next(self) -> Announcement | None:
        announcement = super().next()
        if announcement is not None:
            self.tag += 1
            self.published[self.tag] = announcement
        return announcement

    def take(self, tag: int, multiple: bool) -> list[Announcement]:
        tags = [one for one in self.published if one == tag or (multiple and (one < tag or not tag))]
        return [self.published.pop(one) for one in tags]

    def ack(self, tag: int, multiple: bool) -> None:
        for announcement in self.take(tag, multiple):
            self.confirmed(announcement)

    def nack(self, tag: int, multiple: bool) -> None:
        for announcement in self.take(tag, multiple):
            self.refused(announcement)

    def give_back(self, tag: int, multiple: bool) -> None:
        for announcement in self.take(tag, multiple):
            self.returned(announcement)


class PresenceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.presence = Tagged(window=3, unseen_limit=2)

    def sent(self) -> list[str]:
        announcements = []
        while (one := self.presence.next()) is not None:
            announcements.append(one)
        return told(announcements)

    def come(self, *keys: str) -> None:
        for key in keys:
            self.presence.connected(connected(key), 10.0)

    def go(self, *keys: str) -> None:
        for key in keys:
            self.presence.disconnected(disconnected(key), 20.0)

    def test_nothing_before_the_channel(self) -> None:
        """Announcements wait for a channel."""
        self.come("a")
        self.assertEqual(self.sent(), [])
        self.presence.begin()
        self.assertEqual(self.sent(), ["+a"])
        self.assertEqual((self.presence.unconfirmed, self.presence.in_flight), (1, 1))

    def test_the_window(self) -> None:
        """At most a window of announcements is unconfirmed."""
        self.presence.begin()
        self.come(*"abcde")
        self.assertEqual(self.sent(), ["+a", "+b", "+c"])
        self.presence.ack(2, True)
        self.assertEqual(self.sent(), ["+d", "+e"])

    def test_held(self) -> None:
        """While the queue is too long only owed announcements are published; afterwards each of the others, once."""
        self.presence.begin()
        self.come("a", "b")
        self.sent()
        self.presence.ack(0, True)
        self.presence.hold(True)
        self.come("c", "d")
        self.go("a", "c")
        self.presence.resync()
        self.presence.node_lost("89abcdef", 20.0)
        self.assertEqual(self.sent(), ["-a", "!89abcdef"])
        self.presence.ack(0, True)
        self.assertEqual(self.presence.unconfirmed, 0, "a stop does not wait for what is held")
        self.presence.hold(False)
        self.assertEqual(sorted(self.sent()), ["+b*", "+d", "-c~"])

    def test_held_for_too_many(self) -> None:
        """After announcements were dropped, all open connections are announced again."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.ack(0, True)
        self.presence.hold(True)
        self.come("b", "c", "d")
        self.go("b", "c", "d")
        self.presence.hold(False)
        self.assertEqual((sorted(self.sent()), self.presence.forgotten), (["+a*", "-c~", "-d~"], 1))

    def test_away(self) -> None:
        """While the own queue is not consumed, ends are published, and no `connected`; afterwards the others, once."""
        self.presence.begin()
        self.come("a", "b", "c")
        self.sent()
        self.presence.lost()
        self.presence.away = True
        self.presence.begin()
        self.come("d", "e")
        self.go("a", "d")
        self.presence.node_lost("89abcdef", 20.0)
        self.assertEqual(self.sent(), ["-a", "!89abcdef", "-d~"])
        self.presence.ack(0, True)
        self.assertEqual(self.presence.unconfirmed, 0, "a stop does not wait for what is held")
        self.presence.resync()
        self.presence.away = False
        self.assertEqual(self.sent(), ["+b*", "+c*", "+e"])

    def test_one_in_flight(self) -> None:
        """`disconnected` waits until `connected` is confirmed."""
        self.presence.begin()
        self.come("a")
        self.assertEqual(self.sent(), ["+a"])
        self.go("a")
        self.assertEqual(self.sent(), [])
        self.presence.ack(1, False)
        self.assertEqual(self.sent(), ["-a"])
        self.presence.ack(2, False)
        self.assertEqual((self.presence.unconfirmed, self.presence.live), (0, 0))

    def test_came_and_went(self) -> None:
        """A connection that came and went unannounced is one coalesced announcement; all open ones are repeated then."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.ack(1, False)
        self.presence.lost()
        self.come("b")
        self.go("b")
        self.presence.begin()
        self.assertEqual(self.sent(), ["-b~", "+a*"])

    def test_no_gap(self) -> None:
        """A channel that ended with nothing in flight, and nothing replaced, leaves nothing to repeat."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.ack(1, False)
        self.presence.lost()
        self.presence.begin()
        self.assertEqual(self.sent(), [])

    def test_lost_in_flight(self) -> None:
        """Announcements in flight at the end of the channel are repeated, and so are all open connections."""
        self.presence.begin()
        self.come("a", "b")
        self.sent()
        self.presence.ack(1, False)
        self.presence.lost()
        self.presence.begin()
        self.assertEqual(self.sent(), ["+b*", "+a*"])
        self.presence.ack(2, True)
        self.assertEqual(self.sent(), [])

    def test_gone_with_the_channel(self) -> None:
        """A newer announcement replaces the one in flight at the end of the channel."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.go("a")
        self.presence.lost()
        self.presence.begin()
        self.assertEqual(self.sent(), ["-a"])  # may have been announced

    def test_refused(self) -> None:
        """A refused announcement is pending again; if the connection ended meanwhile, only the end is announced."""
        self.presence.begin()
        self.come("a", "b")
        self.sent()
        self.go("b")
        self.presence.nack(0, True)
        self.assertEqual(self.sent(), ["+a", "-b~"])

    def test_refused_and_then_gone(self) -> None:
        """A connection whose only announcement was refused counts as not announced."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.nack(1, False)
        self.go("a")
        self.assertEqual(self.sent(), ["-a~"])

    def test_lost_and_then_refused(self) -> None:
        """A connection whose announcement was in flight at the end of a channel may be known, even if a repetition is refused.
        """
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.lost()
        self.presence.begin()
        self.assertEqual(self.sent(), ["+a*"])
        self.go("a")
        self.presence.nack(1, False)
        self.assertEqual(self.sent(), ["-a"])

    def test_returned(self) -> None:
        """A returned announcement has not arrived; after the next start all are announced again."""
        self.presence.begin()
        self.come("a", "b")
        self.sent()
        self.presence.ack(1, False)
        self.presence.give_back(2, False)
        self.presence.lost()
        self.presence.begin()
        self.assertEqual(self.sent(), ["+b", "+a*"])

    def test_forgotten(self) -> None:
        """The last connections that came and went are kept; open ones are never dropped."""
        self.come("a", "b", "c", "d")
        self.go("b", "c", "d")
        self.presence.begin()
        self.assertEqual(self.sent(), ["+a", "-c~", "-d~"])
        self.assertEqual(self.presence.forgotten, 1)

    def test_announced_are_never_forgotten(self) -> None:
        """The end of an announced connection is always kept."""
        presence = self.presence = Tagged(window=10, unseen_limit=2)
        presence.begin()
        self.come(*"abcdef")
        self.sent()
        presence.ack(6, True)
        presence.lost()
        self.go(*"abcdef")
        presence.begin()
        self.assertEqual(self.sent(), [f"-{key}" for key in "abcdef"])

    def test_missed(self) -> None:
        """After missed events the differences and all open connections are announced."""
        presence = self.presence = Tagged(window=10)
        presence.begin()
        self.come("a", "b")
        self.sent()
        presence.ack(2, True)
        presence.missed([connected("b"), connected("c")], 30.0)
        self.assertEqual(self.sent(), ["-a", "+c", "+b*"])

    def test_identified(self) -> None:
        """A device that is identified later is announced with its id: once if it was pending, or again."""
        self.presence.begin()
        self.come("a")
        self.presence.identified(DeviceIdentified("a", "early"))
        (one,) = [self.presence.next()]
        assert one is not None
        self.assertEqual((one.headers().get("device_id"), one.resync), ("early", False))
        self.presence.identified(DeviceIdentified("a", "early"))
        self.presence.identified(DeviceIdentified("a", "late", 12_000))
        self.presence.identified(DeviceIdentified("nobody", "late"))
        self.assertEqual(self.sent(), [])
        self.presence.ack(1, False)
        one = self.presence.next()
        assert one is not None
        self.assertEqual((one.headers().get("device_id"), one.body("n")["since"], one.resync), ("late", 12_000, True))
        self.assertEqual(self.sent(), [])

    def test_identified_and_refused(self) -> None:
        """A connection that was never announced is announced once, without `resync`."""
        self.presence.begin()
        self.come("a")
        self.sent()
        self.presence.identified(DeviceIdentified("a", "late"))
        self.presence.nack(1, False)
        self.assertEqual(self.sent(), ["+a"])

    def test_nobody_said_that_it_came(self) -> None:
        """The end of an unknown connection is announced."""
        self.presence.begin()
        self.go("a")
        self.assertEqual(self.sent(), ["-a"])

    def test_another_node(self) -> None:
        """The loss of another node is announced once."""
        self.presence.node_lost("89abcdef", 10.0)
        self.presence.node_lost("89abcdef", 11.0)
        self.presence.begin()
        self.assertEqual(self.sent(), ["!89abcdef"])


class MessageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.presence = Tagged()
        self.presence.begin()

    def next(self) -> Announcement:
        announcement = self.presence.next()
        assert announcement is not None
        return announcement

    def test_connected(self) -> None:
        """The body has the fields of the contract, and no others."""
        self.presence.connected(replace(connected("a", "sensor 7"), since=10_500), 10.5)
        one = self.next()
        self.assertEqual(
            one.headers(),
            {"event": "connected", "connection_id": "a", "device_id": "sensor 7", "node": "a"},
        )
        self.assertEqual(
            one.body("0123abcd"),
            {
                "event": "connected",
                "connection_id": "a",
                "device_id": "sensor 7",
                "node": "a",
                "time": "1970-01-01T00:00:10.500000Z",
                "peer": "192.0.2.1:1234",
                "tls": "TLSv1.3",
                "since": 10_500,
                "resync": False,
            },
        )

    def test_the_door(self) -> None:
        """Where there are several doors, headers and body name the door, also that of a connection that came and went."""
        self.presence.connected(replace(connected("a"), door="meters"), 10.0)
        self.presence.disconnected(replace(disconnected("b"), door="trackers"), 11.0)
        for door in ("meters", "trackers"):
            one = self.next()
            self.assertEqual((one.headers(with_door=True)["door"], one.body("n", with_door=True)["door"]), (door, door))
            self.assertNotIn("door", one.headers() | one.body("n"))
        self.presence.node_lost("89abcdef", 12.0)
        lost = self.next()
        self.assertNotIn("door", lost.headers(with_door=True) | lost.body("n", with_door=True))

    def test_without_an_identity(self) -> None:
        """A device without an identity has no `device_id` header, and null in the body."""
        self.presence.connected(connected("a"), 10.5)
        one = self.next()
        self.assertNotIn("device_id", one.headers())
        self.assertEqual((one.body("n")["device_id"], one.body("n")["since"]), (None, None))

    def test_disconnected(self) -> None:
        """The end of a connection has all that is known of it."""
        self.presence.connected(connected("a", "d"), 10.0)
        self.next()
        self.presence.disconnected(disconnected("a", "d"), 15.0)
        self.presence.ack(1, False)
        one = self.next()
        self.assertEqual(
            one.body("n"),
            {
                "event": "disconnected",
                "connection_id": "a",
                "device_id": "d",
                "node": "a",
                "time": "1970-01-01T00:00:15.000000Z",
                "peer": "192.0.2.1:1234",
                "tls": "TLSv1.3",
                "connected_at": "1970-01-01T00:00:10.000000Z",
                "coalesced": False,
                "reason": "closed by the device",
                "lines_in": 3,
                "lines_out": 4,
                "traceparent": None,
                "seconds": 5.0,
            },
        )
        self.assertNotIn("traceparent", one.headers())

    def test_traced(self) -> None:
        """The end of a connection has the last trace of its lines, in header and body."""
        self.presence.connected(connected("a"), 10.0)
        self.presence.disconnected(replace(disconnected("a"), traceparent="00-1-2-01"), 15.0)
        one = self.next()
        self.assertEqual((one.headers()["traceparent"], one.body("n")["traceparent"]), ("00-1-2-01", "00-1-2-01"))

    def test_missed(self) -> None:
        """The end of a connection that was missed has no reason and no counts."""
        self.presence.connected(connected("a", "d"), 10.0)
        self.next()
        self.presence.ack(1, False)
        self.presence.missed([], 15.0)
        body: dict[str, Any] = self.next().body("n")
        self.assertEqual((body["reason"], body["lines_in"], body["device_id"]), ("unknown", None, "d"))

    def test_resync(self) -> None:
        """A repetition has `resync`, in the header too."""
        self.presence.connected(connected("a"), 10.0)
        self.next()
        self.presence.ack(1, False)
        self.presence.resync()
        one = self.next()
        self.assertEqual((one.headers()["resync"], one.body("n")["resync"]), (True, True))

    def test_node_lost(self) -> None:
        """`node-lost` names the lost node, and the node that reports it."""
        self.presence.node_lost("89abcdef", 10.0)
        one = self.next()
        self.assertEqual(one.headers(), {"event": "node-lost", "node": "89abcdef"})
        self.assertTrue(self.presence.pending("89abcdef"))
        self.presence.ack(1, False)
        self.assertFalse(self.presence.pending("89abcdef"))
        self.assertEqual(
            one.body("n"),
            {"event": "node-lost", "node": "89abcdef", "time": "1970-01-01T00:00:10.000000Z", "reported_by": "n"},
        )


class PresenceMachine(RuleBasedStateMachine):
    """A broker that accepts, refuses, returns, and disappears with or without announcements on their way, and a back end that
    reads them.
    """

    @initialize(window=st.integers(1, 4), unseen=st.integers(0, 3))
    def begin(self, window: int, unseen: int) -> None:
        self.presence = Tagged(window, unseen)
        self.count = 0
        self.open: list[str] = []
        self.names: dict[str, str] = {}
        self.up = False
        self.held = False
        self.flying: list[tuple[int, Announcement]] = []
        self.arrived: dict[str, list[Announcement]] = {}
        self.tag = 0

    def arrive(self, one: Announcement) -> None:
        log = self.arrived.setdefault(one.key, [])
        if one.change == "connected":
            assert all(before.change == "connected" for before in log), "connected after disconnected"
            if one.resync is False:
                assert not log, "a repetition that does not say so"
        else:
            assert not (one.coalesced and any(before.change == "connected" for before in log))
        # A copy: the announcement may be changed later.
        copy = Announcement(one.key, one.change, one.time, one.since)
        copy.connected = one.connected
        log.append(copy)

    @rule()
    def connect(self) -> None:
        self.count += 1
        key = f"c{self.count}"
        self.open.append(key)
        self.presence.connected(connected(key), 1.0)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.open))
        self.open.remove(key)
        self.presence.disconnected(disconnected(key), 2.0)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def identify(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.open))
        self.names[key] = f"{self.names.get(key, '')}x"
        self.presence.identified(DeviceIdentified(key, self.names[key]))

    @precondition(lambda self: not self.up)
    @rule()
    def channel(self) -> None:
        self.up = True
        self.tag = 0
        self.presence.begin()

    @rule()
    def publish(self) -> None:
        one = self.presence.next()
        if one is not None:
            assert self.up
            assert not self.held or (one.change == "disconnected" and not one.coalesced)
            assert all(one.key != other.key for _, other in self.flying)
            self.tag += 1
            self.flying.append((self.tag, one))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from(["ack", "ack", "nack", "return"]), multiple=st.booleans())
    def answer(self, data: st.DataObject, outcome: str, multiple: bool) -> None:
        index = data.draw(st.integers(0, len(self.flying) - 1))
        tag = self.flying[index][0]
        answered = self.flying[: index + 1] if multiple else [self.flying[index]]
        self.flying = [one for one in self.flying if one not in answered]
        if outcome == "ack":
            for _, one in answered:
                self.arrive(one)
            self.presence.ack(tag, multiple)
        elif outcome == "nack":
            self.presence.nack(tag, multiple)
        else:
            self.presence.give_back(tag, multiple)

    @precondition(lambda self: self.up)
    @rule(arrived=st.booleans())
    def lose(self, arrived: bool) -> None:
        if arrived:
            for _, one in self.flying:
                self.arrive(one)
        self.flying = []
        self.up = False
        self.presence.lost()

    @rule()
    def resync(self) -> None:
        self.presence.resync()

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.held = held
        self.presence.hold(held)

    @rule(data=st.data())
    def miss(self, data: st.DataObject) -> None:
        """Miss events: some connections end and others begin without an event."""
        if self.open:
            self.open.remove(data.draw(st.sampled_from(self.open)))
        self.count += 1
        self.open.append(f"c{self.count}")
        self.presence.missed([connected(key, self.names.get(key)) for key in self.open], 3.0)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "presence"):
            assert self.presence.in_flight == len(self.flying)
            assert self.presence.live == len(self.open)

    def teardown(self) -> None:
        """In the end back ends know who is connected."""
        if not hasattr(self, "presence"):
            return
        self.hold(False)
        if not self.up:
            self.channel()
        for _ in range(10_000):
            self.publish()
            while self.flying:
                tag, one = self.flying.pop(0)
                self.arrive(one)
                self.presence.ack(tag, False)
            if not self.presence.unconfirmed:
                break
        assert self.presence.unconfirmed == 0
        last = {key: log[-1].change for key, log in self.arrived.items()}
        assert {key for key, change in last.items() if change == "connected"} == set(self.open)
        for key in self.open:
            announced = self.arrived[key][-1].connected
            assert announced is not None
            assert announced.device_id == self.names.get(key)
        assert self.count - len(last) <= self.presence.forgotten


class StateTests(SynchronousTestCase):
    def test_against_a_model(self) -> None:
        """For any behaviour of the broker: `connected` precedes `disconnected`, a repetition is marked, announced changes are
        not coalesced, only ends are announced while the queue is too long, and in the end back ends know all open connections.
        """
        run_state_machine_as_test(
            PresenceMachine, settings=settings(deadline=None, max_examples=150, stateful_step_count=50)
        )
