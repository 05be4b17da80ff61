"""Source addresses of connections, and the limit for each. Pure."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from typing import Final


class Sources:
    """Numbers of connections per source address, with a limit. Addresses without connections use no memory."""

    __slots__ = ("_connections", "limit")

    def __init__(self, limit: int, hosts: Iterable[str] = ()) -> None:
        """`hosts` has the address of each connection that is open already. They may be more than the limit allows."""
        self.limit = limit
        """Limit on connections from one address."""
        self._connections: dict[str, int] = Counter(map(source_of, hosts))

    def configure(self, limit: int) -> None:
        """Change the limit. With more connections from an address than it allows, all stay."""
        self.limit = limit

    def enter(self, host: str) -> bool:
        """Count a connection from an address and return `True`, or return `False` at the limit."""
        source = source_of(host)
        count = self._connections.get(source, 0)
        if count >= self.limit:
            return False
        self._connections[source] = count + 1
        return True

    def leave(self, host: str) -> None:
        """Remove a connection that `enter` had counted."""
        source = source_of(host)
        count = self._connections.get(source, 0) - 1
        if count > 0:
            self._connections[source] = count
        else:
            self._connections.pop(source, None)

    def __len__(self) -> int:
        """Return the number of addresses with connections."""
        return len(self._connections)


def source_of(host: str) -> str:
    """Return the source that an address belongs to: an IPv4 address, or a /64 network of IPv6.

    A single subscriber of IPv6 has at least a /64 (RFC 6177) and can use any address in it. Link-local addresses share one /64,
    so there the source is the address itself.
    """
    if ":" not in host:
        return host
    host = host.partition("%")[0]  # without the interface
    packed = socket.inet_pton(socket.AF_INET6, host)
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return host
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Prefix of IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2)."""
