"""The HTTP server for operators: on a port of its own, and on the control socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from ..errors import ConfigError, os_reason
from ..runtime.daemon_thread import in_daemon_thread
from ..runtime.sockets import bind, bind_unix, loopback
from ..supervision import Worker
from ._access import SocketAccess, TokenAccess, Tokens
from ._api import Api, ApiParts
from ._connections import LimitedConnection, LimitedFactory
from ._pages import make_pages
from ._site import make_site
from ._streams import Streams
from ._unix_port import UnixPort

CONNECTIONS: Final = 64
"""Limit on connections at an address. Prometheus, the checks of a load balancer and some people need a handful. Each takes an
open file from the devices (`runtime.open_files.RESERVE`)."""

STREAMS: Final = 32
"""Limit on streams at an address: they leave half of the connections to other requests."""

CONTROL_MODE: Final = 0o600
"""Permissions of the control socket: only the user of the gateway, and root, may connect."""

FAREWELL: Final = 1.0
"""Seconds for the last message of a stream when the service stops."""

SWEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for overdue requests."""


def claim(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket for HTTP. An empty address is all, IPv4 and IPv6. `ConfigError` if that is not possible."""
    # Another process may have bound the port too (SO_REUSEADDR) and listen first. Find out before the service starts.
    return _listening(bind(port, address, "--http"), f"--http: port {port}")


def claim_control(path: Path) -> socket.socket:
    """Return a listening unix socket for the API. `ConfigError` if that is not possible."""
    return _listening(bind_unix(path, CONTROL_MODE, "--control"), f"--control: {path}")


def _listening(sock: socket.socket, name: str) -> socket.socket:
    try:
        sock.listen(CONNECTIONS)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{name} cannot be opened: {os_reason(error)}") from None
    return sock


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and the site that is served on it."""

    socket: socket.socket
    factory: LimitedFactory
    streams: Streams
    description: str
    """Description for the log."""


def tcp_listener(reactor: Any, sock: socket.socket, parts: ApiParts, tokens: Callable[[], Tokens]) -> Listener:
    """Return a listener for `--http`: pages for everybody, and the API for the senders of a token."""
    streams = Streams(reactor, STREAMS)
    api = Api(reactor, parts, TokenAccess(tokens), streams)
    address = sock.getsockname()
    names = {socket.gethostname()} if _is_loopback(address[0]) else None
    site = make_site(reactor, make_pages(parts.source), api, names)
    description = f"Metrics and health on {_url(*address[:2])}"
    return Listener(sock, LimitedFactory(reactor, site, CONNECTIONS), streams, description)


def control_listener(reactor: Any, sock: socket.socket, parts: ApiParts) -> Listener:
    """Return a listener for `--control`: pages and the API for everybody who may connect to the socket."""
    streams = Streams(reactor, STREAMS)
    api = Api(reactor, parts, SocketAccess(reactor, partial(in_daemon_thread, reactor)), streams)
    # ssh forwards the socket to a port of localhost, where a browser finds it.
    site = make_site(reactor, make_pages(parts.source), api, {socket.gethostname()})
    description = f"Control socket: {sock.getsockname()}"
    return Listener(sock, LimitedFactory(reactor, site, CONNECTIONS), streams, description)


def _url(address: str, port: int) -> str:
    """Return the URL of the page for a browser on this machine."""
    if address in ("0.0.0.0", "::"):
        address = loopback()
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


class HttpService(Worker):
    """Service that serves the pages and the API. Its sockets stay open, so that it can be restarted."""

    _log = Logger(namespace="owsla")

    def __init__(self, reactor: Any, listeners: Sequence[Listener]) -> None:
        super().__init__(reactor)
        self._reactor = reactor
        self.setName("http")
        self._listeners = tuple(listeners)
        self._ports: list[Any] = []

    def startService(self) -> None:
        super().startService()
        self.later(SWEEP_INTERVAL, self._sweep)
        for listener in self._listeners:
            self._ports.append(self._open(listener))
            self._log.info("{listener}", listener=listener.description)

    def _open(self, listener: Listener) -> Any:
        sock = listener.socket
        if sock.family != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(sock.fileno(), sock.family, listener.factory)
        # Once more, now that twistd has forked and changed its user: clients see by SO_PEERCRED which process listens, and wait
        # for its end.
        sock.listen(CONNECTIONS)
        port = UnixPort(self._reactor, sock, listener.factory)
        port.startListening()
        return port

    def _sweep(self) -> None:
        for listener in self._listeners:
            listener.factory.end_overdue()
        self.later(SWEEP_INTERVAL, self._sweep)

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        ports, self._ports = self._ports, []
        stopped: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port in ports]
        for listener in self._listeners:
            connections = listener.factory.connections()
            streaming = [connection for connection in connections if connection.streaming]
            listener.streams.close("the HTTP server of the gateway stops")
            for connection in connections:
                if connection in streaming:
                    connection.loseConnection()
                    stopped.append(self._lost(connection))
                else:
                    connection.end()
        return gatherResults(stopped)

    def _lost(self, connection: LimitedConnection) -> Deferred[None]:
        """Wait for the end of a connection whose last message is being sent; abort it after `FAREWELL`."""
        late = self._reactor.callLater(FAREWELL, connection.end)
        return connection.lost.addCallback(lambda _: late.cancel() if late.active() else None)
