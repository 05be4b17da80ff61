"""The target of a trace, and the events that concern it. Pure."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias

from ..events import KINDS, Event, Listening, NodeStarted
from ..routing import canonical

IPAddress: TypeAlias = IPv4Address | IPv6Address

_IDS: Final = ("connection_id", "device_id", "claimed_id", "by")
_PEERS: Final = ("peer", "peers", "address")
_NAMES: Final = frozenset((*_IDS, *_PEERS)) - {"by"}  # mostly an operator; of `device-replaced` a connection
_OF_NODES: Final = (Listening, NodeStarted)  # their address is that of a port

EVENTS_OF_DEVICES: Final = tuple(
    kind for kind in KINDS.values() if kind not in _OF_NODES and _NAMES & {field.name for field in fields(kind)}
)
"""Kinds of events that may concern a single device or address."""


class TraceTarget:
    """A connection, a device or an address, as an operator has named it. A text may be any of them."""

    def __init__(self, text: str) -> None:
        self.text = text
        connection_id = canonical(text.encode("utf-8", "replace"))
        self.connection_id = connection_id
        """The text as the id of a connection, or `None`."""
        self.address = _address(text)
        """The text as an address without a port, or `None`."""
        self._peer = _peer_of(text, self.address)

    @property
    def is_address(self) -> bool:
        """True if the text may be an address, with a port or without: then all connections have to be looked at."""
        return self._peer is not None

    def is_peer(self, peer: str) -> bool:
        """Return whether the target is this address. `peer` has a port, as in events: `host:port` or `[host]:port`."""
        if self._peer is None:
            return False
        return peer.startswith(self._peer) if self.address is not None else peer == self._peer

    def is_connection(self, connection_id: str | None, device_id: str | None, peer: str | None) -> bool:
        """Return whether the target is a connection, by one of its names."""
        if device_id is not None and device_id == self.text:
            return True
        if connection_id is not None and self._is_connection_id(connection_id):
            return True
        return peer is not None and self.is_peer(peer)

    def concerns(self, event: Event) -> bool:
        """Return whether an event is about the target, by a name in the event."""
        if any(self._is_id(getattr(event, name, None)) for name in _IDS):
            return True
        if self.is_address:
            peers = getattr(event, "peers", ())
            if any(self.is_peer(peer) for peer in (getattr(event, "peer", ""), *peers)):
                return True
            return self._is_refused(getattr(event, "address", ""))
        return False

    def _is_id(self, name: str | None) -> bool:
        return name is not None and (name == self.text or self._is_connection_id(name))

    def _is_connection_id(self, name: str) -> bool:
        return self.connection_id is not None and name == self.connection_id.decode()

    def _is_refused(self, address: str) -> bool:
        """Return whether an address without a port is the target: connections from there were refused."""
        if self.address is None:
            return False
        if "/" not in address:
            return _address(address) == self.address
        try:
            return self.address in ip_network(address)
        except ValueError:
            return False


def _address(text: str) -> IPAddress | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _peer_of(text: str, address: IPAddress | None) -> str | None:
    """Return the beginning of the peer of connections from an address, or the whole peer if the text has a port."""
    if address is not None:
        return f"[{address}]:" if address.version == 6 else f"{address}:"
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        return None
    of_host = _address(host.removeprefix("[").removesuffix("]"))
    return None if of_host is None else f"{_peer_of(host, of_host)}{port}"
