"""The lateness of the reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import Lateness, LatenessProbe
from owsla.http._lateness import PROBE_INTERVAL, RECENT


class LatenessTests(SynchronousTestCase):
    """The histogram, and the last measurements."""

    def test_recent(self) -> None:
        """The last measurements are remembered in their order, within a bound; all of them are counted."""
        lateness = Lateness()
        for number in range(RECENT + 3):
            lateness.observe(number / 1000)
        self.assertEqual(lateness.recent, tuple(number / 1000 for number in range(3, RECENT + 3)))
        self.assertEqual(lateness.count, RECENT + 3)
        self.assertEqual([count for _, count in lateness.buckets()][-1], RECENT + 3)

    def test_backwards(self) -> None:
        """A clock that was set back makes no negative measurement."""
        lateness = Lateness()
        lateness.observe(-1.0)
        self.assertEqual((lateness.recent, lateness.sum), ((0.0,), 0.0))


class ProbeTests(SynchronousTestCase):
    """The service that measures."""

    def test_it(self) -> None:
        """It measures at each interval, from the start to the stop, and again after another start."""
        reactor: Any = MemoryReactorClock()
        lateness = Lateness()
        probe = LatenessProbe(reactor, lateness)
        for expected in (2, 4):
            probe.startService()
            reactor.advance(PROBE_INTERVAL)
            reactor.advance(PROBE_INTERVAL + 0.5)
            probe.stopService()
            reactor.advance(5 * PROBE_INTERVAL)
            self.assertEqual(lateness.count, expected)
        self.assertAlmostEqual(lateness.sum, 1.0)
        for measured, expected_lateness in zip(lateness.recent, (0.0, 0.5, 0.0, 0.5), strict=True):
            self.assertAlmostEqual(measured, expected_lateness)
