"""The device port: accepts, counts, times out, and hands each secured connection to an endpoint.

The socket is bound before the service starts, so that a busy port is the start's error; it begins to listen when the queues
are declared, and stays open from then on.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, cast

from OpenSSL import SSL
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import os_reason
from ..events import Event, Full, HandshakeFailed, Listening, SilentEvicted, TurnedAway
from ..interfaces import Clock, Reactor
from ..runtime.memory import ProcessMemory
from ..supervision import Worker
from ..tls.post_handshake import PostHandshake
from ..tls.refusal import HandshakeRefused, Refusal
from .admission import Admission, Sources, Tally, source_of
from .hangup import HangupWatch
from .housekeeping import TICK, Housekeeping
from .poller import Poller
from .transport import CLOSING_TIMEOUT, TLSTransport, without_goodbye

BACKLOG: Final = 4096
"""Connections that may wait in the system's queue: a stampede of a thousand a second for four. Linux cuts it to somaxconn."""

ACCEPTED_AT_ONCE: Final = 8
"""Connections accepted in one reactor turn. A handshake costs a third of a millisecond, and established devices are served
between: with 8 instead of 64, 500 connections a second cost their round trips 18 ms and not 97 (p99), at the same rate."""

ACCEPTED_WHILE_OTHERS_WAIT: Final = 32
"""The same while connections wait for their handshake. What is accepted then costs some 50 µs, and the system's queue, which is
served in order, must not be where impatient devices wait."""

BEGINNINGS: Final = 0.003
"""Seconds of a turn in which handshakes may begin, after the first one. What is begun is to be completed before others begin: a
peer's answer must not wait behind a hundred signatures. With an RSA key of 4096 bits one takes 4 to 6 ms."""

TURNED_AWAY_AT_ONCE: Final = 64
"""Connections that are accepted and closed again in one reactor turn, for their address: each costs a twentieth of a handshake,
and those behind them in the system's queue should not have to wait for as many turns."""

SETTLED_TOGETHER: Final = 500
"""Connections after which those that stay are put out of the garbage collector's sight: a pause of some 2 ms each time."""

STAND_BACK: Final = 0.005
"""Seconds for which a process that has more devices than others leaves the next one to them. A turn of theirs takes a
millisecond or two; if they are too busy for it, the device has lost no more than this."""

DEFER_ACCEPT: Final = 3
"""Seconds for which the system keeps a connection to itself that says nothing (TCP_DEFER_ACCEPT, tcp(7)); it rounds them to
its own retransmissions. Only then it is accepted, and has the handshake timeout before it."""

SWEEP: Final = 1.0
"""Seconds between two looks at handshakes, goodbyes and idle connections."""

KEEPALIVE: Final = (120, 30, 4)
"""TCP keepalive: seconds of silence before the first probe, between probes, and how many may fail."""

LONGEST_GOODBYE: Final = 60.0
"""Seconds that a peer has to take our last bytes, as long as it takes some within each `CLOSING_TIMEOUT`. With the 128 KB that
the system and we may hold for it that is a line of 17 kbit/s. What the system still has then it goes on sending by itself."""

SEND_BUFFER: Final = 32768
"""Bytes for SO_SNDBUF, which Linux doubles (socket(7)): of what was written, and acknowledged for that, the system has 64 KB at
most. Left to itself it takes megabytes for a device that reads nothing."""

LOST_ALREADY: Final = frozenset({
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
})  # fmt: skip
"""What accept(2) says of a connection that ended before it was accepted, or that a firewall forbids. The next may be well."""

GIVEN_BACK_EVERY: Final = 60.0
"""Seconds, at the least, between two times that free memory is given back to the system, if there were so many handshakes."""


class Share(Protocol):
    """The connections of this process among those of others on the same port."""

    def tell(self, connections: int) -> None:
        """There are so many now."""

    def stands_back(self, connections: int) -> bool:
        """Whether the next one is rather for others."""


def _shown(sock: socket.socket, host: str) -> str:
    """Return the address of a bound socket as the log shows it: for a wildcard, of which IP versions it takes connections."""
    if host == "0.0.0.0":
        return "all IPv4 interfaces"
    if host == "::":
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return "all IPv6 interfaces" if only else "all interfaces"
    return host


