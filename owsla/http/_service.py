"""The HTTP server: one more port, for the operator."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from ..errors import ConfigError, os_reason
from ..interfaces import Clock
from ..runtime.sockets import claim as bind
from ..supervision import Worker
from ._histogram import Histogram
from ._pages import QuietSite, site
from ._sources import Source

CONNECTIONS: Final = 64
"""At most: one Prometheus, a load balancer's checks and some people need a handful; each is a file that a device could have."""

REQUEST: Final = 10.0
"""Seconds for a request, from its first byte to its answer. A parent waits 2 s for a worker."""

BEAT: Final = 1.0
"""Seconds between two looks at how late the reactor is."""


def claim(port: int, address: str = "127.0.0.1") -> socket.socket:
    """A socket that listens for HTTP. An empty address is all, IPv4 and IPv6. `ConfigError` says why it cannot be."""
    sock = bind(port, address, "--http")
    try:
        # Bound is not taken: that it can be listened on is to be known at the start, too.
        sock.listen(CONNECTIONS)
    except OSError as error:
        sock.close()
        raise ConfigError(f"--http: port {port} cannot be opened: {os_reason(error)}") from None
    return sock


class Beat(Worker):
    """Looks once a second how late the reactor is."""

    def __init__(self, reactor: Any, lateness: Histogram) -> None:
        super().__init__(reactor)
        self.setName("beat")
        self._reactor = reactor
        self._lateness = lateness
        self._due = 0.0

    def startService(self) -> None:
        super().startService()
        self._beat_later()

    def _beat_later(self) -> None:
        self._due = self._reactor.seconds() + BEAT
        self.later(BEAT, self._beat)

    def _beat(self) -> None:
        self._lateness.observe(self._reactor.seconds() - self._due)
        self._beat_later()


class HttpService(Beat):
    """Serves the pages on a socket that listens. The socket outlives it, so that it can be started again."""

    _log = Logger(namespace="owsla")

    def __init__(self, reactor: Any, sock: socket.socket, source: Source) -> None:
        super().__init__(reactor, source.lateness)
        self.setName("http")
        self._socket = sock
        local = _is_loopback(sock.getsockname()[0])
        names = {socket.gethostname()} if local else None
        self._connections = _Limited(reactor, site(source, reactor, names))
        self._port: Any = None

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where to look, from this machine."""
        address = self._socket.getsockname()[0]
        if address in ("0.0.0.0", "::"):
            address = "127.0.0.1"
        return f"http://[{address}]:{self.port}/" if ":" in address else f"http://{address}:{self.port}/"

    def startService(self) -> None:
        super().startService()
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), self._socket.family, self._connections)
        self._log.info("Metrics and health on {url}", url=self.url)

    def _beat(self) -> None:
        super()._beat()
        self._connections.end_overdue()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        port, self._port = self._port, None
        for connection in list(self._connections.protocols):
            connection.transport.abortConnection()
        stopped: Deferred[None] = maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)
        return stopped


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


class _Connection(ProtocolWrapper):
    """A connection that knows how long it has owed a whole request."""

    def __init__(self, factory: _Limited, wrapped: Any) -> None:
        super().__init__(cast(Any, factory), wrapped)
        self._clock = factory.clock
        self._began: float | None = None
        self.since = self._clock.seconds()
        """When it was answered last, or else accepted."""
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        if self._began is None:
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

    @property
    def overdue(self) -> bool:
        """Whether its request takes too long: a line of it every few seconds keeps no connection."""
        return self._began is not None and self._clock.seconds() - self._began >= REQUEST

    def end(self) -> None:
        """Close it at once."""
        self.ended = True
        transport: Any = self.transport
        transport.abortConnection()


class _Limited(WrappingFactory):
    """Knows its connections. When there are too many, the one that was answered least recently makes way."""

    noisy = False
    protocol = _Connection

    def __init__(self, clock: Clock, site: QuietSite) -> None:
        super().__init__(site)
        self.clock = clock

    def logPrefix(self) -> str:
        return "HTTP"

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper:
        connections = self._connections()
        if len(connections) >= CONNECTIONS:
            min(connections, key=lambda connection: connection.since).end()
        return super().buildProtocol(addr)

    def end_overdue(self) -> None:
        """Close the connections whose requests take too long."""
        for connection in self._connections():
            if connection.overdue:
                connection.end()

    def _connections(self) -> list[_Connection]:
        # The end of an aborted one is told in a later turn of the reactor.
        return [connection for connection in cast(Iterable[_Connection], self.protocols) if not connection.ended]
