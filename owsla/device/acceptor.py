"""The accept loop of the device port, and room for new connections.

The listening socket is read while there is room (`Admission.room`). When there is none, connections wait in the kernel's accept
queue, which is short while the process is overloaded (`Admission.overloaded`). When only silent connections take up the room,
the one that is silent for longest is closed for each new one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import os_reason
from ..supervision import Worker
from .admission import OVERLOADED_QUEUE, PortAdmission
from .attacks import AttackReports
from .listening import BACKLOG
from .poller import SocketSet
from .socket_transport import SocketTransport, without_goodbye
from .sources import Sources

ACCEPTED_AT_ONCE: Final = 8
"""Connections accepted in one reactor turn. A handshake costs a third of a millisecond, and established devices are served
between. With 8 instead of 64, 500 connections a second cost the round trips of the others 18 ms instead of 97 (p99), at the
same rate."""

ACCEPTED_WHILE_OTHERS_WAIT: Final = 32
"""Connections accepted in one reactor turn while connections wait for their handshake. Accepting costs some 50 µs then. The
kernel's queue is served in order, so impatient devices must not wait there."""

TURNED_AWAY_AT_ONCE: Final = 64
"""Connections that are accepted and closed again in one reactor turn, for their address. Each costs a twentieth of a handshake,
and the connections behind them in the kernel's queue should not wait for as many turns."""

STAND_BACK: Final = 0.005
"""Seconds for which a process with more devices than others leaves the next one to them. A turn of theirs takes a millisecond
or two; if they are too busy, the device has lost no more than this."""

LOST_ALREADY: Final = frozenset({
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
})  # fmt: skip
"""Errors of accept(2) for a connection that ended before it was accepted, or that a firewall forbids. The next one may work."""

_NO_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Share(Protocol):
    """The number of connections of this process, compared with other processes on the same port."""

    def tell(self, connections: int) -> None:
        """Publish the number of connections of this process."""

    def stands_back(self, connections: int) -> bool:
        """Return whether the next connection is to be left to other processes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on connections."""

    admission: PortAdmission[Any]
    sources: Sources | None = None
    """Limits for each address, and the denied addresses, if there are any."""
    share: Share | None = None
    """Balance with other processes on the same port, if any."""


