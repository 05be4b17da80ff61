"""Orphans of process 1."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime import orphans
from owsla.runtime.orphans import INTERVAL, LOOKS, OrphanReaper, reap_orphans_of_process_1


class Reactor(Clock):
    def callWhenRunning(self, call: Callable[[], None]) -> None:
        call()


class OrphanTests(SynchronousTestCase):
    """Zombies are children of the test, which an orphan cannot be told from."""

    def setUp(self) -> None:
        self.pids: list[int] = []
        self.all_processes = orphans._processes
        self.patch(orphans, "_processes", lambda: self.pids)  # other tests in this process have children, too

    def start(self, status: int = 0) -> subprocess.Popen[bytes]:
        """Start a process, and wait until it is a zombie."""
        process = subprocess.Popen(["sh", "-c", f"exit {status}"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self.addCleanup(process.wait)
        self.pids.append(process.pid)
        return process

    def is_reaped(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def test_a_minute(self) -> None:
        """A status can be asked for within a minute. After that zombies are reaped, and a child that runs stays."""
        self.assertGreaterEqual((LOOKS - 1) * INTERVAL, 60)
        reaper = OrphanReaper()
        asked, others = self.start(3), [self.start(), self.start()]
        running = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.addCleanup(running.communicate)
        self.pids += [running.pid, os.getpid(), 1]
        for _ in range(LOOKS - 1):
            reaper.look(())
        self.assertEqual([self.is_reaped(one) for one in (asked, *others)], [False] * 3)
        self.assertEqual(asked.wait(), 3)
        reaper.look(())
        self.assertEqual([self.is_reaped(one) for one in others], [True] * 2)
        self.assertIsNone(running.poll())

    def test_asked_for_meanwhile(self) -> None:
        """A thread may ask for a status between the last look at a zombie and its end."""
        reaper = OrphanReaper()
        asked, other = self.start(3), self.start()
        for _ in range(LOOKS - 1):
            reaper.look(())
        is_zombie = orphans._is_zombie
        self.patch(orphans, "_is_zombie", lambda pid: is_zombie(pid) and (pid != asked.pid or asked.wait() == 3))
        reaper.look(())
        self.assertTrue(self.is_reaped(other))

    def test_own(self) -> None:
        """A child of Twisted is left to it, and holds up no other."""
        reaper = OrphanReaper()
        own, orphan = self.start(), self.start()
        for _ in range(2 * LOOKS):
            reaper.look({own.pid})
        self.assertEqual((self.is_reaped(own), self.is_reaped(orphan)), (False, True))

    def test_again_and_again(self) -> None:
        """Process 1 looks for orphans all the time."""
        self.patch(os, "getpid", lambda: 1)
        reactor = Reactor()
        reap_orphans_of_process_1(reactor)
        for _ in range(2):
            orphan = self.start()
            reactor.pump([INTERVAL] * LOOKS)
            self.assertTrue(self.is_reaped(orphan))

    def test_processes(self) -> None:
        """All processes are looked at. Without /proc there is none to look at."""
        self.assertIn(os.getpid(), self.all_processes())

        def missing(path: str) -> list[str]:
            raise FileNotFoundError(path)

        self.patch(os, "listdir", missing)
        self.assertEqual(self.all_processes(), [])

    def test_not_process_1(self) -> None:
        """No other process does."""
        reactor = Reactor()
        reap_orphans_of_process_1(reactor)
        self.assertEqual(reactor.getDelayedCalls(), [])
