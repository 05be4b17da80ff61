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


class WorkerQueries:
    """Queries to all workers, at most one per worker and kind: concurrent HTTP requests share it.

    Only requests before the time limit wait for a worker that hangs. If every health check took two seconds, one hanging worker
    would make the whole gateway fail its health checks.
    """

    def __init__(self, clock: Clock, workers: Callable[[], Sequence[WorkerHandle]]) -> None:
        self._clock = clock
        self._workers = workers
        self._queries: dict[tuple[int, Question], _Query] = {}

    def ask(self, what: Question) -> Deferred[Answers]:
        """Send a query of this kind to all present workers. The Deferred never fails."""
        workers = list(self._workers())
        self._drop_other_workers(workers)
        return gatherResults([self._answer(worker, what) for worker in workers])

    def _drop_other_workers(self, workers: Sequence[WorkerHandle]) -> None:
        """Cancel the queries to workers that have been replaced."""
        present = set(map(id, workers))
        for key, query in list(self._queries.items()):
            if key[0] not in present:
                del self._queries[key]
                query.cancel()

    def _answer(self, worker: WorkerHandle, what: Question) -> Deferred[tuple[WorkerHandle, Any]]:
        key = (id(worker), what)
        query = self._queries.get(key)
        # The repetition of a late query is late from its start: requests do not wait for it either.
        late = query is not None and query.late
        if query is not None and late and self._clock.seconds() - query.since >= RETRY:
            del self._queries[key]
            query.cancel()
            query = None
        if query is None:
            query = self._queries[key] = _Query(self._clock, worker, late)
            query.ask(what, lambda: self._queries.pop(key, None))
        return query.wait()


class _Query:
    """Query to one worker, with the Deferreds that wait for its answer."""

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
        """Send the query. Call `done()` when it is answered or has failed, unless it was cancelled."""

        def answered(answer: Any) -> None:
            if not self._over:
                done()
                self._end(answer)

        def failed(failure: Any) -> None:
            if not self._over:
                self._log.debug("Querying {worker} failed: {reason}", worker=self._worker.name, reason=failure.value)
                done()
                self._end(None)

        self._deferred = maybeDeferred(self._worker.ask, what)
        self._deferred.addCallbacks(answered, failed)

    def wait(self) -> Deferred[tuple[WorkerHandle, Any]]:
        """Return a Deferred of the worker and its answer; the answer is `None` after the time limit."""
        waiting: Deferred[tuple[WorkerHandle, Any]] = Deferred()
        if self._over or self.late:
            waiting.callback((self._worker, self._answer))
        else:
            self._waiting.append(waiting)
        return waiting

    def cancel(self) -> None:
        """Cancel the query. Its waiters get `None`."""
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
