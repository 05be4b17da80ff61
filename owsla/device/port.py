"""The device port: a listening socket, and the life of its connections until a protocol takes over, and when they close.

The work is divided among:

- `Acceptor`: accepts connections while there is room, and evicts silent ones;
- `ClosingConnections`: closes connections whose peers do not take the last bytes;
- `AttackReports`: counts evicted connections and those beyond the limit for an address;
- `ConnectedSockets`: what all ports of a process share. Its `HandshakeScheduler` begins handshakes within the time of a reactor
  turn, and it has the periodic work done;
- `DevicePort`: the service. It opens and closes the port, makes transports, and builds a protocol when a handshake is complete.

The socket is bound before the service starts, so that a port in use is an error of the start. It begins to listen when the
queues are declared, and then stays open.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from ..errors import os_reason
from ..events import Event, HandshakeFailed, Listening
from ..interfaces import Reactor
from ..supervision import Worker
from ..tls.device import DeviceTLS
from ..tls.refusal import HandshakeRefused, Refusal
from .acceptor import Acceptor, Limits
from .attacks import AttackReports
from .closing import ClosingConnections
from .connected_sockets import ConnectedSockets
from .sources import SourceLimits, Sources
from .transport import TLSTransport

BACKLOG: Final = 4096
"""Connections that may wait in the kernel's accept queue: four seconds of a stampede of a thousand a second. Linux limits it to
somaxconn."""

DEFER_ACCEPT: Final = 3
"""Seconds for which the kernel does not report a connection that sends nothing (TCP_DEFER_ACCEPT, tcp(7)), rounded to its
retransmissions. The connection is accepted after that, and its handshake timeout begins."""

KEEPALIVE: Final = (120, 30, 4)
"""TCP keepalive: seconds without data before the first probe, seconds between probes, and probes that may fail."""

SEND_BUFFER: Final = 32768
"""Bytes for SO_SNDBUF, which Linux doubles (socket(7)). The kernel then holds 64 KB at most of lines that were written, and
acknowledged for that. By default it holds megabytes for a device that reads nothing."""


def _shown(sock: socket.socket, host: str) -> str:
    """Return the address of a bound socket for the log. For a wildcard it says which IP versions are accepted."""
    if host == "0.0.0.0":
        return "all IPv4 interfaces"
    if host == "::":
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return "all IPv6 interfaces" if only else "all interfaces"
    return host


def _set_options(sock: socket.socket) -> None:
    """Set options on the listening socket. Accepted sockets inherit them (Linux), which saves system calls for each."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_KEEPIDLE"):
        for option, value in zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)


@dataclass(frozen=True, slots=True)
class PortSettings:
    """Name and times of a port."""

    handshake_timeout: float
    """Seconds from accepting a connection to the end of its handshake."""


@dataclass(frozen=True, slots=True)
class PortHooks:
    """Parts of the process that the port calls."""

    emit: Callable[[Event], None]
    fail: Callable[[str], None]
    """Called with the reason if the port cannot be opened: then the process has nothing to do."""


