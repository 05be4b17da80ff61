"""Queries of a parent to its workers, with a time limit.

Theory of operation. A query is *pending* until the worker answers or fails. After `TIME_LIMIT` a pending query becomes *late*:
its waiters get `None`, and later requests do not wait for this worker at all. A late query is repeated every `RETRY` seconds in
the background, so a worker that recovers is included again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from ..interfaces import Clock, DelayedCall
from ._readings import Question, WorkerHandle

TIME_LIMIT: Final = 2.0
"""Seconds to wait for an answer. A worker answers within milliseconds, unless it hangs or lacks CPU time."""

RETRY: Final = 10.0
"""Seconds after which an unanswered query is repeated."""

Answers = list[tuple[WorkerHandle, Any]]
"""Each worker with its answer; `None` if it did not answer."""


class Questions:
    """The pending queries to all workers: at most one per worker and kind. Concurrent requests share it.

    Only the first request waits for a worker that hangs. If every health check took two seconds, one hanging worker would make
    the whole gateway fail its health checks.
    """

    def __init__(self, clock: Clock, workers: Callable[[], Sequence[WorkerHandle]]) -> None:
        self._clock = clock
        self._workers = workers
        self._asked: dict[tuple[int, Question], _Asked] = {}

    def ask(self, what: Question) -> Deferred[Answers]:
        """Query all present workers. The Deferred does not fail."""
        workers = list(self._workers())
        self._drop_other_workers(workers)
        return gatherResults([self._answer(worker, what) for worker in workers])

    def _drop_other_workers(self, workers: Sequence[WorkerHandle]) -> None:
        present = set(map(id, workers))
        for key, asked in list(self._asked.items()):
            if key[0] not in present:
                del self._asked[key]
                asked.cancel()

    def _answer(self, worker: WorkerHandle, what: Question) -> Deferred[tuple[WorkerHandle, Any]]:
        key = (id(worker), what)
        asked = self._asked.get(key)
        late = asked is not None and asked.late
        if asked is not None and late and self._clock.seconds() - asked.since >= RETRY:
            del self._asked[key]
            asked.cancel()
            asked = None
        if asked is None:
            asked = self._asked[key] = _Asked(self._clock, worker, late)
            asked.ask(what, lambda: self._asked.pop(key, None))
        return asked.wait()


class _Asked:
    """A query to one worker."""

    _log = Logger(namespace="owsla.http")

    def __init__(self, clock: Clock, worker: WorkerHandle, late: bool) -> None:
        self.since = clock.seconds()
        self.late = late
        """True if requests do not wait for the answer."""
        self._worker = worker
        self._answer: Any = None
        self._over = False
        self._deferred: Deferred[Any] | None = None
        self._waiting: list[Deferred[tuple[WorkerHandle, Any]]] = []
        self._call: DelayedCall | None = None if late else clock.callLater(TIME_LIMIT, self._time_out)

    def ask(self, what: Question, done: Callable[[], object]) -> None:
        """Send the query. Call `done()` when it is answered or has failed."""

        def answered(answer: Any) -> None:
            if not self._over:
                done()
                self._end(answer)

        def failed(failure: Any) -> None:
            if not self._over:
                self._log.debug("Querying {worker} failed: {failure}", worker=self._worker.name, failure=failure)
                done()
                self._end(None)

        self._deferred = maybeDeferred(self._worker.ask, what)
        self._deferred.addCallbacks(answered, failed)

    def wait(self) -> Deferred[tuple[WorkerHandle, Any]]:
        """Return a Deferred that fires with the answer, or with `None` after the time limit."""
        waiting: Deferred[tuple[WorkerHandle, Any]] = Deferred()
        if self._over or self.late:
            waiting.callback((self._worker, self._answer))
        else:
            self._waiting.append(waiting)
        return waiting

    def cancel(self) -> None:
        """Cancel the query; waiters get `None`."""
        self._end(None)
        if self._deferred is not None:
            self._deferred.cancel()

    def _time_out(self) -> None:
        self._call = None
        self.late = True
        self._fire()

    def _end(self, answer: Any) -> None:
        self._over = True
        self._answer = answer
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._fire()

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback((self._worker, self._answer))
