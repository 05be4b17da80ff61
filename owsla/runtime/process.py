"""Signals, pid files, passed sockets and the exit status of the process.

The first SIGTERM or SIGINT stops the process in order, and the second one stops it at once.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
from collections.abc import Callable, MutableMapping
from select import PIPE_BUF
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from ..errors import os_reason
from ..log import escaped
from .early_signals import defer_stop

_log = Logger(namespace="owsla")

UNNAMED_SOCKET: Final = "unknown"
"""Name of a passed socket without one, as in sd_listen_fds_with_names(3)."""


def name_passed_sockets(environ: MutableMapping[str, str]) -> None:
    """Name the sockets that were passed to this process without names, as systemd-socket-activate(1) does.

    Call this before `twisted.internet.endpoints` is imported, which loses such sockets (`twisted.python.systemd`, 26.10).
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") == str(os.getpid()) and count.isdecimal() and not environ.get("LISTEN_FDNAMES"):
        environ["LISTEN_FDNAMES"] = ":".join([UNNAMED_SOCKET] * int(count))


def remove_own_pid_file(path: str) -> None:
    """Remove a pid file that a killed process with the same process id has left behind.

    In a container this is the usual case: twistd always has the same id, such as 1 or 7. After a kill it would take its own
    pid file for that of `Another twistd server` (twisted.scripts._twistd_unix.checkPID, Twisted 26.10).
    """
    try:
        with open(path) as file:
            if int(file.read()) == os.getpid():
                os.remove(path)
    except (OSError, ValueError):
        pass  # twistd reads the file next, and reports what is wrong with it


def pid_file_fault(path: str) -> str:
    """Return why a pid file cannot be written; an empty text if it can. twistd would end with a traceback."""
    existed = os.path.exists(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666))
        if not existed:
            os.remove(os.path.realpath(path))  # twistd takes an empty file for a broken one. A symbolic link stays
    except OSError as error:
        return os_reason(error)
    return ""


class OrderlyStop:
    """Stop of a process in order, for the first SIGTERM or SIGINT, or for an operator. A second signal stops it at once."""

    def __init__(self, reactor: Any, *, hurry: Callable[[], None], within: Callable[[], float]) -> None:
        """A stop in order takes `within()` seconds at most. `hurry` ends it at once."""
        self._reactor = reactor
        self._hurry = hurry
        self._within = within
        self._signalled = False
        self._requested = False

    def signal(self, number: int) -> None:
        """Stop in order for the first signal, and at once for the second."""
        name = signal.Signals(number).name
        if self._signalled or not (self._stop() or self._requested):
            # Otherwise the process stops already, for example since the root supervisor gave up. So this signal counts as the
            # second one.
            _log.warn("Received {name} again: stopping at once", name=name)
            self._hurry()
        else:
            _log.info(
                "Received {name}: stopping in order within {within:g} s; a second signal stops at once",
                name=name,
                within=self._within(),
            )
        self._signalled = True

    def request(self) -> bool:
        """Stop in order at the request of an operator. Return whether the stop begins now.

        A signal after it counts as the first one: a service manager sends SIGTERM in any case, and nothing may be lost by that.
        """
        begun = self._stop()
        if begun:
            self._requested = True
            _log.info("Stopping in order within {within:g} s; two signals stop at once", within=self._within())
        return begun

    def _stop(self) -> bool:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            return False
        return True


def install_signal_handlers(
    reactor: Any, stop: OrderlyStop, *, reload: Callable[[], object], replace: Callable[[], object]
) -> None:
    """Handle SIGTERM, SIGINT, SIGHUP and SIGUSR2 from the moment when the reactor runs, and a stop that was requested earlier.

    `stop` handles SIGTERM and SIGINT. `reload` is called for SIGHUP, and `replace` for SIGUSR2.

    Twisted's own handlers are not used: with those twistd raises the signal again at its end, and a stop in order has the exit
    status 143.
    """
    early = defer_stop()  # not in `install`: the reactor replaces the handlers when it starts to run

    def install() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: reactor.callFromThread(stop.signal, number))
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reload))
        signal.signal(signal.SIGUSR2, lambda *_: reactor.callFromThread(replace))
        if early is not None and early.received is not None:
            reactor.callFromThread(stop.signal, early.received)

    reactor.callWhenRunning(install)


def install_worker_signal_handlers(reactor: Any, *, stop: Callable[[], None]) -> None:
    """Handle the signals of a worker process from the moment when the reactor runs.

    SIGTERM stops the worker in order: systemd sends it to all processes of a unit, the parent included, whose request to stop
    arrives as well. The other signals are ignored: a terminal sends SIGINT and SIGHUP to the parent, too, which passes them on
    over its connection to the worker.
    """

    def install() -> None:
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(stop))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    reactor.callWhenRunning(install)


def set_exit_status(status: int) -> None:
    """Set the exit status of the process, for a stop in order."""
    # twistd cannot be given a status. The handler that is registered last runs first; the pid file is removed by then.
    atexit.register(os._exit, status)


def _write_to_stderr(text: str) -> None:
    """Write a line to standard error, unless that would block: it may be a pipe without a reader."""
    stream = sys.__stderr__  # sys.stderr is redirected to the log by now
    if stream is None:
        return
    try:
        descriptor = stream.fileno()
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text.encode("utf-8", "backslashreplace")[:PIPE_BUF])
    except (OSError, ValueError):
        pass  # a full disk, for example; the log has the line, too


def fail(reactor: Any, reason: str, status: int = 1) -> None:
    """Stop the process in order after a fatal error: write the reason to standard error, and set the exit status.

    The caller writes the reason to the log.
    """
    _write_to_stderr(f"owsla: {escaped(reason)}\n")
    set_exit_status(status)
    if reactor.running:
        reactor.stop()
