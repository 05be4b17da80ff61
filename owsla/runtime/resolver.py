"""Host name resolution that cannot hold up the end of the process.

Twisted resolves names in the reactor's thread pool, and joins the threads of that pool when the reactor stops. getaddrinfo(3)
cannot be interrupted: a name server that does not answer holds a lookup, and so the stopped process, for up to a minute
(resolv.conf(5): `timeout` times `attempts` times name servers). This resolver uses a daemon thread for each lookup, which ends
with the process. Lookups are rare, one for each attempt to connect to a broker, so there is no pool of threads.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from threading import Thread
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from zope.interface import implementer

_FAMILIES: Final = {IPv4Address: socket.AF_INET, IPv6Address: socket.AF_INET6}
_ADDRESSES: Final = {family: kind for kind, family in _FAMILIES.items()}
_SOCKET_TYPES: Final = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@implementer(IHostResolution)
class _Resolution:
    """A lookup in progress."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Do nothing: getaddrinfo(3) cannot be cancelled, and its answer is ignored (as in Twisted's own resolver)."""


@implementer(IHostnameResolver)
class Resolver:
    """Name resolver with getaddrinfo(3) in a daemon thread for each lookup."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[Any] | None = None,
        transportSemantics: str = "TCP",
    ) -> _Resolution:
        """Look up a host name, and pass its addresses to the receiver in the reactor's thread (`IHostnameResolver`)."""
        families = {_FAMILIES[kind] for kind in addressTypes or _FAMILIES}
        family = families.pop() if len(families) == 1 else socket.AF_UNSPEC
        kind = _SOCKET_TYPES[transportSemantics]

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(hostName, portNumber, family, kind)
            except (OSError, UnicodeError):  # UnicodeError: a label that is empty or longer than 63 bytes
                found = []
            self._reactor.callFromThread(deliver, found)

        def deliver(found: Sequence[tuple[int, int, int, str, tuple[Any, ...]]]) -> None:
            for family, _, _, _, address in found:
                if family in _ADDRESSES:
                    resolutionReceiver.addressResolved(_ADDRESSES[socket.AddressFamily(family)](transportSemantics, *address))
            resolutionReceiver.resolutionComplete()

        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        Thread(target=look_up, name=f"resolve {hostName}", daemon=True).start()
        return resolution


def resolve_in_daemon_threads(reactor: Any) -> None:
    """Install a `Resolver` on a reactor."""
    reactor.installNameResolver(Resolver(reactor))
