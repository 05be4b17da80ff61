"""Tests of the time limits of a check of a broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred

from owsla.broker.client import Credentials
from owsla.broker.management import ANSWER_TIMEOUT, ManagementError, ShownQueue
from owsla.checking.broker import ANSWERS_TIMEOUT, check_queues
from owsla.checking.findings import Report
from owsla.config.addresses import BrokerAddress
from owsla.config.sources import load_settings

from ..broker.fakes import BrokerTestCase, ComparingServer, Result


class SlowApi:
    """A management API that answers when `answer` fires."""

    def __init__(self) -> None:
        self.asked = False
        self.answer: Deferred[None] = Deferred()

    def __str__(self) -> str:
        return "http://slow"

    async def queue(self, name: str, login: Credentials) -> ShownQueue | None:
        self.asked = True
        await self.answer
        return None


class TimeLimitTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = ComparingServer({"to_device": {"x-queue-type": "classic"}})
        self.lines: list[str] = []
        settings = load_settings(["--broker=amqp://h"], {})
        attempt: Any = SimpleNamespace(address=BrokerAddress("h"), blocked_because="short of memory")
        self.api = SlowApi()
        management: Any = self.api
        report = Report(self.lines.append)
        self.check = Result(check_queues(self.server.clock, settings, attempt, self.server.client, management, report))

    def test_management(self) -> None:
        """A management API that does not answer is not taken for a broker that does not: its own time limit counts."""
        self.server.settle()
        while not self.api.asked:
            self.server.send(1, "basic.ack", delivery_tag=1, multiple=False)  # the message that a probe publishes
        self.server.clock.advance(max(ANSWER_TIMEOUT, ANSWERS_TIMEOUT))
        self.server.settle()
        self.api.answer.errback(ManagementError("http://slow: no answer"))
        self.server.settle()
        self.assertEqual((self.check.done, self.check.error), (True, None))
        self.assertIn("warn  policies      not checked: http://slow: no answer\n", self.lines)
        self.assertEqual([line for line in self.lines if "within" in line], [])

    def test_broker(self) -> None:
        """A broker that does not answer is a finding."""
        self.server.silent.add("queue.declare")
        self.server.settle()
        self.server.clock.advance(ANSWERS_TIMEOUT)
        self.server.settle()
        self.assertEqual((self.check.done, self.check.error), (True, None))
        self.assertEqual(
            self.lines[-1], f"FAIL  broker        amqp://guest@h:5672/%2F: no answer within {ANSWERS_TIMEOUT:g} s\n"
        )
