"""The workers of one parent, and the reactions of the parent to their reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..tls.expiry import ServedCertificate
from ._process import WorkerProcess, WorkerStart
from ._supervised import SupervisedWorker


class WorkerPool:
    """Workers of a parent."""

    def __init__(
        self,
        reactor: Any,
        start: WorkerStart,
        *,
        emit: Callable[[float, str, Mapping[str, Any]], None],
        refused: Callable[[str], None],
    ) -> None:
        """`emit` is called with the time, node and wire form of a worker's event; `refused` with the reason why the first
        worker cannot start at all.
        """
        self._emit = emit
        self._refused = refused
        self._dead: dict[str, bool] = {}
        self._worked = False
        self._refusing = False
        self.workers = [SupervisedWorker(reactor, number, start, self) for number in range(1, start.count + 1)]

    @property
    def processes(self) -> list[WorkerProcess]:
        """Process in charge of each worker."""
        return [worker.process for worker in self.workers if worker.process is not None]

    def shown(self, otherwise: ServedCertificate) -> ServedCertificate:
        """Return the certificate shown to devices that expires first, or `otherwise` while no port is open."""
        shown = [process.shown for process in self.processes if process.shown is not None]
        return min(shown, key=lambda certificate: certificate.not_after, default=otherwise)

    def ready(self, process: WorkerProcess) -> None:
        self._worked = True
        for node, served in self._dead.items():
            process.tell("gone", node=node, served=served)
        self._dead.clear()

    def ended(self, process: WorkerProcess, graceful: bool) -> None:
        # The node of a worker that died holds messages in its queue. Another worker is told, which cleans up without waiting
        # for --node-grace. With no worker ready, the next one to open its port is told.
        if graceful or process.node is None:
            return
        for other in self.processes:
            if other.state == "ready":
                other.tell("gone", node=process.node, served=process.served)
                return
        self._dead[process.node] = process.served

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        self._emit(time, node, event)

    def cannot_start(self, why: str) -> bool:
        if not self._worked:
            self._worked = self._refusing = True  # the other workers have the same settings
            self._refused(why)
        return self._refusing
