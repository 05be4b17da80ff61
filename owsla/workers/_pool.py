"""The workers of one parent: their processes, and what the parent does about what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..tls.expiry import Shown
from ._process import Process, WorkerProcess, WorkerStart


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
        self.workers = [WorkerProcess(reactor, number, start, self) for number in range(1, start.count + 1)]

    @property
    def processes(self) -> list[Process]:
        """The present process of each worker."""
        return [worker.process for worker in self.workers if worker.process is not None]

    def shown(self, otherwise: Shown) -> Shown:
        """Return the certificate that ends first of those that devices are shown; `otherwise` while no port is open."""
        shown = [process.shown for process in self.processes if process.shown is not None]
        return min(shown, key=lambda certificate: certificate.not_after, default=otherwise)

    def ready(self, process: Process) -> None:
        self._worked = True
        for node, served in self._dead.items():
            process.tell("gone", node=node, served=served)
        self._dead.clear()

    def ended(self, process: Process, graceful: bool) -> None:
        """A worker that died leaves a node behind. Another worker is told, which buries it without waiting."""
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
            self._worked = self._refusing = True  # the others will say the same
            self._refused(why)
        return self._refusing
