"""Queries of a parent to its workers, with a time limit.

Theory of operation. A query is *pending* until the worker answers or fails. After `TIME_LIMIT` a pending query becomes *late*:
its waiters get `None`, and later requests of the same kind do not wait for this worker at all. Of several late queries of a
kind only the first is kept. A late query is repeated by a request after `RETRY` seconds, without anybody waiting for it, so a
worker that recovers is included again.

An action is not shared, and not repeated: each request sends it once, and waits for it until the time limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed

from ..interfaces import Clock, DelayedCall
from ._types import NO_ARGS, Args

TIME_LIMIT: Final = 2.0
"""Seconds to wait for an answer. A worker answers within milliseconds, unless it hangs or lacks CPU time."""

RETRY: Final = 10.0
"""Seconds after which an unanswered query is repeated."""


class WorkerHandle(Protocol):
    """A worker process as its parent sees it. A new process is a new object."""

    @property
    def number(self) -> int:
        """Number of the worker from 1, unique among the running workers."""

    @property
    def name(self) -> str:
        """Name in logs and in the supervision tree of the parent."""

    @property
    def state(self) -> str:
        """State for people: `starting`, `ready`, `draining` or `ended`."""

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[Any]:
        """Query the worker. The Deferred fires with its answer, which is `None` for an unknown query, or fails. A Deferred that
        never fires is cancelled later.
        """


Answers = list[tuple[WorkerHandle, Any]]
"""Each worker with its answer; `None` if it did not answer."""


class WorkerQueries:
    """Queries to all workers. Concurrent requests for the same share a query.

    Only requests before the time limit wait for a worker that hangs. If every health check took two seconds, one hanging worker
    would make the whole gateway fail its health checks.
    """

    def __init__(self, clock: Clock, workers: Callable[[], Sequence[WorkerHandle]]) -> None:
        self._clock = clock
        self._workers = workers
        self._queries: dict[int, _QueriesToWorker] = {}

    def ask(self, what: str, args: Args = NO_ARGS, *, action: bool = False) -> Deferred[Answers]:
        """Send a query to all present workers. The Deferred never fails. An `action` changes something."""
        workers = list(self._workers())
        self._drop_other_workers(workers)
        return gatherResults([self._ask_one(worker, what, args, action) for worker in workers])

    def _ask_one(self, worker: WorkerHandle, what: str, args: Args, action: bool) -> Deferred[tuple[WorkerHandle, Any]]:
        queries = self._queries.get(id(worker))
        if queries is None:
            queries = self._queries[id(worker)] = _QueriesToWorker(self._clock, worker)
        return queries.act(what, args) if action else queries.ask(what, args)

    def _drop_other_workers(self, workers: Sequence[WorkerHandle]) -> None:
        """Cancel the queries to workers that have been replaced."""
        present = set(map(id, workers))
        for key, queries in list(self._queries.items()):
            if key not in present:
                del self._queries[key]
                queries.cancel()


class _QueriesToWorker:
    """Queries to one worker: the pending ones, and at most one late query of each kind."""

    def __init__(self, clock: Clock, worker: WorkerHandle) -> None:
        self._clock = clock
        self._worker = worker
        self._pending: dict[str, _Query] = {}
        self._late: dict[str, _Query] = {}

    def ask(self, what: str, args: Args) -> Deferred[tuple[WorkerHandle, Any]]:
        late = self._late.get(what)
        if late is not None:
            if self._clock.seconds() - late.since >= RETRY:
                late.cancel()
                # The repetition is late from its start: requests do not wait for it either.
                repeated = self._late[what] = _Query(self._clock, self._worker, None)
                repeated.ask(what, args, lambda: self._answered_late(what, repeated))
            return succeed((self._worker, None))
        key = f"{what} {json.dumps(dict(args), sort_keys=True)}"
        query = self._pending.get(key)
        if query is None:
            query = self._pending[key] = new = _Query(self._clock, self._worker, lambda: self._time_out(what, key))
            new.ask(what, args, lambda: self._answered(what, key, new))
        return query.wait()

    def act(self, what: str, args: Args) -> Deferred[tuple[WorkerHandle, Any]]:
        query = _Query(self._clock, self._worker, lambda: query.cancel())
        query.ask(what, args, lambda: None)
        return query.wait()

    def cancel(self) -> None:
        """Cancel all queries. Their waiters get `None`."""
        queries = [*self._pending.values(), *self._late.values()]
        self._pending.clear()
        self._late.clear()
        for query in queries:
            query.cancel()

    def _time_out(self, what: str, key: str) -> None:
        query = self._pending.pop(key)
        if what in self._late:
            query.cancel()
        else:
            self._late[what] = query

    def _answered(self, what: str, key: str, query: _Query) -> None:
        if self._pending.get(key) is query:
            del self._pending[key]
        else:
            self._answered_late(what, query)

    def _answered_late(self, what: str, query: _Query) -> None:
        if self._late.get(what) is query:
            del self._late[what]


class _Query:
    """Query to one worker, with the Deferreds that wait for its answer."""

    def __init__(self, clock: Clock, worker: WorkerHandle, late: Callable[[], None] | None) -> None:
        """`late` is called at the time limit; a query without it has none."""
        self.since = clock.seconds()
        self._worker = worker
        self._late = late
        self._answer: Any = None
        self._over = False
        self._deferred: Deferred[Any] | None = None
        self._waiting: list[Deferred[tuple[WorkerHandle, Any]]] = []
        self._call: DelayedCall | None = None if late is None else clock.callLater(TIME_LIMIT, self._time_out)

    def ask(self, what: str, args: Args, done: Callable[[], None]) -> None:
        """Send the query. Call `done()` when it is answered or has failed, unless it was cancelled."""

        def answered(answer: Any) -> None:
            if not self._over:
                done()
                self._end(answer)

        def failed(failure: Any) -> None:
            if not self._over:
                done()
                self._end(None)

        self._deferred = maybeDeferred(self._worker.ask, what, args)
        self._deferred.addCallbacks(answered, failed)

    def wait(self) -> Deferred[tuple[WorkerHandle, Any]]:
        """Return a Deferred of the worker and its answer; the answer is `None` after the time limit."""
        waiting: Deferred[tuple[WorkerHandle, Any]] = Deferred()
        if self._over:
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
        assert self._late is not None
        self._late()
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
