"""Tests of delayed calls that the reactor does not round up to milliseconds, with timers of the kernel."""

from __future__ import annotations

import os
import resource
import time
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.precise_clock import PreciseClock

from ..device._sockets import Loop

SOON = 0.0002
"""Delay in seconds that epoll_wait(2) would make a millisecond."""


class PreciseClockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.loop = cast(Any, Loop())
        self.clock = PreciseClock(self.loop)
        self.calls: list[int] = []

    def tearDown(self) -> None:
        self.assertEqual((self.loop.readers, self.loop.getDelayedCalls()), (set(), []))
        self.assertEqual(set(os.listdir("/proc/self/fd")) - self.descriptors, set())

    def test_call(self) -> None:
        """A call is made once, after its delay, and not by the reactor's own timers."""
        began = time.monotonic()
        call = self.clock.callLater(SOON, self.calls.append, 1)
        self.assertEqual((call.active(), self.calls, self.loop.getDelayedCalls()), (True, [], []))
        self.loop.until(lambda: self.calls)
        self.assertGreaterEqual(time.monotonic() - began, SOON)
        self.loop.settle()
        self.assertEqual((call.active(), self.calls), (False, [1]))

    def test_no_delay(self) -> None:
        """A call without a delay is made in a later turn."""
        self.clock.callLater(0, self.calls.append, 1)
        self.assertEqual(self.calls, [])
        self.loop.until(lambda: self.calls)

    def test_cancelled(self) -> None:
        """A call that is cancelled is not made. Cancelling it twice has no effect."""
        call = self.clock.callLater(SOON, self.calls.append, 1)
        call.cancel()
        call.cancel()
        self.loop.settle()
        self.assertEqual((call.active(), self.calls), (False, []))

    def test_early_event(self) -> None:
        """An event of an earlier timer, which had the same descriptor, makes no call."""
        call = self.clock.callLater(60, self.calls.append, 1)
        (reader,) = self.loop.readers
        reader.doRead()
        self.assertEqual((call.active(), self.calls), (True, []))
        call.cancel()

    def test_again(self) -> None:
        """A call may schedule the next one."""

        def again() -> None:
            self.calls.append(1)
            if len(self.calls) < 3:
                self.clock.callLater(SOON, again)

        self.clock.callLater(SOON, again)
        self.loop.until(lambda: len(self.calls) == 3)

    def test_failed(self) -> None:
        """An exception of a call is logged, and others are made."""
        self.clock.callLater(SOON, lambda: 1 // 0)
        self.clock.callLater(SOON, self.calls.append, 1)
        self.loop.until(lambda: self.calls)
        self.loop.settle()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_end_of_the_reactor(self) -> None:
        """When the reactor ends, nothing is called any more."""
        self.clock.callLater(SOON, self.calls.append, 1)
        for reader in list(self.loop.readers):
            reader.connectionLost(None)
        self.loop.settle()
        self.assertEqual(self.calls, [])

    def test_no_descriptor(self) -> None:
        """Without a free descriptor the reactor makes the call."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            self.clock.callLater(1, self.calls.append, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.loop.advance(1)
        self.assertEqual(self.calls, [1])
