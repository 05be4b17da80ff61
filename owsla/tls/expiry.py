"""Warning before the server's certificate expires."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..events import CertificateExpiring, Event
from ..interfaces import Clock
from ..supervision import Worker

DAY: Final = 24 * 3600.0

WARNING: Final = 21
"""Days before the expiry at which the daily warnings begin. This leaves time for a ticket. ACME clients renew a week later at
the latest."""


class ServedCertificate(NamedTuple):
    """The certificate that devices receive in handshakes."""

    certificate: str
    """Path of the file."""
    not_after: float
    """Time of expiry, in seconds since the epoch."""


class ExpiryWatch(Worker):
    """Check of the server certificate's expiry, at the start and then every day."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        served: Callable[[], ServedCertificate],
        now: Callable[[], float],
    ) -> None:
        """`served()` returns the certificate that devices receive now: that is a renewed file only when a process has read it.
        `now()` is in seconds since the epoch.
        """
        super().__init__(clock)
        self.setName("certificate")
        self._emit = emit
        self._served = served
        self._now = now

    def startService(self) -> None:
        super().startService()
        self._check()

    def _check(self) -> None:
        self.later(DAY, self._check)
        certificate, not_after = self._served()
        days = (not_after - self._now()) / DAY
        if days < WARNING:
            end = datetime.fromtimestamp(not_after, UTC)
            self._emit(CertificateExpiring(certificate, f"{end:%Y-%m-%dT%H:%M:%SZ}", days))
