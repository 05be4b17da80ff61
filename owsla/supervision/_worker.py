"""The base class of a child that can say that it ended, and why."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import iscoroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._interfaces import Clock, DelayedCall, Report

P = ParamSpec("P")
W = TypeVar("W", bound="Worker")


class Worker(Service):
    """A service whose end its supervisor hears of.

    A child ends by calling `end`, and what goes wrong in it calls `end` for it: each way in from the reactor is one of `later`,
    `watch`, `guard` and `guarded`. That this is a method, and not a Deferred that the supervisor waits for, has three reasons:
    an end may be noticed in many places, and firing a Deferred twice is an error where calling `end` twice is not; a service
    that is started again would need a new Deferred each time, and somebody to make it; and a Deferred that nobody supervises
    would keep its failure to itself until it is collected, where `end` logs it.

    An end is also the end of its timers and of what it watches: the supervisor stops it. All of it happens in a later turn of
    the reactor, so whoever calls `end` is not stopped halfway.
    """

    _worker_log = Logger(namespace="owsla.supervision")

    def __init__(self, clock: Clock) -> None:
        self._worker_clock = clock
        self._worker_report: Report | None = None
        self._worker_ended = False
        self._worker_timers: set[_Timer] = set()
        self._worker_watched: set[Deferred[Any]] = set()

    def supervise(self, report: Report) -> None:
        """Called by the supervisor before each start."""
        self._worker_report = report
        self._worker_ended = False

    def end(self, reason: Failure | BaseException | None = None) -> None:
        """Say that this child ended: with a failure or, without a reason, normally. Only the first call after a start counts.

        Only for a defect of our own. What the outside world does (a lost connection, a refused login) is the service's own to
        deal with.
        """
        failure = Failure(reason) if isinstance(reason, BaseException) and not isinstance(reason, Failure) else reason
        if self._worker_report is None or self._worker_ended:
            if failure is not None:
                self._worker_log.failure("{worker} failed, and nobody waits for that", failure, worker=self.name or self)
            return
        self._worker_ended = True
        self._worker_report(failure)

    def later(self, delay: float, f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> DelayedCall:
        """Call `f` in `delay` seconds, unless this is stopped before; guarded."""
        timer = _Timer(self, f, args, kwargs)
        timer.call = self._worker_clock.callLater(delay, timer)
        self._worker_timers.add(timer)
        return timer

    def watch(self, running: Deferred[Any] | Coroutine[Any, Any, Any]) -> Deferred[None]:
        """Should this fail, it is the end. It becomes this worker's own: when the worker stops it is cancelled.

        Returns what fires when it is over, in whichever way, and never fails.
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

    def guard(self, f: Callable[P, object]) -> Callable[P, None]:
        """A callback that can be handed out: what `f` raises, or its Deferred or coroutine fails with, is the end."""

        @wraps(f)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            self._worker_call(f, *args, **kwargs)

        return guarded

    def _worker_call(self, f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            result = f(*args, **kwargs)
        except Exception:
            self.end(Failure())
            return
        if isinstance(result, Deferred) or iscoroutine(result):
            self.watch(result)

    def stopService(self) -> Any:
        """Stop: its timers will not fire, and what it watches is cancelled."""
        super().stopService()
        for timer in list(self._worker_timers):
            timer.cancel()
        watched = list(self._worker_watched)
        self._worker_watched.clear()
        for deferred in watched:
            deferred.cancel()


def guarded(method: Callable[Concatenate[W, P], object]) -> Callable[Concatenate[W, P], None]:
    """Decorates a worker's method that is called from outside, such as a handler of messages: `Worker.guard` for each call."""

    @wraps(method)
    def call(self: W, *args: P.args, **kwargs: P.kwargs) -> None:
        self._worker_call(method, self, *args, **kwargs)

    return cast(Callable[Concatenate[W, P], None], call)


class _Timer:
    """A delayed call that its worker knows as long as it is due."""

    __slots__ = ("_args", "_f", "_kwargs", "_worker", "call")

    def __init__(self, worker: Worker, f: Callable[..., object], args: Any, kwargs: Any) -> None:
        self._worker = worker
        self._f = f
        self._args = args
        self._kwargs = kwargs
        self.call: DelayedCall

    def __call__(self) -> None:
        self._worker._worker_timers.discard(self)
        self._worker._worker_call(self._f, *self._args, **self._kwargs)

    def active(self) -> bool:
        return self.call.active()

    def cancel(self) -> None:
        self._worker._worker_timers.discard(self)
        if self.call.active():
            self.call.cancel()
