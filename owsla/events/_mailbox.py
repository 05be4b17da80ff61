"""A bounded queue for a handler that runs in the reactor's thread."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol, runtime_checkable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ._manager import EventManager, Fail, Handler, HandlerStats, Running
from ._types import Event, EventsDropped

LIMIT: Final = 10_000
"""Limit on queued events: ten seconds of a stampede of a thousand devices per second, at some 200 bytes each."""

SLICE: Final = 0.002
"""Seconds that a handler may use in one iteration of the reactor."""

SHARE: Final = 10
"""Reciprocal of the share of time that a handler may use: after a slow call it waits nine times as long."""


@runtime_checkable
class Counting(Protocol):
    """A handler that only counts some events: they need no place in the queue."""

    def counts(self, event: Event) -> bool:
        """Count an event, and return `True`, if that is all that is to be done with it."""


class Mailbox:
    """Queue of events for a handler, delivered in later iterations of the reactor, a few at a time.

    A slow handler blocks the reactor for at most one call at a time. Events that do not fit are dropped and counted. Handlers
    that block (files, databases) run in their own thread: see `Outbox`.
    """

    def __init__(self, clock: Clock, manager: EventManager, handler: Handler, stats: HandlerStats, limit: int = LIMIT) -> None:
        self._clock = clock
        self._manager = manager
        self._handler = handler
        self._stats = stats
        self._limit = limit
        self._waiting: deque[tuple[Event, str, float]] = deque()
        self._missed = 0
        self._call: DelayedCall | None = None
        self._fail: Fail | None = None
        self._counts = handler.counts if isinstance(handler, Counting) else None
        self.wants = getattr(handler, "wants", None)

    def __len__(self) -> int:
        return len(self._waiting)

    def handle(self, event: Event, node: str, when: float) -> None:
        self._stats.count(node)
        if self._counts is not None and self._counts(event):
            self._stats.handled += 1
            return
        if len(self._waiting) >= self._limit:
            self._stats.dropped += 1
            self._missed += 1
            return
        self._waiting.append((event, node, when))
        if self._call is None:
            self._call = self._clock.callLater(0, self._deliver)

    def start(self, fail: Fail) -> None:
        self._fail = fail
        if isinstance(self._handler, Running):
            self._handler.start(fail)

    def stop(self) -> Deferred[None] | None:
        """Deliver all queued events."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        while self._waiting and self._deliver_one():
            pass
        self._stats.dropped += len(self._waiting)
        self._waiting.clear()
        return self._handler.stop() if isinstance(self._handler, Running) else None

    def reopen(self) -> None:
        """Forward the call to the handler."""
        reopen = getattr(self._handler, "reopen", None)
        if reopen is not None:
            reopen()

    def _deliver_one(self) -> bool:
        event, node, when = self._waiting.popleft()
        try:
            self._handler.handle(event, node, when)
        except Exception:
            # Clear the queue: an event that makes the handler fail must not make its next instance fail too.
            self._stats.dropped += 1 + len(self._waiting)
            self._waiting.clear()
            if self._fail is not None:
                self._fail(Failure())
            return False
        self._stats.handled += 1
        return True

    def _deliver(self) -> None:
        self._call = None
        clock = self._clock
        began = clock.seconds()
        took = 0.0
        while self._waiting and took < SLICE:
            if not self._deliver_one():
                return
            took = clock.seconds() - began
        if self._waiting:
            self._call = clock.callLater(took * (SHARE - 1) if took > SLICE else 0, self._deliver)
        elif self._missed:
            missed, self._missed = self._missed, 0
            self._manager.emit(EventsDropped(self._stats.name, missed))
