"""TLS transport on a socket.

pyOpenSSL is given the socket itself (`SSL_set_fd`), where the `TLSMemoryBIOProtocol` of Twisted has memory BIOs over a second
transport. For an idle connection that saves some 17 % of memory (22.8 KB instead of 27.3 KB with the same protocol; measured by
`bench.memory`), and a line is written by one system call at once, not in the next turn of the reactor. OpenSSL and its errors
are described in SSL_read(3), SSL_write(3), SSL_shutdown(3) and SSL_get_error(3).

Until the ClientHello is complete it stays in the socket (MSG_PEEK), and there is no OpenSSL object, so a silent connection is
small. When the connection closes, close_notify is sent after what was written, and then the end of the stream.
"""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from typing import Any, ClassVar, Final, Protocol

from OpenSSL import SSL
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import Reactor
from ..tls import client_hello as hello
from ..tls.refusal import HandshakeRefused, noted_refusal
from .poller import SocketSet
from .socket_transport import (
    ACCEPTED,
    CLOSED,
    CLOSING,
    HANDSHAKING,
    HELLO,
    OPEN,
    RECORD,
    Failures,
    Owner,
    SocketTransport,
    failure_of,
)

_BEFORE_SIGNATURE: Final = (b"before SSL initialization", b"TLSv1.3 early data")
"""OpenSSL's states (SSL_state_string_long(3)) while it awaits the rest of a ClientHello, or the second one, after a
HelloRetryRequest. It is in the second of them after its signature, too."""

RECORDS: Final = 16
"""Maximum number of records that are read for one event, so that others have their turn: small ones take some 80 µs."""

OVERHEAD: Final = 29
"""Maximum size in bytes of a record beside its data, with an AEAD cipher (TLS 1.2, AES-GCM)."""

ALERT: Final = OVERHEAD + 2
"""Maximum size in bytes of the record with close_notify. As few unread bytes may hold no line."""

_NOTHING: Final = bytes(4)
"""Answer to FIONREAD (tcp(7)) of a socket without unread bytes."""

_HANDSHAKE_FAILURE: Final = b"\x15\x03\x01\x00\x02\x02\x28"


class TLSOwner(Owner, Protocol):
    """The port of TLS connections."""

    @property
    def context(self) -> SSL.Context:
        """Context with which a handshake begins now: `DeviceTLS.context`."""

    @property
    def established(self) -> SSL.Context:
        """Context of connections whose handshake is complete: `PostHandshake.context`."""

    @property
    def poller(self) -> SocketSet:
        """Set of sockets that an established connection is moved to."""

    def helloReceived(self, transport: TLSTransport) -> bool:
        """Return whether the handshake may begin at once. Otherwise `TLSTransport.startHandshake` is called later, or the
        connection is closed.
        """

    def mayHaveClosed(self, transport: TLSTransport) -> bool:
        """Return whether the peer may have closed its side of a connection. If so, the socket is asked."""

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        """Connect a protocol (`connectProtocol`), or close the connection."""


