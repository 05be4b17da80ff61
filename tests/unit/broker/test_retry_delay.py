"""Tests of the delay before a retry."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.retry_delay import RetryDelay


class RetryDelayTests(SynchronousTestCase):
    def test_doubles(self) -> None:
        """Delays double up to the bound, and start over after a success."""
        backoff = RetryDelay(first=1, most=10, random=lambda: 1.0)
        self.assertEqual([backoff.next() for _ in range(6)], [1, 2, 4, 8, 10, 10])
        backoff.reset()
        self.assertEqual(backoff.next(), 1)

    def test_half_is_random(self) -> None:
        """Half of a delay is fixed, half of it random."""
        self.assertEqual(RetryDelay(first=1, random=lambda: 0.0).next(), 0.5)
        self.assertEqual(RetryDelay(first=1, random=lambda: 0.5).next(), 0.75)

    @settings(deadline=None)
    @given(st.integers(0, 5000), st.floats(0, 1))
    def test_bounds(self, attempts: int, random: float) -> None:
        """After any number of failures a delay is positive and within the bound."""
        backoff = RetryDelay(first=0.2, most=30, random=lambda: random)
        backoff._attempt = attempts
        self.assertTrue(0 < backoff.next() <= 30)
