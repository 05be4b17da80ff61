"""Where twistd's log becomes one that does not block."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, cast

from twisted.application.service import IServiceCollection, MultiService
from twisted.logger import ILogObserver, LogPublisher, globalLogPublisher
from twisted.python.components import Componentized

from ._queue import LogQueue
from ._stream import StreamObserver, is_journal

_CLOSED: Final = -1
"""In place of standard output that was closed at the start. Descriptor 1 may be a socket by now."""


def install_log(reactor: Any, twistd: Mapping[str, Any] | None) -> LoggedService:
    """Return the top service of this process, which has its log. `twistd` are twistd's own options; `None` for a .tac file."""
    log = LogQueue(keep_failures=twistd is None or bool(twistd.get("logger")))
    service = LoggedService(reactor, log, replaces_twistd=_logs_to_stdout(twistd))
    if service.replaces_twistd:
        descriptor = sys.stdout.fileno() if sys.stdout is not None else _CLOSED
        log.add(StreamObserver(descriptor, journal=is_journal(descriptor, os.environ)))
    atexit.register(log.end)
    return service


def _logs_to_stdout(twistd: Mapping[str, Any] | None) -> bool:
    """Whether twistd will log to standard output."""
    if twistd is None or twistd.get("logger") or twistd.get("syslog") or not twistd.get("nodaemon"):
        return False
    return twistd.get("logfile") in (None, "", "-")


class LoggedService(MultiService):
    """The service that has everything else of a process as its child, and the process's log."""

    def __init__(
        self, reactor: Any, log: LogQueue, *, replaces_twistd: bool = False, publisher: LogPublisher = globalLogPublisher
    ) -> None:
        """`replaces_twistd`: twistd is to log to `log` only."""
        super().__init__()
        self._reactor = reactor
        self.log = log
        self.replaces_twistd = replaces_twistd
        self._publisher = publisher

    def setServiceParent(self, parent: IServiceCollection) -> None:
        if self.replaces_twistd and isinstance(parent, Componentized):
            # twistd asks the application for an observer before it makes one of its own, and before it logs its first line.
            parent.setComponent(ILogObserver, self.log)
        super().setServiceParent(parent)

    def startService(self) -> None:
        # twistd has forked by now, if it does: a thread would not have survived that.
        self._take_over()
        # What is registered last runs first: before a status of the process's own (`owsla.runtime.process.end_with`).
        self._reactor.addSystemEventTrigger("after", "shutdown", atexit.register, self.log.flush)
        self._reactor.addSystemEventTrigger("after", "shutdown", self.log.stopped)
        super().startService()

    def _take_over(self) -> None:
        """Put the observers that twistd has installed (`--logger`, `--logfile`, `--syslog`) behind the queue."""
        # Twisted has no other way to learn of them.
        installed: list[Any] = list(getattr(self._publisher, "_observers", ()))
        for observer in installed:
            if observer is not self.log:
                self._publisher.removeObserver(observer)
                self.log.add(observer)
        if self.log not in installed:
            self._publisher.addObserver(cast(ILogObserver, self.log))
