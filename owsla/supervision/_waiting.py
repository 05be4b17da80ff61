"""Waiting for what a service's methods return."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure


def as_deferred(result: Any) -> Deferred[Any] | None:
    """What is to be waited for in the result of a service's method, if anything."""
    if isinstance(result, Deferred):
        return result
    return Deferred.fromCoroutine(result) if iscoroutine(result) else None


class Wait:
    """Waits for a Deferred for as long as it is told to.

    Cancelling the Deferred is not enough: what is cancelled may take its time, or never end.
    """

    __slots__ = ("_awaited", "_late", "_over", "done")

    def __init__(self, awaited: Deferred[Any], late: Callable[[Failure], Any]) -> None:
        """`late` is told of a failure for which nobody waits any more."""
        self._awaited = awaited
        self._late = late
        self._over = False
        self.done: Deferred[None] = Deferred()
        awaited.addCallbacks(self._succeeded, self._failed)

    def _succeeded(self, _: object) -> None:
        if not self._over:
            self._over = True
            self.done.callback(None)

    def _failed(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self.done.errback(failure)
        elif not failure.check(CancelledError):
            self._late(failure)

    def give_up(self, reason: Exception) -> None:
        """Wait no more: cancel it, and fail with `reason`."""
        if not self._over:
            self._over = True
            self._awaited.cancel()
            self.done.errback(reason)
