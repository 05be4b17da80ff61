"""How the process ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.process import take_signals, take_worker_signals


class Reactor:
    """A reactor that runs when a test says so."""

    def __init__(self) -> None:
        self.starting: list[Callable[[], None]] = []
        self.stopped = 0

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.starting.append(call)

    def callFromThread(self, call: Callable[..., None], *args: Any) -> None:
        call(*args)

    def stop(self) -> None:
        self.stopped += 1


class SignalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.reactor = Reactor()
        self.hurried = 0
        self.reopened: list[int] = []
        self.replaced: list[int] = []
        take_signals(
            self.reactor,
            hurry=self.hurry,
            reopen=lambda: self.reopened.append(1),
            replace=lambda: self.replaced.append(1),
        )

    def hurry(self) -> None:
        self.hurried += 1

    def get(self, number: int) -> None:
        self.handlers[number](number, None)

    def test_once_the_reactor_runs(self) -> None:
        """The signals are taken, but not before the reactor runs: its own handlers would replace ours."""
        self.assertEqual(self.handlers, {})
        for call in self.reactor.starting:
            call()
        self.assertEqual(set(self.handlers), {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})

    def test_hangup(self) -> None:
        """SIGHUP has files opened again, and stops nothing."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGHUP)
        self.assertEqual((self.reopened, self.reactor.stopped), ([1], 0))

    def test_replace(self) -> None:
        """SIGUSR2 has workers replaced, and stops nothing."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGUSR2)
        self.assertEqual((self.replaced, self.reactor.stopped), ([1], 0))

    def test_in_order_then_at_once(self) -> None:
        """The first signal stops in order, and each after it, of either kind, at once."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGTERM)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 0))
        self.get(signal.SIGINT)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 1))


class WorkerSignalTests(SynchronousTestCase):
    def test_taken(self) -> None:
        """A worker stops on SIGTERM; what a terminal sends to it as well as to its parent, the parent says in words."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        reactor = Reactor()
        stops: list[int] = []
        take_worker_signals(reactor, stop=lambda: stops.append(1))
        self.assertEqual(handlers, {})
        for call in reactor.starting:
            call()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            self.assertEqual(handlers[number], signal.SIG_IGN)
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(stops, [1])
