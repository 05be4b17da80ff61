"""Orphans of process 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.orphans import INTERVAL, reap_orphans, reap_orphans_of_process_1


class Reactor(Clock):
    def callWhenRunning(self, call: Callable[[], None]) -> None:
        call()


class OrphanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.zombies: list[int] = []
        self.running = True
        self.patch(os, "waitid", self.waitid)
        self.patch(os, "waitpid", lambda pid, options: self.zombies.remove(pid))

    def waitid(self, kind: int, number: int, options: int) -> SimpleNamespace | None:
        self.assertEqual((kind, options), (os.P_ALL, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        if self.zombies:
            return SimpleNamespace(si_pid=self.zombies[0])
        if self.running:
            return None
        raise ChildProcessError

    def test_reaped(self) -> None:
        """Children that have ended are waited for, whether others still run or not."""
        for self.running in (True, False):
            self.zombies = [11, 12]
            reap_orphans(())
            self.assertEqual(self.zombies, [])

    def test_own(self) -> None:
        """A child of its own is left to Twisted, and what comes behind it to the next time."""
        self.zombies = [11, 12, 13]
        reap_orphans({12})
        self.assertEqual(self.zombies, [12, 13])

    def test_again_and_again(self) -> None:
        """Process 1 looks for orphans all the time."""
        self.patch(os, "getpid", lambda: 1)
        reactor = Reactor()
        reap_orphans_of_process_1(reactor)
        for _ in range(2):
            self.zombies = [11]
            reactor.advance(INTERVAL)
            self.assertEqual(self.zombies, [])

    def test_not_process_1(self) -> None:
        """No other process does."""
        reactor = Reactor()
        reap_orphans_of_process_1(reactor)
        self.assertEqual(reactor.getDelayedCalls(), [])
