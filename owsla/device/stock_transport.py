"""Adapter for transports that are not our own, such as those of `serverFromString` and of `twisted.internet.testing`."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from .interfaces import IDeviceTransport


def address_text(host: str, port: int) -> str:
    """Return an address for events and the log. An IPv4 address in IPv6 form is shown as IPv4."""
    host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@implementer(IDeviceTransport)
class StockTransport:
    """Provides `IDeviceTransport` over any Twisted transport.

    Such a transport does not report the state of its socket. So a slow device is closed after the write time-out even if it
    takes a little, unread bytes are not counted, and a hang-up of a peer whose reading is paused is noticed only when reading
    resumes.
    """

    proxy_identity = None
    untaken = 0
    unread = 0

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._reason: Failure | None = None
        directlyProvides(self, providedBy(transport))
        self.write = transport.write
        self.registerProducer = transport.registerProducer
        self.unregisterProducer = transport.unregisterProducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def peer(self) -> str:
        """Address of the peer."""
        address = self._transport.getPeer()
        host = getattr(address, "host", None)
        return address_text(host, address.port) if host is not None else str(address)

    @property
    def host(self) -> str | None:
        """IP address of the peer, or `None` on a unix socket."""
        host: str | None = getattr(self._transport.getPeer(), "host", None)
        return host

    @property
    def tls_version(self) -> str:
        """Name of the TLS version, or an empty string without TLS."""
        connection = self.getHandle()
        return "" if connection is None else connection.get_protocol_version_name()

    def fileno(self) -> int:
        """Return -1: the socket belongs to its transport, and is not watched for hang-ups."""
        return -1

    def getHandle(self) -> SSL.Connection | None:
        """Return the TLS connection, or `None` without TLS."""
        return self._transport.getHandle() if ISSLTransport.providedBy(self._transport) else None

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._transport.resumeProducing()

    drain = pauseProducing

    def loseConnection(self) -> None:
        """Close the connection after what was written."""
        self._transport.loseConnection()

    idleOverdue = loseConnection

    def abortConnection(self, reason: Failure | None = None) -> None:
        """Close the connection at once."""
        self._reason = self._reason or reason
        self._transport.abortConnection()

    def lossReason(self, reason: Failure) -> Failure:
        """Return the reason given to `abortConnection`, or else `reason`."""
        return self._reason or reason
