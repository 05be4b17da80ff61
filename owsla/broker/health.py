"""The state of all connections to the broker together, with one event for a fault that affects them all.

A user without the permission to publish can log in, and each of its connections ends with the first message. So a connection
that ends with such a refusal soon after all were ready is not *connected* again before it has lasted: otherwise the log would
have two lines for each attempt.

Some roles can be missing: devices are served without them. The connection of such a role does not count here, and there is a
warning if it cannot be made while all others are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..config.addresses import BrokerAddress
from ..events import BrokerBlocked, BrokerConnected, BrokerLost, BrokerUnavailable, BrokerUnblocked, BrokerWarning, Event
from ..interfaces import Clock, DelayedCall

LASTING: Final = 10.0
"""Seconds for which all connections must be ready after a refusal, before the broker counts as connected again. As long as the
longest back-off of a connection, twice.
"""

_NO_PERMISSION: Final = "ACCESS_REFUSED"
"""Begin of the reply text 403 of AMQP."""

_NONE: Final[Mapping[str, Callable[[], None]]] = MappingProxyType({})


class BrokerHealth:
    """Combined state of several connections. The loss of the broker is one event, not one per connection."""

    __slots__ = (
        "_announce_call",
        "_announced",
        "_blocked",
        "_clock",
        "_emit",
        "_missing",
        "_on_ready",
        "_optional",
        "_ready_since",
        "_refused",
        "_reported",
        "_roles",
        "_warned",
        "ready",
    )

    def __init__(
        self,
        clock: Clock,
        roles: Iterable[str],
        emit: Callable[[Event], None],
        on_ready: Callable[[], None],
        *,
        optional: Mapping[str, Callable[[], None]] = _NONE,
    ) -> None:
        """`on_ready()` is called each time the connections of all `roles` have become ready. Those of `optional` roles may be
        missing; the function of such a role is called after each attempt that failed while all others are ready.
        """
        self._clock = clock
        self._roles = frozenset(roles)
        self._missing = set(self._roles)
        self._optional = dict(optional)
        self._warned: set[str] = set()  # optional roles whose connection failed, until they are up
        self._emit = emit
        self._on_ready = on_ready
        self._reported: set[str] = set()
        self._blocked: set[str] = set()
        self._announced = False  # the last event of the two is `BrokerConnected`, not `BrokerLost`
        self._announce_call: DelayedCall | None = None
        self._refused = False  # the last loss was a refusal, soon after all connections were ready
        self._ready_since = 0.0
        self.ready = False
        """True while all connections are up and all queues are declared."""

    def up(self, role: str, address: BrokerAddress) -> None:
        if role in self._optional:
            self._warned.discard(role)
            return
        self._missing.discard(role)
        if not self._missing:
            self.ready = True
            self._ready_since = self._clock.seconds()
            if not self._refused:
                self._announce(address)
            elif self._announce_call is None:
                self._announce_call = self._clock.callLater(LASTING, self._announce, address)
            self._on_ready()

    def may_connect(self, role: str) -> bool:
        """Return whether to connect for a role now: for one that can be missing after all others."""
        return self.ready or role not in self._optional

    def _announce(self, address: BrokerAddress) -> None:
        self._announce_call = None
        self._announced = True
        self._refused = False
        self._reported.clear()
        self._emit(BrokerConnected(str(address)))

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        if role in self._optional:
            self._unblock(role)
            return
        was_ready, was_announced = self.ready, self._announced
        self._lose(role)
        if not was_ready:
            return
        soon = self._clock.seconds() - self._ready_since < LASTING
        self._refused = self._refused or (soon and reason.startswith(_NO_PERMISSION))
        if was_announced:
            self._emit(BrokerLost(str(address), reason))
            if self._refused:
                self._reported.add(f"{address}: {reason}")
        else:
            self._report(address, reason)

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        if role in self._optional:
            self._unblock(role)
            if self.ready:
                self._optional[role]()
                if role not in self._warned:
                    self._warned.add(role)
                    self._emit(BrokerWarning(f"no connection for the role {role}, trying again: {address}: {reason}"))
            return
        self._lose(role)
        self._report(address, reason)

    def _lose(self, role: str) -> None:
        self._missing.add(role)
        self.ready = self._announced = False
        if self._announce_call is not None:
            self._announce_call.cancel()
            self._announce_call = None
        self._unblock(role)

    def _report(self, address: BrokerAddress, reason: str) -> None:
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
