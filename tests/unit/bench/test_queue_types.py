"""Quantiles of the times to a confirm."""

from __future__ import annotations

from math import inf

from twisted.trial.unittest import SynchronousTestCase

from bench.queue_types import quantile


class QuantileTests(SynchronousTestCase):
    def test_interpolation(self) -> None:
        """A quantile is interpolated within its bucket, which begins where the one below it ends."""
        cumulative = {0.001: 10.0, 0.002: 10.0, 0.004: 20.0, inf: 20.0}
        for share, expected in ((0.25, 0.0005), (0.5, 0.001), (0.75, 0.003), (1, 0.004)):
            self.assertAlmostEqual(quantile(cumulative, share), expected)

    def test_above_all_bounds(self) -> None:
        """Of what is above the highest bound nothing else is known."""
        self.assertEqual(quantile({0.001: 1.0, 0.002: 1.0, inf: 100.0}, 0.99), 0.002)

    def test_nothing(self) -> None:
        """Without observations it is 0."""
        self.assertEqual(quantile({}, 0.5), 0.0)
        self.assertEqual(quantile({0.001: 0.0, inf: 0.0}, 0.5), 0.0)
