"""Tests of the latency of confirms."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.latency import ConfirmLatency


class ConfirmLatencyTests(SynchronousTestCase):
    def test_record(self) -> None:
        """The time from publication to confirm is observed, and the next line is followed."""
        seconds: list[float] = []
        latency = ConfirmLatency(seconds.append)
        self.assertIsNone(latency.since)
        latency.follow(10.0, 5)
        self.assertEqual((latency.followed, latency.unconfirmed_since), (5, 10.0))
        latency.record(12.5)
        self.assertEqual((seconds, latency.unconfirmed_since), ([2.5], None))
        self.assertGreater(latency.followed, 1 << 63)

    def test_restart(self) -> None:
        """After a restart no line is followed, and nothing is observed for the earlier one."""
        latency = ConfirmLatency(lambda seconds: self.fail("observed"))
        latency.follow(10.0, 5)
        latency.restart()
        self.assertIsNone(latency.unconfirmed_since)

    def test_without_observer(self) -> None:
        """Without an observer no line is to be followed, also after a restart."""
        latency = ConfirmLatency(None)
        latency.restart()
        self.assertIsNotNone(latency.since)
        self.assertIsNone(latency.unconfirmed_since)
