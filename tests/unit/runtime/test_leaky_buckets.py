"""How often something happens."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.leaky_buckets import Buckets


class BucketsTests(SynchronousTestCase):
    def test_burst(self) -> None:
        """A bucket is full after its burst, and takes one more for each interval; keys do not concern each other."""
        buckets: Buckets[str] = Buckets(3, 10.0, 100)
        for _ in range(3):
            self.assertFalse(buckets.full("a", 0.0))
            buckets.add("a", 0.0)
        self.assertTrue(buckets.full("a", 9.9))
        self.assertFalse(buckets.full("b", 0.0))
        self.assertFalse(buckets.full("a", 10.0))
        buckets.add("a", 10.0)
        self.assertTrue(buckets.full("a", 10.0))
        self.assertFalse(buckets.full("a", 40.0))

    def test_overflow(self) -> None:
        """What is added to a full bucket does not make it take longer."""
        buckets: Buckets[str] = Buckets(3, 10.0, 100)
        for _ in range(1000):
            buckets.add("a", 0.0)
        self.assertFalse(buckets.full("a", 10.0))

    def test_take_back(self) -> None:
        """What is taken back makes room for one; of a key that is not remembered it does nothing."""
        buckets: Buckets[str] = Buckets(1, 10.0, 100)
        buckets.add("a", 0.0)
        buckets.take_back("a")
        buckets.take_back("b")
        self.assertFalse(buckets.full("a", 0.0))

    def test_forgotten(self) -> None:
        """At most so many keys are remembered; the one that was added to least recently goes first."""
        buckets: Buckets[str] = Buckets(1, 10.0, 2)
        for key in ("a", "b", "a", "c"):
            buckets.add(key, 0.0)
        self.assertEqual([buckets.full(key, 0.0) for key in ("a", "b", "c")], [True, False, True])
        self.assertEqual(len(buckets), 2)
