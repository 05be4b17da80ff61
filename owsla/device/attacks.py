"""Reports of connections that an attack brings by the thousand: events with a number, instead of an event for each.

Such an event has one address. The others are remembered for a while (`refused_addresses`), as an event for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..events import AddressDenied, ConnectRateExceeded, Event, ProxyUntrusted, SilentEvicted, TurnedAway
from ..interfaces import FIRST_DOOR
from .proxy_senders import ProxySenders
from .refused_hosts import RefusedHosts
from .sources import Sources, source_of


class RefusedAddress(NamedTuple):
    """Connections from one address that were closed for one reason."""

    event: Event
    """The event that would report them alone."""
    connections: int
    first: float
    """Time of the first one, by the clock of the reactor."""
    last: float
    """Time of the last one."""


class AttackReports:
    """A counter of evicted silent connections, and events about these and about connections that `Sources` or `ProxySenders`
    refused.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        seconds: Callable[[], float],
        sources: Sources,
        senders: ProxySenders | None = None,
        door: str = FIRST_DOOR,
    ) -> None:
        """`seconds` is the clock of the reactor. `door` is the name of the door for events."""
        self._emit = emit
        self._sources = sources
        self._senders = senders
        self._door = door
        self._evicted = RefusedHosts(seconds)
        self._silent_limit = 0

    @property
    def evicted(self) -> int:
        """Number of silent connections that were closed so far, to make room."""
        return self._evicted.count

    def silent_evicted(self, limit: int, host: str | None) -> None:
        """Count a silent connection that is closed to make room within a limit. `host` is the address of its device, if that is
        known.
        """
        self._evicted.refuse(host or "")
        self._silent_limit = limit

    def report(self, now: float, *, last: bool = False) -> None:
        """Emit the events that are due. With `last` emit the rest."""
        for refused, event_of, of_source in self._kinds():
            count = refused.due(now, last=last)
            if count:
                self._emit(event_of(count, source_of(refused.last) if of_source else _shown(refused.last)))

    def refused_addresses(self) -> Iterator[RefusedAddress]:
        """Yield the last addresses for each reason, the last one first. Connections of unknown addresses are left out."""
        for refused, event_of, _ in self._kinds():
            for host, count, first, last in refused.hosts():
                if host:
                    yield RefusedAddress(event_of(count, _shown(host)), count, first, last)

    def _kinds(self) -> Iterator[tuple[RefusedHosts, Callable[[int, str], Event], bool]]:
        """Yield each counter, the function that makes an event of a number and an address, and whether that is of a source."""
        sources, senders, door = self._sources, self._senders, self._door
        connections, rate, silent = sources.limits.connections, sources.limits.connect_rate, self._silent_limit
        yield self._evicted, lambda count, address: SilentEvicted(count, silent, door, address), False
        if connections is not None:
            yield sources.too_many, lambda count, address: TurnedAway(count, connections, address, door), True
        if rate is not None:
            yield sources.too_fast, lambda count, address: ConnectRateExceeded(count, rate, address, door), True
        yield sources.denied, lambda count, address: AddressDenied(count, address, door), False
        if senders is not None:
            yield senders.untrusted, lambda count, address: ProxyUntrusted(count, address, door), False


def _shown(host: str) -> str:
    """Return an address as events show it: an IPv4 address in IPv6 form as IPv4."""
    return host.removeprefix("::ffff:")
