"""How the process ends: in order on the first signal, at once on the second, and with a status of its own when it must."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
from collections.abc import Callable
from select import PIPE_BUF
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from ..log import escaped

_log = Logger(namespace="owsla")


def ignore_early_signals() -> None:
    """Ignore SIGHUP and SIGUSR2 until `take_signals` handles them.

    By default both end a process. A gateway that still starts has no files to open again yet, and no workers to replace.
    """
    for number in (signal.SIGHUP, signal.SIGUSR2):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def remove_own_pid_file(path: str) -> None:
    """Remove a pid file that names this very process: its author was killed, and had the same number.

    In a container that is the rule: twistd is always process 1, or 7, and after a kill it takes its own file for that of
    `Another twistd server` (twisted.scripts._twistd_unix.checkPID, Twisted 26.10).
    """
    try:
        with open(path) as file:
            if int(file.read()) == os.getpid():
                os.remove(path)
    except (OSError, ValueError):
        pass  # twistd looks at it next, and says what is wrong with it


def take_signals(
    reactor: Any, *, hurry: Callable[[], None], reopen: Callable[[], None], replace: Callable[[], None], within: float
) -> None:
    """Take SIGTERM, SIGINT, SIGHUP and SIGUSR2 once the reactor runs.

    The first of the former two stops in order, and `hurry` is called for the second. `reopen` is called for SIGHUP, and
    `replace` for SIGUSR2. A stop in order takes `within` seconds at most.

    With Twisted's own handler twistd raises the signal again when it is done, and a stop in order ends with status 143.
    """
    stopping = False

    def stop(number: int) -> None:
        nonlocal stopping
        name = signal.Signals(number).name
        try:
            if not stopping:
                reactor.stop()
        except ReactorNotRunning:
            # It stops already, without a signal: the root supervisor gave up, say. This one is the second word then.
            stopping = True
        if stopping:
            _log.warn("Got {name} again: stopping at once", name=name)
            hurry()
        else:
            stopping = True
            _log.info(
                "Got {name}: stopping in order, within {within:g} s; a second signal stops at once", name=name, within=within
            )

    def install() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: reactor.callFromThread(stop, number))
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reopen))
        signal.signal(signal.SIGUSR2, lambda *_: reactor.callFromThread(replace))

    reactor.callWhenRunning(install)


def take_worker_signals(reactor: Any, *, stop: Callable[[], None]) -> None:
    """Take the signals of a process that has a parent, once the reactor runs.

    SIGTERM stops in order: systemd sends it to all processes of a unit, and so the parent's word comes as well. The others are
    the parent's: a terminal sends SIGINT and SIGHUP to it, too, and it passes them on in words.
    """

    def install() -> None:
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(stop))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    reactor.callWhenRunning(install)


def end_with(status: int) -> None:
    """End with this status, when everything is done."""
    # twistd has no way to be given a status; what is registered last runs first, when its pid file is gone already.
    atexit.register(os._exit, status)


def _complain(text: str) -> None:
    """Write a line to standard error, unless that would block: it may be a pipe that nobody reads."""
    stream = sys.__stderr__  # sys.stderr is the log's by now
    if stream is None:
        return
    try:
        descriptor = stream.fileno()
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text.encode("utf-8", "backslashreplace")[:PIPE_BUF])
    except (OSError, ValueError):
        pass  # a disk that is full: the log has it, too


def fail(reactor: Any, reason: str, status: int = 1) -> None:
    """Nothing can be done here any more: say so on standard error, stop in order, and end with this status.

    The log is the caller's part.
    """
    _complain(f"owsla: {escaped(reason)}\n")
    end_with(status)
    if reactor.running:
        reactor.stop()
