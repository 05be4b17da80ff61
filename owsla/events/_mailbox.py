"""A bounded queue before a handler that works in the reactor's thread."""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ._manager import EventManager, Fail, Handler, HandlerStats, Running
from ._types import Event, EventsDropped

LIMIT: Final = 10_000
"""Events that wait for a handler at most. A stampede of a thousand devices a second for ten; some 200 bytes each."""

SLICE: Final = 0.002
"""Seconds that a handler may take in one turn of the reactor, before it is a line's turn again."""

SHARE: Final = 10
"""A handler takes one part in so many of the time at most: one that takes long waits nine times as long for the next turn."""


class Mailbox:
    """Keeps events for a handler, and hands them over in later turns of the reactor, a few at a time.

    A handler that is slow delays nobody by more than one call of it at a time; what does not fit is dropped and counted. What
    blocks (files, databases) has no place in the reactor's thread at all: see `Outbox`.
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
        self.wants = getattr(handler, "wants", None)

    def __len__(self) -> int:
        return len(self._waiting)

    def handle(self, event: Event, node: str, when: float) -> None:
        self._stats.count(node)
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
        """Hand over all that waits."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        while self._waiting and self._hand_over():
            pass
        self._stats.dropped += len(self._waiting)
        self._waiting.clear()
        return self._handler.stop() if isinstance(self._handler, Running) else None

    def reopen(self) -> None:
        """Passed on."""
        reopen = getattr(self._handler, "reopen", None)
        if reopen is not None:
            reopen()

    def _hand_over(self) -> bool:
        event, node, when = self._waiting.popleft()
        try:
            self._handler.handle(event, node, when)
        except Exception:
            # What waits here is its next life's no more: one event that it cannot bear must not come back.
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
            if not self._hand_over():
                return
            took = clock.seconds() - began
        if self._waiting:
            self._call = clock.callLater(took * (SHARE - 1) if took > SLICE else 0, self._deliver)
        elif self._missed:
            missed, self._missed = self._missed, 0
            self._manager.emit(EventsDropped(self._stats.name, missed))