@implementer(IReadDescriptor)
class Acceptor:
    """Reader of the listening socket, which accepts connections while there is room."""

    def __init__(
        self,
        poller: SocketSet,
        sock: socket.socket,
        limits: Limits,
        service: Worker,
        full: Callable[[int, str], None],
        reports: AttackReports,
        admits: Callable[[Any], bool],
        accepted: Callable[[socket.socket, Any], None],
    ) -> None:
        """`poller` watches the listening socket. `accepted(socket, address)` takes each connection for whose address
        `admits(address)` returns true. `full(connections, reason)` reports that none is accepted for now. `service` owns the
        timers, and ends when accepting fails.
        """
        self._poller = poller
        self._socket = sock
        self._admission = limits.admission
        self._admits = admits
        self._share = limits.share
        self._service = service
        self._report = full
        self._reports = reports
        self._accepted = accepted
        self._listening = False
        self._reading = False
        self._standing_back = False
        self._full = False
        self._shortened = False

    def configure(self) -> None:
        """Accept again, or stop, as the limits of the admission allow now."""
        self._forget_full()
        if self._listening and self.open:
            self.check_room()
            self.resume()

    @property
    def open(self) -> bool:
        """True until the socket is closed."""
        return self._socket.fileno() >= 0

    @property
    def accepting(self) -> bool:
        """True while the port listens, and there is room for a device now, or when a handshake or two are done."""
        return self._listening and self.open and not self._admission.full

    def start(self) -> None:
        """Begin to accept, on a socket that listens."""
        self._listening = True
        if self._share is not None:
            self._share.tell(self._admission.process.connections)
        self.resume()

    def stop(self) -> None:
        """Stop reading, since the timers of the service are cancelled. `resume` starts again."""
        self._standing_back = False
        self.pause()

    def close(self) -> None:
        """Close the socket."""
        self.pause()
        self._socket.close()

    def pause(self) -> None:
        """Stop reading the listening socket."""
        if self._reading:
            self._reading = False
            self._poller.removeReader(self)

    def resume(self) -> None:
        """Read the listening socket, if there is room."""
        if self._reading:
            return
        if (
            not self._standing_back
            and self._listening
            and self._service.running
            and self._socket.fileno() >= 0
            and self._admission.room > 0
        ):
            self._reading = True
            self._poller.addReader(self)

    def check_room(self) -> None:
        """Stop reading if there is no more room. Report it if the limit of connections is reached."""
        if self._share is not None:
            self._share.tell(self._admission.process.connections)
        if self._admission.room > 0:
            return
        self.pause()
        if self._admission.full:
            self._report_full("as many devices as --max-connections allows")

    def connection_closed(self) -> None:
        """Make room for another connection after one has closed."""
        if self._share is not None and self._socket.fileno() >= 0:
            self._share.tell(self._admission.process.connections)
        if self._full:
            self._forget_full()

    def _forget_full(self) -> None:
        """Report a full port again once it has some room meanwhile."""
        for admission in (self._admission, self._admission.process):
            limit = admission.max_connections
            if admission.spoken > limit - max(1, limit // 100):
                return
        self._full = False

    # -- IReadDescriptor ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "port"

    def connectionLost(self, reason: Any) -> None:
        self._service.end(reason)

    def doRead(self) -> None:
        if self._share is not None and self._share.stands_back(self._admission.process.connections):
            self._standing_back = True
            self.pause()
            self._service.later(STAND_BACK, self._take_remaining)
            return
        try:
            self._accept()
        except Exception:
            self.pause()
            self._service.end(Failure())

    def _take_remaining(self) -> None:
        """Accept the connections that other processes have left."""
        self._standing_back = False
        if self._service.running and self._socket.fileno() >= 0:
            self._accept()
            self.resume()

    def _accept(self) -> None:
        admission = self._admission
        if admission.process.overloaded != self._shortened:
            self._set_backlog()
        left = min(ACCEPTED_WHILE_OTHERS_WAIT if admission.process.queue else ACCEPTED_AT_ONCE, admission.room)
        for _ in range(TURNED_AWAY_AT_ONCE):
            silent = None
            if admission.crowded:
                silent = self._longest_silent()
                left = min(left, admission.room)
            if left <= 0:
                break
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                break  # another process may have been faster
            except OSError as error:
                if error.errno in LOST_ALREADY:
                    continue
                if error.errno not in _NO_RESOURCES:
                    raise
                self._report_full(f"the system says: {os_reason(error)}")
                self.pause()
                return
            if not self._admits(address):
                without_goodbye(sock)
                sock.close()
                continue
            if silent is not None:
                self._reports.silent_evicted(admission.silent_limit, silent.host)
                silent.evict()
            left -= 1
            sock.setblocking(False)
            self._accepted(sock, address)
        self.check_room()

    def _set_backlog(self) -> None:
        """Make the accept queue of the kernel short while the process is overloaded. What is in it already stays."""
        self._shortened = self._admission.process.overloaded
        # With a full queue, packets of TCP are sent again, while connect() on a unix socket fails.
        if self._socket.family != socket.AF_UNIX:
            self._socket.listen(OVERLOADED_QUEUE if self._shortened else BACKLOG)

    def _longest_silent(self) -> SocketTransport | None:
        """Return the connection to evict for a new one: the one that is silent for longest.

        First bytes that came in this reactor turn are read first, so that their connection is not taken for a silent one. While
        there are places, a device without TLS that waits for its first message keeps its own.
        """
        admission = self._admission
        while admission.crowded and admission.room > 0:
            silent: SocketTransport | None = admission.oldest
            if silent is None:
                break
            silent.checkHello()
            spoke = admission.oldest is not silent
            if not spoke and (admission.occupied or not silent.openSilent()):
                return silent
        return None

    def _report_full(self, reason: str) -> None:
        if not self._full:
            self._full = True
            own = self._admission
            self._report(own.connections if own.at_own_limit else own.process.connections, reason)
