"""Plain transport on a socket: TCP without TLS, or a unix socket."""

from __future__ import annotations

import socket
from typing import Any, ClassVar, Protocol

from twisted.internet.interfaces import ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import Reactor
from .proxy_header import LONGEST
from .socket_transport import CLOSING, OPEN, RECORD, Failures, Owner, SocketTransport, failure_of


class TCPOwner(Owner, Protocol):
    """The port of plain connections."""

    def refusal(self, first: bytes) -> str | None:
        """Return the reason for which a connection with these first bytes is refused, or `None` if it is not."""

    def connectionOpened(self, transport: TCPTransport) -> None:
        """Connect a protocol (`connectProtocol`), or close the connection."""


@implementer(ITCPTransport)
class TCPTransport(SocketTransport):
    """Server side of one plain connection.

    A connection is open when its first bytes have arrived, or when its owner calls `open`. Until then it is silent: the check
    of a load balancer, which connects and closes, is no device.
    """

    __slots__ = ()

    _BLOCKED: ClassVar = (BlockingIOError,)
    _ERRORS: ClassVar = (OSError,)
    _FIRST: ClassVar = LONGEST

    _owner: TCPOwner

    def __init__(
        self, reactor: Reactor, sock: socket.socket, address: tuple[Any, ...] | str, owner: TCPOwner, proxied: bool = False
    ) -> None:
        super().__init__(reactor, sock, address, owner, proxied)
        self._stream = sock

    # -- IReadWriteDescriptor, for the reactor -------------------------------------------------------------------------

    def doRead(self) -> None:
        try:
            state = self._state
            if state == OPEN or (state == CLOSING and self._protocol is not None):
                try:
                    data = self._stream.recv(RECORD)
                except BlockingIOError:
                    return
                except OSError as error:
                    self._ended(failure_of(error))
                    return
                if data:
                    self._protocol.dataReceived(data)
                else:
                    self._ended(Failures.DONE)
            elif state == CLOSING:
                self._drain()
            elif state < OPEN:
                self._begin()
        except Exception:
            # An error of our own, or of a dialect, closes this connection only; its end reports the reason.
            self.abortConnection(Failure())

    # -- the beginning -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the connection, which was silent for as long as a health check might be."""
        try:
            self._open()
        except Exception:
            # The caller serves all connections. As in `doRead`, an exception closes this connection only.
            self.abortConnection(Failure())

    def _open(self) -> None:
        if self._state < OPEN:
            self._take("opened")
            self._owner.connectionOpened(self)

    def openSilent(self) -> bool:
        if self.awaits_header or self.local:
            return False
        self.open()
        return True

    def _enough(self, first: bytes) -> bool:
        return True

    def _begin_with(self, first: bytes) -> None:
        reason = self._owner.refusal(first)
        if reason is not None:
            self._refuse(reason, len(first))
            return
        self._open()
        if self._state == OPEN and self._reading:
            self.doRead()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _broken(self, error: Exception) -> None:
        """Close a connection whose write failed. What the peer has sent before is still read, as after any close."""
        if self._reason is None:
            self._reason = failure_of(error)
        self._take("close")

    def _ended(self, reason: Failure) -> None:
        """Close the connection, since the peer has closed its side, or reset the connection."""
        if self._reason is None:
            self._reason = reason
        self._take("ended")
