"""What other parts of the process know, as events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ..supervision import GaveUp, RestartReport
from ._types import ChildRestarted, DuplicatesDropped, Event, SupervisorGaveUp

OFTEN: Final = 10.0
"""Seconds between two looks at a count."""


def supervision_event(report: RestartReport | GaveUp) -> Event:
    """Convert a supervisor's report to an event."""
    if isinstance(report, GaveUp):
        return SupervisorGaveUp(report.supervisor, report.child, report.failures, report.period, report.reason)
    return ChildRestarted(report.path, report.reason, report.restarts, report.delay, report.siblings)


class DuplicatesWatch(Service):
    """Tells of duplicates now and then, from a count that is kept anyway: a message costs nothing for it."""

    def __init__(self, clock: Clock, emit: Callable[[Event], None], count: Callable[[], int]) -> None:
        """`count()` is how many there were so far."""
        self.setName("duplicates")
        self._clock = clock
        self._emit = emit
        self._count = count
        self._seen = count()
        self._call: DelayedCall | None = None
        self._report: Callable[[Failure | None], None] | None = None

    def supervise(self, report: Callable[[Failure | None], None]) -> None:
        """Called by the supervisor before each start, with whom to tell of an end."""
        self._report = report

    def startService(self) -> None:
        super().startService()
        self._call = self._clock.callLater(OFTEN, self._look)

    def stopService(self) -> None:
        """Look a last time."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._tell()

    def _look(self) -> None:
        self._call = None
        try:
            self._tell()
        except Exception:
            if self._report is None:
                raise
            self._report(Failure())
            return
        self._call = self._clock.callLater(OFTEN, self._look)

    def _tell(self) -> None:
        count = self._count()
        new, self._seen = count - self._seen, count
        if new:
            self._emit(DuplicatesDropped(new))
