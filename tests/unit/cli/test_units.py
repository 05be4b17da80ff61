"""Times and sizes for people."""

from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._units import day_and_time, duration, milliseconds, rate, size, time_of_day


class UnitsTests(SynchronousTestCase):
    def test_durations(self) -> None:
        """A duration has at most two units; a clock that runs ahead gives 0."""
        for seconds, text in (
            (-5, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"),
            (86400 * 400 + 7200, "400d02h"),
        ):  # fmt: skip
            self.assertEqual(duration(seconds), text)

    def test_milliseconds(self) -> None:
        """A short duration has the digits that matter."""
        for value, text in ((None, "-"), (0.84, "0.8ms"), (9.96, "10ms"), (12.3, "12ms"), (999.6, "1.0s"), (1300, "1.3s")):
            self.assertEqual(milliseconds(value), text)

    def test_sizes(self) -> None:
        """A size has three digits at most, and the unit in which it has one before the point."""
        for octets, text in (
            (0, "0B"), (999, "999B"), (999.6, "1.0kB"), (1234, "1.2kB"), (9960, "10kB"), (93_100, "93kB"), (999_500, "1.0MB"),
            (34e6, "34MB"), (1.5e15, "1.5PB"), (5e18, "5000PB"),
        ):  # fmt: skip
            self.assertEqual(size(octets), text)

    def test_rates(self) -> None:
        """A rate has a decimal below ten."""
        self.assertEqual([rate(one) for one in (0, 0.26, 9.96, 1204.2)], ["0.0", "0.3", "10", "1,204"])

    def test_times(self) -> None:
        """Times are local; one that no calendar has is shown as its number."""
        now = 1_790_000_000_125
        self.assertEqual(day_and_time(now), time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1_790_000_000)))
        self.assertEqual(time_of_day(now), time.strftime("%H:%M:%S.125", time.localtime(1_790_000_000)))
        self.assertEqual(day_and_time(1e30), "1e+30")
