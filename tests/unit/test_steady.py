"""Timers do not go by the wall clock."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from owsla.steady import keep_steady


class SteadyTests(SynchronousTestCase):
    """With a reactor of our own, which never runs, but turns once or twice."""

    def setUp(self) -> None:
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.close)

    def close(self) -> None:
        for waker in list(self.reactor.getReaders()):
            self.reactor.removeReader(waker)
            waker.connectionLost(None)
        self.reactor._poller.close()

    def test_clock_is_set_back(self) -> None:
        """What is due soon is not put off when somebody sets the clock back by an hour."""
        back = 0.0
        self.reactor.seconds = lambda: time.time() - back
        keep_steady(self.reactor)
        called: list[int] = []
        self.reactor.callLater(0.01, called.append, 1)
        back = 3600.0
        end = time.monotonic() + 5
        while not called and time.monotonic() < end:
            self.reactor.iterate(0.01)
        self.assertEqual(called, [1])

    def test_what_waits_already(self) -> None:
        """A reactor on which something waits keeps its time, by which that is due."""
        call = self.reactor.callLater(10, lambda: None)
        before = self.reactor.seconds
        keep_steady(self.reactor)
        self.assertIs(self.reactor.seconds, before)
        call.cancel()
