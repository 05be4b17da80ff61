"""The parent of the workers as one service: rolling restarts and the shutdown of all workers.

The parent has no device traffic and no connection to the broker, so that nothing waits for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.logger import Logger

from ..events import Event, EventManager
from ..supervision import EXIT_STATUS, Supervisor, TreeNode
from ._pool import WorkerPool


class ParentService(MultiService):
    """Parent of the workers: it runs them, replaces them one after another, and stops them together."""

    def __init__(
        self,
        *,
        doors: Iterable[socket.socket],
        pool: WorkerPool,
        reload: Callable[[], Deferred[bool]],
        replaced: Callable[[], None],
        fail: Callable[[str, int], None],
    ) -> None:
        """`doors` are the sockets that the workers share. `reload` reloads the configuration; its Deferred fires with the
        success. `replaced` is called when all workers have started with the configuration in force. `fail` ends the process
        with a line and a status.
        """
        super().__init__()
        self._log = Logger(namespace="owsla")
        self._doors = tuple(doors)
        self.pool = pool
        self._reload = reload
        self._replaced = replaced
        self._root: Supervisor | None = None
        self._fail = fail
        self._replacing = False
        self._again = False
        self.draining = False
        """True once the parent stops."""

    def supervise(self, root: Supervisor) -> None:
        """Make `root` the supervision tree of the parent."""
        self._root = root
        root.setServiceParent(self)

    def tree(self) -> TreeNode:
        """Return the supervision tree of the parent as it is now, or as planned."""
        assert self._root is not None
        return self._root.tree()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self.draining = True
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self._log.info("Stopping {count} workers", count=len(self.pool.workers))
        # A port closes when the workers have closed their descriptors of it, too.
        for sock in self._doors:
            sock.close()
        await DeferredList([worker.stop_for_good() for worker in self.pool.workers])
        if self._root is not None:
            await self._root.stopService()
        self._log.info("Stopped: no worker is left")

    def hurry(self) -> None:
        """Stop waiting for anything, in all workers."""
        for worker in self.pool.workers:
            worker.hurry()

    def give_up(self, reason: str) -> None:
        """End the process because the root supervisor gave up: systemd, or whatever runs Owsla, starts a new one."""
        self.hurry()
        self._fail(reason, EXIT_STATUS)

    def reopen(self) -> None:
        """Have the workers open their files again (SIGHUP)."""
        for worker in self.pool.workers:
            worker.tell("reopen")

    # -- a rolling restart -------------------------------------------------------------------------------------------------

    def replace(self) -> None:
        """Replace the workers one after another with new processes. A request meanwhile is served when that is done."""
        if self.draining:
            return
        if self._replacing:
            self._again = True
            self._log.info("The workers are being replaced already; they will be replaced once more when that is done")
            return
        self._replacing = True
        replaced = ensureDeferred(self._replace())
        replaced.addErrback(lambda failure: self._log.failure("Replacing the workers failed", failure))

    async def _replace(self) -> None:
        try:
            self._again = True
            while self._again and not self.draining:
                self._again = False
                await self._replace_each()
        finally:
            self._replacing = False

    async def _replace_each(self) -> None:
        # The new processes are to have the present settings, which are checked before any worker is stopped for them.
        if not await self._reload():
            if not self.draining:
                self._log.warn("The workers are not replaced, because the configuration could not be reloaded")
            return
        generation = self.pool.generation
        count = 0
        for worker in self.pool.workers:
            if self.draining:
                return
            if not await worker.replace():
                if not self.draining:
                    self._log.warn("{count} of {all} workers were replaced", count=count, all=len(self.pool.workers))
                return
            count += 1
        if self.pool.generation == generation:  # otherwise the first ones have started with an older configuration
            self._replaced()
        self._log.info("All {count} workers were replaced", count=count)


class NodeEvents:
    """Event handler that passes the events of one node to another manager: the parent's own, for its console."""

    def __init__(self, node: str, manager: EventManager) -> None:
        self._node = node
        self._manager = manager

    def handle(self, event: Event, node: str, when: float) -> None:
        if node == self._node:
            self._manager.emit(event, node, when)
