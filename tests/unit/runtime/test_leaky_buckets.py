"""Rate limits for many keys."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.leaky_buckets import LeakyBuckets


class BucketsTests(SynchronousTestCase):
    def test_burst(self) -> None:
        """A bucket is full after its burst, and takes one more for each interval. Keys are independent."""
        buckets: LeakyBuckets[str] = LeakyBuckets(3, 10.0, 100)
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
        """Occurrences beyond a full bucket do not delay its emptying."""
        buckets: LeakyBuckets[str] = LeakyBuckets(3, 10.0, 100)
        for _ in range(1000):
            buckets.add("a", 0.0)
        self.assertFalse(buckets.full("a", 10.0))

    def test_take_back(self) -> None:
        """An occurrence that is taken back makes room for one. For an unknown key this does nothing."""
        buckets: LeakyBuckets[str] = LeakyBuckets(1, 10.0, 100)
        buckets.add("a", 0.0)
        buckets.take_back("a")
        buckets.take_back("b")
        self.assertFalse(buckets.full("a", 0.0))

    def test_forgotten(self) -> None:
        """The number of keys is bounded; the key that occurred least recently is forgotten first."""
        buckets: LeakyBuckets[str] = LeakyBuckets(1, 10.0, 2)
        for key in ("a", "b", "a", "c"):
            buckets.add(key, 0.0)
        self.assertEqual([buckets.full(key, 0.0) for key in ("a", "b", "c")], [True, False, True])
        self.assertEqual(len(buckets), 2)
