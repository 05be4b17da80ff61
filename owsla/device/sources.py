"""Source addresses of connections: who may connect, how many at a time, and how often. Pure.

A *source* is an IPv4 address, or a /64 network of IPv6 (`source_of`). Limits hold for each source. The deny list holds for an
address itself.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..runtime.leaky_buckets import LeakyBuckets
from .refused_hosts import RefusedHosts

BURST: Final = 5
"""Connections in a row of one source that are allowed at any rate, at least: some devices open two or three after a restart."""

REMEMBERED: Final = 20_000
"""Number of sources whose recent connections are remembered: 4 MB. A process accepts some thousands of connections a second at
most, so that these are the sources of several seconds, also when each connection has another one."""

DENIED_INTERVAL: Final = 60.0
"""Seconds between two reports of connections from denied addresses. An operator expects these, so they are no news."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """Limits for each source; `None` is no limit."""

    connections: int | None = None
    """Number of connections at a time (`--max-per-address`)."""
    connect_rate: float | None = None
    """New connections a second (`--max-connect-rate`)."""


def no_deny_list(host: str) -> bool:
    """Return `False`: without `--deny` no address is denied."""
    return False


class Sources:
    """The sources of the connections of a door, and the limits for each. A source without connections uses no memory.

    Connections are counted also while there is no limit, so that a new limit holds for those that are open.
    """

    __slots__ = ("_connections", "_denies", "_recent", "_seconds", "denied", "limits", "too_fast", "too_many")

    def __init__(
        self, limits: SourceLimits, seconds: Callable[[], float], denies: Callable[[str], bool] = no_deny_list
    ) -> None:
        """`seconds` is the clock of the reactor. `denies` returns whether the deny list has an address."""
        self.limits = limits
        self._seconds = seconds
        self._denies = denies
        self._connections: dict[str, int] = {}  # by source
        self._recent = _buckets(limits.connect_rate)
        self.too_many = RefusedHosts(seconds)
        """Connections closed at once, since their source had too many (`--max-per-address`)."""
        self.too_fast = RefusedHosts(seconds)
        """Connections closed at once, since their source opened too many in a short time (`--max-connect-rate`)."""
        self.denied = RefusedHosts(seconds, DENIED_INTERVAL)
        """Connections closed at once, since their address is denied (`--deny`)."""

    def configure(self, limits: SourceLimits) -> None:
        """Change the limits. With more connections from a source than they allow, all stay."""
        if limits.connect_rate != self.limits.connect_rate:
            self._recent = _buckets(limits.connect_rate)
        self.limits = limits

    def enter(self, host: str) -> bool:
        """Count a connection from an address and return `True`. Return `False` if it is to be closed at once."""
        if self._denies(host):
            return self.denied.refuse(host)
        source = host if ":" not in host else source_of(host)
        connections, limit = self._connections.get(source, 0), self.limits.connections
        if limit is not None and connections >= limit:
            return self.too_many.refuse(host)
        if self._recent is not None:
            now = self._seconds()
            if self._recent.full(source, now):
                return self.too_fast.refuse(host)
            self._recent.add(source, now)
        self._connections[source] = connections + 1
        return True

    def leave(self, host: str) -> None:
        """Remove a connection that `enter` had counted."""
        source = host if ":" not in host else source_of(host)
        count = self._connections.get(source, 0) - 1
        if count > 0:
            self._connections[source] = count
        else:
            self._connections.pop(source, None)

    def __len__(self) -> int:
        """Return the number of sources with connections."""
        return len(self._connections)


def _buckets(rate: float | None) -> LeakyBuckets[str] | None:
    return None if rate is None else LeakyBuckets(max(BURST, math.ceil(rate)), 1.0 / rate, REMEMBERED)


def source_of(host: str) -> str:
    """Return the source that an address belongs to: an IPv4 address, or a /64 network of IPv6. What is no address is its own.

    A single subscriber of IPv6 has at least a /64 (RFC 6177) and can use any address in it. Link-local addresses share one /64,
    so there the source is the address itself.
    """
    if ":" not in host:
        return host
    host = host.partition("%")[0]  # without the interface
    try:
        packed = socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return host
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return host
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Prefix of IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2)."""
