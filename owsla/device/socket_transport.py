"""Transport on a socket: one descriptor of the reactor for each connection.

Theory of operation
===================

`SocketTransport` has all that does not depend on the kind of connection: the state machine, writing and back-pressure, pausing,
closing, and the interfaces for the reactor and for the protocol. `TLSTransport` adds TLS. `TCPTransport` is for plain TCP and
for unix sockets.

**State.** `Lifecycle`, the base class, decides what an event means in each state, and calls an action. `_state` is a copy of
what reading and writing need to know of it, so that a line does not ask the machine:

- `ACCEPTED`, `HELLO`: the peer has sent nothing, or too little to begin with.
- `HANDSHAKING`: OpenSSL reads and writes. Either may wait for the other.
- `OPEN`: a protocol is connected. Reading may be paused; writing goes on.
- `CLOSING`: the end of the stream is sent after what was written; reading goes on until the peer closes.
- `CLOSED`: the socket is closed, or is closed once the caller has returned.

**Writing.** Data that the socket does not take waits in `_outgoing`. It is `None` exactly while nothing waits and the socket is
not known to be full. Then the producer is paused, and is resumed once everything has left. There is no other buffer.

**PROXY protocol.** Behind a load balancer the connection begins with a header, in front of TLS, which says where the device is
(`proxy_header`). The header is taken from the socket exactly, and what follows stays there. Until the header is complete
the connection is silent.

**Reading** takes one read for each event, so that others have their turn: `RECORD` bytes at most. With TLS it takes several
records if they are small (`tls_transport`).
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Protocol

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import Reactor
from ..tls.reasons import explain_tls_error
from ..tls.refusal import HandshakeRefused, Refusal
from .interfaces import IDeviceTransport, IHangupListener
from .lifecycle import Lifecycle
from .proxy_header import BadProxyHeader, ProxyHeader, parse
from .stock_transport import address_text

RECORD: Final = 16384
"""Maximum size in bytes of the application data in a TLS record (RFC 8446, section 5.1), and of one read or write."""

UNCHECKED: Final = 4096
"""Bytes that are written without checking whether the socket takes more. Linux lets a write into the last packet of a full send
buffer succeed until that packet has 64 KB (tcp_sendmsg_locked in net/ipv4/tcp.c checks SO_SNDBUF for a new packet only), so a
device that reads nothing would be sent twice as much. POLLOUT is reported below two thirds of the buffer: with the unchecked
bytes and one record more, the total stays below the size of the buffer."""

CLOSING_TIMEOUT: Final = 5.0
"""Seconds that a peer has to take the last bytes and close its side."""

EXPECTED: Final = (ConnectionDone, ConnectionLost, ConnectionAborted, SSL.Error, OSError, TimeoutError)
"""Exceptions that end a connection in operation. Any other exception is an error in this program, or in a dialect."""


class PeerRefused(OSError):
    """The first bytes of a connection were refused. The message is the reason, for events and the log."""


class Owner(Protocol):
    """The port that a transport belongs to, as the transport uses it."""

    def headerReceived(self, transport: Any) -> bool:
        """Return whether the connection may proceed, whose PROXY protocol header has arrived (`host`, `local`)."""

    def connectionClosing(self, transport: Any) -> None:
        """Give the peer `CLOSING_TIMEOUT` seconds to close its side."""

    def connectionClosed(self, transport: Any, failed: str | None) -> None:
        """Count a closed connection.

        `failed` is the reason for which the connection was never open. It is `None` if it was, if the owner closed the
        connection with `evict` or refused its header, and if the connection was the health check of a load balancer.
        """


class Failures:
    """Reasons that thousands of connections share."""

    DONE: Final = Failure(ConnectionDone("closed cleanly"))
    LOST: Final = Failure(ConnectionLost("closed without a goodbye"))
    SILENT: Final = Failure(ConnectionLost("closed before it said anything"))
    GAVE_UP: Final = Failure(ConnectionLost("closed while it waited for its handshake"))
    ABORTED: Final = Failure(ConnectionAborted("aborted"))
    EVICTED: Final = Failure(ConnectionAborted("silent for longer than all others"))
    TURNED_AWAY: Final = Failure(ConnectionAborted("refused for its address"))


ACCEPTED: Final = 0
HELLO: Final = 1
"""A part of the ClientHello has arrived. The kernel reports when the rest is there (SO_RCVLOWAT). On a unix socket the port
looks for it (`DevicePort.tick`)."""
HANDSHAKING: Final = 2
OPEN: Final = 3
"""Includes paused and draining connections, which may be written to."""
CLOSING: Final = 4
CLOSED: Final = 5

_DIRECT: Final = 0
"""The connection comes from the device itself."""
_AWAITED: Final = 1
"""The header of the PROXY protocol is awaited."""
_RELAYED: Final = 2
"""The header has given the address of the device."""
_UNKNOWN: Final = 3
"""The header does not give the address of the device."""
_LOCAL: Final = 4
"""The proxy has made the connection for itself."""
_TURNED_AWAY: Final = 5
"""The owner has refused the connection for what the header says."""

_PAUSED: Final = 1
"""The producer is paused."""
_PULL: Final = 2
"""The producer is a pull producer, which is resumed each time that everything was sent."""
_LOSE: Final = 4
"""`loseConnection` was called, and waits for the producer to be unregistered."""

_RESET: Final = struct.pack("ii", 1, 0)

_DONE: Final = "closed by the device"


@implementer(IReadWriteDescriptor, IDeviceTransport, IConsumer, IPushProducer)
class SocketTransport(Lifecycle):
    """Server side of one connection. A subclass reads and writes it: `_stream`, `doRead`, `_begin_with` and `_send_close`."""

    _log = Logger()

    _BLOCKED: ClassVar[tuple[type[Exception], ...]]
    """Exceptions of `_stream.send` that mean that the socket takes nothing now."""
    _ERRORS: ClassVar[tuple[type[Exception], ...]]
    """Exceptions of `_stream.send` that mean that the connection is broken."""
    _FIRST: ClassVar[int]
    """Number of first bytes that are looked at, at least the longest header of the PROXY protocol."""

    __slots__ = (
        "__weakref__",
        "_gone",
        "_header",
        "_host",
        "_opened",
        "_outgoing",
        "_owner",
        "_port",
        "_producer",
        "_producer_flags",
        "_protocol",
        "_reactor",
        "_reading",
        "_reason",
        "_socket",
        "_state",
        "_stream",
        "_unchecked",
        "_via",
        "_writing",
        "proxy_identity",
    )

    _owner: Owner
    _host: str
    """IP address of the device, or path of the unix socket."""
    _port: int | None
    """Port of the device; `None` on a unix socket."""

    def __init__(
        self, reactor: Reactor, sock: socket.socket, address: tuple[Any, ...] | str, owner: Any, proxied: bool = False
    ) -> None:
        """Begin to read.

        `address` is the address that `accept()` returned with the socket. For a unix socket it is the path of the port. With
        `proxied` a PROXY protocol header is expected.
        """
        super().__init__()
        self._reactor = reactor
        self._socket = sock
        if isinstance(address, str):
            self._host, self._port = address, None
        else:
            self._host, self._port = address[:2]
        self._owner = owner
        self._stream: Any = None
        """Connection that application data is read from and written to, once the connection is open."""
        self._protocol: Any = None
        self._producer: Any = None
        self._producer_flags = 0
        self._outgoing: list[bytes] | None = None
        self._state = ACCEPTED
        self._reading = True
        self._writing = False
        self._unchecked = 0
        self._reason: Failure | None = None
        self._opened = False
        self._gone = False
        self._via = _AWAITED if proxied else _DIRECT
        self._header = b""  # the beginning of an incomplete header
        self.proxy_identity: str | None = None
        """Common name of the client certificate that a proxy has verified, as its header says."""
        reactor.addReader(self)

    # -- ITCPTransport and IPushProducer, for the protocol -------------------------------------------------------------

    @property
    def untaken(self) -> int:
        """Number of bytes that were written and that the peer's system has not acknowledged (SIOCOUTQ, tcp(7))."""
        return self._unsent() + sum(map(len, self._outgoing or ()))

    def _unsent(self) -> int:
        """Return the bytes in the send buffer of the socket, or 0 without a socket."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])
        except (OSError, ValueError):
            return 0

    @property
    def disconnecting(self) -> bool:
        return self._state >= CLOSING or bool(self._producer_flags & _LOSE)

    def write(self, data: bytes) -> None:
        """Send data, and keep what the socket does not take. Drop it once the connection has begun to close.

        Whenever the data does not leave at once, the producer is paused: a message must not be acknowledged for which there is
        no room, or which will never leave.
        """
        if self._state != OPEN:
            self._pause_producer()
            return
        if not data:
            return
        if self._outgoing is not None:
            self._outgoing.append(data)
            return
        rest = self._send(data)
        if self._state != OPEN:
            self._pause_producer()
        elif rest or self._full():
            self._outgoing = [rest] if rest else []
            self._start_writing()
            self._pause_producer()
        elif self._producer_flags & _PULL:
            self._start_writing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send the concatenation of some data."""
        self.write(b"".join(data))

    # -- IConsumer -----------------------------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause a push producer while the socket does not take what is written; resume a pull producer when it has."""
        if self._producer is not None:
            raise RuntimeError(f"{self._producer} is registered as the producer already")
        if self._state == CLOSED:
            producer.stopProducing()
            return
        self._producer = producer
        self._producer_flags = 0 if streaming else _PULL
        if not streaming:
            producer.resumeProducing()
        elif self._outgoing is not None:
            self._pause_producer()

    def unregisterProducer(self) -> None:
        """Stop pausing and resuming the producer. Close the connection now if `loseConnection` has waited for this."""
        flags, self._producer, self._producer_flags = self._producer_flags, None, 0
        if flags & _LOSE:
            self._take("close")

    def _pause_producer(self) -> None:
        if self._producer is not None and not self._producer_flags & (_PAUSED | _PULL):
            self._producer_flags |= _PAUSED
            self._producer.pauseProducing()

    def _send(self, data: bytes) -> bytes:
        """Send as much of the data as the socket takes now, and return the rest."""
        sent = 0
        try:
            while sent < len(data):
                # Less than a record may be taken at once: by a socket that is full, or by OpenSSL where the device asked for
                # small records (RFC 6066).
                sent += self._stream.send(data[sent : sent + RECORD] if sent or len(data) > RECORD else data)
                if sent < len(data) and self._full(RECORD):
                    return data[sent:]
        except self._BLOCKED:
            # OpenSSL wants the same bytes again, at whatever address (SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER).
            return data[sent:]
        except self._ERRORS as error:
            self._outgoing = None
            self._stop_writing()
            self._broken(error)
        self._unchecked += len(data)
        return b""

    def _full(self, written: int = 0) -> bool:
        """Return whether the socket takes no more. The kernel is asked once for each `UNCHECKED` bytes."""
        self._unchecked += written
        if self._unchecked < UNCHECKED or self._state == CLOSED:
            return False
        self._unchecked = 0
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        return not poll.poll(0)

    def _broken(self, error: Exception) -> None:
        """Close a connection whose write failed."""
        raise NotImplementedError

    def pauseProducing(self) -> None:
        """Stop reading. TCP flow control slows the peer down."""
        self._take("pause")

    def resumeProducing(self) -> None:
        self._take("resume")

    def stopProducing(self) -> None:
        self.loseConnection()

    def drain(self) -> None:
        """Stop reading permanently. Data that was written is still sent."""
        self._take("drain")

    def loseConnection(self) -> None:
        """Send what was written and the end of the stream. Close when the peer has closed its side, or after a time-out.

        With a producer this waits until it is unregistered, as `twisted.internet.interfaces.ITransport` says.
        """
        if self._producer is None or self._state != OPEN:
            self._take("close")
        else:
            self._producer_flags |= _LOSE

    def loseWriteConnection(self) -> None:
        """Close the connection as `loseConnection` does. That reads on until the peer has closed its side."""
        self.loseConnection()

    def abortConnection(self, reason: Failure | None = None) -> None:
        """Close the connection at once. `reason` becomes that of `connectionLost`."""
        if self._reason is None and self._state != CLOSED:
            self._reason = reason or Failures.ABORTED
        elif reason is not None and not is_expected(reason):
            self._log.failure("The connection of {peer} failed while it was closed", reason, peer=self.peer)
        self._take("abort")

    def lossReason(self, reason: Failure) -> Failure:
        """Return `reason`, which is that of `abortConnection` already."""
        return reason

    @property
    def unread(self) -> int:
        """Number of bytes that the peer sent and that were not read (FIONREAD, tcp(7)), those of TLS included."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))[0])
        except (OSError, ValueError):
            return 0

    @property
    def _listener(self) -> Any:
        """The protocol if it can be told of a hang-up, or else `None`."""
        return None if self._protocol is None else IHangupListener(self._protocol, None)

    @property
    def held_back(self) -> bool:
        """True while the connection closes and its protocol, which has paused it, does not take the last data."""
        return self._state == CLOSING and not self._reading and not self.discarding

    @property
    def awaiting_turn(self) -> bool:
        """True while the protocol waits for its turn to be read, in the queue of a sink that publishes."""
        listener = self._listener
        return listener is not None and bool(listener.awaiting_turn)

    @property
    def discarding(self) -> bool:
        """True while the protocol does not use the data of the peer, or there is no protocol."""
        listener = self._listener
        return listener is None or bool(listener.discarding)

    def peerClosed(self) -> bool:
        """Read what the peer sent before it closed or reset the connection while it was not read. Return whether it is read."""
        try:
            listener = self._listener
            return listener is not None and bool(listener.peerClosed())
        except Exception:
            # The caller serves all connections. As in `doRead`, an exception closes this connection only.
            self.abortConnection(Failure())
            return True

    def hungUp(self) -> None:
        """Close the connection at once: the peer is gone, and what was not read of it is lost."""
        self.abortConnection(Failures.LOST)

    def handshakeOverdue(self, why: str) -> None:
        """Close the connection, which is not open yet, after the handshake time-out."""
        if self._reason is None:
            self._reason = Failure(TimeoutError(why))
        self._take("handshake_overdue")

    def checkHello(self) -> None:
        """Handle first bytes, or a close, that have arrived since the last event of the reactor."""
        first = self._first_bytes()
        if first is not None and (not first or self._via == _AWAITED or self._enough(first)):
            self.doRead()

    def openSilent(self) -> bool:
        """Open the connection although it is silent, if its device may wait for the first message. Return whether it may."""
        return False

    def evict(self) -> None:
        """Close the connection, which has been silent for longest, to make room for another."""
        self._reason = Failures.EVICTED
        without_goodbye(self._socket)
        self._end_now()

    def evictStalled(self) -> None:
        """Close the connection, whose handshake has stalled, to make room for another."""
        if self._reason is None:
            self._reason = Failure(TimeoutError("its handshake stalled, and others waited for its place"))
        self._end_now()

    def _end_now(self) -> None:
        """Free the connection's place before returning, even if the connection is already closed and `_close` is scheduled."""
        self._take("ended")
        self._close()

    def idleOverdue(self) -> None:
        """Close the connection after the idle time-out."""
        self._take("idle_overdue")

    def closeOverdue(self) -> None:
        """Close the socket of a peer that does not close its side."""
        self._take("close_overdue")

    def getPeer(self) -> IPv4Address | IPv6Address | UNIXAddress:
        host, port = self._host, self._port
        if port is None:
            return UNIXAddress(host.encode())
        if ":" in host and not host.startswith("::ffff:"):
            return IPv6Address("TCP", host, port)
        return IPv4Address("TCP", host.removeprefix("::ffff:"), port)

    def getHost(self) -> IPv4Address | IPv6Address | UNIXAddress:
        name = self._socket.getsockname()
        if self._socket.family == socket.AF_UNIX:
            return UNIXAddress(name.encode() if isinstance(name, str) else name)
        host, port = name[:2]
        return IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)

    @property
    def peer(self) -> str:
        """Address of the peer, for events and the log."""
        host, port = self._host, self._port
        if port is None:
            return f"unix:{host}"
        return address_text(host, port) if ":" in host else f"{host}:{port}"

    @property
    def host(self) -> str | None:
        """IP address of the device, for limits. `None` if it is not known, not yet or not at all, or was turned away."""
        return self._host if self._via in (_DIRECT, _RELAYED) and self._port is not None else None

    @property
    def awaits_header(self) -> bool:
        """True until the PROXY protocol header is complete."""
        return self._via == _AWAITED

    @property
    def local(self) -> bool:
        """True if a proxy has made the connection for itself, such as for a health check."""
        return self._via == _LOCAL

    def getHandle(self) -> SSL.Connection | None:
        """Return the TLS connection, or `None` without TLS."""
        return None

    @property
    def tls_version(self) -> str:
        """Name of the TLS version, or an empty string without TLS."""
        return ""

    @property
    def refusal(self) -> Refusal | None:
        """Refusal that a callback of OpenSSL noted, if any."""
        error = None if self._reason is None else self._reason.value
        return error.refusal if isinstance(error, HandshakeRefused) else None

    def getTcpNoDelay(self) -> bool:
        """Return whether TCP_NODELAY is set."""
        return bool(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set TCP_NODELAY. The port sets it for all of its connections."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """Return whether SO_KEEPALIVE is set."""
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Set SO_KEEPALIVE. The port sets it for all of its connections."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    # -- IReadWriteDescriptor, for the reactor -------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "device"

    def doRead(self) -> None:
        raise NotImplementedError

    def doWrite(self) -> None:
        try:
            self._write_on()
        except Exception:
            self.abortConnection(Failure())

    def _write_on(self) -> None:
        waiting = self._outgoing
        while waiting:
            rest = self._send(waiting[0])
            if self._outgoing is not waiting:
                return  # the write failed
            if rest:
                waiting[0] = rest
            else:
                del waiting[0]
            if rest or self._full():
                return
        self._stop_writing()
        self._outgoing = None
        if self._state == CLOSING:
            self._send_close()
        elif self._state == OPEN and self._producer_flags & (_PAUSED | _PULL):
            self._producer_flags &= ~_PAUSED
            self._producer.resumeProducing()

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._reactor.addWriter(self)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """Close the connection, since the reactor has found the socket dead."""
        if self._reason is None:
            self._reason = Failures.LOST if reason.check(ConnectionLost, ConnectionDone) else reason
        self._take("ended")

    # -- actions of the lifecycle --------------------------------------------------------------------------------------

    def begin_data(self) -> None:
        self._state = OPEN
        self._opened = True

    def stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def start_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._reactor.addReader(self)

    def begin_close(self) -> None:
        self._state = CLOSING
        self._owner.connectionClosing(self)
        # Closing a socket with unread data resets the connection, and the peer may lose our last line over it. So it is read,
        # and what the peer sent before it heard of our goodbye is the protocol's, which may have paused us.
        if self.discarding:
            self.start_reading()
        if self._outgoing is None:
            self._send_close()

    def close_socket_soon(self) -> None:
        self._state = CLOSED
        self._reactor.callLater(0, self._close)

    def close_socket(self) -> None:
        self._close()

    def _move_to(self, reactor: Reactor) -> None:
        """Have the socket watched by another reactor from now on."""
        before, self._reactor = self._reactor, reactor
        if self._reading:
            before.removeReader(self)
            reactor.addReader(self)
        if self._writing:
            before.removeWriter(self)
            reactor.addWriter(self)

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _first_bytes(self) -> bytes | None:
        """Return the unread first bytes without taking them: `None` if there are none yet, `b""` if the peer is gone."""
        try:
            return self._socket.recv(self._FIRST, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _enough(self, first: bytes) -> bool:
        """Return whether the connection can begin with these first bytes."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Handle the first bytes that have arrived, or the end of a silent connection."""
        first = self._first_bytes()
        if first is None:
            return
        if not first:
            if self._header:
                self._refuse("closed within its PROXY protocol header", 0)
                return
            self._reason = Failures.SILENT  # most likely a health check
            self._take("ended")
            return
        if self._via == _AWAITED:
            first = self._take_header(first)
        if first:
            self._begin_with(first)

    def _begin_with(self, first: bytes) -> None:
        """Begin with the first bytes of the device, which are still in the socket."""
        raise NotImplementedError

    def _take_header(self, first: bytes) -> bytes:
        """Take the PROXY protocol header from the socket, which has these bytes. Return those behind the header."""
        before = self._header
        try:
            found = parse(before + first)
        except BadProxyHeader as bad:
            self._refuse(bad.reason, len(first))
            return b""
        if not isinstance(found, ProxyHeader):
            # All of it belongs to the header. It is taken, or the socket would stay readable until the rest arrives: a unix
            # socket knows no SO_RCVLOWAT.
            self._header = before + self._socket.recv(len(first))
            return b""
        length = found.length - len(before)
        self._socket.recv(length)
        self._header = b""
        if found.source is not None:
            self._host, self._port = found.source
            self._via = _RELAYED
        else:
            self._via = _LOCAL if found.local else _UNKNOWN
        self.proxy_identity = found.common_name
        if not self._owner.headerReceived(self):
            self._via = _TURNED_AWAY
            self._reason = Failures.TURNED_AWAY
            without_goodbye(self._socket)
            self._take("ended")
            return b""
        return first[length:]

    def _refuse(self, reason: str, length: int) -> None:
        """Close the connection for its first bytes, `length` of which are in the socket."""
        self._reason = Failure(PeerRefused(reason))
        try:
            self._socket.recv(length)  # unread bytes would make the kernel send a reset
        except OSError:
            pass
        self._take("ended")

    def connectProtocol(self, protocol: Any) -> None:
        """Connect the protocol of an open connection. It may raise `HandshakeRefused`, and is not connected then."""
        self._protocol = protocol
        try:
            protocol.makeConnection(self)
        except HandshakeRefused:
            self._protocol = None
            raise

    # -- the end -------------------------------------------------------------------------------------------------------

    def _send_close(self) -> None:
        """Send the end of the stream. Reading goes on until the peer closes its side."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer has reset the connection. Reading finds that out after what the peer sent before.
            if self._reason is None:
                self._reason = Failures.LOST

    def _drain(self) -> None:
        """Read and discard what the peer sends before it closes its side."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._take("ended")

    def _close(self) -> None:
        """Close the socket, and notify producer, protocol and owner, once."""
        if self._gone:
            return
        self._gone = True
        self._state = CLOSED
        if self._reading:
            self._reactor.removeReader(self)
        if self._writing:
            self._stop_writing()
        self._reading = False
        self._outgoing = None
        protocol, self._protocol = self._protocol, None
        producer, self._producer, self._producer_flags = self._producer, None, 0
        reason = self._reason or Failures.DONE
        if protocol is not None:
            try:
                try:
                    if producer is not None:
                        producer.stopProducing()
                finally:
                    protocol.connectionLost(reason)
            except Exception:
                # An exception of the protocol must not keep the socket open or its place taken.
                self._log.failure("Closing the connection of {peer} failed", peer=self.peer)
        elif not is_expected(reason):
            self._log.failure("The handshake of {peer} failed", reason, peer=self.peer)
        self._socket.close()
        self._stream = None
        self._owner.connectionClosed(self, None if self._opened or self._is_no_failure(reason) else explain(reason))

    def _is_no_failure(self, reason: Failure) -> bool:
        """Return whether a connection that ended for this reason, before it was open, is no failed handshake."""
        if reason in (Failures.EVICTED, Failures.TURNED_AWAY) or self._via == _LOCAL:
            return True
        # Health checks of a load balancer may have no header, or one of version 1, which cannot say LOCAL. Those of another
        # load balancer in front of it are relayed like a device, which would send something.
        return self._via != _DIRECT and reason is Failures.SILENT


def is_expected(reason: Failure) -> bool:
    """Return whether a connection ended in operation, and not by an error in this program or in a dialect."""
    return reason is Failures.DONE or isinstance(reason.value, EXPECTED)


def failure_of(error: Exception) -> Failure:
    """Return an error of OpenSSL or of the socket as a reason for `connectionLost`."""
    if isinstance(error, SSL.ZeroReturnError):
        return Failures.DONE
    if isinstance(error, SSL.SysCallError | OSError | ConnectionLost):
        return Failures.LOST
    # The traceback refers to the transport, which keeps the reason: a cycle for the garbage collector.
    return Failure(error.with_traceback(None))


def without_goodbye(sock: socket.socket) -> None:
    """Have the socket closed by a reset (SO_LINGER, socket(7)): the kernel forgets it at once, and not after a minute."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # it is gone already


def explain(reason: Failure) -> str:
    """Return the reason for which a connection ended, for events and the log."""
    if reason is Failures.DONE:
        return _DONE
    error = reason.value
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list | tuple) and error.args[0]:
        return f"TLS: {explain_tls_error(error.args[0][-1][-1])}"
    if isinstance(error, ConnectionDone):
        return _DONE
    if isinstance(error, ConnectionLost):
        return str(error.args[0]) if reason in (Failures.SILENT, Failures.GAVE_UP) else "lost"
    return str(error) or type(error).__name__