class DevicePort(Worker):
    """Service that accepts devices on a bound socket.

    It can be stopped and started again. Meanwhile the socket stays open, until `stopListening`.
    """

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        tls: DeviceTLS,
        factory: ServerFactory,
        sockets: ConnectedSockets,
        limits: Limits,
        settings: PortSettings,
        hooks: PortHooks,
    ) -> None:
        """`factory` builds the protocol of each connection whose handshake is complete. It may be any `ServerFactory`.
        `sockets` is what the ports of a process share.
        """
        super().__init__(reactor)
        self.setName("port")
        self._seconds = reactor.seconds
        self._sockets = sockets
        self._socket = sock
        self._tls = tls
        self._factory = factory
        self._admission = limits.admission
        self._handshake_timeout = settings.handshake_timeout
        self._hooks = hooks
        self._sources = Sources(SourceLimits(), reactor.seconds) if limits.sources is None else limits.sources
        self._reports = AttackReports(hooks.emit, limits.admission.process.max_silent, self._sources)
        self._acceptor = Acceptor(reactor, sock, limits, self, hooks.emit, self._sources, self._reports, self._accepted)
        self._closing = ClosingConnections()
        self._started_listening = False
        self.handshakes = 0
        """Number of completed handshakes."""
        self.failed_handshakes = 0
        """Number of connections that were closed before their handshake was complete, without those evicted or turned away."""
        sockets.add_port(self)

    # -- Numbers for metrics -----------------------------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """True while the port listens, and there is room for a device."""
        return self._acceptor.accepting

    @property
    def open(self) -> bool:
        """True until the port is closed for good."""
        return self._acceptor.open

    @property
    def connections(self) -> int:
        """Number of all connections of this port."""
        return self._admission.connections

    @property
    def evicted(self) -> int:
        """Number of silent connections that were closed so far, to make room."""
        return self._reports.evicted

    @property
    def turned_away(self) -> int:
        """Number of connections that were closed at once so far, since their address had too many."""
        return self._sources.too_many.count

    @property
    def too_fast(self) -> int:
        """Number of connections that were closed at once so far, since their address opened too many in a short time."""
        return self._sources.too_fast.count

    @property
    def denied(self) -> int:
        """Number of connections that were closed at once so far, since their address is denied."""
        return self._sources.denied.count

    @property
    def port(self) -> int:
        """The port number, also where any free port was requested."""
        return int(self._socket.getsockname()[1])

    # -- Service, opening and closing --------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()
        self._acceptor.resume()

    def startListening(self) -> bool:
        """Open the port, if it is not open. Return whether it was opened now."""
        if self._started_listening or not self.running:
            return False
        self._started_listening = True
        _set_options(self._socket)
        host, port = self._socket.getsockname()[:2]
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            # A bound port is not reserved: another process may have listened first.
            reason = f"--port: port {port} cannot be opened: {os_reason(error)}"
            self._log.critical("{reason}", reason=reason)
            self._hooks.fail(reason)
            return False
        self._sockets.freeze()
        self._hooks.emit(Listening(address=_shown(self._socket, host), port=port))
        self._acceptor.start()
        return True

    def stopListening(self) -> None:
        """Close the port for good. Connections stay open. A port that is not open yet stays closed."""
        self._started_listening = True
        self._acceptor.close()
        self._sockets.port_closed()

    def stopService(self) -> None:
        if self.running:
            self._acceptor.stop()
            self._reports.report(self._seconds(), last=True)
        super().stopService()

    def configure(self, settings: PortSettings, sources: SourceLimits) -> None:
        """Change the times and the limits for each address, and follow limits of the admission that have changed.

        No connection is closed. The time for a handshake also changes for those that have begun.
        """
        self._handshake_timeout = settings.handshake_timeout
        self._sources.configure(sources)
        self._reports.configure(self._admission.process.max_silent)
        self._acceptor.configure()

    # -- Connections: the owner of each `TLSTransport` ---------------------------------------------------------------------

    @property
    def context(self) -> SSL.Context:
        return self._tls.context

    @property
    def established(self) -> SSL.Context:
        return self._sockets.post_handshake.context

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        transport = TLSTransport(self._sockets.poller, sock, address, self)
        self._admission.accepted(transport, self._seconds())

    def helloReceived(self, transport: TLSTransport) -> bool:
        self._admission.spoke(transport)
        begins = self._sockets.scheduler.hello_received(transport)
        self._acceptor.check_room()
        return begins

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        self._admission.secured(transport, self._seconds())
        self._sockets.scheduler.proceed()
        protocol = None
        if self._socket.fileno() >= 0:  # or the connection was accepted just before the port was closed
            protocol = self._factory.buildProtocol(cast(Any, transport.getPeer()))
        if protocol is None:
            self.handshakes += 1
            transport.loseConnection()
            return
        try:
            transport.connectProtocol(protocol)
        except HandshakeRefused as error:
            self._handshake_failed(transport, f"TLS: {error.refusal.reason}", error.refusal)
            transport.loseConnection()
            return
        self.handshakes += 1
        self._sockets.handshake_completed()

    def connectionClosing(self, transport: TLSTransport) -> None:
        self._closing.add(transport, self._seconds())

    def connectionClosed(self, transport: TLSTransport, failed: str | None) -> None:
        self._admission.lost(transport)
        self._acceptor.connection_closed(transport)
        self._closing.remove(transport)
        if failed is not None:
            self._handshake_failed(transport, failed, transport.refusal)
        self._sockets.scheduler.proceed()

    def _handshake_failed(self, transport: TLSTransport, reason: str, refusal: Refusal | None) -> None:
        self.failed_handshakes += 1
        subject, serial = (None, None) if refusal is None else (refusal.subject, refusal.serial)
        self._hooks.emit(HandshakeFailed(transport.peer, reason, subject, serial))

    # -- For `ConnectedSockets` ---------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Accept again, if there is room."""
        self._acceptor.resume()

    def sweep(self, now: float) -> None:
        """Check the handshakes and the closing connections of this port. Called once a second."""
        for transport in self._admission.overdue(now, self._handshake_timeout):
            transport.handshakeOverdue(f"no handshake within {self._handshake_timeout:g} s")
        self._closing.check(now, listening=self._acceptor.open)
        self._reports.report(now)
