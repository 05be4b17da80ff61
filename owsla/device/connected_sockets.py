"""Sockets of all device connections: what the device ports of a process share.

Ports differ in their sockets, certificates and limits. They share what concerns the CPU and the memory of the process: the
epoll set, the limits and the order of handshakes (`Admission`), the time for handshakes in a reactor turn, and the periodic
work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..interfaces import Reactor
from ..runtime.end_of_turn import EndOfTurn
from ..runtime.memory import ProcessMemory, TrimSchedule
from ..supervision import Worker
from ..tls.post_handshake import PostHandshake
from .admission import Admission
from .handshakes import HandshakeScheduler
from .hangup import HangupWatch
from .housekeeping import TICK, Housekeeping
from .poller import HandshakePoller, Poller
from .tls_transport import TLSTransport

FREEZE_EVERY: Final = 500
"""Handshakes after which objects are excluded from garbage collection: a pause of some 2 ms each time."""

SWEEP: Final = 1.0
"""Seconds between two checks of handshakes, closing connections and idle connections."""


class Port(Protocol):
    """A device port, as the shared parts use it."""

    @property
    def open(self) -> bool:
        """True until the port is closed for good."""

    @property
    def resume(self) -> Callable[[], None]:
        """Function that accepts again, if there is room."""

    def tick(self, now: float) -> None:
        """Open silent connections that need no handshake. Called ten times a second."""

    def sweep(self, now: float) -> None:
        """Check the connections of this port. Called once a second."""


class ConnectedSockets(Worker):
    """Service that looks after the sockets of all connections, whichever port has accepted them.

    Connections stay open while it is stopped. Then no handshake begins, except in the turn in which its ClientHello arrives.
    """

    def __init__(
        self,
        reactor: Reactor,
        admission: Admission[TLSTransport],
        hangups: HangupWatch,
        turn: EndOfTurn,
        *,
        linger: float = 0.0,
        housekeeping: Housekeeping | None = None,
        memory: ProcessMemory | None = None,
    ) -> None:
        """`linger` is the minimum time in seconds between two turns of a busy `Poller`. `housekeeping` is the periodic work for
        all connections.
        """
        super().__init__(reactor)
        self.setName("sockets")
        self._seconds = reactor.seconds
        self._hangups = hangups
        self._housekeeping = housekeeping
        self._memory = memory
        self._ports: list[Port] = []
        """The one that has accepted a connection last is the last."""
        self._completed = 0
        self._trims = TrimSchedule(reactor.seconds())
        self.admission: Final = admission
        self.poller: Final = Poller(reactor, turn, linger)
        self.handshake_poller: Final = HandshakePoller(reactor, turn, self.poller)
        self.post_handshake: Final = PostHandshake(reactor.seconds)
        self.scheduler: Final = HandshakeScheduler(self, self.handshake_poller, admission, self._resume)

    def add_port(self, port: Port) -> None:
        """Look after the connections of a port, too."""
        self._ports.append(port)

    def startService(self) -> None:
        super().startService()
        self._keep_sets(True)
        self._hangups.start(self.end)
        self.later(TICK, self._tick)
        self.later(SWEEP, self._sweep)
        self.scheduler.proceed()

    def stopService(self) -> None:
        if self.running:
            self._keep_sets(False)
            self._hangups.stop()
            self.scheduler.stop()
        super().stopService()

    def _keep_sets(self, stay: bool) -> None:
        for sockets in (self.poller, self.handshake_poller):
            sockets.stay(stay)

    def configure(self, linger: float) -> None:
        """Change the minimum time between two turns, and follow limits of the admission that have changed."""
        self.poller.configure(linger)
        self.scheduler.proceed()

    def accepted(self, port: Port) -> None:
        """Note that a port has accepted a connection: the others have their turn before it when there is little room."""
        ports = self._ports
        if ports[-1] is not port:
            ports.remove(port)
            ports.append(port)

    def port_closed(self) -> None:
        """Note that a port is closed for good. Without ports no device needs the place of a connection that is hung up."""
        if not any(port.open for port in self._ports):
            self._hangups.keep()

    def handshake_completed(self) -> None:
        """Count a handshake of any port."""
        self._completed += 1
        if self._completed % FREEZE_EVERY == 0:
            self.freeze()

    def freeze(self) -> None:
        """Exclude the objects of this moment from garbage collection: most of them stay."""
        if self._memory is not None:
            self._memory.freeze()

    def _resume(self) -> None:
        """Let the ports accept again, if there is room. The reactor serves them in this order (epoll_wait(2))."""
        for port in self._ports:
            port.resume()

    # -- Periodic work -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.later(TICK, self._tick)
        now = self._seconds()
        for port in tuple(self._ports):
            port.tick(now)
        if self._housekeeping is not None:
            self._housekeeping.tick()

    def _sweep(self) -> None:
        """Check handshakes, closing connections and idle connections, once a second."""
        self.later(SWEEP, self._sweep)
        now = self._seconds()
        for port in tuple(self._ports):
            port.sweep(now)
        for transport in self.admission.those_waiting():
            transport.closeIfGone()
        if self._memory is not None and self._trims.due(self._completed, now):
            self._memory.trim()
        self.scheduler.proceed()
        if self._housekeeping is not None:
            self._housekeeping.sweep()
