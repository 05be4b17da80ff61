"""Tests of the state of all broker connections together: one event for a failure of all."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.health import LASTING, BrokerHealth
from owsla.config.addresses import BrokerAddress
from owsla.events import (
    BrokerBlocked,
    BrokerConnected,
    BrokerLost,
    BrokerUnavailable,
    BrokerUnblocked,
    BrokerWarning,
    Event,
)

HERE = BrokerAddress("here", password="secret")
THERE = BrokerAddress("there")
ROLES = ("producer", "courier", "consumers")


class HealthTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[Event] = []
        self.readied = 0
        self.failed = 0
        self.clock = Clock()
        optional = {"extra": self.on_failed}
        self.health = BrokerHealth(cast("Any", self.clock), ROLES, self.events.append, self.on_ready, optional=optional)

    def on_ready(self) -> None:
        self.readied += 1

    def on_failed(self) -> None:
        self.failed += 1

    def take(self) -> list[type[Event]]:
        kinds = [type(event) for event in self.events]
        self.events.clear()
        return kinds

    def all_up(self) -> None:
        for role in ROLES:
            self.health.up(role, HERE)

    def test_ready(self) -> None:
        """The broker counts as connected once all connections are up."""
        for role in ROLES[:2]:
            self.health.up(role, HERE)
        self.assertEqual((self.events, self.health.ready, self.readied), ([], False, 0))
        self.health.up(ROLES[2], HERE)
        self.assertEqual((self.take(), self.health.ready, self.readied), ([BrokerConnected], True, 1))

    def test_one_loss(self) -> None:
        """An outage of the broker is one loss, and one connect when it is back."""
        self.all_up()
        self.take()
        for role in ROLES:
            self.health.down(role, HERE, "gone")
        self.assertEqual(self.take(), [BrokerLost])
        self.assertFalse(self.health.ready)
        self.all_up()
        self.assertEqual((self.take(), self.readied), ([BrokerConnected], 2))

    def test_one_connection_of_several(self) -> None:
        """One connection that is lost and restored is a loss and a connect, too."""
        self.all_up()
        self.take()
        self.health.down("courier", HERE, "gone")
        self.health.up("courier", HERE)
        self.assertEqual(self.take(), [BrokerLost, BrokerConnected])

    def test_each_failure_is_said_once(self) -> None:
        """Failed attempts of all connections for the same reason are logged once until the broker is connected again."""
        for _ in range(3):
            for role in ROLES:
                self.health.failed(role, HERE, "refused")
        self.assertEqual(self.take(), [BrokerUnavailable])
        self.health.failed("courier", HERE, "no such vhost")
        self.health.failed("courier", THERE, "refused")
        self.assertEqual(self.take(), [BrokerUnavailable] * 2)
        self.all_up()
        self.take()
        self.health.failed("courier", HERE, "refused")
        self.assertEqual((self.take(), self.health.ready), ([BrokerUnavailable], False))

    def test_no_permission_to_publish(self) -> None:
        """Connections that end with the first message, because the user may not publish, are reported once. The broker is
        connected again when they last. Parts that wait for the broker do not wait for that.
        """
        refusal = "ACCESS_REFUSED - access to exchange 'amq.default' refused (403)"
        self.all_up()
        self.clock.advance(LASTING)
        self.health.down("producer", HERE, "cut")
        self.health.up("producer", HERE)
        self.assertEqual(self.take(), [BrokerConnected, BrokerLost, BrokerConnected])
        for _ in range(20):
            for role in ("producer", "courier"):
                self.clock.advance(1)
                self.health.down(role, HERE, refusal)
                self.health.up(role, HERE)
        self.assertEqual(self.take(), [BrokerLost])
        self.assertEqual((self.health.ready, self.readied), (True, 42))
        self.health.down("producer", HERE, "gone")
        self.health.failed("producer", HERE, "Connection refused")
        self.health.failed("producer", HERE, refusal)
        self.assertEqual(self.take(), [BrokerUnavailable] * 2)
        self.health.up("producer", HERE)
        self.clock.advance(LASTING)
        self.assertEqual(self.take(), [BrokerConnected])
        self.health.down("producer", HERE, "gone")
        self.health.up("producer", HERE)
        self.assertEqual(self.take(), [BrokerLost, BrokerConnected])

    def test_blocked(self) -> None:
        """A blocked broker is logged once for all connections, and so is its end, also if a connection ends."""
        self.all_up()
        self.take()
        self.health.blocked("producer", "memory")
        self.health.blocked("courier", "memory")
        self.assertEqual(self.take(), [BrokerBlocked])
        self.health.unblocked("producer")
        self.health.unblocked("producer")
        self.assertEqual(self.take(), [])
        self.health.down("courier", HERE, "gone")
        self.assertEqual(sorted(kind.__name__ for kind in self.take()), ["BrokerLost", "BrokerUnblocked"])
        self.health.unblocked("courier")
        self.assertEqual(self.take(), [])
        self.assertIsNot(BrokerUnblocked, BrokerBlocked)

    def test_no_password(self) -> None:
        """No event shows a password."""
        self.all_up()
        self.health.failed("courier", HERE, "refused")
        self.health.down("producer", HERE, "gone")
        self.assertTrue(self.events)
        for event in self.events:
            self.assertIn("here", str(event))
            self.assertNotIn("secret", str(event) + repr(event))

    def test_an_optional_role(self) -> None:
        """A role that can be missing has no part in the state. While all others are ready, its failures are one warning."""
        self.health.failed("extra", HERE, "refused")
        self.assertEqual((self.health.may_connect("courier"), self.health.may_connect("extra")), (True, False))
        self.all_up()
        self.assertTrue(self.health.may_connect("extra"))
        self.assertEqual((self.take(), self.readied), ([BrokerConnected], 1))
        self.health.failed("extra", HERE, "too many connections")
        self.health.failed("extra", HERE, "too many connections")
        self.assertEqual((self.take(), self.health.ready, self.failed), ([BrokerWarning], True, 2))
        self.health.up("extra", HERE)
        self.health.down("extra", HERE, "gone")
        self.assertEqual((self.take(), self.health.ready, self.readied), ([], True, 1))
        self.health.blocked("extra", "memory")
        self.health.down("extra", HERE, "gone")
        self.assertEqual(self.take(), [BrokerBlocked, BrokerUnblocked])
