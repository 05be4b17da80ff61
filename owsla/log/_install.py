"""Installation of the log queue in the place of twistd's own observers."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final, cast

from twisted.application.service import IServiceCollection, MultiService
from twisted.logger import ILogObserver, LogPublisher, globalLogPublisher
from twisted.python.components import Componentized

from ..errors import ConfigError, os_reason
from ._file import FileObserver, WholeLinesFile
from ._formats import LogFormat, format_for
from ._queue import LogQueue, Observer
from ._stream import LineStream, StreamObserver, is_journal

_CLOSED: Final = -1
"""Stand-in for standard output that was closed at the start: by now descriptor 1 may be a socket."""


DEFAULT_FILE: Final = "twistd.log"
"""Log file of a twistd that runs as a daemon, without `--logfile`."""


def install_log(reactor: Any, twistd: Mapping[str, Any] | None, log_format: LogFormat = "text") -> LoggingService:
    """Return the top service of the process, with its log. `twistd` are twistd's own options; `None` for a .tac file.

    Raise `ConfigError` if twistd itself would write the lines, and not in this format, or if the log file cannot be opened.
    """
    forks = twistd is not None and not twistd.get("nodaemon")
    log = LogQueue(keep_failures=twistd is None or bool(twistd.get("logger")), held=forks)
    descriptor = sys.stdout.fileno() if sys.stdout is not None else _CLOSED
    stdout = LineStream(descriptor)
    observer: Observer | None = None
    if _logs_to_stdout(twistd):
        observer = StreamObserver(stdout, format_for(log_format, journal=is_journal(descriptor, os.environ)))
    elif log_format != "text":
        observer = _file_observer(twistd, log_format)
    elif twistd is not None:
        _check_log_file(twistd)
    service = LoggingService(reactor, log, replaces_twistd=observer is not None, stdout=None if forks else stdout)
    if observer is not None:
        log.add(observer)
    atexit.register(log.flush_or_exit)
    return service


def _logs_to_stdout(twistd: Mapping[str, Any] | None) -> bool:
    """Return whether twistd will log to standard output."""
    if twistd is None or twistd.get("logger") or twistd.get("syslog") or not twistd.get("nodaemon"):
        return False
    return twistd.get("logfile") in (None, "", "-")


def _check_log_file(twistd: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if twistd cannot open its log file: it would end with a traceback."""
    path = twistd.get("logfile") or DEFAULT_FILE
    if twistd.get("logger") or twistd.get("syslog") or path == "-":
        return
    try:
        open(path, "ab+").close()
    except OSError as error:
        raise ConfigError(f"twistd --logfile={path}: {os_reason(error)}") from None


def _file_observer(twistd: Mapping[str, Any] | None, log_format: LogFormat) -> Observer:
    """Return an observer that writes the log file of twistd in this format, and rotates it on SIGUSR1, as twistd does."""
    for other in ("logger", "syslog"):
        if twistd is not None and twistd.get(other):
            raise ConfigError(f"--log-format {log_format}: not with twistd --{other}, which has a format of its own")
    if twistd is None:
        raise ConfigError(f"--log-format {log_format}: not with a .tac file; start `twistd owsla`")
    path = twistd.get("logfile") or DEFAULT_FILE
    if path == "-":
        raise ConfigError("twistd --logfile=-: only with twistd -n; a daemon has no standard output")
    try:
        observer = FileObserver(WholeLinesFile.fromFullPath(path), format_for(log_format))
    except OSError as error:
        raise ConfigError(f"twistd --logfile={path}: {os_reason(error)}") from None
    if signal.getsignal(signal.SIGUSR1) in (None, signal.SIG_DFL):
        signal.signal(signal.SIGUSR1, lambda number, frame: observer.rotate())
    return observer


class LoggingService(MultiService):
    """Top service of the process: it installs the log, and is the parent of all other services."""

    def __init__(
        self,
        reactor: Any,
        log: LogQueue,
        *,
        replaces_twistd: bool = False,
        stdout: LineStream | None = None,
        publisher: LogPublisher = globalLogPublisher,
    ) -> None:
        """`replaces_twistd`: `log` is the only observer of twistd, which makes none itself."""
        super().__init__()
        self.stdout = stdout
        """Standard output, which the log and others write to; `None` in a daemon, which has none."""
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
        self.log.start()
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
