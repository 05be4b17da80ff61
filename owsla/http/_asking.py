"""A parent's questions to its workers: bounded, whatever a worker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from ..interfaces import Clock, DelayedCall
from ._readings import Question, WorkerProcess

BOUND: Final = 2.0
"""Seconds that an answer is waited for. A worker answers within milliseconds, unless it hangs or is short of CPU."""

AGAIN: Final = 10.0
"""Seconds after which a worker that has not answered is asked again."""

Answers = list[tuple[WorkerProcess, Any]]
"""The workers, and what each says; `None`, where it says nothing."""


class Questions:
    """Asks all workers, each at most one question of a kind at a time: who asks meanwhile waits for the same answer.

    The first who asks a worker that hangs waits `BOUND` seconds. The next ones do not wait for it at all, until it answers: a
    health check that takes two seconds each time would fail for one worker of many. It is asked again without anybody waiting.
    """

    def __init__(self, clock: Clock, workers: Callable[[], Sequence[WorkerProcess]]) -> None:
        self._clock = clock
        self._workers = workers
        self._asked: dict[tuple[int, Question], _Asked] = {}

    def ask(self, what: Question) -> Deferred[Answers]:
        """What each of the workers answers that there are now. Never fails."""
        workers = list(self._workers())
        self._forget_all_but(workers)
        return gatherResults([self._answer(worker, what) for worker in workers])

    def _forget_all_but(self, workers: Sequence[WorkerProcess]) -> None:
        there = set(map(id, workers))
        for key, asked in list(self._asked.items()):
            if key[0] not in there:
                del self._asked[key]
                asked.forget()

    def _answer(self, worker: WorkerProcess, what: Question) -> Deferred[tuple[WorkerProcess, Any]]:
        key = (id(worker), what)
        asked = self._asked.get(key)
        silent = asked is not None and asked.silent
        if asked is not None and silent and self._clock.seconds() - asked.since >= AGAIN:
            del self._asked[key]
            asked.forget()
            asked = None
        if asked is None:
            asked = self._asked[key] = _Asked(self._clock, worker, silent)
            asked.ask(what, lambda: self._asked.pop(key, None))
        return asked.wait()


class _Asked:
    """A question to one worker."""

    _log = Logger(namespace="owsla.http")

    def __init__(self, clock: Clock, worker: WorkerProcess, silent: bool) -> None:
        self.since = clock.seconds()
        self.silent = silent
        """Whether it is not worth waiting for."""
        self._worker = worker
        self._answer: Any = None
        self._over = False
        self._deferred: Deferred[Any] | None = None
        self._waiting: list[Deferred[tuple[WorkerProcess, Any]]] = []
        self._call: DelayedCall | None = None if silent else clock.callLater(BOUND, self._late)

    def ask(self, what: Question, done: Callable[[], object]) -> None:
        """Ask, and call `done()` when there is an answer, or there will be none."""

        def answered(answer: Any) -> None:
            if not self._over:
                done()
                self._end(answer)

        def failed(failure: Any) -> None:
            if not self._over:
                self._log.debug("{worker} does not answer: {failure}", worker=self._worker.name, failure=failure)
                done()
                self._end(None)

        self._deferred = maybeDeferred(self._worker.ask, what)
        self._deferred.addCallbacks(answered, failed)

    def wait(self) -> Deferred[tuple[WorkerProcess, Any]]:
        """Fires with the answer, or with `None` when it takes too long."""
        waiting: Deferred[tuple[WorkerProcess, Any]] = Deferred()
        if self._over or self.silent:
            waiting.callback((self._worker, self._answer))
        else:
            self._waiting.append(waiting)
        return waiting

    def forget(self) -> None:
        """Nobody wants to know any more."""
        self._end(None)
        if self._deferred is not None:
            self._deferred.cancel()

    def _late(self) -> None:
        self._call = None
        self.silent = True
        self._tell()

    def _end(self, answer: Any) -> None:
        self._over = True
        self._answer = answer
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback((self._worker, self._answer))
