"""Connections of HTTP clients: how many there may be, and for how long."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from ..interfaces import Clock

REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a request, from its first byte to the answer. A parent waits 2 s for a worker."""

UNACKNOWLEDGED: Final = 30.0
"""Seconds after which the kernel closes the connection of a stream whose client has gone without a word."""


class LimitedConnection(ProtocolWrapper):
    """A connection with a time limit on requests."""

    def __init__(self, factory: LimitedFactory, wrapped: Any) -> None:
        super().__init__(cast(Any, factory), wrapped)
        self._clock = factory.clock
        self._began: float | None = None
        self.since = self._clock.seconds()
        """Time of the last answer, or of the accept."""
        self.streaming = False
        """True while the connection has an answer without end. It is not closed for another one."""
        self.ended = False
        self.lost: Deferred[None] = Deferred()
        """Fires when the connection is lost."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            super().connectionLost(reason)
        finally:
            self.lost.callback(None)  # a stop waits for it

    def dataReceived(self, data: bytes) -> None:
        if self._began is None and not self.streaming:
            self._began = self._clock.seconds()
        super().dataReceived(data)

    def write(self, data: bytes) -> None:
        self._answered()
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._answered()
        super().writeSequence(data)

    def _answered(self) -> None:
        self._began = None
        self.since = self._clock.seconds()

    def extend(self) -> None:
        """Give the present request more time: its answer takes as long as the action that it requests."""
        self._began = None

    def stream(self) -> None:
        """Note that the answer to the present request has no end."""
        self.streaming = True
        self._began = None
        handle: socket.socket | None = getattr(self.transport, "socket", None)
        if handle is not None and handle.family != socket.AF_UNIX:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED * 1000))

    def end_stream(self) -> None:
        """Note that the answer without end is over: the connection has the limits of the others again."""
        self.streaming = False

    @property
    def overdue(self) -> bool:
        """True if a request is incomplete after the time limit. A client that sends a header every few seconds cannot keep a
        connection."""
        return self._began is not None and self._clock.seconds() - self._began >= REQUEST_TIMEOUT

    def end(self) -> None:
        """Abort the connection."""
        self.ended = True
        transport: Any = self.transport
        transport.abortConnection()


class LimitedFactory(WrappingFactory):
    """Factory with a limit on connections. At the limit, the connection with the oldest answer is closed for a new one."""

    noisy = False
    protocol = LimitedConnection

    def __init__(self, clock: Clock, site: Any, limit: int) -> None:
        """`limit` must be more than the streams that there may be."""
        super().__init__(site)
        self.clock = clock
        self._limit = limit

    def logPrefix(self) -> str:
        return "HTTP"

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper:
        connections = self.connections()
        if len(connections) >= self._limit:
            ordinary = [connection for connection in connections if not connection.streaming]
            min(ordinary or connections, key=lambda connection: connection.since).end()
        return super().buildProtocol(addr)

    def end_overdue(self) -> None:
        """Close the connections with overdue requests."""
        for connection in self.connections():
            if connection.overdue:
                connection.end()

    def connections(self) -> list[LimitedConnection]:
        """Return the connections that were not aborted: Twisted reports the loss of those in a later turn of the reactor."""
        return [connection for connection in cast(Iterable[LimitedConnection], self.protocols) if not connection.ended]
