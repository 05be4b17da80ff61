"""Timers follow a clock that nobody sets."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.clock import use_monotonic_clock


class SteadyTests(SynchronousTestCase):
    """Tests with a reactor of their own, which makes one or two turns."""

    def setUp(self) -> None:
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.close)

    def close(self) -> None:
        for waker in list(self.reactor.getReaders()):
            self.reactor.removeReader(waker)
            waker.connectionLost(None)
        self.reactor._poller.close()

    def test_clock_is_set_back(self) -> None:
        """A timer is not delayed when the wall clock is set back by an hour."""
        back = 0.0
        self.reactor.seconds = lambda: time.time() - back
        use_monotonic_clock(self.reactor)
        called: list[int] = []
        self.reactor.callLater(0.01, called.append, 1)
        back = 3600.0
        end = time.monotonic() + 20
        while not called and time.monotonic() < end:
            self.reactor.iterate(0.01)
        self.assertEqual(called, [1])

    def test_what_waits_already(self) -> None:
        """A reactor with scheduled calls keeps its clock, since their times are by that clock."""
        call = self.reactor.callLater(10, lambda: None)
        before = self.reactor.seconds
        use_monotonic_clock(self.reactor)
        self.assertIs(self.reactor.seconds, before)
        call.cancel()

    def test_the_wall_clock_is_said(self) -> None:
        """One warning says that timers follow the wall clock, and what to do."""
        call = self.reactor.callLater(10, lambda: None)
        events: list[LogEvent] = []
        observer: Any = events.append  # zope.interface has no types
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        use_monotonic_clock(self.reactor)
        warned = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warned), 1)
        self.assertIn("wall clock", warned[0])
        call.cancel()

    def test_steady_already(self) -> None:
        """A second service on the same reactor does not cause a warning."""
        use_monotonic_clock(self.reactor)
        call = self.reactor.callLater(10, lambda: None)
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        use_monotonic_clock(self.reactor)
        self.assertEqual(events, [])
        call.cancel()
