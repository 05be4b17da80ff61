"""Says in time that the certificate which devices are shown comes to its end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from ..boundaries import Clock
from ..events import CertificateExpiring, Event
from ..supervision import Worker

DAY: Final = 24 * 3600.0

WARNING: Final = 21
"""Days before the end from which it is said, once a day: time for a ticket, and a week more than ACME clients leave."""


class ExpiryWatch(Worker):
    """Looks at one certificate's end, at the start and then every day."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        certificate: Path,
        not_after: datetime,
        now: Callable[[], float],
    ) -> None:
        """`not_after` has a time zone; `now()` is in seconds since the epoch."""
        super().__init__(clock)
        self.setName("certificate")
        self._emit = emit
        self._certificate = certificate
        self._not_after = not_after
        self._now = now

    def startService(self) -> None:
        super().startService()
        self._look()

    def _look(self) -> None:
        self.later(DAY, self._look)
        days = (self._not_after.timestamp() - self._now()) / DAY
        if days < WARNING:
            self._emit(CertificateExpiring(str(self._certificate), f"{self._not_after:%Y-%m-%dT%H:%M:%SZ}", days))
