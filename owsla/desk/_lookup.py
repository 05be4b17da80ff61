"""Connections by what an operator knows of a device: a connection id, a device id, or an address."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred, succeed

from ..device.connections import Connection
from ..device.identified import IdentifiedDevices
from ..routing import Registry, canonical
from ._slices import CHUNK, Slices

MATCHES: Final = 100
"""Maximum number of connections that are shown for one id."""


class Matches(NamedTuple):
    """Open connections that an id stands for, the newest first."""

    connections: list[Connection]
    total: int
    """Number of all matches, of which `connections` may be a part."""


class PeerAddress(NamedTuple):
    """An IP address, with a port or without one."""

    host: str
    port: str | None

    def has(self, peer: str) -> bool:
        """Return whether a peer, as in events, is at this address."""
        host, _, port = peer.rpartition(":")
        return host.strip("[]") == self.host and self.port in (None, port)


class Lookup:
    """Finds open connections of a node: by connection id, or else by device id, or else by the address of the peer."""

    def __init__(self, registry: Registry[Connection], devices: IdentifiedDevices, slices: Slices) -> None:
        self._registry = registry
        self._devices = devices
        self._slices = slices

    def find(self, text: str, limit: int = MATCHES) -> Deferred[Matches]:
        """Find at most `limit` connections."""
        connection_id = canonical(text.encode("utf-8", "replace"))
        connection = None if connection_id is None else self._registry.find(connection_id)
        if connection is not None:
            return succeed(Matches([connection], 1))
        of_device = [each for each in reversed(self._devices.connections_of(text)) if each.transport is not None]
        if of_device:
            return succeed(Matches(of_device[:limit], len(of_device)))
        address = read_address(text)
        if address is None:
            return succeed(Matches([], 0))
        return self._by_address(address, limit)

    def _by_address(self, address: PeerAddress, limit: int) -> Deferred[Matches]:
        newest: list[Connection] = []
        total = 0

        def steps() -> Iterator[None]:
            nonlocal total
            for connections in self._registry.walk(CHUNK):
                for connection in connections:
                    if address.has(connection.transport.peer):
                        total += 1
                        newest.append(connection)
                del newest[: -limit or None]
                yield

        return self._slices.run(steps()).addCallback(
            lambda _: Matches([each for each in reversed(newest) if each.transport is not None], total)
        )


def read_address(text: str) -> PeerAddress | None:
    """Return the address in a text such as `192.0.2.1`, `192.0.2.1:4711` or `[2001:db8::1]:4711`; `None` if it is none."""
    host, port = text, None
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or None
        if rest and not rest.startswith(":"):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port is not None and not (port.isascii() and port.isdigit()):
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return PeerAddress(str(mapped or address), port)
