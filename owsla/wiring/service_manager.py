"""Reports of the process to the service manager that runs it: systemd, with Type=notify or Type=notify-reload.

| state of the process                          | sent (sd_notify(3))                                                        |
|-----------------------------------------------|----------------------------------------------------------------------------|
| it starts, or waits for the broker            | EXTEND_TIMEOUT_USEC, so that TimeoutStartSec= ends a start that hangs only |
| its doors are open                            | READY=1                                                                    |
| a reload was requested                        | RELOADING=1 and MONOTONIC_USEC, and READY=1 after it                       |
| it stops                                      | STOPPING=1, and EXTEND_TIMEOUT_USEC for the time that its drain may take   |
| at any time                                   | STATUS, if it has changed, and WATCHDOG=1 at half of WatchdogSec=          |

A parent of workers reports for all of them. It is ready when the first worker is: the doors are open then, and a worker that
cannot start must not keep the others from counting, as in `/readyz`.

systemd takes READY=1 as the end of the start and of a reload. So it is never sent before the doors are open, and a reload that
is requested earlier is not reported. After RELOADING=1 systemd waits for a READY=1 that follows its own signal, for which it
compares MONOTONIC_USEC with the time of that signal. So each request is reported, and READY=1 is sent after the last of them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..errors import ConfigError, os_reason
from ..events import Event, NodeStarted
from ..http import ReloadReadings, Source, State
from ..interfaces import Clock
from ..log import escaped, pluralize
from ..runtime.systemd import NotifySocket, take_notify_socket, take_watchdog
from ..supervision import Worker

_log = Logger(namespace="owsla")

STATUS_EVERY: Final = 5.0
"""Seconds between two reports of the status."""

EXTEND_EVERY: Final = 10.0
"""Seconds between two extensions of the time for a start. systemd allows 90 s by default; with less than this, a start that
waits for the broker is ended."""

START_WITHIN: Final = 60.0
"""Seconds that each of them allows."""

STOP_MARGIN: Final = 30.0
"""Seconds that a stop may take beyond `--drain-timeout`: workers that do not stop are killed, and event handlers finish."""

RETRY: Final = 0.5
"""Seconds until a report is sent again that the service manager could not take."""

UNSENT: Final = 16
"""Reports kept while the service manager takes none. After that the oldest is dropped: the latest state counts."""


class ServiceManagerReports(Worker):
    """Service that reports the state of this process to its service manager.

    Start it as one of the first services and stop it as one of the last, so that it reports for the whole life of the process.
    """

    _log = Logger(namespace="owsla")

    wants: Final = (NodeStarted,)
    """The events that `handle` needs."""

    def __init__(
        self,
        clock: Clock,
        notify: NotifySocket,
        watchdog: float | None,
        *,
        status: Callable[[bool], Deferred[str]],
        drain_timeout: Callable[[], float],
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`watchdog` is in seconds. `status` describes the process in one line; its argument is true once the doors were open.
        `monotonic` is CLOCK_MONOTONIC, in nanoseconds.
        """
        super().__init__(clock)
        self.setName("service-manager")
        self._notify = notify
        self._watchdog = watchdog
        self._status = status
        self._drain_timeout = drain_timeout
        self._monotonic = monotonic
        self._ready = False
        self._stopping = False
        self._reloads = 0
        self._shown = ""
        self._unsent: deque[tuple[str, ...]] = deque(maxlen=UNSENT)
        self._retrying = False
        self._unreachable = False

    # -- state of the process ----------------------------------------------------------------------------------------------

    def handle(self, event: Event, node: str, when: float) -> None:
        """Handle an event of this node: its start says that all doors are open."""
        self.opened()

    def opened(self) -> None:
        """Report that devices can connect. Only the first call does."""
        if not self._ready and not self._stopping:
            self._ready = True
            self._send("READY=1")
            if self.running:
                self._show_status()

    def reloading(self, reload: Deferred[bool]) -> None:
        """Report a reload that was requested. `reload` fires at its end."""
        if not self._ready or self._stopping:
            return
        self._reloads += 1
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic() // 1000}")
        reload.addBoth(self._reloaded)

    def _reloaded(self, result: Any) -> Any:
        self._reloads -= 1
        if not self._reloads and not self._stopping:
            self._send("READY=1")
            if self.running:
                self._show_status()
        return result

    def stopping(self) -> None:
        """Report that the process stops in order."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", _extension(self._drain_timeout() + STOP_MARGIN))
            if self.running:
                self.later(0, self._show_status)  # once the other parts know that they stop

    # -- periodic reports --------------------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()
        self._retrying = False
        self._extend_start()
        self._report_status()
        if self._watchdog is not None:
            self._beat(self._watchdog / 2)
        self._flush()

    def _extend_start(self) -> None:
        if not self._ready and not self._stopping:
            self._send_unless_late(_extension(START_WITHIN))
            self.later(EXTEND_EVERY, self._extend_start)

    def _beat(self, interval: float) -> None:
        self._send_unless_late("WATCHDOG=1")
        self.later(interval, self._beat, interval)

    def _report_status(self) -> None:
        self._show_status()
        self.later(STATUS_EVERY, self._report_status)

    def _show_status(self) -> None:
        self.watch(self._status(self._ready).addCallback(self._show))

    def _show(self, text: str) -> None:
        if text != self._shown and self._send_unless_late(f"STATUS={escaped(text)}"):
            self._shown = text

    # -- sending -----------------------------------------------------------------------------------------------------------

    def _send_unless_late(self, *assignments: str) -> bool:
        """Send a report that is out of date by the time it could be sent again."""
        if self._unsent:
            return False
        self._send(*assignments)
        if self._unsent:
            self._unsent.clear()
            return False
        return True

    def _send(self, *assignments: str) -> None:
        """Send a report; later, if the service manager cannot take it now. Reports stay in order."""
        self._unsent.append(assignments)
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._sent(*self._unsent[0]):
            self._unsent.popleft()
        if self._unsent and not self._retrying and self.running:
            self._retrying = True
            self.later(RETRY, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._flush()

    def _sent(self, *assignments: str) -> bool:
        try:
            sent = self._notify.send(*assignments)
        except OSError as error:
            if not self._unreachable:
                self._unreachable = True
                self._log.warn("The service manager (NOTIFY_SOCKET) cannot be told: {reason}", reason=os_reason(error))
            return False
        self._unreachable = False
        return sent


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}"


def make_reports(
    reactor: Any,
    source: Source,
    *,
    doors: Callable[[], int],
    reloads: ReloadReadings,
    drain_timeout: Callable[[], float],
    environ: MutableMapping[str, str] = os.environ,
) -> ServiceManagerReports | None:
    """Make the service that reports to the service manager; `None` if there is none that takes reports."""
    watchdog = take_watchdog(environ)
    try:
        notify = take_notify_socket(environ)
    except ConfigError as error:
        _log.warn("No reports to the service manager: {error}", error=str(error))
        return None
    if notify is None:
        return None

    def status(opened: bool) -> Deferred[str]:
        return source.state().addCallback(
            lambda state: describe(state, doors(), opened=opened, reload_failed=not reloads.successful)
        )

    reports = ServiceManagerReports(reactor, notify, watchdog, status=status, drain_timeout=drain_timeout)
    reactor.addSystemEventTrigger("before", "shutdown", reports.stopping)
    return reports


def describe(state: State, doors: int, *, opened: bool, reload_failed: bool) -> str:
    """Describe the state of a process in one line, for `systemctl status`. `opened` is true once its doors were open. Pure."""
    numbers, workers = state.numbers, state.workers
    where = pluralize(doors, "door")
    if workers is not None:
        ready = sum(worker.says is not None and worker.says.ready for worker in workers)
        where += f" and {ready} of {pluralize(len(workers), 'worker')}"
    counts = f"{pluralize(numbers.open, 'device')} on {where}, {pluralize(numbers.unconfirmed, 'line')} unconfirmed"
    failed = "; the last reload failed" if reload_failed else ""
    if not state.checks.get("not_draining", True):
        return f"Stopping: {counts}"
    if not opened:
        return f"{_reason_of_start(state)}: {'the door is' if doors == 1 else 'the doors are'} closed{failed}"
    broker = ", broker connected" if state.checks.get("broker_connected") else ""
    missing = "".join(f"; {text}" for text in state.missing)
    return f"{'Ready' if state.ready else 'Not ready'}: {counts}{broker}{missing}{failed}"


def _reason_of_start(state: State) -> str:
    """Return what a process does whose doors have not been open."""
    says = [state] if state.workers is None else [worker.says for worker in state.workers if worker.says is not None]
    without_broker = [not one.checks.get("broker_connected", True) for one in says]
    return "Waiting for the broker" if without_broker and all(without_broker) else "Starting"
