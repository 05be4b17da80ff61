"""The state of all connections to the broker together, with one event for a fault that affects them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..config.addresses import BrokerAddress
from ..events import BrokerBlocked, BrokerConnected, BrokerLost, BrokerUnavailable, BrokerUnblocked, Event


class BrokerHealth:
    """Combined state of several connections. The loss of the broker is one event, not one per connection."""

    __slots__ = ("_blocked", "_emit", "_missing", "_on_ready", "_reported", "_roles", "ready")

    def __init__(self, roles: Iterable[str], emit: Callable[[Event], None], on_ready: Callable[[], None]) -> None:
        """`on_ready()` is called each time all connections have become ready."""
        self._roles = frozenset(roles)
        self._missing = set(self._roles)
        self._emit = emit
        self._on_ready = on_ready
        self._reported: set[str] = set()
        self._blocked: set[str] = set()
        self.ready = False
        """True while all connections are up and all queues are declared."""

    def up(self, role: str, address: BrokerAddress) -> None:
        self._missing.discard(role)
        if not self._missing:
            self.ready = True
            self._reported.clear()
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
        fault = f"{address}: {reason}"
        if fault not in self._reported:
            self._reported.add(fault)
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
