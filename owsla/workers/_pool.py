"""The workers of one parent, and the reactions of the parent to their reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults

from ..errors import ReloadRefused
from ..interfaces import Clock
from ..runtime.files import Files
from ..tls.expiry import ServedCertificate
from ._process import WorkerProcess, WorkerStart
from ._supervised import SupervisedWorker

ANSWER_TIMEOUT: Final = 20.0
"""Seconds for a worker to load a configuration, or to apply it. It takes a fraction of a second, unless the worker hangs."""


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
        self._opened: Callable[[], None] = lambda: None
        self._dead: dict[str, bool] = {}
        self._worked = False
        self._refusing = False
        self._clock: Clock = reactor
        self._generation = start.generation
        self._start = start
        self.workers = [
            SupervisedWorker(reactor, number, lambda: self._start, self) for number in range(1, start.count + 1)
        ]

    def call_when_ready(self, opened: Callable[[], None]) -> None:
        """Have `opened` called each time that a worker has opened its port."""
        self._opened = opened

    @property
    def generation(self) -> int:
        """Number of the configuration in force."""
        return self._start.generation

    @property
    def processes(self) -> list[WorkerProcess]:
        """Process in charge of each worker."""
        return [worker.process for worker in self.workers if worker.process is not None]

    def shown(self, otherwise: ServedCertificate) -> ServedCertificate:
        """Return the certificate shown to devices that expires first, or `otherwise` while no port is open."""
        shown = [process.shown for process in self.processes if process.shown is not None]
        return min(shown, key=lambda certificate: certificate.not_after, default=otherwise)

    async def adopt(self, files: Files, drain_timeout: float) -> None:
        """Have all workers put a configuration in force, or none. Raise `ReloadRefused` in the latter case.

        First each worker that serves devices loads the configuration. If all of them could, they are told to apply it. A
        process that is starting is not waited for: like one that starts later, it gets the contents that the others have
        loaded.
        """
        self._generation += 1
        generation, contents = self._generation, files.to_wire()
        asked = [process for process in self.processes if process.state == "ready"]
        answers = await gatherResults([self._in_time(process.prepare(generation, contents)) for process in asked])
        for process, fault in zip(asked, answers, strict=True):
            if fault is not None:
                for each in asked:
                    each.tell("cancel", generation=generation)
                raise ReloadRefused(f"{process.name} (process {process.pid}): {fault}")
        self._start = replace(self._start, generation=generation, files=files, drain_timeout=drain_timeout)
        for process in [process for worker in self.workers for process in worker.every_process]:
            if process not in asked and process.generation < generation:
                process.tell("reload", generation=generation, files=contents)
                process.tell("apply", generation=generation)
        # Nothing depends on these answers, but a caller that is told of the reload relies on it.
        await gatherResults([self._in_time(process.apply(generation)) for process in asked])

    def _in_time(self, answer: Deferred[str | None]) -> Deferred[str | None]:
        """Return a Deferred of this answer, or of a fault after `ANSWER_TIMEOUT`."""
        result: Deferred[str | None] = Deferred()
        late = self._clock.callLater(ANSWER_TIMEOUT, result.callback, f"no answer within {ANSWER_TIMEOUT:g} s")

        def answered(fault: str | None) -> None:
            if not result.called:
                late.cancel()
                result.callback(fault)

        answer.addCallback(answered)
        return result

    def ready(self, process: WorkerProcess) -> None:
        self._worked = True
        for node, served in self._dead.items():
            process.tell("gone", node=node, served=served)
        self._dead.clear()
        self._opened()

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
