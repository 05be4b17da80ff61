"""Epoll sets for the sockets of devices, each of which is one descriptor for the reactor.

A reactor calls a descriptor through its logging context for each event, which costs more than splitting the line that came. It
also handles all ready descriptors in one turn: a burst of thousands of devices then delays the answers of the broker. Here an
event is one method call, and a turn is limited. An epoll set may be in another one (epoll(7)).

While many devices send, the `Poller` also lingers: it waits between turns, so that lines of many devices share a turn of this
process and of the broker.

Connections in their handshake have a set of their own, the `HandshakePoller`. An event there takes up to half a millisecond,
and may wait, while a line and its answer may not. So it handles events after those of the established devices, serves these
between two handshakes, and stops when the broker has sent something.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Protocol

from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import DelayedCall, Reactor
from ..runtime.end_of_turn import EndOfTurn

SLICE: Final = 16
"""Maximum number of events of one poll. The next poll returns other ready sockets first (epoll_wait(2))."""

SLICES: Final = 16
"""Maximum number of polls in one turn of the reactor. The lines of a turn share the work of its end, such as writing to the
broker; 256 lines take some five milliseconds."""

TURN: Final = 0.005
"""Seconds after which a turn handles no more events."""

HANDSHAKE_TURN: Final = 0.003
"""Seconds after which a turn begins no more handshakes, and handles no more events of those that have begun, if nothing has
interrupted it before. Handshakes that have begun are to be completed before others begin: the answer of a peer must not wait
behind a hundred signatures. With an RSA key of 4096 bits one takes 4 to 6 ms."""

UNINTERRUPTED: Final = 0.0003
"""Seconds in which handshakes are not interrupted: for one signature, or for some ClientHellos of connections that wait then.
Devices that send without a pause must not hold up new ones without end."""

UNINTERRUPTED_SHARE: Final = 0.25
"""Share of the time since the broker has interrupted handshakes for which it does not interrupt the next ones. While devices
send without a pause, the broker always has something: there would be one handshake for each turn of 256 lines."""

BUSY: Final = 3000.0
"""Events a second from which on the poller lingers: six of them in 2 ms. 500 lines and 500 handshakes a second are
fewer."""

LOOK: Final = 0.05
"""Seconds over which the rate of events is measured."""

_READ: Final = select.EPOLLIN
_CLOSED: Final = select.EPOLLRDHUP
_WRITE: Final = select.EPOLLOUT
_DEAD: Final = select.EPOLLERR | select.EPOLLHUP
_NO_EVENT: Final = (-1, _CLOSED)
_LOST: Final = Failure(ConnectionLost("the socket is dead"))


class Reader(Protocol):
    """A descriptor, as in `twisted.internet.interfaces.IReadDescriptor`."""

    def fileno(self) -> int: ...

    def doRead(self) -> object: ...

    def connectionLost(self, reason: Failure) -> object: ...


class Socket(Reader, Protocol):
    """A descriptor, as in `twisted.internet.interfaces.IReadWriteDescriptor`."""

    def doWrite(self) -> object: ...


class SocketSet:
    """An epoll set that is a descriptor of the reactor, and a reactor for its sockets."""

    _log = Logger()
    _ALSO: ClassVar = 0
    """Events that are reported together with the first one to read."""

    def __init__(self, reactor: Reactor, turn: EndOfTurn) -> None:
        self._reactor = reactor
        self._turn = turn
        self._epoll: select.epoll | None = None
        """The set, which exists while there are sockets in it, and once it was made as long as it stays."""
        # By descriptor: the system gives out the lowest free one. Dictionaries would take some 100 bytes for each socket.
        self._sockets: list[Any] = []
        self._wanted = bytearray()
        self._watched = 0
        """Number of sockets in the set."""
        self._stays = False
        self.crowded = False
        """True while as many sockets are ready as one poll returns: they may have more to read than one read takes."""
        self.seconds: Final = reactor.seconds

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> DelayedCall:
        delayed: DelayedCall = self._reactor.callLater(delay, call, *args)
        return delayed

    def stay(self, stays: bool) -> None:
        """Keep the set while there are no sockets in it, or close it then.

        A set of its own for each of a few connections that come one by one would take four more system calls for each.
        """
        self._stays = stays
        if not stays and not self._watched:
            self._close()

    # -- For sockets ------------------------------------------------------------------------------------------------------

    # A connection is added and removed twice, first to the set of handshakes. So there are no calls here that can be avoided.

    def addReader(self, reader: Reader, event: int = _READ) -> None:
        fd = reader.fileno()
        sockets = self._sockets
        wanted = self._wanted[fd] if fd < len(sockets) else 0
        if wanted & event:
            return
        epoll = self._epoll
        if epoll is None:
            epoll = self._epoll = select.epoll()
            self._watch()
        if wanted:
            epoll.modify(fd, wanted | event | self._ALSO)
        else:
            epoll.register(fd, event | self._ALSO if event == _READ else event)
            missing = fd + 1 - len(sockets)
            if missing > 0:
                sockets += [None] * missing
                self._wanted += bytes(missing)
            sockets[fd] = reader
            self._watched += 1
        self._wanted[fd] = wanted | event

    def addWriter(self, writer: Socket) -> None:
        self.addReader(writer, _WRITE)

    def removeReader(self, reader: Reader, event: int = _READ) -> None:
        fd = reader.fileno()  # -1 if the socket is closed
        wanted = self._wanted[fd] if 0 <= fd < len(self._sockets) else 0
        epoll = self._epoll
        if epoll is None or not wanted & event:
            return
        if wanted != event:
            rest = wanted & ~event
            epoll.modify(fd, rest | self._ALSO if rest == _READ else rest)
            self._wanted[fd] = wanted & ~event
            return
        # A socket without wanted events would still report its end, again and again. So it leaves the set.
        epoll.unregister(fd)
        self._sockets[fd] = None
        self._wanted[fd] = 0
        self._watched -= 1
        if not self._watched and not self._stays:
            self._close()

    def removeWriter(self, writer: Socket) -> None:
        self.removeReader(writer, _WRITE)

    def _watch(self) -> None:
        """Have the reactor report events of the set."""
        self._reactor.addReader(self)

    def _unwatch(self) -> None:
        """Have the reactor report no events of the set."""
        self._reactor.removeReader(self)

    def _close(self) -> None:
        epoll = self._epoll
        if epoll is not None:
            self._unwatch()
            self._epoll = None
            epoll.close()

    # -- what the reactor wants of a descriptor ----------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "devices"

    def doRead(self) -> None:
        raise NotImplementedError

    def _handle(self, ready: Iterable[tuple[int, int]]) -> None:
        sockets = self._sockets
        for fd, events in ready:
            one = sockets[fd]
            if one is None:
                continue  # closed while an earlier event was handled
            try:
                if events & _READ:
                    one.doRead()
                    if not events & _WRITE or sockets[fd] is not one:
                        continue
                if events & _WRITE:
                    one.doWrite()
                elif events & _DEAD:
                    one.connectionLost(_LOST)
            except Exception:
                self._log.failure("Handling a socket failed: {socket}", socket=one)

    def _failed(self) -> None:
        """Disconnect all sockets after an exception in a delayed call, as a reactor does when a descriptor raises."""
        self._log.failure("Polling the devices failed")
        self.connectionLost(Failure())

    def connectionLost(self, reason: Failure) -> None:
        """Disconnect all sockets, when the reactor ends."""
        sockets, self._sockets = self._sockets, []
        self._wanted = bytearray()
        self._watched = 0
        self._close()
        for one in sockets:
            if one is None:
                continue
            try:
                one.connectionLost(reason)
            except Exception:
                self._log.failure("Disconnecting a socket failed: {socket}", socket=one)


class Poller(SocketSet):
    """Sockets of established connections.

    An event costs 1.0 µs, with its `recv`, and 3.3 µs in Twisted's own epoll reactor (250 sockets, medians). While the poller
    lingers it is not a reader of the reactor: a delayed call starts the next turn.
    """

    def __init__(self, reactor: Reactor, turn: EndOfTurn, linger: float = 0.0) -> None:
        """`linger` is the minimum time in seconds from one turn to the next, with more than `BUSY` events a second."""
        super().__init__(reactor, turn)
        self._linger = linger
        self._waking: DelayedCall | None = None
        self._busy = False
        self._events = 0
        """Number of events since `_since`."""
        self._since = 0.0

    def configure(self, linger: float) -> None:
        """Change the minimum time between two turns."""
        self._linger = linger
        waking = self._waking
        if not linger and waking is not None:
            # Without lingering, a turn does not schedule the next one.
            self._waking = None
            self._busy = False
            if waking.active():
                waking.cancel()
            if self._epoll is not None:
                self._watch()

    def _close(self) -> None:
        waking, self._waking = self._waking, None
        if waking is not None and waking.active():
            waking.cancel()
        super()._close()

    def doRead(self) -> None:
        self._turn.read_time()
        start = self.seconds()
        all_of_it = self._take(start + TURN)
        # Otherwise the lines would wait for the messages that the reactor reads from the broker in this turn, and for writing
        # them to devices.
        if self._turn.scheduled:
            self._turn.flush()
        if self._linger:
            self._pace(start, self._linger if all_of_it else 0.0)

    def _take(self, end: float) -> bool:
        """Handle ready sockets, within the limits of a turn. Return whether all were handled."""
        # A socket with more data than one read took is ready again at once. It must not wait for a turn that lingers.
        enough = 1 if self._busy else SLICE
        for _ in range(SLICES):
            if self._epoll is None:
                return True
            ready = self._epoll.poll(0, SLICE)
            self._events += len(ready)
            self.crowded = len(ready) == SLICE
            self._handle(ready)
            if len(ready) < enough:
                return True
            if self.seconds() >= end:
                return False
        return False

    def serve(self) -> None:
        """Handle what devices have sent during other work of a turn, and send it on, unless lines wait for each other."""
        if self._epoll is None or self._waking is not None:
            return
        ready = self._epoll.poll(0, SLICE)
        if ready:
            self._turn.read_time()
            self._events += len(ready)
            self.crowded = len(ready) == SLICE
            self._handle(ready)
            self._turn.flush()

    def _pace(self, start: float, linger: float) -> None:
        """Schedule the next turn, after one that began at `start`."""
        elapsed = start - self._since
        if not 0 <= elapsed < LOOK:
            self._busy = self._events >= BUSY * elapsed
            self._events = 0
            self._since = start
        if self._epoll is None:
            return
        if self._busy:
            if self._waking is None:
                self._unwatch()
            self._waking = self._reactor.callLater(min(linger, max(0.0, start + linger - self.seconds())), self._wake)
        elif self._waking is not None:
            self._waking = None
            self._watch()

    def _wake(self) -> None:
        try:
            self.doRead()
        except Exception:
            self._failed()


class HandshakePoller(SocketSet):
    """Sockets of connections whose handshake is not complete, and those that accept connections: what they do may wait for
    established devices.
    """

    _ALSO = _CLOSED

    def __init__(self, reactor: Reactor, turn: EndOfTurn, established: Poller) -> None:
        super().__init__(reactor, turn)
        self._event = _NO_EVENT
        """Event that is being handled."""
        self._established = established
        self._scheduled: DelayedCall | None = None
        self._ends = self._serves = 0.0  # times: of the end of a turn, and of the next look at other sockets
        self._interrupted: float | None = None  # time at which the broker has interrupted the last turn
        self._yields = 0.0  # time from which on the broker may interrupt this turn

    def doRead(self) -> None:
        # The reactor calls descriptors in any order: the established devices and the broker have their turn before. Without
        # anything of the broker, the handshakes need no turn of their own.
        if self._scheduled is not None:
            return
        self._established.serve()
        if self._turn.urgent():
            self._scheduled = self._reactor.callLater(0, self._take)
        else:
            self._take()

    def _take(self) -> None:
        self._scheduled = None
        try:
            self._handle_some()
        except Exception:
            self._failed()

    def _handle_some(self) -> None:
        """Handle ready sockets one by one, until something urgent arrives, or the time of a turn is over. The others are
        reported again in the next turn.
        """
        self.begin_turn()
        # Until nothing is ready: a connection that was accepted has sent its ClientHello, and a turn of the reactor for that
        # costs as much as a tenth of a handshake.
        for _ in range(SLICES):
            ready = () if self._epoll is None else self._epoll.poll(0, SLICE)
            for self._event in ready:
                self._handle((self._event,))
                self._event = _NO_EVENT
                if self.serve_established(self.seconds()):
                    return
            if not ready:
                return

    def may_have_closed(self, one: Reader) -> bool:
        """Return whether the peer of a socket may have closed its side. It had not at the begin of this turn if the event that
        is being handled is of this socket and does not say so: then no system call is needed.
        """
        fd, events = self._event
        return bool(events & _CLOSED) or self._sockets[fd] is not one

    def begin_turn(self) -> None:
        """Begin work for handshakes, after that for established devices."""
        self._turn.flush()
        self._turn.read_time()
        now = self.seconds()
        self._ends = now + HANDSHAKE_TURN
        self._serves = now + UNINTERRUPTED
        interrupted, self._interrupted = self._interrupted, None
        waited = 0.0 if interrupted is None else now - interrupted
        self._yields = now + min(HANDSHAKE_TURN, UNINTERRUPTED_SHARE * waited)

    def has_time(self, now: float) -> bool:
        """Return whether this turn has time left for a handshake."""
        return now < self._ends

    def serve_established(self, now: float) -> bool:
        """Serve the established devices between two handshakes, if that is due. Return whether the other handshakes have to
        wait for the next turn.

        Devices are served here, since a turn of the reactor costs as much as a quarter of a handshake.
        """
        if now >= self._ends:
            return True
        if now < self._serves:
            return False
        self._established.serve()
        now = self.seconds()
        self._serves = now + UNINTERRUPTED
        if now < self._yields or not self._turn.urgent():
            return False
        self._interrupted = now
        return True

    def _close(self) -> None:
        scheduled, self._scheduled = self._scheduled, None
        if scheduled is not None and scheduled.active():
            scheduled.cancel()
        super()._close()
