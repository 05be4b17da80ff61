"""TLS transport on a socket: one descriptor of the reactor for each connection.

Theory of operation
===================

pyOpenSSL is given the socket itself (`SSL_set_fd`), where the `TLSMemoryBIOProtocol` of Twisted has memory BIOs over a second
transport. For an idle connection that saves some 15 % of memory (21.7 KB instead of 25.0 KB with the same protocol; measured by
`bench.memory`), and a line is written by one system call at once, not in the next turn of the reactor. OpenSSL and its errors
are described in SSL_read(3), SSL_write(3), SSL_shutdown(3) and SSL_get_error(3).

**State.** `lifecycle.Lifecycle` decides what an event means in each state, and calls an action here. `_state` is a copy of what
reading and writing need to know of it, so that a line does not ask the machine:

- `ACCEPTED`, `HELLO`: the peer has sent nothing, or a part of its ClientHello, which stays in the socket (MSG_PEEK). There is
  no OpenSSL object yet, so a silent connection is small.
- `HANDSHAKING`: OpenSSL reads and writes. Either may wait for the other.
- `OPEN`: a protocol is connected. Reading may be paused; writing goes on.
- `CLOSING`: close_notify and the end of the stream are sent after what was written; reading goes on until the peer closes.
- `CLOSED`: the socket is closed, or is closed once the caller has returned.

**Writing.** Data that the socket does not take waits in `_outgoing`. It is `None` exactly while nothing waits and the socket is
not known to be full. Then the producer is paused, and is resumed once everything has left. There is no other buffer.

**Reading** takes one TLS record for each event, so that others have their turn.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections.abc import Iterable
from typing import Any, Final, Protocol

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHandshakeListener,
    IPushProducer,
    IReadWriteDescriptor,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import Reactor
from ..tls import client_hello as hello
from ..tls.refusal import HandshakeRefused, Refusal, noted_refusal
from .interfaces import IDeviceTransport, IHangupListener
from .lifecycle import Life, Lifecycle
from .stock_transport import address_text

RECORD: Final = 16384
"""Maximum size in bytes of the application data in a TLS record (RFC 8446, section 5.1)."""

UNCHECKED: Final = 4096
"""Bytes that are written without checking whether the socket takes more. Linux lets a write into the last packet of a full send
buffer succeed until that packet has 64 KB (tcp_sendmsg_locked in net/ipv4/tcp.c checks SO_SNDBUF for a new packet only), so a
device that reads nothing would be sent twice as much. POLLOUT is reported below two thirds of the buffer: with the unchecked
bytes and one record more, the total stays below the size of the buffer."""

CLOSING_TIMEOUT: Final = 5.0
"""Seconds that a peer has to take the last bytes and close its side."""


class Owner(Protocol):
    """The port that a transport belongs to, as the transport uses it."""

    @property
    def context(self) -> SSL.Context:
        """Context with which a handshake begins now: `DeviceTLS.context`."""

    @property
    def established(self) -> SSL.Context:
        """Context of connections whose handshake is complete: `PostHandshake.context`."""

    def helloReceived(self, transport: TLSTransport) -> bool:
        """Return whether the handshake may begin at once. Otherwise `TLSTransport.startHandshake` is called later."""

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        """Connect a protocol (`TLSTransport.connectProtocol`), or close the connection."""

    def connectionClosing(self, transport: TLSTransport) -> None:
        """Give the peer `CLOSING_TIMEOUT` seconds to close its side."""

    def connectionClosed(self, transport: TLSTransport, failed: str | None) -> None:
        """Count a closed connection.

        `failed` is the reason for which the handshake was not completed. It is `None` if it was, and if the owner closed the
        connection with `evict`.
        """


EXPECTED: Final = (ConnectionDone, ConnectionLost, ConnectionAborted, SSL.Error, OSError, TimeoutError)
"""Exceptions that end a connection in operation. Any other exception is an error in this program, or in a dialect."""


class _Failures:
    """Reasons that thousands of connections share."""

    DONE: Final = Failure(ConnectionDone("closed cleanly"))
    LOST: Final = Failure(ConnectionLost("closed without a goodbye"))
    SILENT: Final = Failure(ConnectionLost("closed before it said anything"))
    GAVE_UP: Final = Failure(ConnectionLost("closed while it waited for its handshake"))
    ABORTED: Final = Failure(ConnectionAborted("aborted"))
    EVICTED: Final = Failure(ConnectionAborted("silent for longer than all others"))


ACCEPTED: Final = 0
HELLO: Final = 1
"""A part of the ClientHello has arrived. The kernel reports when the rest is there (SO_RCVLOWAT)."""
HANDSHAKING: Final = 2
OPEN: Final = 3
"""Includes paused and draining connections, which may be written to."""
CLOSING: Final = 4
CLOSED: Final = 5

_PAUSED: Final = 1
"""The producer is paused."""
_PULL: Final = 2
"""The producer is a pull producer, which is resumed each time that everything was sent."""
_LOSE: Final = 4
"""`loseConnection` was called, and waits for the producer to be unregistered."""

_HANDSHAKE_FAILURE: Final = b"\x15\x03\x01\x00\x02\x02\x28"
_RESET: Final = struct.pack("ii", 1, 0)


@implementer(IReadWriteDescriptor, IDeviceTransport, ISSLTransport, IConsumer, IPushProducer)
class TLSTransport:
    """Server side of one TLS connection."""

    _log = Logger()

    __slots__ = (
        "__weakref__",
        "_address",
        "_fd",
        "_gone",
        "_hello",
        "_life",
        "_opened",
        "_outgoing",
        "_owner",
        "_producer",
        "_producer_flags",
        "_protocol",
        "_reactor",
        "_reading",
        "_reason",
        "_socket",
        "_state",
        "_tls",
        "_unchecked",
        "_writing",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, address: tuple[Any, ...], owner: Owner) -> None:
        """`address` is the address that `accept()` returned with the socket."""
        self._reactor = reactor
        self._socket = sock
        self._fd = sock.fileno()
        self._address = address
        self._owner = owner
        self._hello: hello.ClientHelloScan | None = None
        self._tls: SSL.Connection | None = None
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
        self._life: Life = Lifecycle(self)
        reactor.addReader(self)

    # -- ITCPTransport and IPushProducer, for the protocol -------------------------------------------------------------

    @property
    def untaken(self) -> int:
        """Number of bytes that were written and that the peer's system has not acknowledged (SIOCOUTQ, tcp(7))."""
        return self._unsent() + sum(map(len, self._outgoing or ()))

    def _unsent(self) -> int:
        """Return the bytes in the send buffer of the socket, or 0 without a socket."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)))[0])
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
        if rest or self._full():
            self._outgoing = [rest] if rest else []
            self._start_writing()
            self._pause_producer()
        elif self._state != OPEN:
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
            self._life.close()

    def _pause_producer(self) -> None:
        if self._producer is not None and not self._producer_flags & (_PAUSED | _PULL):
            self._producer_flags |= _PAUSED
            self._producer.pauseProducing()

    def _send(self, data: bytes) -> bytes:
        """Send as much of the data as the socket takes now, and return the rest."""
        assert self._tls is not None
        sent = 0
        try:
            while sent < len(data):
                # OpenSSL may take less than a record at once: where the device asked for small ones (RFC 6066), for one.
                sent += self._tls.send(data[sent : sent + RECORD] if sent or len(data) > RECORD else data)
                if sent < len(data) and self._full(RECORD):
                    return data[sent:]
        except (SSL.WantWriteError, SSL.WantReadError):
            # OpenSSL wants the same bytes again, at whatever address (SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER).
            return data[sent:]
        except (SSL.Error, OSError) as error:
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
        poll.register(self._fd, select.POLLOUT)
        return not poll.poll(0)

    def _broken(self, error: Exception) -> None:
        """Close a connection whose write failed. OpenSSL reads no more of it then, whatever is left in the socket."""
        if self._reason is None:
            self._reason = _failure(error)
        self._life.abort()

    def pauseProducing(self) -> None:
        """Stop reading. TCP flow control slows the peer down."""
        self._life.pause()

    def resumeProducing(self) -> None:
        self._life.resume()

    def stopProducing(self) -> None:
        self.loseConnection()

    def drain(self) -> None:
        """Stop reading permanently. Data that was written is still sent."""
        self._life.drain()

    def loseConnection(self) -> None:
        """Send what was written and close_notify, and close when the peer has closed its side, or after a time-out.

        With a producer this waits until it is unregistered, as `twisted.internet.interfaces.ITransport` says.
        """
        if self._producer is None or self._state != OPEN:
            self._life.close()
        else:
            self._producer_flags |= _LOSE

    def loseWriteConnection(self) -> None:
        """Close the connection as `loseConnection` does. That reads on until the peer has closed its side."""
        self.loseConnection()

    def abortConnection(self, reason: Failure | None = None) -> None:
        """Close the connection at once. `reason` becomes that of `connectionLost`."""
        if self._reason is None and self._state != CLOSED:
            self._reason = reason or _Failures.ABORTED
        elif reason is not None and not reason.check(*EXPECTED):
            self._log.failure("The connection of {peer} failed while it was closed", reason, peer=self.peer)
        self._life.abort()

    def lossReason(self, reason: Failure) -> Failure:
        """Return `reason`, which is that of `abortConnection` already."""
        return reason

    @property
    def unread(self) -> int:
        """Number of bytes that the peer sent and that were not read (FIONREAD, tcp(7)), those of TLS included."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0])
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
        self.abortConnection(_Failures.LOST)

    def handshakeOverdue(self, why: str) -> None:
        """Close the connection after the handshake time-out."""
        if self._reason is None:
            self._reason = Failure(TimeoutError(why))
        self._life.handshake_overdue()

    def startHandshake(self) -> bool:
        """Begin the handshake if the peer has not closed meanwhile. Return whether it is still there."""
        if self._state not in (ACCEPTED, HELLO):
            return True
        if self.closeIfGone():
            return False
        try:
            self.start_reading()
            self._life.hello_received()
            self._handshake()
        except Exception:
            self.abortConnection(Failure())
        return True

    def closeIfGone(self) -> bool:
        """Close a connection that waits for its handshake if the peer has closed it. Return whether it was closed.

        A peer that has closed its side cannot complete a handshake. Its ClientHello is still in the socket, and would cost a
        signature.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLRDHUP)
        if not poll.poll(0):
            return False
        self._reason = _Failures.GAVE_UP
        self._life.ended()
        return True

    def checkHello(self) -> None:
        """Handle a ClientHello or a close that has arrived since the last event of the reactor."""
        first = self._first_bytes()
        if first is not None and (not first or len(first) >= min(self._needed(first), hello.LONGEST)):
            self.doRead()

    def evict(self) -> None:
        """Close the connection, which has been silent for longest, to make room for another."""
        self._reason = _Failures.EVICTED
        without_goodbye(self._socket)
        self._end_now()

    def evictStalled(self) -> None:
        """Close the connection, whose handshake has stalled, to make room for another."""
        if self._reason is None:
            self._reason = Failure(TimeoutError("its handshake stalled, and others waited for its place"))
        self._end_now()

    def _end_now(self) -> None:
        """Free the connection's place before returning, even if the connection is already closed and `_close` is scheduled."""
        self._life.ended()
        self._close()

    def idleOverdue(self) -> None:
        """Close the connection after the idle time-out."""
        self._life.idle_overdue()

    def closeOverdue(self) -> None:
        """Close the socket of a peer that does not close its side."""
        self._life.close_overdue()

    def getPeer(self) -> IPv4Address | IPv6Address:
        host, port = self._address[:2]
        if ":" in host and not host.startswith("::ffff:"):
            return IPv6Address("TCP", host, port)
        return IPv4Address("TCP", host.removeprefix("::ffff:"), port)

    def getHost(self) -> IPv4Address | IPv6Address:
        host, port = self._socket.getsockname()[:2]
        return IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)

    @property
    def peer(self) -> str:
        """Address of the peer, for events and the log."""
        return address_text(*self._address[:2])

    def getHandle(self) -> SSL.Connection:
        """Return the TLS connection, which exists once the handshake has begun."""
        assert self._tls is not None
        return self._tls

    @property
    def tls_version(self) -> str:
        """Name of the TLS version."""
        return self.getHandle().get_protocol_version_name()

    @property
    def refusal(self) -> Refusal | None:
        """Refusal that a callback of OpenSSL noted, if any."""
        error = None if self._reason is None else self._reason.value
        return error.refusal if isinstance(error, HandshakeRefused) else None

    def getPeerCertificate(self) -> Any:
        """Return the certificate of the peer, or `None`."""
        return self.getHandle().get_peer_certificate()

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
        return self._fd

    def logPrefix(self) -> str:
        return "device"

    def doRead(self) -> None:
        try:
            state = self._state
            if state == OPEN or (state == CLOSING and self._protocol is not None):
                # One record at a time: without read-ahead OpenSSL takes no more than one record from the socket, so the rest
                # makes the socket readable again, and other connections have their turn before it.
                try:
                    data = self._tls.recv(RECORD)  # type: ignore[union-attr]
                except SSL.WantReadError as error:
                    if noted_refusal(self.getHandle()) is not None:
                        self._ended(error)
                    return
                except (SSL.Error, OSError) as error:
                    self._ended(error)
                    return
                self._protocol.dataReceived(data)
            elif state == CLOSING:
                self._drain()
            elif state == HANDSHAKING:
                self._handshake()
            elif state in (ACCEPTED, HELLO):
                self._begin()
        except Exception:
            # An error of our own, or of a dialect, closes this connection only; its end reports the reason.
            self.abortConnection(Failure())

    def doWrite(self) -> None:
        try:
            self._write_on()
        except Exception:
            self.abortConnection(Failure())

    def _write_on(self) -> None:
        if self._state <= HANDSHAKING:
            self._stop_writing()
            self._handshake()
            return
        waiting = self._outgoing
        while waiting:
            rest = self._send(waiting[0])
            if self._state == CLOSED:
                return
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
            self._reason = _Failures.LOST if reason.check(ConnectionLost, ConnectionDone) else reason
        self._life.ended()

    # -- actions of the lifecycle --------------------------------------------------------------------------------------

    def begin_handshake(self) -> None:
        self._state = HANDSHAKING
        self._hello = None
        self._tls = SSL.Connection(self._owner.context, self._socket)
        self._tls.set_accept_state()

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

    # -- handshake -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        first = self._first_bytes()
        if first is None:
            return
        if not first:
            self._reason = _Failures.SILENT  # most likely a health check
            self._life.ended()
            return
        needed = self._needed(first)
        greets = self._state == HELLO or len(first) < needed <= hello.LONGEST
        if greets and self._said_too_little(first, needed):
            return
        if (reason := hello.refusal(first, needed)) is not None:
            self._refuse(reason, len(first))
            return
        if not self._owner.helloReceived(self):
            self.stop_reading()
        elif not self.closeIfGone():
            self._life.hello_received()
            self._handshake()

    def _refuse(self, reason: str, length: int) -> None:
        """Close the connection for its first `length` bytes, with the alert handshake_failure (RFC 8446, section 6.2)."""
        self._reason = Failure(SSL.Error([("", "", reason)]))
        try:
            self._socket.recv(length)  # unread bytes would make the kernel send a reset, which overtakes the alert
            self._socket.send(_HANDSHAKE_FAILURE)
        except OSError:
            pass
        self._life.ended()

    def _first_bytes(self) -> bytes | None:
        """Return the first bytes of the peer without taking them: `None` if none have arrived, `b""` if the peer is gone."""
        try:
            return self._socket.recv(hello.LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _needed(self, first: bytes) -> int:
        """Return the number of bytes needed of a ClientHello with this beginning (`client_hello.ClientHelloScan`)."""
        if self._hello is None:
            self._hello = hello.ClientHelloScan()
        return self._hello.needed(first)

    def _said_too_little(self, first: bytes, needed: int) -> bool:
        """Return whether the rest of the ClientHello is missing, and set SO_RCVLOWAT to be woken only once it is there."""
        sock = self._socket
        # Being woken for less than that means that the peer has closed. OpenSSL will find that out.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) <= len(first) < needed:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
            # With receive buffers that are too small (tcp_rmem, tcp(7)) the kernel sets less, and OpenSSL has to wait.
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) >= needed:
                self._state = HELLO
                return True
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._state = ACCEPTED
        return False

    def _handshake(self) -> None:
        if self._state != HANDSHAKING or self._tls is None:
            return
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.WantWriteError:
            self._start_writing()
            return
        except (SSL.Error, OSError) as error:
            self._ended(error)
            return
        self._tls.set_context(self._owner.established)
        self._life.secured()
        self._owner.handshakeCompleted(self)

    def connectProtocol(self, protocol: Any) -> None:
        """Connect the protocol of an open connection. It may raise `HandshakeRefused`, and is not connected then."""
        self._protocol = protocol
        try:
            protocol.makeConnection(self)
            if IHandshakeListener.providedBy(protocol):
                protocol.handshakeCompleted()
        except HandshakeRefused:
            self._protocol = None
            raise

    # -- the end -------------------------------------------------------------------------------------------------------

    def _ended(self, error: Exception) -> None:
        """Close the connection, since the peer has closed its side or violated the protocol."""
        if isinstance(error, SSL.SysCallError) and self.getHandle().get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            error = SSL.ZeroReturnError()  # a goodbye behind user_canceled (RFC 8446, 6.1), of which OpenSSL 4.0.3 says this
        if (refusal := noted_refusal(self.getHandle())) is not None:
            error = HandshakeRefused(refusal)  # OpenSSL does not report why its callbacks refused
        if self._reason is None:
            # After our close_notify the end of the stream is in order without that of the peer.
            self._reason = _Failures.DONE if self._state == CLOSING else _failure(error)
        if isinstance(error, SSL.ZeroReturnError):
            # The peer sent close_notify, which is answered.
            try:
                self.getHandle().shutdown()
            except (SSL.Error, OSError):
                pass
        self._life.ended()

    def _send_close(self) -> None:
        """Send close_notify and the end of the stream. Reading goes on until the peer closes its side."""
        try:
            self.getHandle().shutdown()
        except (SSL.Error, OSError):
            pass
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer has reset the connection. Reading finds that out after what the peer sent before.
            if self._reason is None:
                self._reason = _Failures.LOST

    def _drain(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._life.ended()

    def _close(self) -> None:
        """Close the socket, and notify producer, protocol and owner, once."""
        if self._gone:
            return
        self._gone = True
        self._state = CLOSED
        if self._reading:
            self._reactor.removeReader(self)
        self._stop_writing()
        self._reading = False
        self._outgoing = None
        protocol, self._protocol = self._protocol, None
        producer, self._producer, self._producer_flags = self._producer, None, 0
        reason = self._reason or _Failures.DONE
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
        elif not reason.check(*EXPECTED):
            self._log.failure("The handshake of {peer} failed", reason, peer=self.peer)
        self._socket.close()
        self._fd = -1
        self._tls = None
        self._life = _OVER  # the machine refers to this object, and must leave no cycle of references
        self._owner.connectionClosed(self, None if self._opened or reason is _Failures.EVICTED else explain(reason))


class _Over:
    """State machine of a closed connection, which ignores all inputs."""

    def nothing(self) -> None: ...

    hello_received = secured = pause = resume = drain = close = abort = nothing
    handshake_overdue = idle_overdue = close_overdue = ended = nothing


_OVER: Final = _Over()


def _failure(error: Exception) -> Failure:
    """Return an error of OpenSSL or of the socket as a reason for `connectionLost`."""
    if isinstance(error, SSL.ZeroReturnError):
        return _Failures.DONE
    if isinstance(error, SSL.SysCallError | OSError | ConnectionLost):
        return _Failures.LOST
    return Failure(error)


def without_goodbye(sock: socket.socket) -> None:
    """Have the socket closed by a reset (SO_LINGER, socket(7)): the kernel forgets it at once, and not after a minute."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # it is gone already


def explain(reason: Failure) -> str:
    """Return the reason for which a connection ended, for events and the log."""
    error = reason.value
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list | tuple) and error.args[0]:
        return f"TLS: {error.args[0][-1][-1]}"
    if isinstance(error, ConnectionDone):
        return "closed by the device"
    if isinstance(error, ConnectionLost):
        return str(error.args[0]) if reason in (_Failures.SILENT, _Failures.GAVE_UP) else "lost"
    return str(error) or type(error).__name__
