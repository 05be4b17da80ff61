"""Immediate writes to the socket of the broker, without an iteration of the reactor.

A Twisted transport writes when the reactor reports the socket as writable. That costs another iteration and two epoll_ctl(2)
calls per write: more than encoding the frames of a line. The transport is used only for data that the socket does not accept.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IPullProducer, ISystemHandle
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer


class Writable(Protocol):
    """An object to write bytes to."""

    def write(self, data: bytes) -> object: ...


def socket_writer(transport: Any) -> Writable:
    """Return a writer for the socket of a plain TCP transport, or else the transport itself (TLS)."""
    handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
    return SocketWriter(transport, handle) if isinstance(handle, socket.socket) else transport


def descriptor(transport: Any) -> int | None:
    """Return the descriptor of the socket under a TCP or TLS transport; `None` if there is no socket."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
    return handle.fileno() if isinstance(handle, socket.socket) else None


class NullWriter:
    """Writer for a missing or aborted connection."""

    def write(self, data: bytes) -> None:
        """Discard the data."""


@implementer(IPullProducer)
class SocketWriter:
    """Writer for the socket of a TCP transport. It keeps the order with data that the transport still buffers."""

    __slots__ = ("_buffering", "_socket", "_transport")

    def __init__(self, transport: Any, sock: socket.socket) -> None:
        self._transport = transport
        self._socket = sock
        self._buffering = False

    def write(self, data: bytes) -> None:
        """Send data. Data that the socket does not accept goes to the transport, which also handles errors."""
        sent = 0
        if not self._buffering:
            try:
                sent = self._socket.send(data)
            except OSError:
                pass
            if sent == len(data):
                return
            data = data[sent:]
        self._transport.write(data)
        if not self._buffering:
            self._transport.registerProducer(self, streaming=False)
            self._buffering = True

    def resumeProducing(self) -> None:
        """Write to the socket again: the transport has written its buffer. Twisted also calls this when the producer is
        registered."""
        if self._buffering:
            self._buffering = False
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """Do nothing: the transport discards writes after the connection is lost."""
