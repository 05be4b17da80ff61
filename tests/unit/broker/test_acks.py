"""Tests of acknowledgements, against a model of the messages that RabbitMQ holds unacknowledged."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.acks import AckTracker


class Channel:
    """The unacknowledged messages of a channel, as RabbitMQ keeps them."""

    def __init__(self) -> None:
        self.unacked: set[int] = set()
        self.next = 1

    def deliver(self) -> int:
        self.unacked.add(self.next)
        self.next += 1
        return self.next - 1

    def ack(self, tag: int, multiple: bool) -> set[int]:
        # An unknown tag closes the channel: 406, unknown delivery tag.
        assert tag in self.unacked, f"{tag} is not outstanding: {self.unacked}"
        gone = {held for held in self.unacked if held <= tag} if multiple else {tag}
        self.unacked -= gone
        return gone


class AckMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.channel = Channel()
        self.tracker = AckTracker()
        self.held: set[int] = set()
        self.done: set[int] = set()
        self.acked: set[int] = set()

    @rule(data=st.data())
    def done_again(self, data: st.DataObject) -> None:
        """Settle a delivery twice: the second time has no effect."""
        if self.done:
            self.tracker.done(data.draw(st.sampled_from(sorted(self.done))))

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        self.held |= {self.channel.deliver() for _ in range(count)}

    def finish(self, tag: int) -> None:
        self.held.remove(tag)
        self.done.add(tag)
        self.tracker.done(tag)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def any_is_done(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.held))))

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, 4))
    def the_first_are_done(self, count: int) -> None:
        for tag in sorted(self.held)[:count]:
            self.finish(tag)

    @rule()
    def take(self) -> None:
        top, alone = self.tracker.take()
        gone: set[int] = set()
        if top:
            gone |= self.channel.ack(top, True)
        for tag in alone:
            gone |= self.channel.ack(tag, False)
        assert gone <= self.done, f"acknowledged, and not done: {gone - self.done}"
        assert not gone & self.acked
        self.acked |= gone
        assert self.acked == self.done, f"done, and not acknowledged: {self.done - self.acked}"

    @rule()
    def take_together(self) -> None:
        """Take only a cumulative acknowledgement: it covers all that is done before the first held delivery."""
        top, alone = self.tracker.take(individually=False)
        assert not alone
        gone = self.channel.ack(top, True) if top else set()
        assert gone <= self.done - self.acked
        self.acked |= gone
        first = min(self.held, default=self.channel.next)
        later = {tag for tag in self.done - self.acked if tag > first}
        assert self.done - self.acked == later
        assert self.tracker.ahead == len(later)

    @invariant()
    def what_is_held_is_outstanding(self) -> None:
        if hasattr(self, "held"):
            assert self.held <= self.channel.unacked


class AckTests(SynchronousTestCase):
    def test_against_a_model(self) -> None:
        """In any order, each settled delivery is acknowledged exactly once at the next `take`. A cumulative acknowledgement
        names an outstanding tag, and covers no unsettled delivery.
        """
        run_state_machine_as_test(
            AckMachine, settings=settings(deadline=None, max_examples=60, stateful_step_count=30)
        )

    def test_in_order(self) -> None:
        """Deliveries settled in order need one acknowledgement."""
        tracker = AckTracker()
        for tag in (1, 2, 3):
            tracker.done(tag)
        self.assertEqual(tracker.take(), (3, []))
        self.assertEqual(tracker.take(), (0, []))

    def test_behind_one_that_is_held(self) -> None:
        """Deliveries settled behind an unsettled one are acknowledged one by one, in order, and not again when that one is
        settled.
        """
        tracker = AckTracker()
        for tag in (4, 2):
            tracker.done(tag)
        self.assertEqual(tracker.take(), (0, [2, 4]))
        tracker.done(1)
        self.assertEqual(tracker.take(), (1, []))
        tracker.done(3)
        tracker.done(5)
        self.assertEqual(tracker.take(), (5, []))

    def test_together(self) -> None:
        """Deliveries settled behind an unsettled one can wait for it, and need one acknowledgement then."""
        tracker = AckTracker()
        for tag in (1, 3, 4):
            tracker.done(tag)
        self.assertEqual((tracker.take(individually=False), tracker.ahead), ((1, []), 2))
        tracker.done(6)
        self.assertEqual(tracker.take(individually=False), (0, []))
        tracker.done(2)
        self.assertEqual((tracker.take(individually=False), tracker.ahead), ((4, []), 1))
        self.assertEqual((tracker.take(), tracker.ahead), ((0, [6]), 0))

    def test_filled_before_it_was_taken(self) -> None:
        """A gap that closes before the next `take` needs one acknowledgement."""
        tracker = AckTracker()
        for tag in (3, 2, 1):
            tracker.done(tag)
        self.assertEqual(tracker.take(), (3, []))

    def test_memory(self) -> None:
        """Acknowledged deliveries leave nothing in memory."""
        tracker = AckTracker()
        for first in range(1, 1000, 2):
            tracker.done(first + 1)
            tracker.take()
            tracker.done(first)
            tracker.take()
        self.assertFalse(tracker._ahead or tracker._held)

    def test_memory_while_one_is_held(self) -> None:
        """Any number of deliveries acknowledged behind an unsettled one leaves nothing in memory."""
        tracker = AckTracker()
        for tag in range(2, 1000):
            tracker.done(tag)
            self.assertEqual(tracker.take(), (0, [tag]))
        kept = [getattr(tracker, name) for name in AckTracker.__slots__]
        self.assertLess(sum(len(one) for one in kept if not isinstance(one, int)), 3)
        tracker.done(1)
        self.assertEqual(tracker.take(), (1, []))
