"""The device port: a listening socket, and the life of its connections until a protocol takes over, and when they close.

The work is divided among:

- `Acceptor`: accepts connections while there is room, and evicts silent ones;
- `ClosingConnections`: closes connections whose peers do not take the last bytes;
- `Sources` and `ProxySenders`: decide by the address of a connection whether it may begin, and `AttackReports` tells of those
  that may not;
- `ConnectedSockets`: what all ports of a process share. Its `HandshakeScheduler` begins handshakes within the time of a reactor
  turn, and it has the periodic work done;
- `DevicePort`: the service. It opens and closes the port, makes transports, and builds a protocol when a handshake is complete,
  or without TLS when a connection is open.

The socket is bound before the service starts, so that a port in use is an error of the start. It begins to listen when the
queues are declared, and then stays open.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from ..errors import os_reason
from ..events import Event, Full, HandshakeFailed, Listening
from ..interfaces import FIRST_DOOR, Reactor
from ..supervision import Worker
from ..tls.device import DeviceTLS
from ..tls.refusal import HandshakeRefused, Refusal
from .acceptor import Acceptor, Limits
from .attacks import AttackReports, RefusedAddress
from .closing import ClosingConnections
from .connected_sockets import ConnectedSockets
from .factory import DeviceFactory
from .first_bytes import PROXY_HEADER, other_protocol
from .listening import (
    BACKLOG,
    reachable_by_others,
    set_accepted_unix_options,
    set_listening_options,
    shown_address,
    unix_path,
)
from .proxy_senders import ProxySenders, Sender
from .socket_transport import SocketTransport
from .sources import SourceLimits, Sources
from .tcp_transport import TCPTransport
from .tls_transport import TLSTransport

SILENT_TIME: Final = 1.0
"""Seconds after which a connection without TLS that has sent nothing is that of a device. It may wait for the first message of
a back end. The health checks of load balancers close earlier."""


@dataclass(frozen=True, slots=True)
class PortSettings:
    """Name and times of a port."""

    handshake_timeout: float
    """Seconds from accepting a connection to the end of its handshake. Without TLS that of the PROXY protocol header."""
    proxy_senders: tuple[Sender, ...] = ()
    """Peers that are trusted to send the PROXY protocol header that each connection begins with; empty if none is expected."""
    door: str = FIRST_DOOR
    """Name of the door, for events."""


@dataclass(frozen=True, slots=True)
class PortHooks:
    """Parts of the process that the port calls."""

    emit: Callable[[Event], None]
    fail: Callable[[str], None]
    """Called with the reason if the port cannot be opened: then the process has nothing to do."""
    foreign: Callable[[bytes], str | None] = other_protocol
    """Function that returns the name of the protocol that the first bytes of a plain connection begin with, if it is another
    one."""


class DevicePort(Worker):
    """Service that accepts devices on a bound socket.

    It can be stopped and started again. Meanwhile the socket stays open, until `stopListening`.
    """

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        tls: DeviceTLS | None,
        factory: ServerFactory,
        sockets: ConnectedSockets,
        limits: Limits,
        settings: PortSettings,
        hooks: PortHooks,
    ) -> None:
        """Create a port, without TLS if `tls` is `None`.

        `factory` builds the protocol of each connection that is open. It may be any `ServerFactory`. `sockets` is what the
        ports of a process share.
        """
        super().__init__(reactor)
        self.setName("port" if settings.door == FIRST_DOOR else f"port {settings.door}")
        self._seconds = reactor.seconds
        self._sockets = sockets
        self._socket = sock
        self._bound_to = sock.getsockname()  # the socket closes before the last page shows it
        self._tls = tls
        self._factory = factory
        self._needs_address = not isinstance(factory, DeviceFactory)
        self._admission = limits.admission
        self._settings = settings
        self._hooks = hooks
        self._senders = ProxySenders(settings.proxy_senders, reactor.seconds) if settings.proxy_senders else None
        self._path = unix_path(sock)
        self._sources = Sources(SourceLimits(), reactor.seconds) if limits.sources is None else limits.sources
        self._reports = AttackReports(hooks.emit, reactor.seconds, self._sources, self._senders, settings.door)
        self._acceptor = Acceptor(
            sockets.handshake_poller, sock, limits, self, self._full, self._reports, self._admits, self._accepted
        )
        self._closing = ClosingConnections()
        self.established: Final = sockets.post_handshake.context
        self.poller: Final = sockets.poller
        self._started_listening = False
        self.resume: Final = self._acceptor.resume
        """Function that accepts again, if there is room. It is called twice for each connection."""
        self.accepted = 0
        """Number of accepted connections. Those that were closed at once, because of their address, do not count."""
        self.handshakes = 0
        """Number of completed handshakes; without TLS that of connections that were opened."""
        self.failed_handshakes = 0
        """Number of connections that were closed before their handshake was complete, or without TLS before they were open.
        Those evicted, turned away or held off, and health checks behind a PROXY protocol header, do not count.
        """
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
    def untrusted(self) -> int:
        """Number of connections that were closed at once so far, since their peer may not send a PROXY protocol header."""
        return 0 if self._senders is None else self._senders.untrusted.count

    def refused_addresses(self) -> Iterator[RefusedAddress]:
        """Yield the addresses whose connections were closed at once, or evicted, last."""
        return self._reports.refused_addresses()

    @property
    def port(self) -> int:
        """The port number, also where any free port was requested; 0 for a unix socket."""
        return 0 if self._path is not None else int(self._bound_to[1])

    @property
    def address(self) -> str:
        """The address and the port that devices connect to, or `unix:PATH`."""
        if self._path is not None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host(self) -> str:
        """The IP address that the port is bound to, or `unix:PATH`."""
        return f"unix:{self._path}" if self._path is not None else str(self._bound_to[0])

    # -- Service, opening and closing --------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()
        self._acceptor.resume()

    @property
    def closed(self) -> bool:
        """True while the port can be opened: the service runs, and neither `startListening` nor `stopListening` was called."""
        return bool(self.running) and not self._started_listening

    def startListening(self) -> bool:
        """Open the port, if it is closed. Return whether it was opened now. `startAccepting` has to follow."""
        if not self.closed:
            return False
        self._started_listening = True
        # A plain connection may be that of a device that waits. A proxy has sent its header by then.
        set_listening_options(self._socket, defer=self._tls is not None or self._senders is not None)
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            # A bound port is not reserved: another process may have listened first.
            where = f"port {self.port}" if self._path is None else self._path
            reason = f"{self._option}: {where} cannot be opened: {os_reason(error)}"
            self._log.critical("{reason}", reason=reason)
            self._hooks.fail(reason)
            return False
        return True

    def startAccepting(self) -> None:
        """Accept connections on the open port."""
        address, port = shown_address(self._socket)
        plain = self._tls is None
        self._sockets.freeze()
        self._hooks.emit(Listening(address, port, not plain, self._settings.door))
        if plain and reachable_by_others(self._socket):
            self._log.warn(
                "{option}: plain TCP on port {port} ({address}): the network can read and change what devices send and get",
                option=self._option, port=port, address=address,
            )  # fmt: skip
        self._acceptor.start()

    @property
    def _option(self) -> str:
        """The option that the user has given for this port."""
        return "--port" if self._settings.door == FIRST_DOOR else f"--listen {self._settings.door}"

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
        """Change the times, the trusted peers and the limits for each address, and follow limits of the admission that have
        changed. Whether a PROXY protocol header is expected stays.

        No connection is closed. The time for a handshake also changes for those that have begun.
        """
        self._settings = settings
        if self._senders is not None and settings.proxy_senders:
            self._senders.configure(settings.proxy_senders)
        self._sources.configure(sources)
        self._acceptor.configure()

    # -- Connections: the owner of each transport --------------------------------------------------------------------------

    @property
    def context(self) -> SSL.Context:
        assert self._tls is not None
        return self._tls.context

    def _admits(self, address: Any) -> bool:
        """Return whether a connection may begin that `accept` has returned with this address."""
        host = address[0] if self._path is None else None
        if self._senders is not None:
            return self._senders.trusts(host)  # the address of the device comes with the header
        return host is None or self._sources.enter(host)

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        if self._path is not None:
            set_accepted_unix_options(sock)
            address = self._path
        proxied = self._senders is not None
        transport: SocketTransport
        if self._tls is not None:
            transport = TLSTransport(self._sockets.handshake_poller, sock, address, self, proxied)
        else:
            transport = TCPTransport(self._sockets.poller, sock, address, self, proxied)
        self.accepted += 1
        self._admission.accepted(transport, self._seconds())
        self._sockets.accepted(self)

    def headerReceived(self, transport: SocketTransport) -> bool:
        return transport.host is None or self._sources.enter(transport.host)

    def helloReceived(self, transport: TLSTransport) -> bool:
        self._admission.spoke(transport)
        begins = self._sockets.scheduler.hello_received(transport)
        self._acceptor.check_room()
        return begins

    def mayHaveClosed(self, transport: TLSTransport) -> bool:
        return self._sockets.handshake_poller.may_have_closed(transport)

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        self._admission.secured(transport, self._seconds())
        self._sockets.scheduler.proceed()
        self._connect(transport)

    def refusal(self, first: bytes) -> str | None:
        name = self._hooks.foreign(first)
        if name is None:
            return None
        if name.startswith(PROXY_HEADER):
            if self._senders is not None:
                return f"{name} behind another one"
            return f"{name}, which this door does not expect (--proxy-protocol)"
        return f"{name}, and this port is without TLS"

    def connectionOpened(self, transport: TCPTransport) -> None:
        self._admission.opened(transport)
        self._acceptor.check_room()
        self._connect(transport)

    def _connect(self, transport: SocketTransport) -> None:
        """Connect a protocol to an open connection, or close the connection."""
        protocol = None
        if self._socket.fileno() >= 0:  # or the connection was accepted just before the port was closed
            address: Any = transport.getPeer() if self._needs_address else None
            protocol = self._factory.buildProtocol(address)
        if protocol is None:
            self.handshakes += 1
            transport.loseConnection()
            return
        try:
            transport.connectProtocol(protocol)
        except HandshakeRefused as error:
            reason = error.refusal.reason
            self._handshake_failed(transport, f"TLS: {reason}" if self._tls is not None else reason, error.refusal)
            transport.loseConnection()
            return
        self.handshakes += 1
        self._sockets.handshake_completed()

    def connectionClosing(self, transport: SocketTransport) -> None:
        self._closing.add(transport, self._seconds())

    def connectionClosed(self, transport: SocketTransport, failed: str | None) -> None:
        self._admission.lost(transport)
        host = transport.host
        if host is not None:
            self._sources.leave(host)
        self._acceptor.connection_closed()
        self._closing.remove(transport)
        if failed is not None:
            self._handshake_failed(transport, failed, transport.refusal)
        self._sockets.scheduler.proceed()

    def _full(self, connections: int, reason: str) -> None:
        self._hooks.emit(Full(connections, reason, self._settings.door))

    def _handshake_failed(self, transport: SocketTransport, reason: str, refusal: Refusal | None) -> None:
        if refusal is not None and refusal.reported:
            return
        self.failed_handshakes += 1
        door, who = self._settings.door, refusal or Refusal(reason)
        self._hooks.emit(HandshakeFailed(transport.peer, reason, who.subject, who.serial, door, who.claimed_id))

    # -- For `ConnectedSockets` ---------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Open silent connections that need no handshake. Called ten times a second."""
        if self._tls is None:
            for transport in self._admission.overdue(now, SILENT_TIME):
                if self._opens_by_itself(transport):
                    transport.open()
        elif self._path is not None:
            for transport in self._admission.silent:
                transport.checkRest()

    def _opens_by_itself(self, transport: SocketTransport) -> bool:
        """Return whether a silent connection is opened at `SILENT_TIME`. Others have a time-out."""
        return self._tls is None and not transport.awaits_header and not transport.local

    def sweep(self, now: float) -> None:
        """Check the handshakes and the closing connections of this port. Called once a second."""
        timeout = self._settings.handshake_timeout
        for transport in self._admission.overdue(now, timeout):
            if not self._opens_by_itself(transport):
                what = "PROXY protocol header" if transport.awaits_header else "handshake"
                transport.handshakeOverdue(f"no {what} within {timeout:g} s")
        self._closing.check(now, listening=self._acceptor.open)
        self._reports.report(now)
