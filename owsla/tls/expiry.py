"""Warnings about Owsla's own certificates, revocation lists and OCSP responses that expire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ..events import CertificateExpiring, CrlUnusable, Event, OcspResponseUnusable
from ..interfaces import Clock
from ..supervision import Worker

DAY: Final = 24 * 3600.0

WARNING: Final = 21
"""Days before the expiry at which the daily warnings begin. This leaves time for a ticket. ACME clients renew a week later at
the latest."""

UNUSABLE_CHECK: Final = 60.0
"""Seconds between two checks for lists and responses that have expired. Their lifetime is hours to days, and devices may be
refused when it ends."""


class ServedCertificate(NamedTuple):
    """A certificate that devices receive in handshakes."""

    certificate: str
    """Path of the file."""
    not_after: float
    """Time of expiry, in seconds since the epoch."""


class Lists(Protocol):
    """Revocation lists (`RevocationLists`)."""

    path: Path

    def unusable(self, now: float) -> Iterable[tuple[str, str]]:
        """Return authorities and why their lists cannot be used."""


class Responses(Protocol):
    """OCSP responses (`OcspResponses`)."""

    def unusable(self) -> Iterable[tuple[Path, str]]:
        """Return files and why their responses cannot be used."""


class Shown(Protocol):
    """The interface of the material that handshakes use now (`DeviceTLSMaterial`)."""

    @property
    def certificates(self) -> Sequence[ServedCertificate]: ...

    @property
    def crl_policy(self) -> str: ...

    @property
    def revocation(self) -> Lists | None: ...

    @property
    def responses(self) -> Responses | None: ...


class ExpiryWatch(Worker):
    """Check of what expires: certificates at the start and then every day, lists and responses every minute.

    A list or a response is reported once, as long as nothing changes about it.
    """

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        shown: Callable[[], Iterable[Shown]],
        certificates: Callable[[], Iterable[ServedCertificate]] = tuple,
        now: Callable[[], float],
    ) -> None:
        """`shown()` returns what handshakes use now, of all doors: that is a renewed file only when a process has read it.
        `certificates()` returns those that Owsla shows others than devices. `now()` is in seconds since the epoch.
        """
        super().__init__(clock)
        self.setName("certificate")
        self._emit = emit
        self._shown = shown
        self._certificates = certificates
        self._now = now
        self._reported: frozenset[Event] = frozenset()

    def startService(self) -> None:
        super().startService()
        self._check()
        self._check_unusable()

    def _check(self) -> None:
        self.later(DAY, self._check)
        shown = [certificate for material in self._shown() for certificate in material.certificates]
        for certificate, not_after in dict.fromkeys((*shown, *self._certificates())):  # doors may have the same certificate
            days = (not_after - self._now()) / DAY
            if days < WARNING:
                end = datetime.fromtimestamp(not_after, UTC)
                self._emit(CertificateExpiring(certificate, f"{end:%Y-%m-%dT%H:%M:%SZ}", days))

    def _check_unusable(self) -> None:
        self.later(UNUSABLE_CHECK, self._check_unusable)
        events = dict.fromkeys(event for material in self._shown() for event in _unusable(material, self._now()))
        for event in events:
            if event not in self._reported:
                self._emit(event)
        self._reported = frozenset(events)


def _unusable(shown: Shown, now: float) -> Iterator[Event]:
    """Return an event for each revocation list and OCSP response of a door that cannot be used."""
    if shown.revocation is not None:
        for authority, reason in shown.revocation.unusable(now):
            yield CrlUnusable(str(shown.revocation.path), authority, reason, shown.crl_policy)
    if shown.responses is not None:
        for path, reason in shown.responses.unusable():
            yield OcspResponseUnusable(str(path), reason)
