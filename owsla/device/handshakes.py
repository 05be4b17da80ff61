"""Scheduling of TLS handshakes within the time of a reactor turn.

A connection whose ClientHello has come waits until its handshake may begin. A handshake begins at once if no other connection
waits and the turn has time left. Otherwise it begins in a later turn: each turn begins handshakes for `HANDSHAKE_TURN` seconds,
or until the broker has sent something. Established devices are served between two handshakes.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure

from ..interfaces import DelayedCall
from ..supervision import Worker
from .admission import Admission
from .poller import HandshakePoller
from .tls_transport import TLSTransport


class HandshakeScheduler:
    """Schedule of the handshakes of all ports: the order is that of `Admission`, the rate that of the reactor turns."""

    def __init__(
        self,
        service: Worker,
        poller: HandshakePoller,
        admission: Admission[TLSTransport],
        resume: Callable[[], None],
    ) -> None:
        """`resume` lets the ports accept again if there is room. `service` looks after the sockets: it ends if this fails."""
        self._service = service
        self._poller = poller
        self._admission = admission
        self._resume = resume
        self._scheduled: DelayedCall | None = None

    def hello_received(self, transport: TLSTransport) -> bool:
        """Return whether the handshake of a connection begins now, which waits already. Otherwise schedule it, or close the
        connection if its peer has gone.
        """
        admission = self._admission
        now = self._poller.seconds()
        begins = len(admission.queue) == 1 and self._poller.has_time(now) and admission.next_turn(now) is transport
        if not begins:
            self.start_soon()
        elif self._poller.may_have_closed(transport) and transport.closeIfGone():
            admission.gave_up()
            return False
        return begins

    def start_soon(self) -> None:
        """Schedule handshakes for the next turn of the reactor."""
        if self._scheduled is None and self._service.running:
            self._scheduled = self._poller.callLater(0, self._start)

    def proceed(self) -> None:
        """Use a place that may have become free: for a handshake, or for accepting one more connection."""
        if self._admission.queue:
            self.start_soon()
        self._resume()

    def stop(self) -> None:
        """Cancel the scheduled turn, since the service stops."""
        scheduled, self._scheduled = self._scheduled, None
        if scheduled is not None:
            scheduled.cancel()

    def _start(self) -> None:
        self._scheduled = None
        try:
            self._begin_waiting()
        except Exception:
            self._service.end(Failure())

    def _begin_waiting(self) -> None:
        """Begin waiting handshakes, as long as there are places, the turn has time, and nothing urgent has arrived."""
        self._poller.begin_turn()
        admission = self._admission
        now = self._poller.seconds()
        while True:
            if (stalled := admission.stalled(now)) is not None:
                stalled.evictStalled()
            transport = admission.next_turn(now)
            if transport is None:
                break
            if not transport.startHandshake():
                admission.gave_up()
            now = self._poller.seconds()
            if self._poller.serve_established(now):
                if admission.queue:
                    self.start_soon()
                break
        self._resume()
