"""Serial execution of coroutines."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Job: TypeAlias = Callable[[], Awaitable[None]]


class JobQueue:
    """Queue of jobs that run one after another: the mailbox of an OTP process."""

    __slots__ = ("_jobs", "_running")

    def __init__(self) -> None:
        self._jobs: deque[tuple[Job, Deferred[None]]] = deque()
        self._running = False

    def post(self, job: Job) -> Deferred[None]:
        """Run a job after the jobs before it, or at once if there are none. Return a Deferred of its end."""
        done: Deferred[None] = Deferred()
        self._jobs.append((job, done))
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run())
        return done

    async def _run(self) -> None:
        # A loop, not a chain of callbacks: thousands of jobs must not deepen the stack.
        while self._jobs:
            job, done = self._jobs.popleft()
            try:
                await job()
            except Exception:
                done.errback(Failure())
            else:
                done.callback(None)
        self._running = False
