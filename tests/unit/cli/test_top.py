"""Tests of the line of `owsla top` that summarises a sample."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._top import summary

QUIET = {
    "devices": 1,
    "connects": 0.0,
    "failed_handshakes": 0.0,
    "lines_in": 28.0,
    "lines_out": 0.0,
    "p50": None,
    "p99": None,
    "unconfirmed": 1200,
    "cpu": 0.02,
}


class SummaryTests(SynchronousTestCase):
    def test_quiet(self) -> None:
        """Without connects, the line has neither their rate nor that of failures, nor latencies without a confirm."""
        self.assertEqual(summary(QUIET), "1 device, 28 lines/s in, 0.0 out, 1,200 unconfirmed, CPU 2%")

    def test_stampede(self) -> None:
        """While devices connect, the line has the rate of connects and of failed handshakes."""
        line = summary({**QUIET, "devices": 727, "connects": 282.0, "failed_handshakes": 12.0, "p50": 0.2, "p99": 0.5})
        expected = (
            "727 devices, 282 connects/s, 12 failed handshakes/s, 28 lines/s in, 0.0 out, confirmed in 0.2ms, "
            "99% in 0.5ms, 1,200 unconfirmed, CPU 2%"
        )
        self.assertEqual(line, expected)
