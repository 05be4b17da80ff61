"""Reports of connections that an attack brings by the thousand: events with a number, instead of an event for each."""

from __future__ import annotations

from collections.abc import Callable

from ..events import AddressDenied, ConnectRateExceeded, Event, SilentEvicted, TurnedAway
from .admission import Tally
from .sources import Sources, source_of


class AttackReports:
    """A counter of evicted silent connections, and events about these and about connections that `Sources` refused."""

    def __init__(self, emit: Callable[[Event], None], max_silent: int, sources: Sources) -> None:
        """`max_silent` is the limit that the events name."""
        self._emit = emit
        self._max_silent = max_silent
        self._sources = sources
        self._evicted = Tally()

    def configure(self, max_silent: int) -> None:
        """Change the limit that the events name."""
        self._max_silent = max_silent

    @property
    def evicted(self) -> int:
        """Number of silent connections that were closed so far, to make room."""
        return self._evicted.count

    def silent_evicted(self) -> None:
        """Count a silent connection that is closed to make room."""
        self._evicted.add()

    def report(self, now: float, *, last: bool = False) -> None:
        """Emit the events that are due. With `last` emit the rest."""
        sources, limits = self._sources, self._sources.limits
        evicted = self._evicted.due(now, last=last)
        if evicted:
            self._emit(SilentEvicted(evicted, self._max_silent))
        too_many = sources.too_many.due(now, last=last)
        if too_many and limits.connections is not None:
            self._emit(TurnedAway(too_many, limits.connections, source_of(sources.too_many.last)))
        too_fast = sources.too_fast.due(now, last=last)
        if too_fast and limits.connect_rate is not None:
            self._emit(ConnectRateExceeded(too_fast, limits.connect_rate, source_of(sources.too_fast.last)))
        denied = sources.denied.due(now, last=last)
        if denied:
            self._emit(AddressDenied(denied, sources.denied.last))
