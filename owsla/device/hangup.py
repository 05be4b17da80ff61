"""Notices when the peer of a connection goes away that is not being read.

A socket that a reactor does not read reports neither the peer's end of the stream nor its reset. During an outage of the broker
devices reconnect, and their dead predecessors would fill the limit. So paused sockets are in an epoll set of their own that
asks only for hang-ups (EPOLLRDHUP, epoll_ctl(2)), and the reactor reads that set's descriptor.

What the peer sent before its end is still in the socket (after a reset, too: Linux keeps a receive queue until the socket is
closed). It is read at once if the window has room for it, for nobody will send it again, and in its turn where the broker takes
lines. So a reset is treated as an end of the stream.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final, Protocol

from twisted.python.failure import Failure

from ..interfaces import Reactor

PATIENCE: Final = 3.0
"""Seconds for which a connection is kept whose peer closed it, when there is no room and no broker for its last lines."""

_HANGUPS: Final = select.EPOLLRDHUP | select.EPOLLONESHOT


class Watched(Protocol):
    """A connection whose reading is paused."""

    def fileno(self) -> int: ...

    def peerClosed(self) -> bool:
        """Begin to read what the peer sent before it closed or reset the connection. `False` if there is no room for it now."""

    @property
    def awaiting_turn(self) -> bool:
        """Whether it is read again in its turn, since the broker takes lines."""

    @property
    def discarding(self) -> bool:
        """Whether what the peer sent before is of no use to anybody."""

    def hungUp(self) -> None:
        """Close the connection, whose peer is gone."""


class HangupWatch:
    """One epoll set of paused sockets, as a descriptor for the reactor. Linux only."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._ended: dict[int, float] = {}
        self._keeping = False
        self.failed: Callable[[Failure], object] = lambda reason: None
        """Who is told when this cannot go on."""

    def start(self) -> None:
        self._epoll = select.epoll()
        for fd in self._watched:
            self._epoll.register(fd, _HANGUPS)
        self._reactor.addReader(self)

    def stop(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._reactor.removeReader(self)
            epoll.close()

    def watch(self, connection: Watched) -> None:
        fd = connection.fileno()
        if self._epoll is not None and fd not in self._watched:
            self._epoll.register(fd, _HANGUPS)
        self._watched[fd] = connection

    def unwatch(self, connection: Watched) -> None:
        fd = connection.fileno()
        if self._watched.get(fd) is connection:
            del self._watched[fd]
            self._ended.pop(fd, None)
            if self._epoll is not None:
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # it is closed already, and so has left the set

    def keep(self) -> None:
        """Keep connections until there is room for what their peers sent: nobody needs their places any more."""
        self._keeping = True

    def tick(self) -> None:
        """Let go of those that closed a while ago and are still not read."""
        now = self._reactor.seconds()
        for fd, since in list(self._ended.items()):
            if since > now - PATIENCE:
                break
            connection = self._watched.get(fd)
            # The broker may have gone since: then there is room that there was not when it closed.
            if connection is None or connection.peerClosed():
                continue
            if connection.discarding or not (self._keeping or connection.awaiting_turn):
                self._hang_up(fd)
            elif self._ended.pop(fd, None) is not None:
                self._ended[fd] = now

    def _hang_up(self, fd: int) -> None:
        connection = self._watched.get(fd)
        if connection is not None:
            self.unwatch(connection)
            connection.hungUp()

    # -- what the reactor wants of a descriptor --------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "hangups"

    def doRead(self) -> None:
        try:
            self._look()
        except Exception:
            self.failed(Failure())

    def _look(self) -> None:
        for fd, flags in self._epoll.poll(0, 256) if self._epoll is not None else ():
            if fd not in self._watched:
                continue
            connection = self._watched[fd]
            if connection.peerClosed():
                continue
            if flags & (select.EPOLLERR | select.EPOLLHUP) and connection.discarding:
                self._hang_up(fd)
            elif fd in self._watched:
                self._ended[fd] = self._reactor.seconds()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor will not read it any more: something in here raised."""
        self.failed(reason)
