"""Reports of connections that an attack brings by the thousand: events with a number, instead of an event for each."""

from __future__ import annotations

from collections.abc import Callable

from ..events import Event, SilentEvicted, TurnedAway
from .admission import Tally
from .sources import source_of


class AttackReports:
    """Counters of evicted silent connections and of connections beyond the limit for an address, and events about them."""

    def __init__(self, emit: Callable[[Event], None], max_silent: int, per_address: int | None) -> None:
        """`max_silent` and `per_address` are the limits that the events name."""
        self._emit = emit
        self._max_silent = max_silent
        self._per_address = per_address
        self._evicted = Tally()
        self._turned_away = Tally()
        self._last_host = ""

    def configure(self, max_silent: int, per_address: int | None) -> None:
        """Change the limits that the events name."""
        self._max_silent = max_silent
        self._per_address = per_address

    @property
    def evicted(self) -> int:
        """Number of silent connections that were closed so far, to make room."""
        return self._evicted.count

    @property
    def turned_away(self) -> int:
        """Number of connections that were closed at once so far, since their address had too many."""
        return self._turned_away.count

    def silent_evicted(self) -> None:
        """Count a silent connection that is closed to make room."""
        self._evicted.add()

    def host_turned_away(self, host: str) -> None:
        """Count a connection that is closed at once, since its address has too many."""
        self._turned_away.add()
        self._last_host = host

    def report(self, now: float, *, last: bool = False) -> None:
        """Emit the events that are due. With `last` emit the rest."""
        evicted, turned_away = self._evicted.due(now, last=last), self._turned_away.due(now, last=last)
        if evicted:
            self._emit(SilentEvicted(evicted, self._max_silent))
        if turned_away and self._per_address is not None:
            self._emit(TurnedAway(turned_away, self._per_address, source_of(self._last_host)))
