"""Reports of connections that an attack brings by the thousand: events with a number, instead of an event for each."""

from __future__ import annotations

from collections.abc import Callable

from ..events import AddressDenied, ConnectRateExceeded, Event, ProxyUntrusted, SilentEvicted, TurnedAway
from ..interfaces import FIRST_DOOR
from .admission import Tally
from .proxy_senders import ProxySenders
from .sources import Sources, source_of


class AttackReports:
    """A counter of evicted silent connections, and events about these and about connections that `Sources` or `ProxySenders`
    refused.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        sources: Sources,
        senders: ProxySenders | None = None,
        door: str = FIRST_DOOR,
    ) -> None:
        """`door` is the name of the door for events."""
        self._emit = emit
        self._sources = sources
        self._senders = senders
        self._door = door
        self._evicted = Tally()
        self._silent_limit = 0

    @property
    def evicted(self) -> int:
        """Number of silent connections that were closed so far, to make room."""
        return self._evicted.count

    def silent_evicted(self, limit: int) -> None:
        """Count a silent connection that is closed to make room within a limit."""
        self._evicted.add()
        self._silent_limit = limit

    def report(self, now: float, *, last: bool = False) -> None:
        """Emit the events that are due. With `last` emit the rest."""
        sources, limits = self._sources, self._sources.limits
        evicted = self._evicted.due(now, last=last)
        if evicted:
            self._emit(SilentEvicted(evicted, self._silent_limit, self._door))
        too_many = sources.too_many.due(now, last=last)
        if too_many and limits.connections is not None:
            self._emit(TurnedAway(too_many, limits.connections, source_of(sources.too_many.last), self._door))
        too_fast = sources.too_fast.due(now, last=last)
        if too_fast and limits.connect_rate is not None:
            self._emit(ConnectRateExceeded(too_fast, limits.connect_rate, source_of(sources.too_fast.last), self._door))
        denied = sources.denied.due(now, last=last)
        if denied:
            self._emit(AddressDenied(denied, sources.denied.last.removeprefix("::ffff:"), self._door))
        if self._senders is not None:
            untrusted = self._senders.untrusted.due(now, last=last)
            if untrusted:
                self._emit(ProxyUntrusted(untrusted, self._senders.untrusted.last, self._door))
