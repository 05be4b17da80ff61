"""The parent of the workers as one service: what it tells whom, and how the whole stops.

It has no device traffic and no connection to the broker: what it does, it may do late.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.logger import Logger

from ..events import Event, EventManager
from ..supervision import EXIT_STATUS, Supervisor, TreeNode
from ._pool import WorkerPool


class ParentService(MultiService):
    """Runs workers, and stops them together."""

    def __init__(
        self,
        *,
        port: socket.socket,
        pool: WorkerPool,
        fail: Callable[[str, int], None],
    ) -> None:
        """`port` is the device port that the workers share. `fail` ends the process with a line and a status."""
        super().__init__()
        self._log = Logger(namespace="owsla")
        self._port = port
        self.pool = pool
        self._root: Supervisor | None = None
        self._fail = fail
        self._replacing = False
        self._again = False
        self.draining = False
        """Whether it is stopping."""

    def supervise(self, root: Supervisor) -> None:
        """Make `root` the supervision tree of the parent."""
        self._root = root
        root.setServiceParent(self)

    def tree(self) -> TreeNode:
        """The parent's supervision tree, as it is now, or as planned."""
        assert self._root is not None
        return self._root.tree()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self.draining = True
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self._log.info("Stopping {count} workers", count=len(self.pool.workers))
        # With the workers' own this closes the port.
        self._port.close()
        await DeferredList([worker.drain() for worker in self.pool.workers])
        if self._root is not None:
            await self._root.stopService()
        self._log.info("Stopped: no worker is left")

    def hurry(self) -> None:
        """Wait for nothing more."""
        for worker in self.pool.workers:
            worker.hurry()

    def give_up(self, reason: str) -> None:
        """The root of the tree gave up: end the process, so that whatever runs it begins afresh."""
        self.hurry()
        self._fail(reason, EXIT_STATUS)

    def reopen(self) -> None:
        """Have the workers do what SIGHUP says."""
        for worker in self.pool.workers:
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
        for worker in self.pool.workers:
            if self.draining:
                return
            if not await worker.replace():
                if not self.draining:
                    self._log.warn("{count} of {all} workers were replaced", count=count, all=len(self.pool.workers))
                return
            count += 1
        self._log.info("All {count} workers were replaced", count=count)


class NodeEvents:
    """An event handler that hands one node's events on to another manager: the parent's own, to its console."""

    def __init__(self, node: str, manager: EventManager) -> None:
        self._node = node
        self._manager = manager

    def handle(self, event: Event, node: str, when: float) -> None:
        if node == self._node:
            self._manager.emit(event, node, when)
