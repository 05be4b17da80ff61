"""The HTTP server: one more port, for the operator."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from ..config import ConfigError, os_reason
from ..device.listener import claim as bind
from ..supervision import Worker
from ._histogram import Histogram
from ._pages import site
from ._sources import Source

CONNECTIONS: Final = 64
"""At most: one Prometheus, a load balancer's checks and some people need a handful; each is a file that a device could have."""

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
        self._connections = _Limited(site(source, reactor))
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

    def stopService(self) -> Deferred[None]:
        super().stopService()
        port, self._port = self._port, None
        for connection in list(self._connections.protocols):
            connection.transport.abortConnection()
        stopped: Deferred[None] = maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)
        return stopped


class _Limited(WrappingFactory):
    """Knows its connections, and refuses those that are too many."""

    noisy = False

    def logPrefix(self) -> str:
        return "HTTP"

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper:
        # `None` closes the connection; WrappingFactory's types have forgotten that.
        return super().buildProtocol(addr) if len(self.protocols) < CONNECTIONS else None  # type: ignore[return-value]
