"""Writing to the broker's socket at once, and by the reactor only what the socket does not take.

A Twisted transport waits for the reactor to call a socket writable, which costs another turn of it and two epoll_ctl(2) each
time: more than putting a line's frames together.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IPullProducer, ISystemHandle
from zope.interface import implementer


class Writable(Protocol):
    """Takes bytes."""

    def write(self, data: bytes) -> object: ...


def outlet(transport: Any) -> Writable:
    """What is best written to of a connected transport: its socket, where it has one of its own and no TLS before it."""
    handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
    return Outlet(transport, handle) if isinstance(handle, socket.socket) else transport


class Nowhere:
    """Stands where there is no connection, or one that was aborted."""

    def write(self, data: bytes) -> None:
        """Drop it."""


@implementer(IPullProducer)
class Outlet:
    """The socket of a TCP transport, written to in order with what the transport still has."""

    __slots__ = ("_behind", "_socket", "_transport")

    def __init__(self, transport: Any, sock: socket.socket) -> None:
        self._transport = transport
        self._socket = sock
        self._behind = False

    def write(self, data: bytes) -> None:
        """Send; what the socket does not take, or that it is broken, is the transport's to deal with."""
        sent = 0
        if not self._behind:
            try:
                sent = self._socket.send(data)
            except OSError:
                pass
            if sent == len(data):
                return
            data = data[sent:]
        self._transport.write(data)
        if not self._behind:
            self._transport.registerProducer(self, streaming=False)
            self._behind = True

    def resumeProducing(self) -> None:
        """The transport has written all it had; it also says so when it is told of this producer."""
        if self._behind:
            self._behind = False
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The connection is gone."""
