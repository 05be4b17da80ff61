"""Tests of the choice of the worker for the next connection."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.workers._loads import ABSENT, Loads, stands_back


class DecisionTests(SynchronousTestCase):
    @given(st.integers(0, 100_000))
    def test_the_one_with_fewest(self, connections: int) -> None:
        """The worker with the fewest connections takes the next one, and so does one with a single connection more."""
        self.assertFalse(stands_back(connections, connections))
        self.assertFalse(stands_back(connections + 1, connections))
        self.assertFalse(stands_back(connections, ABSENT))

    def test_slack(self) -> None:
        """With few connections a difference of two is too much; with many a small difference is ignored."""
        self.assertTrue(stands_back(2, 0))
        self.assertFalse(stands_back(10_100, 10_000))
        self.assertTrue(stands_back(10_200, 10_000))

    @given(st.lists(st.integers(0, 5000), min_size=2, max_size=8))
    def test_becomes_even(self, loads: list[int]) -> None:
        """From any start the numbers become even, if any worker that does not stand back takes the next connection."""
        for _ in range(sum(max(loads) - load for load in loads) + 100):
            most_first = sorted(range(len(loads)), key=lambda index: -loads[index])
            taker = next(index for index in most_first if not stands_back(loads[index], min(loads)))
            loads[taker] += 1
        self.assertLessEqual(max(loads) - min(loads), 2 + min(loads) // 64)


class LoadsTests(SynchronousTestCase):
    def test_shared(self) -> None:
        """Processes share the numbers through the descriptor. A worker that is not running counts as zero."""
        parents = Loads.create(3)
        self.addCleanup(os.close, parents.descriptor)
        self.assertEqual(parents.all, [ABSENT] * 3)
        workers = Loads(parents.descriptor, 3)
        first, third = workers.of(1), workers.of(3)
        first.tell(7)
        self.assertFalse(first.stands_back(7), "there is nobody to leave it to")
        third.tell(2)
        self.assertTrue(first.stands_back(7))
        self.assertFalse(third.stands_back(2))
        self.assertEqual(parents.all, [7, ABSENT, 2])
        parents.absent(3)
        self.assertFalse(first.stands_back(7))
