"""The HTTP server for operators, on a port of its own."""

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
from ..runtime.sockets import bind
from ..supervision import Worker
from ._pages import QuietSite, site
from ._sources import Source

CONNECTIONS: Final = 64
"""Limit on connections. Prometheus, the checks of a load balancer and some people need a handful. Each takes an open file from
the devices."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a request, from its first byte to the answer. A parent waits 2 s for a worker."""

SWEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for overdue requests."""


def claim(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket for HTTP. An empty address is all, IPv4 and IPv6. `ConfigError` if that is not possible."""
    sock = bind(port, address, "--http")
    try:
        # Another process may have bound the port too (SO_REUSEADDR) and listen first. Find out before the service starts.
        sock.listen(CONNECTIONS)
    except OSError as error:
        sock.close()
        raise ConfigError(f"--http: port {port} cannot be opened: {os_reason(error)}") from None
    return sock


class HttpService(Worker):
    """Service that serves the pages on a listening socket. The socket stays open, so that the service can be restarted."""

    _log = Logger(namespace="owsla")

    def __init__(self, reactor: Any, sock: socket.socket, source: Source) -> None:
        super().__init__(reactor)
        self._reactor = reactor
        self.setName("http")
        self._socket = sock
        local = _is_loopback(sock.getsockname()[0])
        names = {socket.gethostname()} if local else None
        self._connections = _Limited(reactor, site(source, reactor, names))
        self._port: Any = None

    @property
    def port(self) -> int:
        """Port number, even if the system chose it."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """URL of the index page for a browser on this machine."""
        address = self._socket.getsockname()[0]
        if address in ("0.0.0.0", "::"):
            address = "127.0.0.1"
        return f"http://[{address}]:{self.port}/" if ":" in address else f"http://{address}:{self.port}/"

    def startService(self) -> None:
        super().startService()
        self.later(SWEEP_INTERVAL, self._sweep)
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), self._socket.family, self._connections)
        self._log.info("Metrics and health on {url}", url=self.url)

    def _sweep(self) -> None:
        self._connections.end_overdue()
        self.later(SWEEP_INTERVAL, self._sweep)

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
    """A connection with a time limit on requests."""

    def __init__(self, factory: _Limited, wrapped: Any) -> None:
        super().__init__(cast(Any, factory), wrapped)
        self._clock = factory.clock
        self._began: float | None = None
        self.since = self._clock.seconds()
        """Time of the last answer, or of the accept."""
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
        """True if a request is incomplete after the time limit. A client that sends a header every few seconds cannot keep a
        connection."""
        return self._began is not None and self._clock.seconds() - self._began >= REQUEST_TIMEOUT

    def end(self) -> None:
        """Abort the connection."""
        self.ended = True
        transport: Any = self.transport
        transport.abortConnection()


class _Limited(WrappingFactory):
    """Factory with a limit on connections. At the limit, the connection with the oldest answer is closed for a new one."""

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
        """Close the connections with overdue requests."""
        for connection in self._connections():
            if connection.overdue:
                connection.end()

    def _connections(self) -> list[_Connection]:
        # Twisted reports the loss of an aborted connection in a later iteration of the reactor.
        return [connection for connection in cast(Iterable[_Connection], self.protocols) if not connection.ended]
