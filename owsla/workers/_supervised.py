"""A worker in the supervision tree of its parent: started, restarted after its end, and replaced by a new process.

Theory of operation
-------------------

A worker has one process that devices connect to (`process`). During a replacement it has two: first the successor beside the
process in charge, until the port of the successor is open; then the predecessor beside it, until the devices of the predecessor
have left.

    process ───────────────────────────┐ replace()
    process + successor                │ the successor has REPLACE_TIMEOUT seconds to open its port; otherwise it is killed
    predecessor + process              │ the predecessor stops in order
    process ◀──────────────────────────┘

Only the end of the process in charge is a failure for the supervisor. `stop_for_good` ends all processes, and a restart that
the supervisor has scheduled does not start another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from ..supervision import Worker
from ._process import PING, ProcessObserver, WorkerEnded, WorkerProcess, WorkerStart

REPLACE_TIMEOUT: Final = 60.0
"""Seconds for a successor to open its port. After that the process in charge stays."""


class SupervisedWorker(Worker):
    """Worker of a parent, whichever process it has."""

    def __init__(self, reactor: Any, number: int, start: Callable[[], WorkerStart], observer: ProcessObserver) -> None:
        """`number` counts from 1. `start` is asked for each process, since a reload changes what it returns."""
        super().__init__(reactor)
        self.number = number
        self.setName(f"worker-{number}")
        self._reactor = reactor
        self._start = start
        self._observer = observer
        self._process: WorkerProcess | None = None
        self._successor: WorkerProcess | None = None
        self._predecessor: WorkerProcess | None = None
        self._opened: dict[WorkerProcess, Deferred[None]] = {}
        self._leaving = False
        self._log = Logger(namespace="owsla")

    @property
    def process(self) -> WorkerProcess | None:
        """Process that devices connect to; `None` before the first start."""
        return self._process

    def startService(self) -> None:
        super().startService()
        if self._leaving:
            return  # the supervisor had scheduled a restart before `stop_for_good`; the port is closed
        self._process = self._spawn()
        self.later(PING, self._ping)

    def _ping(self) -> None:
        self.later(PING, self._ping)
        if self._process is not None:
            self._process.ping()

    def _spawn(self) -> WorkerProcess:
        assert self.name is not None
        process = WorkerProcess(self._reactor, self.name, self.number, self._start(), self)
        process.spawn()
        self._log.info("{name} is process {pid}", name=self.name, pid=process.pid)
        return process

    def stop_for_good(self) -> Deferred[Any]:
        """Stop in order, and ignore a restart that the supervisor has scheduled."""
        self._leaving = True
        self.running = 0
        return self.stopService()

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        return DeferredList([process.stop() for process in self.every_process])

    def hurry(self) -> None:
        """Have all processes stop waiting for anything."""
        for process in self.every_process:
            process.hurry()

    @property
    def every_process(self) -> list[WorkerProcess]:
        """All processes of this worker: during a replacement there are two."""
        return [one for one in (self._process, self._successor, self._predecessor) if one is not None]

    def tell(self, type: str, **values: Any) -> None:
        """Send a message to the process in charge."""
        if self._process is not None:
            self._process.tell(type, **values)

    async def replace(self) -> bool:
        """Start a new process and, once its port is open, stop the old one. Return whether that worked; if not, the old one
        stays.
        """
        if not self.running or self._process is None or self._successor is not None:
            return False
        old = self._process
        fresh = self._successor = self._spawn()
        fresh.distinguish(True)
        self._log.info("{name}: process {fresh} starts, to replace process {old}", name=self.name, fresh=fresh.pid, old=old.pid)
        opened = self._opened[fresh] = Deferred()
        why = f"its port is not open after {REPLACE_TIMEOUT:g} s"
        late = self._reactor.callLater(REPLACE_TIMEOUT, self._not_opened, fresh, why)
        try:
            await opened
        except WorkerEnded as error:
            if self.running and self._process is old:  # otherwise it was stopped, or has ended itself
                self._log.warn(
                    "{name} is not replaced, and continues as it is: {why}", name=self.name, why=fresh.refused or str(error)
                )
            self._successor = None
            fresh.kill()
            return False
        finally:
            self._opened.pop(fresh, None)
            if late.active():
                late.cancel()
        self._predecessor = old = self._process
        self._process, self._successor = fresh, None
        fresh.distinguish(False)
        old.distinguish(True)
        self._log.info(
            "{name}: process {fresh} has opened its port; process {old} closes its devices and ends",
            name=self.name,
            fresh=fresh.pid,
            old=old.pid,
        )
        await old.stop()
        self._log.info("{name}: process {old} is replaced; {how}", name=self.name, old=old.pid, how=old.reason)
        self._predecessor = None
        return True

    def _not_opened(self, process: WorkerProcess, why: str) -> None:
        opened = self._opened.pop(process, None)
        if opened is not None:
            opened.errback(WorkerEnded(why))

    # -- reports of the processes ------------------------------------------------------------------------------------------

    def ready(self, process: WorkerProcess) -> None:
        self._observer.ready(process)
        opened = self._opened.pop(process, None)
        if opened is not None:
            opened.callback(None)

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        self._observer.event(time, node, event)

    def cannot_start(self, why: str) -> bool:
        return self._observer.cannot_start(why)

    def ended(self, process: WorkerProcess, graceful: bool) -> None:
        self._observer.ended(process, graceful)
        if process is self._process:
            self._start().loads.absent(self.number)
        if process is self._successor:
            self._not_opened(process, process.reason)
        elif process is self._process and self.running:
            if process.refused is not None and self._observer.cannot_start(process.refused):
                return
            self.end(WorkerEnded(process.refused or f"{process.reason} (process {process.pid})"))
