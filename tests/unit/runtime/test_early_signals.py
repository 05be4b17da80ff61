"""Signals before the reactor runs."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.early_signals import EarlyStop, defer_stop, guard_start
from owsla.runtime.process import OrderlyStop, install_signal_handlers

from .test_process import Reactor


class EarlySignalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.handlers: dict[int, Any] = {
            signal.SIGHUP: signal.SIG_DFL,
            signal.SIGUSR2: signal.SIG_DFL,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGINT: signal.default_int_handler,
        }
        self.masked: list[Any] = []
        self.exits: list[int] = []
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(signal, "getsignal", self.handlers.__getitem__)
        self.patch(signal, "pthread_sigmask", lambda how, numbers: self.masked.append((how, set(numbers))))
        self.patch(os, "_exit", self.exits.append)

    def get(self, number: int) -> None:
        self.handlers[number](number, None)

    def test_guard(self) -> None:
        """SIGHUP and SIGUSR2 are ignored, SIGTERM and SIGINT end the process at once with status 0, and none stays blocked."""
        guard_start()
        self.assertEqual((self.handlers[signal.SIGHUP], self.handlers[signal.SIGUSR2]), (signal.SIG_IGN, signal.SIG_IGN))
        self.get(signal.SIGTERM)
        self.get(signal.SIGINT)
        self.assertEqual(self.exits, [0, 0])
        self.assertEqual(self.masked, [(signal.SIG_UNBLOCK, set(self.handlers))])

    def test_check(self) -> None:
        """A check that is ended has not the status of a check without faults."""
        guard_start()
        for option in ("--check", "--check=offline"):
            self.patch(sys, "argv", ["twistd", "owsla", option, "--cert=x"])
            self.get(signal.SIGTERM)
            self.get(signal.SIGINT)
        self.assertEqual(self.exits, [143, 130] * 2)

    def test_handlers_of_others(self) -> None:
        """A handler that is there already stays, such as the SIG_IGN of a shell's background command for SIGINT."""
        before = dict.fromkeys(self.handlers, signal.SIG_IGN)
        self.handlers.update(before)
        guard_start()
        self.assertEqual(self.handlers, before)
        self.assertIsNone(defer_stop())

    def test_twice(self) -> None:
        """A second guard, that of the plugin after that of the program, changes nothing."""
        guard_start()
        before = dict(self.handlers)
        guard_start()
        self.assertEqual(self.handlers, before)

    def test_deferred(self) -> None:
        """A signal after the service is made ends nothing before the reactor runs, and then stops the process in order."""
        guard_start()
        reactor = Reactor()
        stop = OrderlyStop(reactor, hurry=lambda: None, within=lambda: 30.0)
        install_signal_handlers(reactor, stop, reload=lambda: None, replace=lambda: None)
        self.get(signal.SIGTERM)
        self.assertEqual((self.exits, reactor.stopped), ([], 0))
        for call in reactor.starting:
            call()
        self.assertEqual((self.exits, reactor.stopped), ([], 1))

    def test_none_received(self) -> None:
        """Without a signal nothing is stopped when the reactor runs, and the handlers are those of the running process."""
        guard_start()
        reactor = Reactor()
        stop = OrderlyStop(reactor, hurry=lambda: None, within=lambda: 30.0)
        install_signal_handlers(reactor, stop, reload=lambda: None, replace=lambda: None)
        for call in reactor.starting:
            call()
        self.assertEqual(reactor.stopped, 0)
        self.assertFalse(any(isinstance(handler, EarlyStop) for handler in self.handlers.values()))
