"""Events from reports of the supervisors and from counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ..supervision import GaveUp, RestartReport
from ._types import ChildRestarted, DuplicatesDropped, Event, SupervisorGaveUp

INTERVAL: Final = 10.0
"""Seconds between two reports of a counter."""


def supervision_event(report: RestartReport | GaveUp) -> Event:
    """Convert a supervisor's report to an event."""
    if isinstance(report, GaveUp):
        return SupervisorGaveUp(report.supervisor, report.child, report.failures, report.period, report.reason)
    return ChildRestarted(report.path, report.reason, report.restarts, report.delay, report.siblings)


class DuplicatesWatch(Service):
    """Service that reports dropped duplicates periodically, from a counter, so that a duplicate costs no event."""

    def __init__(self, clock: Clock, emit: Callable[[Event], None], count: Callable[[], int]) -> None:
        """`count()` is the total number of duplicates."""
        self.setName("duplicates")
        self._clock = clock
        self._emit = emit
        self._count = count
        self._seen = count()
        self._call: DelayedCall | None = None
        self._report: Callable[[Failure | None], None] | None = None

    def supervise(self, report: Callable[[Failure | None], None]) -> None:
        """Set the callback for the end of the service. The supervisor calls this before each start."""
        self._report = report

    def startService(self) -> None:
        super().startService()
        self._call = self._clock.callLater(INTERVAL, self._check)

    def stopService(self) -> None:
        """Report the last duplicates."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._emit_new()

    def _check(self) -> None:
        self._call = None
        try:
            self._emit_new()
        except Exception:
            if self._report is None:
                raise
            self._report(Failure())
            return
        self._call = self._clock.callLater(INTERVAL, self._check)

    def _emit_new(self) -> None:
        count = self._count()
        new, self._seen = count - self._seen, count
        if new:
            self._emit(DuplicatesDropped(new))
