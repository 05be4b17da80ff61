"""Durations in buckets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.http import Histogram


class HistogramTests(SynchronousTestCase):
    """Counting durations."""

    def test_bounds(self) -> None:
        """A bound belongs to its bucket, buckets count all below them, and the last one counts everything."""
        histogram = Histogram((1.0, 2.0))
        for seconds in (0.0, 1.0, 1.5, 2.0, 2.1, 1e9):
            histogram.observe(seconds)
        self.assertEqual(list(histogram.buckets()), [(1.0, 2), (2.0, 4), (float("inf"), 6)])
        self.assertAlmostEqual(histogram.sum, 1e9 + 6.6)

    def test_backwards(self) -> None:
        """A clock that was set back makes nothing negative: a sum must never shrink."""
        histogram = Histogram((1.0,))
        histogram.observe(-5.0)
        self.assertEqual((histogram.sum, list(histogram.buckets())), (0.0, [(1.0, 1), (float("inf"), 1)]))
