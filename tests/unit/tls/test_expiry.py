"""Warnings about what expires: server certificates, revocation lists, OCSP responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import CertificateExpiring, CrlUnusable, Event, OcspResponseUnusable
from owsla.tls.expiry import DAY, UNUSABLE_CHECK, WARNING, ExpiryWatch, ServedCertificate


class Unusable:
    """Lists, or responses, some of which cannot be used."""

    path = Path("lists.pem")

    def __init__(self, *found: tuple[Any, str]) -> None:
        self.found = found

    def unusable(self, *now: float) -> Iterable[tuple[Any, str]]:
        return self.found


class Shown:
    """What handshakes use."""

    crl_policy = "hard"

    def __init__(self, served: Callable[[], ServedCertificate]) -> None:
        self._served = served
        self.more: list[ServedCertificate] = []
        self.revocation: Unusable | None = None
        self.responses: Unusable | None = None

    @property
    def certificates(self) -> list[ServedCertificate]:
        return [self._served(), *self.more]


class ExpiryTests(SynchronousTestCase):
    def watch(self, days: float) -> tuple[Clock, list[Event], ExpiryWatch]:
        clock = Clock()
        events: list[Event] = []
        start = datetime(2026, 1, 1, tzinfo=UTC)
        self.served = ServedCertificate("server.pem", (start + timedelta(days=days)).timestamp())
        self.shown = Shown(lambda: self.served)
        self.doors: list[Shown] = []
        self.others: list[ServedCertificate] = []
        watch = ExpiryWatch(
            cast(Any, clock),
            events.append,
            shown=lambda: [self.shown, *self.doors],
            certificates=lambda: self.others,
            now=lambda: start.timestamp() + clock.seconds(),
        )
        watch.startService()
        self.addCleanup(watch.stopService)
        return clock, events, watch

    def test_far_away(self) -> None:
        """Warnings begin some days before the expiry, and come once a day, also after it."""
        clock, events, _ = self.watch(WARNING + 1.5)
        clock.advance(DAY)
        self.assertEqual(events, [])
        for _ in range(WARNING + 2):
            clock.advance(DAY)
        days = [round(event.days, 1) for event in events if isinstance(event, CertificateExpiring)]
        self.assertEqual(days, [WARNING - 0.5 - number for number in range(WARNING + 2)])
        self.assertIn("expiring: server.pem", str(events[0]))
        self.assertIn("expired: server.pem", str(events[-1]))

    def test_other_certificates(self) -> None:
        """The certificate that Owsla shows the broker is watched, too, as it is at the time."""
        clock, events, _ = self.watch(10 * WARNING)
        self.others = [ServedCertificate("client.pem", self.served.not_after - (9 * WARNING + 2) * DAY)]
        clock.advance(DAY)
        self.assertEqual([event.certificate for event in events if isinstance(event, CertificateExpiring)], ["client.pem"])
        self.others = []
        clock.advance(DAY)
        self.assertEqual(len(events), 1)

    def test_at_the_start(self) -> None:
        """A certificate that expires soon causes a warning at the start."""
        self.assertEqual(len(self.watch(3)[1]), 1)

    def test_replaced(self) -> None:
        """When devices get a renewed certificate, the old one causes no more warnings."""
        clock, events, _ = self.watch(3)
        self.served = ServedCertificate("renewed.pem", self.served.not_after + 19 * DAY)
        clock.advance(DAY)
        self.assertEqual(len(events), 1)
        clock.advance(DAY)
        self.assertIn("renewed.pem", str(events[1]))
        self.assertIn("2026-01-23T00:00:00Z", str(events[1]))

    def test_several(self) -> None:
        """Each of several certificates causes its own warnings."""
        clock, events, _ = self.watch(WARNING + 100)
        self.shown.more = [ServedCertificate("rsa.pem", self.served.not_after - 99.5 * DAY)]
        clock.advance(DAY)
        self.assertEqual([event.fields()["certificate"] for event in events], ["rsa.pem"])

    def test_doors(self) -> None:
        """What two doors have in common is reported once. What another door has is reported, too."""
        clock, events, _ = self.watch(WARNING + 0.5)
        self.shown.revocation = Unusable(("CN=a", "the list expired"))
        other = Shown(lambda: ServedCertificate("other.pem", self.served.not_after))
        other.revocation = Unusable(("CN=b", "there is no list"))
        self.doors = [Shown(lambda: self.served), other]
        self.doors[0].revocation = self.shown.revocation
        clock.advance(DAY)
        certificates = [event.certificate for event in events if isinstance(event, CertificateExpiring)]
        self.assertEqual(certificates, ["server.pem", "other.pem"])
        self.assertEqual([event.authority for event in events if isinstance(event, CrlUnusable)], ["CN=a", "CN=b"])

    def test_lists(self) -> None:
        """A list that cannot be used is reported once, and again after it was usable or when the policy changes."""
        clock, events, _ = self.watch(365)
        self.shown.revocation = Unusable(("CN=a", "the list expired"), ("CN=b", "there is no list"))
        clock.advance(UNUSABLE_CHECK)
        expected: list[Event] = [
            CrlUnusable("lists.pem", "CN=a", "the list expired", "hard"),
            CrlUnusable("lists.pem", "CN=b", "there is no list", "hard"),
        ]
        self.assertEqual(events, expected)
        clock.pump([UNUSABLE_CHECK] * 10)
        self.assertEqual(events, expected)
        self.shown.revocation = Unusable(("CN=b", "there is no list"))
        clock.advance(UNUSABLE_CHECK)
        self.shown.revocation = Unusable(("CN=a", "the list expired"), ("CN=b", "there is no list"))
        clock.advance(UNUSABLE_CHECK)
        self.assertEqual(events, [*expected, expected[0]])
        self.shown.crl_policy = "soft"
        clock.advance(UNUSABLE_CHECK)
        self.assertEqual([event.fields()["policy"] for event in events[3:]], ["soft", "soft"])
        self.assertIn("accepted", str(events[3]))
        self.assertIn("refused", str(events[0]))

    def test_responses(self) -> None:
        """An OCSP response that cannot be used is reported once."""
        clock, events, _ = self.watch(365)
        self.shown.responses = Unusable((Path("response.der"), "it expired"))
        clock.pump([UNUSABLE_CHECK] * 3)
        self.assertEqual(events, [OcspResponseUnusable("response.der", "it expired")])

    def test_stopped(self) -> None:
        """After the stop there are no more warnings."""
        clock, events, watch = self.watch(3)
        watch.stopService()
        clock.advance(10 * DAY)
        self.assertEqual((len(events), clock.getDelayedCalls()), (1, []))
