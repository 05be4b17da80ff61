"""Peers that are trusted to send a PROXY protocol header. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final, Literal, TypeAlias

from .refused_hosts import RefusedHosts

Sender: TypeAlias = IPv4Network | IPv6Network | Literal["unix"]
"""The peers of a network, or all of a unix socket."""

UNTRUSTED_INTERVAL: Final = 60.0
"""Seconds between two reports of connections from other peers."""


class ProxySenders:
    """Decision which connections may begin with a PROXY protocol header.

    A peer that may send one can claim any address, and with `--proxy-identity` be any device. So all others are closed at once.
    """

    __slots__ = ("_networks", "_unix", "untrusted")

    def __init__(self, senders: Iterable[Sender], seconds: Callable[[], float]) -> None:
        """`seconds` is the clock of the reactor."""
        self.untrusted = RefusedHosts(seconds, UNTRUSTED_INTERVAL)
        """Connections closed at once, since their peer is not trusted (`--proxy-protocol`)."""
        self.configure(senders)

    def configure(self, senders: Iterable[Sender]) -> None:
        """Trust other peers from now on."""
        senders = tuple(senders)
        self._unix = "unix" in senders
        self._networks = [sender for sender in senders if not isinstance(sender, str)]

    def trusts(self, host: str | None) -> bool:
        """Return whether a peer is trusted: one with this IP address, or with `None` one of a unix socket.

        Count it if it is not.
        """
        if host is None:
            return self._unix or self.untrusted.refuse("a unix socket")
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped: IPv4Address | None = getattr(address, "ipv4_mapped", None)
        address = mapped if mapped is not None else address
        return any(address in network for network in self._networks) or self.untrusted.refuse(str(address))