@implementer(ISSLTransport)
class TLSTransport(SocketTransport):
    """Server side of one TLS connection."""

    __slots__ = ("_hello", "_late_end")

    _BLOCKED: ClassVar = (SSL.WantWriteError, SSL.WantReadError)
    _ERRORS: ClassVar = (SSL.Error, OSError)
    _FIRST: ClassVar = hello.LONGEST

    _owner: TLSOwner

    def __init__(
        self, reactor: Reactor, sock: socket.socket, address: tuple[Any, ...] | str, owner: TLSOwner, proxied: bool = False
    ) -> None:
        self._hello: hello.ClientHelloScan | None = None
        self._late_end: Exception | None = None
        """End of the connection that was read together with data, and for which the protocol is not ready: it has paused."""
        SocketTransport.__init__(self, reactor, sock, address, owner, proxied)

    def getHandle(self) -> SSL.Connection:
        """Return the TLS connection, which exists once the handshake has begun."""
        assert self._stream is not None
        connection: SSL.Connection = self._stream
        return connection

    @property
    def tls_version(self) -> str:
        """Name of the TLS version."""
        return str(self._stream.get_protocol_version_name())

    def getPeerCertificate(self) -> Any:
        """Return the certificate of the peer, or `None`."""
        return self.getHandle().get_peer_certificate()

    # -- IReadWriteDescriptor, for the reactor -------------------------------------------------------------------------

    def doRead(self) -> None:
        try:
            state = self._state
            if state == OPEN or (state == CLOSING and self._protocol is not None):
                try:
                    data = self._stream.recv(RECORD)
                except SSL.WantReadError as error:
                    if self._is_end(error):
                        self._ended(error)
                    return
                except (SSL.Error, OSError) as error:
                    self._ended(error)
                    return
                # To ask the kernel for each record would cost a device that sends one at a time some 10 % more.
                if self._owner.poller.crowded:
                    unread = fcntl.ioctl(self._socket, termios.FIONREAD, _NOTHING)
                    if unread != _NOTHING:
                        self._read_on(data, int.from_bytes(unread, sys.byteorder))
                        return
                self._protocol.dataReceived(data)
            elif state == CLOSING:
                self._drain()
            elif state == HANDSHAKING:
                self._continue_handshake()
            elif state in (ACCEPTED, HELLO):
                self._begin()
        except Exception:
            # An error of our own, or of a dialect, closes this connection only; its end reports the reason.
            self.abortConnection(Failure())

    def _read_on(self, first: bytes, unread: int) -> None:
        """Read more records, of which `unread` bytes are in the socket, and give them to the protocol together with the first.

        Without read-ahead OpenSSL takes no more than one record from the socket, and an event for each would cost as much
        again as to decrypt and publish its line. What is left makes the socket readable again.
        """
        data, size = [first], len(first)
        end: Exception | None = None
        recv = self._stream.recv
        while unread > ALERT and size < RECORD and len(data) < RECORDS:
            try:
                more = recv(RECORD)
            except (SSL.Error, OSError) as error:
                # The traceback refers to this frame: that cycle would keep the data until garbage is collected.
                end = error.with_traceback(None)
                break
            data.append(more)
            size += len(more)
            unread -= len(more) + OVERHEAD
        self._protocol.dataReceived(b"".join(data))
        if end is None or self._state == CLOSED or not self._is_end(end):
            return
        if self._reading:
            self._ended(end)
        else:
            self._late_end = end  # the protocol has paused the connection: its end waits until it is read again

    def _is_end(self, error: Exception) -> bool:
        """Return whether an error of a read means that no data follows. `WantReadError` does if a callback has refused."""
        return not isinstance(error, SSL.WantReadError) or noted_refusal(self.getHandle()) is not None

    def start_reading(self) -> None:
        super().start_reading()
        if self._late_end is not None:
            # OpenSSL has taken it from the socket, which may never be readable again.
            self._reactor.callLater(0, self._report_late_end)

    def _report_late_end(self) -> None:
        end = self._late_end
        if end is not None and self._reading and self._state < CLOSED:
            self._ended(end)

    def _write_on(self) -> None:
        if self._state <= HANDSHAKING:
            self._stop_writing()
            self._handshake()
        else:
            super()._write_on()

    # -- handshake -----------------------------------------------------------------------------------------------------

    def begin_handshake(self) -> None:
        """Make the OpenSSL connection. An action of the lifecycle."""
        self._state = HANDSHAKING
        self._hello = None
        self._stream = SSL.Connection(self._owner.context, self._socket)
        self._stream.set_accept_state()

    def startHandshake(self) -> bool:
        """Begin the handshake if the peer has not closed meanwhile. Return whether it is still there."""
        if self._state not in (ACCEPTED, HELLO):
            return True
        if self.closeIfGone():
            return False
        try:
            self.start_reading()
            self._take("hello_received")
            self._handshake()
        except Exception:
            self.abortConnection(Failure())
        return True

    def closeIfGone(self) -> bool:
        """Close a connection that waits for its handshake if the peer has closed it. Return whether it was closed.

        A peer that has closed its side cannot complete a handshake. Its ClientHello is still in the socket, and would cost a
        signature.
        """
        if not self._peer_gone():
            return False
        self._reason = Failures.GAVE_UP
        self._take("ended")
        return True

    def _peer_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _begin_with(self, first: bytes) -> None:
        if self._hello is None and (whole := hello.whole_record(first)):
            reason = hello.key_exchange_refusal(first[hello.HEADER : whole])
        else:
            needed = self._needed(first)
            greets = self._state == HELLO or len(first) < needed <= hello.LONGEST
            if greets and self._said_too_little(first, needed):
                return
            reason = hello.refusal(first, needed)
        if reason is not None:
            self._refuse_hello(reason, len(first))
            return
        if self._owner.helloReceived(self):
            self._take("hello_received")
            self._handshake()
        else:
            self.stop_reading()

    def _refuse_hello(self, reason: str, length: int) -> None:
        """Close the connection for its first `length` bytes, with the alert handshake_failure (RFC 8446, section 6.2)."""
        self._reason = Failure(SSL.Error([("", "", reason)]))
        try:
            self._socket.recv(length)  # unread bytes would make the kernel send a reset, which overtakes the alert
            self._socket.send(_HANDSHAKE_FAILURE)
        except OSError:
            pass
        self._take("ended")

    def _enough(self, first: bytes) -> bool:
        return len(first) >= min(self._needed(first), hello.LONGEST)

    def _needed(self, first: bytes) -> int:
        """Return the number of bytes needed of a ClientHello with this beginning (`client_hello.ClientHelloScan`)."""
        if self._hello is None:
            if whole := hello.whole_record(first):
                return whole
            self._hello = hello.ClientHelloScan()
        return self._hello.needed(first)

    def _said_too_little(self, first: bytes, needed: int) -> bool:
        """Return whether the rest of the ClientHello is missing. Its first part wakes the process no more then.

        SO_RCVLOWAT has the kernel wake the process only once the rest is there.
        """
        sock = self._socket
        if sock.family == socket.AF_UNIX:
            # The kernel reports a unix socket as readable in spite of SO_RCVLOWAT. So the port looks again (`checkRest`).
            # If the peer has closed, OpenSSL will find that out.
            if len(first) < needed <= hello.LONGEST and not self._peer_gone():
                self._state = HELLO
                self.stop_reading()
                return True
            self.start_reading()
            self._state = ACCEPTED
            return False
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

    def checkRest(self) -> None:
        """Proceed if the rest of the ClientHello has arrived on a unix socket, or if the peer has closed it."""
        if self._state != HELLO or self._reading:
            return
        first = self._first_bytes()
        if first and not self._enough(first) and not self._peer_gone():
            return
        self.doRead()

    def _continue_handshake(self) -> None:
        """Continue a handshake that has begun, unless a signature would be made for a peer that has gone meanwhile."""
        tls = self._stream
        # In TLS 1.3 the signature is made together with our Finished message. Once there is one, the kernel is not asked.
        if (
            self._owner.mayHaveClosed(self)
            and tls.get_finished() is None
            and tls.get_state_string() in _BEFORE_SIGNATURE
            and self._peer_gone()
        ):
            self._reason = Failures.LOST
            self._take("ended")
        else:
            self._handshake()

    def _handshake(self) -> None:
        if self._state != HANDSHAKING or self._stream is None:
            return
        try:
            self._stream.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.WantWriteError:
            self._start_writing()
            return
        except (SSL.Error, OSError) as error:
            self._ended(error)
            return
        self._stream.set_context(self._owner.established)
        self._move_to(self._owner.poller)
        self._take("secured")
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

    def _broken(self, error: Exception) -> None:
        """Close a connection whose write failed. OpenSSL reads no more of it then, whatever is left in the socket."""
        if self._reason is None:
            self._reason = failure_of(error)
        self._take("abort")

    def _ended(self, error: Exception) -> None:
        """Close the connection, since the peer has closed its side or violated the protocol."""
        error = self._late_end or error  # OpenSSL does not repeat the reason of a fatal alert
        tls = self._stream
        if isinstance(error, SSL.SysCallError) and tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            error = SSL.ZeroReturnError()  # a goodbye behind user_canceled (RFC 8446, 6.1), of which OpenSSL 4.0.3 says this
        if (refusal := noted_refusal(tls)) is not None:
            error = HandshakeRefused(refusal)  # OpenSSL does not report why its callbacks refused
        if self._reason is None:
            # After our close_notify the end of the stream is in order without that of the peer.
            self._reason = Failures.DONE if self._state == CLOSING else failure_of(error)
        if isinstance(error, SSL.ZeroReturnError):
            # The peer sent close_notify, which is answered.
            try:
                tls.shutdown()
            except (SSL.Error, OSError):
                pass
        self._take("ended")

    def _send_close(self) -> None:
        """Send close_notify and the end of the stream. Reading goes on until the peer closes its side."""
        try:
            self.getHandle().shutdown()
        except (SSL.Error, OSError):
            pass
        super()._send_close()
