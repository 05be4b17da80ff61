"""Who holds how many of which consumer's messages."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.held_messages import Holdings

SOME = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=20)


class HoldingsTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        """Of a consumer that was never heard of nothing is held, by nobody."""
        holdings: Holdings[str] = Holdings()
        self.assertEqual((holdings.count("a"), holdings.holders("a")), (0, []))

    @given(SOME)
    def test_counts(self, held: list[tuple[str, str]]) -> None:
        """What is added and removed is counted by consumer and holder; who holds most is the greatest; nothing is left."""
        holdings: Holdings[str] = Holdings()
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
