"""Detection of peers that close or reset a connection while it is not read.

A reactor reports neither the end of the stream nor a reset for a socket that it does not read. During an outage of the broker
devices reconnect, and their dead connections would use up the limit of connections. So paused sockets are in a separate epoll
set, which asks only for hang-ups (EPOLLRDHUP, epoll_ctl(2)), and the reactor reads the descriptor of that set.

The bytes that the peer sent before its end are still in the socket, also after a reset: Linux keeps the receive queue until the
socket is closed. They are read at once if the window has room, since the peer will not send them again, and otherwise in turn
when the broker takes lines. So a reset is treated as an end of the stream.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from typing import Final, Protocol

from twisted.python.failure import Failure

from ..interfaces import Reactor

PATIENCE: Final = 3.0
"""Seconds for which a connection is kept after its peer closed it, if its last lines can be neither kept nor published."""

_HANGUPS: Final = select.EPOLLRDHUP | select.EPOLLONESHOT


class Watched(Protocol):
    """A connection whose reading is paused."""

    def fileno(self) -> int: ...

    def peerClosed(self) -> bool:
        """Read the bytes that the peer sent before it closed or reset the connection. Return false if there is no room now."""

    @property
    def awaiting_turn(self) -> bool:
        """Return whether reading resumes in turn, because the broker accepts lines."""

    @property
    def discarding(self) -> bool:
        """Return whether earlier data of the peer is useless."""

    def hungUp(self) -> None:
        """Close the connection, since its peer is gone."""


class HangupWatch:
    """An epoll set of paused sockets, as a descriptor for the reactor. Linux only."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._ended: dict[int, float] = {}
        self._keeping = False
        self._failed: Callable[[Failure], object] = lambda reason: None

    def start(self, failed: Callable[[Failure], object]) -> None:
        """Begin to watch. `failed` is called with the failure if watching cannot continue."""
        self._failed = failed
        self._epoll = select.epoll()
        for fd in self._watched:
            self._register(fd)
        self._reactor.addReader(self)

    def stop(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._reactor.removeReader(self)
            epoll.close()

    def watch(self, connection: Watched) -> None:
        fd = connection.fileno()
        if fd not in self._watched:
            self._register(fd)
        self._watched[fd] = connection

    def _register(self, fd: int) -> None:
        """Have the system report the hang-up of a socket.

        Where the system can watch no more sockets (max_user_watches, epoll(7)), a hang-up is found when the connection is read
        again. To close the device instead would lose its lines.
        """
        if self._epoll is None:
            return
        try:
            self._epoll.register(fd, _HANGUPS)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise

    def unwatch(self, connection: Watched) -> None:
        fd = connection.fileno()
        if self._watched.get(fd) is connection:
            del self._watched[fd]
            self._ended.pop(fd, None)
            if self._epoll is not None:
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # a closed socket has left the set already

    def keep(self) -> None:
        """Keep connections until their last bytes can be read. The port is closed, so no device needs their places."""
        self._keeping = True

    def tick(self) -> None:
        """Close the connections whose peers closed them a while ago, if they are still not read."""
        now = self._reactor.seconds()
        for fd, since in list(self._ended.items()):
            if since > now - PATIENCE:
                break
            connection = self._watched.get(fd)
            # The broker may have disconnected since: then there is room that was not there when the peer closed.
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
            self._poll()
        except Exception:
            self._failed(Failure())

    def _poll(self) -> None:
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
        """Report that the reactor stopped reading, since `doRead` raised."""
        self._failed(reason)
