"""Warnings before the server's certificate expires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import CertificateExpiring, Event
from owsla.tls.expiry import DAY, WARNING, ExpiryWatch, ServedCertificate


class ExpiryTests(SynchronousTestCase):
    def watch(self, days: float) -> tuple[Clock, list[Event], ExpiryWatch]:
        clock = Clock()
        events: list[Event] = []
        start = datetime(2026, 1, 1, tzinfo=UTC)
        self.served = ServedCertificate("server.pem", (start + timedelta(days=days)).timestamp())
        watch = ExpiryWatch(
            cast(Any, clock),
            events.append,
            served=lambda: self.served,
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

    def test_stopped(self) -> None:
        """After the stop there are no more warnings."""
        clock, events, watch = self.watch(3)
        watch.stopService()
        clock.advance(10 * DAY)
        self.assertEqual((len(events), clock.getDelayedCalls()), (1, []))
