"""The parent of the workers as one service: what it tells whom, and how the whole stops.

It has no device traffic and no connection to the broker: what it does, it may do late.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.logger import Logger

from ..events import Event, EventManager
from ..supervision import EXIT_STATUS, Supervisor, TreeNode
from ..tls.expiry import Shown
from ._process import Process, WorkerProcess


class Parent(MultiService):
    """Runs workers, and stops them together."""

    def __init__(
        self,
        *,
        port: socket.socket,
        workers: Sequence[WorkerProcess],
        root: Supervisor,
        fail: Callable[[str, int], None],
    ) -> None:
        """`port` is the device port that the workers share. `fail` ends the process with a line and a status."""
        super().__init__()
        self._log = Logger(namespace="owsla")
        self._port = port
        self.workers = workers
        self._root = root
        self._fail = fail
        self._replacing = False
        self._again = False
        self.draining = False
        """Whether it is stopping."""
        root.setServiceParent(self)

    def tree(self) -> TreeNode:
        """The parent's supervision tree, as it is now, or as planned."""
        return self._root.tree()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self.draining = True
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self._log.info("Stopping {count} workers", count=len(self.workers))
        # With the workers' own this closes the port.
        self._port.close()
        await DeferredList([worker.drain() for worker in self.workers])
        await self._root.stopService()
        self._log.info("Stopped: no worker is left")

    def hurry(self) -> None:
        """Wait for nothing more."""
        for worker in self.workers:
            worker.hurry()

    def give_up(self, reason: str) -> None:
        """The root of the tree gave up: end the process, so that whatever runs it begins afresh."""
        self.hurry()
        self._fail(reason, EXIT_STATUS)

    def reopen(self) -> None:
        """Have the workers do what SIGHUP says."""
        for worker in self.workers:
            worker.tell("reopen")

    # -- a rolling restart -------------------------------------------------------------------------------------------------

    def replace(self) -> None:
        """Replace the workers one after another by fresh processes. Asked again meanwhile: once more when that is done."""
        if self.draining:
            return
        if self._replacing:
            self._again = True
            self._log.info("The workers are being replaced: once more when that is done")
            return
        self._replacing = True
        replaced = ensureDeferred(self._replace())
        replaced.addErrback(lambda failure: self._log.failure("The workers were not all replaced", failure))

    async def _replace(self) -> None:
        try:
            self._again = True
            while self._again and not self.draining:
                self._again = False
                await self._replace_each()
        finally:
            self._replacing = False

    async def _replace_each(self) -> None:
        count = 0
        for worker in self.workers:
            if self.draining:
                return
            if not await worker.replace():
                if not self.draining:
                    self._log.warn("{count} of {all} workers were replaced", count=count, all=len(self.workers))
                return
            count += 1
        self._log.info("All {count} workers were replaced", count=count)


def shown_by(workers: Sequence[WorkerProcess], otherwise: Shown) -> Shown:
    """Of the certificates that devices are shown just now, the one that ends first; `otherwise` as long as no port is open."""
    shown = [worker.process.shown for worker in workers if worker.process is not None and worker.process.shown is not None]
    return min(shown, key=lambda certificate: certificate.not_after, default=otherwise)


class OfNode:
    """An event handler that hands one node's events on to another manager: the parent's own, to its console."""

    def __init__(self, node: str, manager: EventManager) -> None:
        self._node = node
        self._manager = manager

    def handle(self, event: Event, node: str, when: float) -> None:
        if node == self._node:
            self._manager.emit(event, node, when)


class Reports:
    """What the parent does about what its workers say."""

    def __init__(
        self,
        *,
        workers: Sequence[WorkerProcess],
        emit: Callable[[float, str, Mapping[str, Any]], None],
        refused: Callable[[str], None],
    ) -> None:
        """`workers` may be filled later. `emit` has an event's time, node and wire form; `refused` is told why the first worker
        cannot start at all.
        """
        self._workers = workers
        self._emit = emit
        self._refused = refused
        self._dead: dict[str, bool] = {}
        self._worked = False
        self._refusing = False

    def ready(self, process: Process) -> None:
        self._worked = True
        for node, served in self._dead.items():
            process.tell("gone", node=node, served=served)
        self._dead.clear()

    def ended(self, process: Process, graceful: bool) -> None:
        """A worker that died leaves a node behind. Another worker is told, which buries it without waiting."""
        if graceful or process.node is None:
            return
        for worker in self._workers:
            if worker.process is not None and worker.process.state == "ready":
                worker.process.tell("gone", node=process.node, served=process.served)
                return
        self._dead[process.node] = process.served

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        self._emit(time, node, event)

    def cannot_start(self, why: str) -> bool:
        if not self._worked:
            self._worked = self._refusing = True  # the others will say the same
            self._refused(why)
        return self._refusing
