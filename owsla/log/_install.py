"""Installation of the log queue in the place of twistd's own observers."""

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
"""Stand-in for standard output that was closed at the start: by now descriptor 1 may be a socket."""


def install_log(reactor: Any, twistd: Mapping[str, Any] | None) -> LoggingService:
    """Return the top service of the process, with its log. `twistd` are twistd's own options; `None` for a .tac file."""
    log = LogQueue(keep_failures=twistd is None or bool(twistd.get("logger")))
    service = LoggingService(reactor, log, replaces_twistd=_logs_to_stdout(twistd))
    if service.replaces_twistd:
        descriptor = sys.stdout.fileno() if sys.stdout is not None else _CLOSED
        log.add(StreamObserver(descriptor, journal=is_journal(descriptor, os.environ)))
    atexit.register(log.flush_or_exit)
    return service


def _logs_to_stdout(twistd: Mapping[str, Any] | None) -> bool:
    """Return whether twistd will log to standard output."""
    if twistd is None or twistd.get("logger") or twistd.get("syslog") or not twistd.get("nodaemon"):
        return False
    return twistd.get("logfile") in (None, "", "-")


class LoggingService(MultiService):
    """Top service of the process: it installs the log, and is the parent of all other services."""

    def __init__(
        self, reactor: Any, log: LogQueue, *, replaces_twistd: bool = False, publisher: LogPublisher = globalLogPublisher
    ) -> None:
        """`replaces_twistd`: `log` is the only observer of twistd, which makes none itself."""
        super().__init__()
        self._reactor = reactor
        self.log = log
        self.replaces_twistd = replaces_twistd
        self._publisher = publisher

    def setServiceParent(self, parent: IServiceCollection) -> None:
        if self.replaces_twistd and isinstance(parent, Componentized):
            # twistd asks the application for an observer before it makes its own, and before it logs its first line.
            parent.setComponent(ILogObserver, self.log)
        super().setServiceParent(parent)

    def startService(self) -> None:
        # Not earlier: if twistd runs as a daemon, it has forked by now, and a thread would not have survived the fork.
        self._take_over()
        # Exit handlers run in reverse order: this one before `owsla.runtime.process.end_with` ends the process with its status.
        self._reactor.addSystemEventTrigger("after", "shutdown", atexit.register, self.log.flush)
        self._reactor.addSystemEventTrigger("after", "shutdown", self.log.note_clean_stop)
        super().startService()

    def _take_over(self) -> None:
        """Move the observers that twistd has installed (`--logger`, `--logfile`, `--syslog`) behind the queue."""
        # Twisted has no public way to list the observers.
        installed: list[Any] = list(getattr(self._publisher, "_observers", ()))
        for observer in installed:
            if observer is not self.log:
                self._publisher.removeObserver(observer)
                self.log.add(observer)
        if self.log not in installed:
            self._publisher.addObserver(cast(ILogObserver, self.log))
