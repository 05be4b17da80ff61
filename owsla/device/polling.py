"""The devices' sockets in an epoll set of their own, which the reactor sees as one descriptor.

A reactor calls a descriptor through its logging context, anew for each event, which costs more than splitting the line that
came; and it takes whatever is ready at once: a burst of thousands of devices then stands before the broker's answers. Here an
event is a method call, and a turn has its measure. One epoll set may be in another (epoll(7)).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..boundaries import DelayedCall, Reactor

SLICE: Final = 16
"""Events asked for at a time; the system puts the other sockets first the next time (epoll_wait(2))."""

SLICES: Final = 16
"""How often that is done in one turn of the reactor, at most. Lines of a turn share what is done once a turn, such as writing
to the broker; 256 of them take some five milliseconds."""

TURN: Final = 0.005
"""Seconds after which a turn takes no more events. 256 handshakes would take fifty milliseconds."""

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
    """

    _log = Logger()

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._sockets: dict[int, Socket] = {}
        self._wanted: dict[int, int] = {}
        self.seconds: Final = reactor.seconds

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> DelayedCall:
        return self._reactor.callLater(delay, call, *args)

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
        if epoll is not None:
            self._reactor.removeReader(self)
            epoll.close()

    # -- what the reactor wants of a descriptor ----------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "devices"

    def doRead(self) -> None:
        end = self.seconds() + TURN
        for _ in range(SLICES):
            if self._epoll is None:
                return
            ready = self._epoll.poll(0, SLICE)
            self._deal_with(ready)
            if len(ready) < SLICE or self.seconds() >= end:
                return

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
