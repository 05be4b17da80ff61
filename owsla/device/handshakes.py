"""Scheduling of TLS handshakes within the time of a reactor turn.

A connection whose ClientHello has come waits until its handshake may begin. A handshake begins at once if no other connection
waits and the turn has time left. Otherwise it begins in a later turn: each turn begins handshakes for `HANDSHAKE_TURN` seconds,
or until the broker has sent something. Established devices are served between two handshakes.
"""

from __future__ import annotations

from collections.abc import Callable

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
        """`resume` lets the ports accept again if there is room. `service` owns the timers."""
        self._service = service
        self._poller = poller
        self._admission = admission
        self._resume = resume
        self._scheduled = False

    def hello_received(self, transport: TLSTransport) -> bool:
        """Return whether the handshake of a connection begins now, which waits already. Otherwise schedule it, or close the
        connection if its peer has gone.
        """
        admission = self._admission
        now = self._poller.seconds()
        begins = admission.waiting == 1 and self._poller.has_time(now) and admission.next_turn(now) is transport
        if not begins:
            self.start_soon()
        elif transport.closeIfGone():
            admission.gave_up()
            return False
        return begins

    def start_soon(self) -> None:
        """Schedule handshakes for the next turn of the reactor."""
        if not self._scheduled and self._service.running:
            self._scheduled = True
            self._service.later(0, self._start)

    def proceed(self) -> None:
        """Use a place that may have become free: for a handshake, or for accepting one more connection."""
        if self._admission.waiting:
            self.start_soon()
        self._resume()

    def stop(self) -> None:
        """Forget the scheduled turn, since the timers of the service are cancelled."""
        self._scheduled = False

    def _start(self) -> None:
        """Begin waiting handshakes, as long as there are places, the turn has time, and nothing urgent has arrived."""
        self._scheduled = False
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
                if admission.waiting:
                    self.start_soon()
                break
        self._resume()
