# mypy: disable-error-code="empty-body,misc,override"
"""Interfaces between a device protocol and its transport, beyond those of `twisted.internet.interfaces`."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.interfaces import ITransport
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface


class IDeviceTransport(ITransport):
    """A transport that also reports what its peer has not taken, and what was not read."""

    peer = Attribute("Address of the peer, for events and the log. str")
    host = Attribute("IP address of the device, for limits, or None if it is not known. str or None")
    tls_version = Attribute("Name of the TLS version, or an empty string without TLS. str")
    proxy_identity = Attribute("Common name of a client certificate that a trusted proxy has verified, or None. str or None")
    untaken = Attribute("Number of bytes that were written and that the peer's system has not acknowledged. int")
    unread = Attribute("Number of bytes that the peer sent and that were not read, TLS records included. int")

    def fileno() -> int:
        """Return the descriptor that `HangupWatch` may watch, or -1."""

    def getHandle() -> SSL.Connection | None:
        """Return the TLS connection, or `None` without TLS."""

    def registerProducer(producer: object, streaming: bool) -> None:
        """Pause and resume a producer, as `twisted.internet.interfaces.IConsumer` says."""

    def unregisterProducer() -> None:
        """Stop pausing and resuming the producer."""

    def pauseProducing() -> None:
        """Stop reading."""

    def resumeProducing() -> None:
        """Read again."""

    def drain() -> None:
        """Stop reading for good. What is written is still sent."""

    def idleOverdue() -> None:
        """Close the connection after the idle time-out."""

    def abortConnection(reason: Failure | None = None) -> None:
        """Close the connection at once. `reason` becomes that of `connectionLost`."""

    def lossReason(reason: Failure) -> Failure:
        """Return the reason given to `abortConnection`, or else the one that `connectionLost` was called with."""


class IHangupListener(Interface):
    """A protocol that may pause its transport, and that is told when the peer hangs up meanwhile.

    A transport treats a protocol that does not provide this as one that needs no data after the peer has hung up.
    """

    discarding = Attribute("True while the protocol discards all data. bool")
    awaiting_turn = Attribute("True while the protocol waits for its turn to be read. bool")

    def peerClosed() -> bool:
        """Resume reading, since the peer has closed or reset the connection. Return whether it is read now."""
