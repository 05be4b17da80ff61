"""Messages about the broker, and the end of a command."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._running import Session
from owsla.config.addresses import BrokerAddress

BROKER = BrokerAddress("host", password="secret")


class FakeReactor:
    """A reactor that counts its stops."""

    stopped = 0

    def stop(self) -> None:
        self.stopped += 1


class SessionTests(SynchronousTestCase):
    """A session, observed through standard error."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.errors = io.StringIO()
        redirected = redirect_stderr(self.errors)
        redirected.__enter__()
        self.addCleanup(redirected.__exit__, None, None, None)

    def said(self) -> list[str]:
        """Return the lines written since the last call."""
        lines = self.errors.getvalue().splitlines()
        self.errors.seek(0)
        self.errors.truncate()
        return lines

    def test_patient(self) -> None:
        """A patient command goes on without a broker, and reports the same failure once."""
        session = Session(self.reactor, "echo", patient=True)
        session.log_when_ready("answering")
        for _ in range(3):
            session.failed("echo", BROKER, "connection refused")
        self.assertEqual(self.said(), ["owsla echo: broker amqp://guest@host:5672/%2F: connection refused; trying again"])
        session.failed("echo", BROKER, "no such host")
        self.assertEqual(len(self.said()), 1)
        session.up("echo", BROKER)
        session.failed("echo", BROKER, "no such host")
        self.assertEqual(self.said()[0], "owsla echo: answering (amqp://guest@host:5672/%2F)")
        self.assertEqual(self.reactor.stopped, 0)

    def test_impatient(self) -> None:
        """Other commands end with status 1 and the reason in one line."""
        session = Session(self.reactor, "send", patient=False)
        session.down("send", BROKER, "the connection was lost")
        self.assertEqual(self.said(), ["owsla send: lost the broker amqp://guest@host:5672/%2F: the connection was lost"])
        self.assertEqual((session.status, self.reactor.stopped), (1, 1))

    def test_ends_once(self) -> None:
        """Only the first end has an effect: its consequences change nothing."""
        session = Session(self.reactor, "send", patient=False)
        session.finish(0)
        session.finish(1, "too late")
        session.down("send", BROKER, "closed by us")
        self.assertEqual((session.status, self.reactor.stopped, self.said()), (0, 1, []))
