"""Base class of children that report their end and its reason."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from inspect import iscoroutine
from typing import Any, ParamSpec

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ._interfaces import EndCallback

P = ParamSpec("P")


class Worker(Service):
    """Service that reports its end to its supervisor.

    A worker ends when it calls `end`. An exception in a timer of `later`, or in a Deferred or coroutine of `watch`, ends it
    too. Any other method that the reactor calls has to catch its exceptions and pass them to `end`.

    The supervisor then stops the worker, in a later turn of the reactor: the method that calls `end` runs to its end. The stop
    cancels the worker's timers and everything that it watches.

    `end` is a method, and not a Deferred that the supervisor waits for, because an end may be noticed in several places, where
    firing a Deferred twice is an error; because a service that is started again would need a new Deferred; and because a
    Deferred without a supervisor keeps its failure to itself until it is collected, where `end` logs it.
    """

    # The names of attributes begin with `_worker`, to be out of the way of subclasses.
    _worker_log = Logger(namespace="owsla.supervision")

    def __init__(self, clock: Clock) -> None:
        self._worker_clock = clock
        self._worker_on_end: EndCallback | None = None
        self._worker_ended = False
        self._worker_timers: set[_Timer] = set()
        self._worker_watched: set[Deferred[Any]] = set()

    def supervise(self, on_end: EndCallback) -> None:
        """Accept the callback for the next end. The supervisor calls this before each start."""
        self._worker_on_end = on_end
        self._worker_ended = False

    def end(self, reason: Failure | BaseException | None = None) -> None:
        """End the worker, with a failure or, without a reason, normally. Only the first call after a start counts.

        A failure is a defect of the program. The worker itself deals with failures of the outside world, such as a lost
        connection or a refused login.
        """
        failure = Failure(reason) if isinstance(reason, BaseException) and not isinstance(reason, Failure) else reason
        if self._worker_on_end is None or self._worker_ended:
            if failure is not None:
                self._worker_log.failure(
                    "{worker} failed after its end, or without a supervisor", failure, worker=self.name or self
                )
            return
        self._worker_ended = True
        self._worker_on_end(failure)

    def later(self, delay: float, f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> DelayedCall:
        """Call `f` in `delay` seconds, unless the worker is stopped before. An exception ends the worker."""
        return _Timer(self._worker_clock, delay, partial(self._worker_call, f, *args, **kwargs), self._worker_timers)

    def watch(self, running: Deferred[Any] | Coroutine[Any, Any, Any]) -> Deferred[None]:
        """End the worker if a Deferred or a coroutine fails. Cancel it when the worker stops.

        Return a Deferred that fires when it is over, successful or not, and never fails.
        """
        deferred: Deferred[Any] = Deferred.fromCoroutine(running) if iscoroutine(running) else running  # type: ignore[assignment]
        over: Deferred[None] = Deferred()
        self._worker_watched.add(deferred)

        def done(result: Any) -> None:
            cancelled = deferred not in self._worker_watched
            self._worker_watched.discard(deferred)
            if isinstance(result, Failure) and not (cancelled and result.check(CancelledError)):
                self.end(result)
            over.callback(None)

        deferred.addBoth(done)
        return over

    def _worker_call(self, f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            result = f(*args, **kwargs)
        except Exception:
            self.end(Failure())
            return
        if isinstance(result, Deferred) or iscoroutine(result):
            self.watch(result)

    def stopService(self) -> Any:
        """Stop: cancel all timers, and everything that the worker watches."""
        super().stopService()
        for timer in list(self._worker_timers):
            timer.cancel()
        watched = list(self._worker_watched)
        self._worker_watched.clear()
        for deferred in watched:
            deferred.cancel()


class _Timer:
    """Delayed call that is in the set of its worker's timers until it is made or cancelled."""

    __slots__ = ("_call", "_f", "_timers")

    def __init__(self, clock: Clock, delay: float, f: Callable[[], None], timers: set[_Timer]) -> None:
        self._f = f
        self._timers = timers
        self._call: DelayedCall = clock.callLater(delay, self)
        timers.add(self)

    def __call__(self) -> None:
        self._timers.discard(self)
        self._f()

    def active(self) -> bool:
        return self._call.active()

    def cancel(self) -> None:
        self._timers.discard(self)
        if self._call.active():
            self._call.cancel()
