"""Signals that arrive before the reactor runs.

By default SIGHUP and SIGUSR2 end a process, and SIGTERM ends it with a status that looks like a failure. For process 1 of a
container it is worse: the kernel drops each signal without a handler, SIGTERM included, so that a stop waits until the process
is killed. The first import of a program should therefore be this module, which imports nothing that Python has not loaded.

    first line ──guard_start()──▶ SIGTERM: the process exits at once with status 0. SIGHUP, SIGUSR2: ignored
                                  With `--check` the status is 143: 0 would say that the check has found nothing
    makeService ──defer_stop()──▶ SIGTERM: noted. The process has sockets and files now, which only a stop in order removes
    reactor runs ────────────────▶ `owsla.runtime.process.install_signal_handlers`: the noted signal stops it in order

SIGINT is like SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

IGNORED: Final = (signal.SIGHUP, signal.SIGUSR2)
"""Signals that have no meaning yet: there are no log files to open again, and no workers to replace."""

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class EarlyStop:
    """Handler of SIGTERM and SIGINT before the reactor runs."""

    def __init__(self) -> None:
        self.deferred = False
        """True once the process has something to remove at its end."""
        self.received: int | None = None
        """The signal that was received since then."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            # Nothing was begun. An exception would surface anywhere in an import, where it may be caught.
            os._exit(128 + number if _is_check(sys.argv) else 0)
        self.received = number


def _is_check(arguments: Sequence[str]) -> bool:
    """Return whether a process only checks an installation: its exit status is the result."""
    return any(argument == "--check" or argument.startswith("--check=") for argument in arguments)


def guard_start() -> None:
    """Handle the signals of a process that starts: see the module. A handler that is there already stays."""
    for number in IGNORED:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)
    stop = EarlyStop()
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
    # A launcher may have blocked them, so that none arrives before this line: `env --block-signal` (coreutils 8.31).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*IGNORED, *ENDING))


def defer_stop() -> EarlyStop | None:
    """Note SIGTERM and SIGINT from now on, until the reactor runs. Return their handler, if `guard_start` was called."""
    handlers = [signal.getsignal(number) for number in ENDING]
    for handler in handlers:
        if isinstance(handler, EarlyStop):
            handler.deferred = True
            return handler
    return None
