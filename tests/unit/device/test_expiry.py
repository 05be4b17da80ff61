"""When it is said that a certificate comes to its end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.expiry import DAY, WARNING, ExpiryWatch
from owsla.events import CertificateExpiring, Event


class ExpiryTests(SynchronousTestCase):
    def watch(self, days: float) -> tuple[Clock, list[Event], ExpiryWatch]:
        clock = Clock()
        events: list[Event] = []
        start = datetime(2026, 1, 1, tzinfo=UTC)
        watch = ExpiryWatch(
            cast(Any, clock),
            events.append,
            certificate=Path("server.pem"),
            not_after=start + timedelta(days=days),
            now=lambda: start.timestamp() + clock.seconds(),
        )
        watch.startService()
        self.addCleanup(watch.stopService)
        return clock, events, watch

    def test_far_away(self) -> None:
        """As long as the end is far away nothing is said; then once a day, past the end, too."""
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
        """One that ends soon is told of at the start."""
        self.assertEqual(len(self.watch(3)[1]), 1)

    def test_stopped(self) -> None:
        """After the stop it says nothing more."""
        clock, events, watch = self.watch(3)
        watch.stopService()
        clock.advance(10 * DAY)
        self.assertEqual((len(events), clock.getDelayedCalls()), (1, []))