class _Goodbye(NamedTuple):
    """A connection that is closing."""

    deadline: float
    """When to look at it again."""
    last: float
    """When to close it, whatever it does."""
    untaken: int
    """Bytes that it had not taken when it was looked at."""


@implementer(IReadDescriptor)
class Listener(Worker):
    """Accepts devices on a bound socket.

    It can be stopped and started again; the socket stays open meanwhile, until `stop_accepting`.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        context: SSL.Context,
        factory: ServerFactory,
        admission: Admission[TLSTransport],
        emit: Callable[[Event], None],
        hangups: HangupWatch,
        *,
        handshake_timeout: float,
        fail: Callable[[str], None],
        sources: Sources | None = None,
        share: Share | None = None,
        housekeeping: Housekeeping | None = None,
        memory: ProcessMemory | None = None,
        linger: float = 0.0,
    ) -> None:
        """Times are in seconds. `factory` builds the protocol of each connection whose handshake is complete; it may be any
        `ServerFactory`. `housekeeping` is called periodically; `sources` limits the connections from one address; `share` is
        there where other processes listen on the same socket; `memory` is that of the process; `linger` that of a `Poller`.

        `fail` is told why the port cannot be opened: without it there is nothing to do for this process.
        """
        super().__init__(reactor)
        self.setName("port")
        self._log = Logger(namespace="owsla")
        self._reactor = reactor
        self._clock: Clock = reactor
        self._poller = Poller(reactor, linger)
        self._socket = sock
        self._context = context
        self._post_handshake = PostHandshake(reactor.seconds)
        self._factory = factory
        self._housekeeping = housekeeping
        self._admission = admission
        self._emit = emit
        self._handshake_timeout = handshake_timeout
        self._hangups = hangups
        self._fail = fail
        self._sources = sources
        self._share = share
        self._standing_back = False
        self._memory = memory
        self._given_back = (0, 0.0)  # at so many handshakes, and when
        self._beginning = False
        """Whether `_begin_handshakes` is to come."""
        self._turn = -1
        self._turn_ends = 0.0
        self._accepting = False
        self._opened = False
        self._closing: dict[TLSTransport, _Goodbye] = {}
        self._full = False
        self.handshakes = 0
        """Handshakes completed so far."""
        self.failed_handshakes = 0
        """Connections closed before theirs was complete; those evicted or turned away are not among them."""
        self._evicted = Tally()
        self._turned_away = Tally()
        self._turned_away_last = ""

    @property
    def evicted(self) -> int:
        """Silent connections that were closed so far since there were too many."""
        return self._evicted.count

    @property
    def turned_away(self) -> int:
        """Connections that were closed at once so far since there were too many from their address."""
        return self._turned_away.count

    # -- opening and closing the port --------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()
        self._hangups.failed = self.end
        self._hangups.start()
        self.later(TICK, self._tick)
        self.later(SWEEP, self._sweep)
        self._go_on()

    def open(self) -> bool:
        """Open the port, if it is not: there is somewhere for lines to go. Return whether it was opened now."""
        if self._opened or not self.running:
            return False
        self._opened = True
        sock = self._socket
        # What a listening socket is set to, the sockets accepted from it inherit (Linux): no call for each of them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if hasattr(socket, "TCP_KEEPIDLE"):
            for option, value in zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
        host, port = sock.getsockname()[:2]
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            # Bound is not taken: another process was quicker to listen.
            reason = f"--port: port {port} cannot be opened: {os_reason(error)}"
            self._log.critical("{reason}", reason=reason)
            self._fail(reason)
            return False
        if self._share is not None:
            self._share.tell(self._admission.connections)
        if self._memory is not None:
            self._memory.freeze()
        self._emit(Listening(address=_shown(self._socket, host), port=port))
        self._resume()
        return True

    @property
    def accepting(self) -> bool:
        """Whether the port is open, and there is room for a device that comes now (or when a handshake or two are done)."""
        return self._opened and self._socket.fileno() >= 0 and not self._admission.full

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for."""
        return int(self._socket.getsockname()[1])

    def stop_accepting(self) -> None:
        """Close the port, for good; those connected stay. One that is not open yet stays closed."""
        self._opened = True
        self._pause()
        self._socket.close()
        self._hangups.keep()

    def stopService(self) -> None:
        if self.running:
            self._hangups.stop()
            self._standing_back = self._beginning = False  # their timers go with the others
            self._pause()
            self._tell_of_attacks(last=True)
        super().stopService()

    # -- accepting ---------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "listener"

    def connectionLost(self, reason: Any) -> None:
        self.end(reason)

    def doRead(self) -> None:
        if self._share is not None and self._share.stands_back(self._admission.connections):
            self._standing_back = True
            self._pause()
            self.later(STAND_BACK, self._take_what_is_left)
            return
        try:
            self._accept()
        except Exception:
            self._pause()
            self.end(Failure())

    def _accept(self) -> None:
        admission, sources = self._admission, self._sources
        left = min(ACCEPTED_WHILE_OTHERS_WAIT if admission.waiting else ACCEPTED_AT_ONCE, admission.room)
        for _ in range(left if sources is None else TURNED_AWAY_AT_ONCE):
            silent = None
            if admission.crowded:
                silent = self._least_welcome()
                left = min(left, admission.room)
            if left <= 0:
                break
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                break  # another process may have been quicker
            except OSError as error:
                if error.errno in LOST_ALREADY:
                    continue
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._say_full(f"the system says: {os_reason(error)}")
                self._pause()
                return
            if sources is not None and not sources.enter(address[0]):
                self._turn_away(sock, address[0])
                continue
            if silent is not None:
                self._evicted.count += 1
                silent.evict()
            left -= 1
            sock.setblocking(False)
            transport = TLSTransport(self._poller, sock, address, self._context, self)
            admission.accepted(transport, self._clock.seconds() + self._handshake_timeout)
        self._check_room()

    def _take_what_is_left(self) -> None:
        self._standing_back = False
        if self.running and self._socket.fileno() >= 0:
            self._accept()
            self._resume()

    def _least_welcome(self) -> TLSTransport | None:
        """Who is to go for the next one: whoever is silent for longest, if what came in this very turn is heard first."""
        admission = self._admission
        while admission.crowded and (silent := admission.oldest) is not None and admission.room > 0:
            silent.checkHello()
            if admission.oldest is silent:
                return silent
        return None

    def _turn_away(self, sock: socket.socket, host: str) -> None:
        self._turned_away.count += 1
        self._turned_away_last = host
        without_goodbye(sock)
        sock.close()

    def _check_room(self) -> None:
        if self._share is not None:
            self._share.tell(self._admission.connections)
        if self._admission.room > 0:
            return
        self._pause()
        if self._admission.full:
            self._say_full("as many devices as --max-connections allows")

    def _say_full(self, what: str) -> None:
        if not self._full:
            self._full = True
            self._emit(Full(self._admission.connections, what))

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._reactor.removeReader(self)

    def _resume(self) -> None:
        if (
            not self._accepting
            and not self._standing_back
            and self.running
            and self._opened
            and self._socket.fileno() >= 0
            and self._admission.room > 0
        ):
            self._accepting = True
            self._reactor.addReader(self)

    # -- what becomes of a connection --------------------------------------------------------------------------------------

    @property
    def established(self) -> SSL.Context:
        return self._post_handshake.context

    def helloReceived(self, transport: TLSTransport) -> bool:
        admission = self._admission
        admission.spoke(transport)
        now = self._clock.seconds()
        if self._turn != self._poller.turns:
            self._turn = self._poller.turns
            self._turn_ends = now + BEGINNINGS
        begins = (
            admission.waiting == 1 and not self._beginning and now < self._turn_ends and admission.next_turn(now) is transport
        )
        if not begins:
            self._begin_soon()
        self._check_room()
        return begins

    def _begin_soon(self) -> None:
        """Have handshakes begin in the next turn of the reactor."""
        if not self._beginning and self.running:
            self._beginning = True
            self.later(0, self._begin_handshakes)

    def _begin_handshakes(self) -> None:
        """Begin handshakes of those that wait, as many as there are places for, and as a turn has time for."""
        self._beginning = False
        admission = self._admission
        end = self._clock.seconds() + BEGINNINGS
        while (now := self._clock.seconds()) < end:
            if (stalled := admission.stalled(now)) is not None:
                stalled.evictStalled()
            transport = admission.next_turn(now)
            if transport is None:
                break
            if not transport.startHandshake():
                admission.gave_up()
        else:
            if admission.waiting:
                self._begin_soon()
        self._resume()

    def _go_on(self) -> None:
        """There may be a place: for the handshake of one that waits for it, or to accept one more."""
        if self._admission.waiting:
            self._begin_soon()
        self._resume()

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        self._admission.secured(transport, self._clock.seconds())
        self._go_on()
        protocol = None
        if self._socket.fileno() >= 0:  # or it was accepted just before the port was closed
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
        if self._memory is not None and self.handshakes % SETTLED_TOGETHER == 0:
            self._memory.freeze()

    def _handshake_failed(self, transport: TLSTransport, reason: str, refusal: Refusal | None) -> None:
        self.failed_handshakes += 1
        subject, serial = (None, None) if refusal is None else (refusal.subject, refusal.serial)
        self._emit(HandshakeFailed(transport.peer, reason, subject, serial))

    def connectionClosing(self, transport: TLSTransport) -> None:
        now = self._clock.seconds()
        self._closing[transport] = _Goodbye(now + CLOSING_TIMEOUT, now + LONGEST_GOODBYE, transport.untaken)

    def connectionClosed(self, transport: TLSTransport, failed: str | None) -> None:
        self._admission.lost(transport)
        if self._share is not None and self._socket.fileno() >= 0:
            self._share.tell(self._admission.connections)
        if self._sources is not None:
            self._sources.leave(transport.getPeer().host)
        self._closing.pop(transport, None)
        if failed is not None:
            self._handshake_failed(transport, failed, transport.refusal)
        limit = self._admission.max_connections
        if self._admission.spoken <= limit - max(1, limit // 100):
            self._full = False
        self._go_on()

    # -- time --------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.later(TICK, self._tick)
        if self._housekeeping is not None:
            self._housekeeping.tick()

    def _sweep(self) -> None:
        """Once a second: handshakes that take too long, goodbyes that are not answered, and a share of the idle checks."""
        self.later(SWEEP, self._sweep)
        now = self._clock.seconds()
        for transport in list(self._admission.overdue(now)):
            transport.handshakeOverdue(f"no handshake within {self._handshake_timeout:g} s")
        for transport in self._admission.those_waiting():
            if transport.closeIfGone():
                self._admission.gave_up()
        for transport, goodbye in list(self._closing.items()):
            if goodbye.deadline > now:
                break
            untaken = transport.untaken
            if untaken < goodbye.untaken and now < goodbye.last:
                # It is slow, but it takes what it was sent. A later deadline has its place at the end.
                del self._closing[transport]
                self._closing[transport] = goodbye._replace(deadline=now + CLOSING_TIMEOUT, untaken=untaken)
            elif transport.held_back and (
                self._socket.fileno() < 0 or (now < goodbye.last and (transport.peerClosed() or transport.awaiting_turn))
            ):
                # It waits for us. In a stop --drain-timeout ends that; otherwise it has its turn, or a last share.
                del self._closing[transport]
                self._closing[transport] = goodbye._replace(deadline=now + CLOSING_TIMEOUT)
            else:
                transport.closeOverdue()
        self._tell_of_attacks()
        self._give_back(now)
        self._go_on()
        if self._housekeeping is not None:
            self._housekeeping.sweep()

    def _tell_of_attacks(self, *, last: bool = False) -> None:
        """What comes by the thousand is told as a number."""
        now = self._clock.seconds()
        evicted, turned_away = self._evicted.due(now, last=last), self._turned_away.due(now, last=last)
        if evicted:
            self._emit(SilentEvicted(evicted, self._admission.max_silent))
        if turned_away and self._sources is not None:
            self._emit(TurnedAway(turned_away, self._sources.limit, source_of(self._turned_away_last)))

    def _give_back(self, now: float) -> None:
        handshakes, then = self._given_back
        if self._memory is not None and self.handshakes >= handshakes + SETTLED_TOGETHER and now >= then + GIVEN_BACK_EVERY:
            self._given_back = (self.handshakes, now)
            self._memory.trim()
