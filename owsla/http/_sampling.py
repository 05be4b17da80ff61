"""The service that takes a sample every second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from ._history import STEP, History
from ._lateness import LatenessProbe
from ._snapshot import Snapshots
from ._sources import Source


class SampleService(LatenessProbe):
    """Service that adds a sample to a history every second, and measures the reactor of its own process.

    While the workers of a parent have not answered, no further sample is taken: the history has a gap.
    """

    def __init__(self, reactor: Any, source: Source, history: History, *, now: Callable[[], float]) -> None:
        """`now()` is in seconds since the epoch."""
        super().__init__(reactor, source.lateness)
        self.setName("samples")
        self._clock = reactor
        self._source = source
        self._history = history
        self._now = now
        self._asking = False
        self._due = 0.0

    def startService(self) -> None:
        super().startService()
        self._asking = False
        self._due = self._clock.seconds()
        self.later(0.0, self._sample)

    def _sample(self) -> Deferred[None] | None:
        now = self._clock.seconds()
        # On a grid of one second: a sample that is a little late does not delay those after it.
        self._due += STEP
        if self._due <= now:
            self._due = now + STEP
        self.later(self._due - now, self._sample)
        if self._asking:
            return None
        self._asking = True
        return self._source.snapshots().addCallback(self._add)

    def _add(self, snapshots: Snapshots) -> None:
        self._asking = False
        self._history.add(self._clock.seconds(), self._now(), snapshots)
