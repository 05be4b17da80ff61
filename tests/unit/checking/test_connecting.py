"""Tests of the attempts to connect to a broker."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock

from owsla.checking.connecting import OUTCOME_TIMEOUT, Attempt, Refusal
from owsla.config.sources import load_settings
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.runtime.files import Files
from owsla.tls.broker import BrokerTLS, load_broker_tls

from ..broker.fakes import BrokerTestCase, Result


class SilentResolver:
    """Resolver whose name servers never answer."""

    def resolveHostName(self, receiver: Any, *args: Any, **kwargs: Any) -> SilentResolver:
        receiver.resolutionBegan(self)
        return self

    def cancel(self) -> None: ...


class AttemptTests(BrokerTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        resolver: Any = SilentResolver()
        self.reactor.nameResolver = resolver
        settings = load_settings(["--broker=amqp://rabbit.example"], {})
        tls = BrokerTLS(load_broker_tls())
        self.attempt = Attempt(self.reactor, EndOfTurn(self.reactor), settings.brokers[0], settings, Files(), tls)
        self.outcome = Result(self.attempt.outcome)

    def test_no_answer(self) -> None:
        """An attempt ends after some time, whatever it waits for: looking up a name has no limit of its own."""
        self.attempt.start()
        self.reactor.advance(OUTCOME_TIMEOUT - 1)
        self.assertFalse(self.outcome.done)
        self.reactor.advance(1)
        assert self.outcome.failure is not None
        refusal = self.outcome.failure.value
        assert isinstance(refusal, Refusal)
        self.assertEqual(str(refusal), "no connection within 40 s")
        self.assertFalse(refusal.by_broker)
        self.assertTrue(Result(self.attempt.stop()).done)

    def test_stopped(self) -> None:
        """A stop leaves no timer behind."""
        self.attempt.start()
        self.assertTrue(Result(self.attempt.stop()).done)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refusals(self) -> None:
        """A broker that refuses the login was reached; the reply codes tell."""
        for reason, by_broker in (
            ("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. (403)", True),
            ("NOT_ALLOWED - vhost nowhere not found (530)", True),
            ("Connection refused", False),
            ("no login within 15 s of connecting", False),
        ):
            self.assertEqual(Refusal(reason).by_broker, by_broker)
