"""Tests of messages for many devices: their ways, repeats, reports and records."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.framings import read_framing
from owsla.device.framing import make_framing
from owsla.device.groups import REMEMBERED, RUNNING, Groups
from owsla.events import FannedOut
from owsla.letter import BAD, Letter, Reached
from owsla.routing import Handover

from ._fakes import Source, World


class FakeBroadcast:
    """Exchange of the nodes, which takes everything."""

    def __init__(self) -> None:
        self.state = "up"
        self.waiting = 0
        self.spread_letters: list[tuple[Letter, str]] = []

    def spread(self, letter: Letter, group_id: str) -> None:
        self.spread_letters.append((letter, group_id))


class Consumer(Source):
    """Consumer of the own queue."""

    def __init__(self, prefetch: int = 500) -> None:
        super().__init__(prefetch)
        self.own = True


class Node(World):
    """Connections, and the route of messages for many."""

    def __init__(self, rate: float = 1e6, **options: Any) -> None:
        super().__init__(**options)
        self.broadcast = FakeBroadcast()
        self.queue = Consumer()
        self.taken: list[Letter] = []
        """Deliveries of the present consumer of the own queue, and those of other queues."""
        self.groups = Groups(
            self.clock,
            self.registry,
            self.courier,
            self.broadcast,
            Handover(self.courier, self.services.deliveries, self.factory.framing.fault),
            lambda header, body: header + body,
            self.events.append,
            rate,
        )

    def take(
        self,
        body: bytes = b"now",
        selector: str = "all",
        *,
        source: Source | None = None,
        seconds: float | None = 60.0,
        seq: int | None = None,
        group_id: str | None = None,
        redelivered: bool = False,
        **values: Any,
    ) -> Letter:
        """Take a message from a queue; by default the own one, with an expiration in some seconds."""
        source = source or self.queue
        values.setdefault("deadline", None if seconds is None else self.clock.seconds() + seconds)
        letter = Letter(source, source.next(), b"header", body, None, seq, selector=selector, group_id=group_id, **values)
        letter.identity = b"header" + body if redelivered else None
        self.taken.append(letter)
        self.groups.route(letter)
        return letter

    def lose(self) -> None:
        """End the consumer of the own queue, and begin another."""
        self.queue.open = False
        self.groups.forget(self.queue)
        self.taken = []
        self.queue = Consumer()

    @property
    def outcomes(self) -> list[tuple[str, Reached | None]]:
        """Reports and records so far."""
        return [(outcome, letter.reached) for letter, outcome in self.courier.reports + self.courier.records]


class SharedQueueTests(SynchronousTestCase):
    def test_spread(self) -> None:
        """A message from the shared queue goes to the exchange of the nodes, with a new UUID, and to no device from here."""
        node, shared = Node(), Source()
        _, wire = node.connect()
        letters = [node.take(source=shared), node.take(source=shared)]
        node.turns()
        self.assertEqual([letter for letter, _ in node.broadcast.spread_letters], letters)
        ids = {UUID(group_id) for _, group_id in node.broadcast.spread_letters}
        self.assertEqual((len(ids), wire.data, shared.acked, node.groups.spreading), (2, b"", [], 0))

    def test_refused_exchange(self) -> None:
        """While the broker refuses the exchange, a message from the shared queue is recorded. Otherwise it is kept."""
        node, shared = Node(), Source()
        for state in ("up", "away", "blocked", "refused"):
            node.broadcast.state = state
            node.take(source=shared)
        self.assertEqual(len(node.broadcast.spread_letters), 3)
        self.assertEqual(node.courier.reasons, [(b"now", "refused")])

    def test_too_many(self) -> None:
        """Messages that wait for the exchange leave most of the prefetch to others: more of them are recorded."""
        node, shared = Node(), Source(prefetch=100)
        for node.broadcast.waiting in (5, 6):
            node.take(source=shared)
        self.assertEqual((len(node.broadcast.spread_letters), node.courier.reasons), (1, [(b"now", "busy")]))

    def test_refused_exchange_and_own_queue(self) -> None:
        """Messages in the own queue need no exchange."""
        node = Node()
        node.broadcast.state = "refused"
        node.take()
        node.turns()
        self.assertEqual(node.outcomes, [("fanned-out", Reached(0, 0))])


class FaultTests(SynchronousTestCase):
    def test_faults(self) -> None:
        """A message that cannot be spread is recorded with its reason, and reaches no device, whichever queue it came from."""
        for source in (Source(), Consumer()):
            node = Node()
            _, wire = node.connect()
            for values, reason in (
                ({"selector": "doors"}, "bad-selector"),
                ({"selector": ""}, "bad-selector"),
                ({"selector": "prefix:"}, "bad-selector"),
                ({"seconds": None}, "bad-expires-at"),
                ({"expires_at": BAD}, "bad-expires-at"),
                ({"seconds": None, "expires_at": BAD}, "bad-expires-at"),
                ({"seconds": 0.0}, "expired"),
                ({"seconds": None, "expires_at": node.epoch - 1}, "expired"),
                ({"seq": 0}, "bad-seq"),
                ({"seq": BAD}, "bad-seq"),
                ({"body": b"two\nlines"}, "delimiter-in-body"),
            ):
                node.take(source=source, **values)
                node.turns()
                self.assertEqual([one for _, one in node.courier.records], [reason], values)
                node.courier.records.clear()
            self.assertEqual((wire.data, source.outstanding, node.broadcast.spread_letters), (b"", 0, []))

    def test_body_that_one_door_can_be_sent(self) -> None:
        """A body that only one door can be sent is spread: the devices of the others are missed."""
        node = Node()
        frames = node.door("frames", framing=make_framing(read_framing("length:2"), b"\n", 100))
        node.connect()
        _, framed = node.connect(factory=frames)
        handover = Handover(node.courier, node.services.deliveries, lambda body: None)  # one door at least can be sent it
        node.groups._handover = handover
        node.take(b"two\nlines")
        node.turns()
        self.assertEqual((framed.data, node.outcomes), (b"\0\x09two\nlines", [("fanned-out", Reached(1, 1))]))


class OwnQueueTests(SynchronousTestCase):
    def test_end(self) -> None:
        """A message from the own queue is acknowledged when all its devices are served, and reported with their numbers."""
        node = Node(rate=10.0)
        devices = [node.connect() for _ in range(5)]
        letter = node.take(reply_to=b"answers")
        node.later(0.2)
        self.assertEqual((node.queue.acked, node.outcomes, node.groups.spreading), ([], [], 1))
        node.end(devices[4][0])
        node.later(1.0)
        self.assertEqual((node.queue.acked, node.outcomes), ([letter.tag], [("fanned-out", Reached(4, 1))]))
        self.assertEqual([wire.data for _, wire in devices], [b"now\r\n"] * 4 + [b""])
        self.assertEqual((node.groups.spreading, node.groups.messages, node.groups.devices, node.groups.missed), (0, 1, 4, 1))

    def test_event(self) -> None:
        """The end is an event, for operators who wonder about the lines or the closes of all devices at once."""
        node = Node(rate=10.0)
        for _ in range(15):
            node.connect()
        node.take(b"", "prefix:" + 1000 * "m", close=True)
        node.take(b"bye", close=True, seconds=1.0)
        node.later(2.0)
        prefix, everybody = node.of_type(FannedOut)
        self.assertEqual((prefix.devices, prefix.expired, prefix.close), (0, False, True))
        self.assertLess(len(prefix.selector), 200)
        self.assertEqual((everybody.selector, everybody.devices + everybody.missed), ("all", 15))
        self.assertTrue(everybody.expired)
        self.assertLess(abs(everybody.seconds - 1.0), 0.2)

    def test_counters_while_spreading(self) -> None:
        """The counters include the messages that are being spread."""
        node = Node(rate=10.0)
        for _ in range(50):
            node.connect()
        node.take()
        node.later(1.0)
        self.assertLessEqual(abs(node.groups.devices - 10), 2)

    def test_expired(self) -> None:
        """A message that expires before all devices are served is recorded once, with the numbers."""
        node = Node(rate=10.0)
        for _ in range(50):
            node.connect()
        letter = node.take(seconds=1.0)
        node.later(2.0)
        ((recorded, reason),) = node.courier.records
        assert recorded.reached is not None
        self.assertEqual((recorded, reason, node.courier.reports), (letter, "expired", []))
        self.assertLessEqual(abs(recorded.reached.devices - 10), 2)
        self.assertEqual(recorded.reached.devices + recorded.reached.missed, 50)

    def test_several(self) -> None:
        """A few messages are spread at once, and the others wait for their turn."""
        node = Node(rate=100.0)
        for number in range(20):
            node.connect(device_id=f"m-{number}")
        for number in range(RUNNING + 5):
            node.take(b"%d" % number)
        node.turns()
        self.assertEqual((node.groups.spreading, node.groups.messages), (RUNNING + 5, RUNNING))
        node.later(5.0)
        self.assertEqual(node.outcomes, [("fanned-out", Reached(20, 0))] * (RUNNING + 5))

    def test_too_many(self) -> None:
        """Messages beyond a sixteenth of the prefetch are recorded as `busy`, so that those for one device go on."""
        node = Node(rate=1.0)
        node.queue = Consumer(prefetch=400)
        for _ in range(5):
            node.connect()
        for _ in range(27):
            node.take()
        self.assertEqual((node.groups.spreading, [reason for _, reason in node.courier.records]), (25, ["busy"] * 2))

    def test_smallest_prefetch(self) -> None:
        """With a prefetch of 1 a message can be spread, too."""
        node = Node()
        node.queue = Consumer(prefetch=1)
        node.connect()
        node.take()
        node.turns()
        self.assertEqual(node.outcomes, [("fanned-out", Reached(1, 0))])

    def test_rate_is_changed(self) -> None:
        """Another rate applies at once."""
        node = Node(rate=1.0)
        for _ in range(50):
            node.connect()
        node.take()
        node.groups.configure(1e6)
        node.later(0.2)
        self.assertEqual(node.outcomes, [("fanned-out", Reached(50, 0))])

    def test_stop(self) -> None:
        """When all devices are gone, as in a stop, a message ends at once, with the truth about those that it did not reach."""
        node = Node(rate=1.0)
        devices = [node.connect()[0] for _ in range(50)]
        node.take()
        node.take(b"behind")
        node.turns()
        for device in devices:
            node.end(device)
        node.later(0.3)
        self.assertEqual([outcome for outcome, _ in node.outcomes], ["fanned-out"] * 2)
        for _, reached in node.outcomes:
            assert reached is not None
            self.assertEqual(reached.devices + reached.missed, 50)
        self.assertEqual((node.queue.outstanding, node.groups.spreading), (0, 0))


class RepeatTests(SynchronousTestCase):
    def test_copies(self) -> None:
        """A copy with the same id is acknowledged, also after the end, and written to no device again."""
        node = Node(rate=10.0)
        _, wire = node.connect()
        for _ in range(9):
            node.connect()
        first = node.take(group_id="g")
        node.later(0.3)
        copy = node.take(group_id="g")
        self.assertEqual(node.queue.acked, [copy.tag])
        node.later(1.0)
        last = node.take(group_id="g")
        node.later(2.0)
        self.assertEqual(node.queue.acked, [copy.tag, first.tag, last.tag])
        self.assertEqual((wire.data, node.outcomes), (b"now\r\n", [("fanned-out", Reached(10, 0))] * 2))
        self.assertEqual((node.groups.messages, node.groups.repeats, node.groups.devices), (1, 2, 10))

    def test_other_messages_are_no_repeats(self) -> None:
        """Equal messages with other ids, or without one, are several messages unless they are marked as redelivered."""
        node = Node()
        _, wire = node.connect()
        for group_id in ("g", "h", None, None):
            node.take(group_id=group_id)
            node.turns()
        self.assertEqual(wire.data, b"now\r\n" * 4)

    def test_redelivery_joins(self) -> None:
        """After the end of its consumer a message goes on. The redelivery is acknowledged at the end, in its place."""
        for group_id in ("g", None):
            node = Node(rate=10.0)
            devices = [node.connect() for _ in range(10)]
            node.take(group_id=group_id)
            node.later(0.3)
            lost = node.queue
            node.lose()
            again = node.take(group_id=group_id, redelivered=True)
            node.later(2.0)
            self.assertEqual([wire.data for _, wire in devices], [b"now\r\n"] * 10)
            self.assertEqual((lost.acked, node.queue.acked), ([], [again.tag]))
            self.assertEqual(node.outcomes, [("fanned-out", Reached(10, 0))])

    def test_redelivery_after_the_end(self) -> None:
        """If a message ends before its redelivery arrives, that is acknowledged and reported, or recorded if it was late."""
        for seconds, outcome in ((60.0, "fanned-out"), (0.3, "expired")):
            node = Node(rate=10.0)
            for _ in range(10):
                node.connect()
            node.take(group_id="g", seconds=seconds)
            node.turns()
            node.lose()
            node.later(2.0)
            self.assertEqual(node.outcomes, [])
            again = node.take(group_id="g", redelivered=True, seconds=seconds)
            self.assertEqual([one for one, _ in node.outcomes], [outcome])
            self.assertEqual(node.queue.acked, [again.tag])

    def test_redelivery_with_another_id(self) -> None:
        """A message that another node took from the shared queue again has another id. It is recognized by its identity."""
        node = Node()
        _, wire = node.connect()
        node.take(group_id="g")
        node.turns()
        node.take(group_id="h", redelivered=True)
        node.turns()
        self.assertEqual((wire.data, node.queue.outstanding), (b"now\r\n", 0))

    def test_identity_beyond_the_expiry(self) -> None:
        """The identity of a message that has expired since is not compared: the bytes are the same, the message is another."""
        node = Node()
        _, wire = node.connect()
        node.take(group_id="g", seconds=10.0)
        node.later(11.0)
        node.take(group_id="h", redelivered=True)
        node.turns()
        self.assertEqual(wire.data, b"now\r\n" * 2)

    def test_waiting_messages_are_dropped(self) -> None:
        """A message that waits for its turn is dropped when its consumer ends, and taken when it is delivered again."""
        node = Node(rate=10.0)
        _, wire = node.connect()
        for number in range(RUNNING + 1):
            node.take(b"%d" % number, group_id=str(number))
        node.lose()
        self.assertEqual(node.groups.spreading, RUNNING)
        for number in range(RUNNING + 1):
            node.take(b"%d" % number, group_id=str(number), redelivered=True)
        node.later(3.0)
        self.assertEqual(sorted(wire.data.split()), [b"%d" % number for number in range(RUNNING + 1)])
        self.assertEqual((len(node.outcomes), node.queue.outstanding), (RUNNING + 1, 0))

    def test_late_record_is_made_again(self) -> None:
        """A record may be dropped with the consumer of its message. So the redelivery is recorded, while a copy is not."""
        node = Node(rate=10.0)
        for _ in range(10):
            node.connect()
        node.take(group_id="g", seconds=0.3)
        node.later(1.0)
        node.take(group_id="g", seconds=0.3)
        self.assertEqual(len(node.courier.records), 1)
        node.lose()
        node.take(group_id="g", seconds=0.3, redelivered=True)
        self.assertEqual([reason for _, reason in node.courier.records], ["expired"] * 2)

    def test_memory(self) -> None:
        """A bounded number of messages is remembered, without their bodies and consumers."""
        node = Node()
        for number in range(REMEMBERED + 50):
            node.take(b"%d" % number, group_id=str(number))
            node.turns()
        self.assertEqual((len(node.groups._by_id), len(node.groups._by_identity)), (REMEMBERED, REMEMBERED))
        self.assertEqual({task.letter.body for task in node.groups._by_id.values()}, {b""})
        self.assertNotIn(node.queue, {task.letter.source for task in node.groups._by_id.values()})

    def test_memory_of_equal_messages(self) -> None:
        """The later one of two equal messages is recognized after the first one was forgotten."""
        node = Node()
        _, wire = node.connect()
        node.take(b"equal", group_id="first")
        node.turns()
        for number in range(REMEMBERED):
            node.take(b"equal" if number == REMEMBERED // 2 else b"%d" % number, group_id=str(number))
            node.turns()
        node.take(b"equal", group_id="again", redelivered=True)
        node.turns()
        self.assertEqual(wire.data.split().count(b"equal"), 2)


class DeliveriesTests(SynchronousTestCase):
    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(
        st.integers(0, 5),
        st.sampled_from([2.0, 20.0, 1e6]),
        st.lists(
            st.one_of(
                st.tuples(st.just("take"), st.integers(0, 12), st.booleans()),
                st.tuples(st.sampled_from(["lose", "wait", "connect", "end"]), st.integers(0, 20), st.booleans()),
            ),
            max_size=40,
        ),
    )
    def test_deliveries(self, devices: int, rate: float, actions: list[tuple[str, int, bool]]) -> None:
        """Every delivery is settled in the end, if its consumer lives. No device gets a message twice, however often it is
        delivered, and whichever consumers end."""
        node = Node(rate=rate)
        wires = [node.connect()[1] for _ in range(devices)]

        def take(number: int, redelivered: bool) -> None:
            node.take(b"%d" % number, group_id=str(number), redelivered=redelivered, deadline=100.0 + number)

        for what, number, flag in actions:
            if what == "take":
                take(number, flag)
            elif what == "lose":
                again = [letter for letter in node.taken if letter.tag not in node.queue.acked]
                node.lose()
                for letter in again:
                    take(int(letter.body), True)
            elif what == "wait":
                node.later(number / 10)
            elif what == "connect":
                wires.append(node.connect()[1])
            elif len(node.registry):
                endpoint: Any = list(node.registry)[number % len(node.registry)]
                node.end(endpoint)
        node.later(60.0)
        self.assertEqual((node.groups.spreading, node.queue.outstanding), (0, 0))
        for wire in wires:
            lines = wire.data.split()
            self.assertEqual(len(lines), len(set(lines)))
