"""Interruptible waiting for the results of a service's methods."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure


def as_deferred(result: Any) -> Deferred[Any] | None:
    """Return a Deferred for the result of a service's method, or `None` if the result is neither Deferred nor coroutine."""
    if isinstance(result, Deferred):
        return result
    return Deferred.fromCoroutine(result) if iscoroutine(result) else None


class Wait:
    """Wait for a Deferred that can be given up at any time.

    Cancelling the Deferred alone would not end the wait: a cancelled coroutine may clean up for a while, or ignore the
    cancellation.
    """

    __slots__ = ("_awaited", "_on_late_failure", "_over", "done")

    def __init__(self, awaited: Deferred[Any], on_late_failure: Callable[[Failure], Any]) -> None:
        """`on_late_failure` gets a failure that comes after the wait was given up."""
        self._awaited = awaited
        self._on_late_failure = on_late_failure
        self._over = False
        self.done: Deferred[None] = Deferred()
        """Fires, or fails, with the Deferred or when the wait is given up, whichever is first."""
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
            self._on_late_failure(failure)

    def give_up(self, reason: Exception) -> None:
        """Cancel the Deferred, and fail `done` with `reason`."""
        if not self._over:
            self._over = True
            self._awaited.cancel()
            self.done.errback(reason)
