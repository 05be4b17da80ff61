"""Tests of the counts of held messages by consumer and holder."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.held_messages import HeldMessages

SOME = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=20)


class HoldingsTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        """A consumer that is not known holds no messages."""
        holdings: HeldMessages[str] = HeldMessages()
        self.assertEqual((holdings.count("a"), holdings.holders("a")), (0, []))

    @given(SOME)
    def test_counts(self, held: list[tuple[str, str]]) -> None:
        """Messages are counted by consumer and holder. The holder with most is found, and zero counts leave nothing."""
        holdings: HeldMessages[str] = HeldMessages()
        model: Counter[tuple[str, str]] = Counter()
        for source, holder in held:
            holdings.add(source, holder)
            model[source, holder] += 1
        while model.total():
            for source in "ab":
                own = {holder: count for (one, holder), count in model.items() if one == source and count}
                self.assertEqual(holdings.count(source), sum(own.values()))
                self.assertEqual(set(holdings.holders(source)), set(own))
                if own:
                    self.assertEqual(own[holdings.greatest(source)], max(own.values()))
            removed = held.pop(len(held) // 2)
            holdings.remove(*removed)
            model[removed] -= 1
        self.assertEqual((holdings.holders("a"), holdings.holders("b"), holdings.count("a")), ([], [], 0))

    def test_first(self) -> None:
        """The holder that has held messages for the longest time is the first one."""
        holdings: HeldMessages[str] = HeldMessages()
        for holder in "xyx":
            holdings.add("a", holder)
        holdings.remove("a", "x")
        self.assertEqual(holdings.first("a"), "x")
        holdings.remove("a", "x")
        self.assertEqual(holdings.first("a"), "y")
        holdings.add("a", "x")
        self.assertEqual(holdings.first("a"), "y")
