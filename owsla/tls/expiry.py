"""Says in time that the certificate which devices are shown comes to its end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..events import CertificateExpiring, Event
from ..interfaces import Clock
from ..supervision import Worker

DAY: Final = 24 * 3600.0

WARNING: Final = 21
"""Days before the end from which it is said, once a day: time for a ticket, and a week more than ACME clients leave."""


class Shown(NamedTuple):
    """A certificate that devices are shown."""

    certificate: str
    """Its file."""
    not_after: float
    """Its end, in seconds since the epoch."""


class ExpiryWatch(Worker):
    """Looks at the end of the certificate that devices are shown, at the start and then every day."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        shown: Callable[[], Shown],
        now: Callable[[], float],
    ) -> None:
        """`shown()` is asked at each look: a renewed file is not what devices are shown until a process has read it. `now()` is
        in seconds since the epoch.
        """
        super().__init__(clock)
        self.setName("certificate")
        self._emit = emit
        self._shown = shown
        self._now = now

    def startService(self) -> None:
        super().startService()
        self._look()

    def _look(self) -> None:
        self.later(DAY, self._look)
        certificate, not_after = self._shown()
        days = (not_after - self._now()) / DAY
        if days < WARNING:
            end = datetime.fromtimestamp(not_after, UTC)
            self._emit(CertificateExpiring(certificate, f"{end:%Y-%m-%dT%H:%M:%SZ}", days))
