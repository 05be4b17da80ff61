"""The devices' sockets in an epoll set of their own, which the reactor sees as one descriptor.

A reactor calls a descriptor through its logging context, anew for each event, which costs more than splitting the line that
came; and it takes whatever is ready at once: a burst of thousands of devices then stands before the broker's answers. Here an
event is a method call, and a turn has its measure. One epoll set may be in another (epoll(7)).

And it lingers: while many devices talk, each of them is not worth a turn of its own, of this process and of the broker.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import DelayedCall, Reactor

SLICE: Final = 16
"""Events asked for at a time; the system puts the other sockets first the next time (epoll_wait(2))."""

SLICES: Final = 16
"""How often that is done in one turn of the reactor, at most. Lines of a turn share what is done once a turn, such as writing
to the broker; 256 of them take some five milliseconds."""

TURN: Final = 0.005
"""Seconds after which a turn takes no more events. 256 handshakes would take fifty milliseconds."""

BUSY: Final = 3000.0
"""Events a second from which on they wait for each other: six of them in 2 ms. 500 lines and 500 handshakes a second are
fewer."""

LOOK: Final = 0.05
"""Seconds over which events are counted for that."""

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_DEAD: Final = select.EPOLLERR | select.EPOLLHUP
_LOST: Final = Failure(ConnectionLost("the socket is dead"))


class Socket(Protocol):
    """What the reactor wants of a descriptor (`twisted.internet.interfaces.IReadWriteDescriptor`)."""

    def fileno(self) -> int: ...

    def doRead(self) -> object: ...

    def doWrite(self) -> object: ...

    def connectionLost(self, reason: Failure) -> object: ...


class Poller:
    """A `Reactor` for sockets only, inside another, which lends it its time.

    An event costs 1.0 µs, its `recv` included, where it costs 3.3 by Twisted's own epoll reactor (250 sockets, medians).

    While it lingers it is no reader of the reactor's, but wakes itself up.
    """

    _log = Logger()

    def __init__(self, reactor: Reactor, linger: float = 0.0) -> None:
        """`linger` in seconds: when there are more than `BUSY` events a second, no turn begins sooner after another."""
        self._reactor = reactor
        self._linger = linger
        self._waking: DelayedCall | None = None
        self._busy = False
        self._events = 0
        """How many there were since `_since`."""
        self._since = 0.0
        self._epoll: select.epoll | None = None
        self.turns = 0
        """Turns so far."""
        self._sockets: dict[int, Socket] = {}
        self._wanted: dict[int, int] = {}
        self.seconds: Final = reactor.seconds

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> DelayedCall:
        delayed: DelayedCall = self._reactor.callLater(delay, call, *args)
        return delayed

    # -- what a socket asks for --------------------------------------------------------------------------------------------

    def addReader(self, reader: Socket) -> None:
        self._want(reader, _READ)

    def addWriter(self, writer: Socket) -> None:
        self._want(writer, _WRITE)

    def removeReader(self, reader: Socket) -> None:
        self._want_not(reader, _READ)

    def removeWriter(self, writer: Socket) -> None:
        self._want_not(writer, _WRITE)

    def _want(self, one: Socket, event: int) -> None:
        fd = one.fileno()
        wanted = self._wanted.get(fd, 0)
        if wanted & event:
            return
        if wanted:
            self._set.modify(fd, wanted | event)
        else:
            self._set.register(fd, event)
            self._sockets[fd] = one
        self._wanted[fd] = wanted | event

    def _want_not(self, one: Socket, event: int) -> None:
        fd = one.fileno()
        wanted = self._wanted.get(fd, 0)
        if not wanted & event:
            return
        if wanted != event:
            self._set.modify(fd, wanted & ~event)
            self._wanted[fd] = wanted & ~event
            return
        # A socket of which nothing is asked would still report its end, over and over: it leaves the set.
        self._set.unregister(fd)
        del self._sockets[fd], self._wanted[fd]
        if not self._sockets:
            self._close()

    @property
    def _set(self) -> select.epoll:
        """The epoll set; it is there while there are sockets in it."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        return self._epoll

    def _close(self) -> None:
        epoll, self._epoll = self._epoll, None
        waking, self._waking = self._waking, None
        if waking is not None and waking.active():
            waking.cancel()
        if epoll is not None:
            self._reactor.removeReader(self)
            epoll.close()

    # -- what the reactor wants of a descriptor ----------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "devices"

    def doRead(self) -> None:
        self.turns += 1
        start = self.seconds()
        all_of_it = self._take(start + TURN)
        if self._linger:
            self._pace(start, self._linger if all_of_it else 0.0)

    def _take(self, end: float) -> bool:
        """Deal with what is ready, with a turn's measure, and until then. Whether that was all there was."""
        # Who has more to say than one read took is ready again at once, and is not to wait for the next turn when that lingers.
        enough = 1 if self._busy else SLICE
        for _ in range(SLICES):
            if self._epoll is None:
                return True
            ready = self._epoll.poll(0, SLICE)
            self._events += len(ready)
            self._deal_with(ready)
            if len(ready) < enough:
                return True
            if self.seconds() >= end:
                return False
        return False

    def _pace(self, start: float, linger: float) -> None:
        """Say when the next turn is, after one that began then."""
        elapsed = start - self._since
        if not 0 <= elapsed < LOOK:
            self._busy = self._events >= BUSY * elapsed
            self._events = 0
            self._since = start
        if self._epoll is None:
            return
        if self._busy:
            if self._waking is None:
                self._reactor.removeReader(self)
            self._waking = self._reactor.callLater(min(linger, max(0.0, start + linger - self.seconds())), self._wake)
        elif self._waking is not None:
            self._waking = None
            self._reactor.addReader(self)

    def _wake(self) -> None:
        try:
            self.doRead()
        except Exception:
            # What a reactor does with a descriptor that raises; nobody else would wake the devices again.
            self._log.failure("Polling the devices failed")
            self.connectionLost(Failure())

    def _deal_with(self, ready: list[tuple[int, int]]) -> None:
        sockets = self._sockets
        for fd, events in ready:
            one = sockets.get(fd)
            if one is None:
                continue  # closed for an event before this one
            try:
                if events & _READ:
                    one.doRead()
                    if not events & _WRITE or sockets.get(fd) is not one:
                        continue
                if events & _WRITE:
                    one.doWrite()
                elif events & _DEAD:
                    one.connectionLost(_LOST)
            except Exception:
                self._log.failure("Dealing with a socket failed: {socket}", socket=one)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives its descriptors up, at its end."""
        sockets, self._sockets = self._sockets, {}
        self._wanted = {}
        self._close()
        for one in sockets.values():
            one.connectionLost(reason)
