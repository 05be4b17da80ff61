"""The connections to the broker as a whole: whether all are up, and one event for what hits them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..config.addresses import BrokerAddress
from ..events import BrokerBlocked, BrokerConnected, BrokerLost, BrokerUnavailable, BrokerUnblocked, Event


class BrokerHealth:
    """Sums up what happens to several connections. A broker that goes away is one loss, not one for each connection to it."""

    __slots__ = ("_blocked", "_emit", "_missing", "_on_ready", "_roles", "_said", "ready")

    def __init__(self, roles: Iterable[str], emit: Callable[[Event], None], on_ready: Callable[[], None]) -> None:
        """`on_ready` is called each time that all connections are up."""
        self._roles = frozenset(roles)
        self._missing = set(self._roles)
        self._emit = emit
        self._on_ready = on_ready
        self._said: set[str] = set()
        self._blocked: set[str] = set()
        self.ready = False
        """Whether all connections are up and everything is declared."""

    def up(self, role: str, address: BrokerAddress) -> None:
        self._missing.discard(role)
        if not self._missing:
            self.ready = True
            self._said.clear()
            self._emit(BrokerConnected(str(address)))
            self._on_ready()

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        was_ready, self.ready = self.ready, False
        self._missing.add(role)
        self._unblock(role)
        if was_ready:
            self._emit(BrokerLost(str(address), reason))

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._missing.add(role)
        self.ready = False
        self._unblock(role)
        said = f"{address}: {reason}"
        if said not in self._said:
            self._said.add(said)
            self._emit(BrokerUnavailable(str(address), reason))

    def blocked(self, role: str, reason: str) -> None:
        if not self._blocked:
            self._emit(BrokerBlocked(reason))
        self._blocked.add(role)

    def unblocked(self, role: str) -> None:
        self._unblock(role)

    def _unblock(self, role: str) -> None:
        if role in self._blocked:
            self._blocked.remove(role)
            if not self._blocked:
                self._emit(BrokerUnblocked())
