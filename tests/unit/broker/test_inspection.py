"""Tests of the inspection of queues: when the broker is asked, and what is reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from owsla.broker.client import BrokerClient, Credentials
from owsla.broker.inspection import CHANNEL, LOOK_AGAIN, MOST_LOOKS, UNTOLD, InspectionParts, QueueInspection
from owsla.broker.management import ManagementError, ShownQueue
from owsla.broker.promises import GatewayQueue, Policy, Use
from owsla.broker.queues import Queue
from owsla.broker.retry_delay import RetryDelay
from owsla.config.addresses import ManagementAddress
from owsla.events import Event

from .fakes import BrokerTestCase, ComparingServer

ADDRESS = ManagementAddress("rabbit.example")
CLASSIC: Mapping[str, Any] = {"x-queue-type": "classic"}


class Api:
    """A management API that shows the queues in `shown`."""

    def __init__(self, address: ManagementAddress) -> None:
        self.address = address
        self.asked: list[str] = []
        self.shown: dict[str, ShownQueue | Exception] = {}
        self.waiting: Deferred[None] | None = None

    async def queue(self, name: str, login: Credentials) -> ShownQueue | None:
        self.asked.append(name)
        shown = self.shown.get(name)
        if self.waiting is not None:
            await self.waiting
        if isinstance(shown, Exception):
            raise shown
        return shown


class InspectionTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = ComparingServer({})
        self.client: BrokerClient | None = self.server.client
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.apis: list[Api] = []

    def make(self, management: ManagementAddress | None = None) -> QueueInspection:
        """Return an inspection of the queues `lines` and `messages`, that runs."""

        def api(address: ManagementAddress) -> Api:
            self.apis.append(Api(address))
            return self.apis[-1]

        async def login() -> Credentials:
            return Credentials("me", "secret", "/")

        parts = InspectionParts(
            queues=lambda: [GatewayQueue(Use.LINES, Queue("lines")), GatewayQueue(Use.MESSAGES, Queue("messages"))],
            client=lambda: self.client,
            login=login,
            management=api,
        )
        backoff = RetryDelay(first=2.0, most=300.0, random=lambda: 1.0)
        inspection = QueueInspection(self.clock, self.events.append, parts, management=management, backoff=backoff)
        self.ends: list[object] = []
        inspection.supervise(self.ends.append)
        inspection.startService()
        self.addCleanup(self.assertEqual, self.ends, [])
        return inspection

    def look(self, inspection: QueueInspection) -> list[str]:
        """Connect, and return what is reported."""
        inspection.begin()
        return self.reported()

    def reported(self, after: float = 0) -> list[str]:
        """Return what is reported after some seconds: the queue of each text, and its rule."""
        self.clock.advance(after)
        self.server.settle()
        texts = [str(event) for event in self.events]
        self.events.clear()
        return texts

    def test_over_amqp(self) -> None:
        """Without the management API arguments are looked at, also of queues that others have declared. A fault is reported
        once, and again when it was gone meanwhile.
        """
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        self.server.queues["messages"] = {"x-queue-type": "quorum"}
        inspection = self.make()
        lines, messages = self.look(inspection)
        self.assertIn("lines: its argument x-max-length=5", lines)
        self.assertIn("messages: quorum queues have a delivery-limit of 20", messages)
        self.assertEqual(self.look(inspection), [])
        self.server.queues["lines"] = {**CLASSIC}
        self.assertEqual(self.look(inspection), [])
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        self.assertEqual(self.look(inspection), [lines])

    def test_few_refusals(self) -> None:
        """RabbitMQ logs each refusal: without a change a further connect leads to none, and a change to one."""
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        self.server.queues["messages"] = {"x-queue-type": "quorum"}
        inspection = self.make()
        self.assertEqual(len(self.look(inspection)), 2)
        self.assertEqual(self.refusals(), 2)
        self.look(inspection)
        self.assertEqual(self.refusals(), 0)
        self.server.queues["lines"] = {**CLASSIC}
        self.look(inspection)
        self.assertEqual(self.refusals(), 1)

    def test_not_told(self) -> None:
        """A queue of which the broker tells nothing is asked about once an hour."""
        inspection = self.make()
        self.look(inspection)
        self.assertEqual(self.refusals(), 2)
        self.look(inspection)
        self.reported(after=UNTOLD - 1)
        self.look(inspection)
        self.assertEqual(self.refusals(), 0)
        self.reported(after=1)
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        (line,) = self.look(inspection)
        self.assertIn("lines: its argument x-max-length=5", line)

    def refusals(self) -> int:
        """Return the number of refusals since the last call."""
        count = len(self.server.called("channel.close-ok"))
        self.server.calls.clear()
        return count

    def test_nothing_to_say(self) -> None:
        """Queues that keep all promises, that do not exist, or that nobody can look at now, are not mentioned."""
        inspection = self.make()
        self.assertEqual(self.look(inspection), [])
        self.assertEqual(self.server.queues, {})
        self.server.queues["lines"] = {**CLASSIC}
        self.assertEqual(self.look(inspection), [])
        self.client = None
        self.assertEqual(self.look(inspection), [])

    def test_the_connection_ends(self) -> None:
        """A connection that ends during the look is no fault of the inspection: the next one begins again."""
        self.server.silent.add("queue.declare")
        inspection = self.make()
        inspection.begin()
        self.reported()
        self.server.drop()
        self.assertEqual(self.ends, [])

    def test_another_answer(self) -> None:
        """A broker that answers something else loses the connection, and is no fault of the inspection."""
        self.server.silent.add("queue.declare")
        inspection = self.make()
        self.look(inspection)
        self.server.send(CHANNEL, "basic.qos-ok")
        self.assertTrue(self.server.transport.ended)
        self.assertEqual(self.ends, [])

    def test_again_on_the_same_connection(self) -> None:
        """A look that begins while another one waits for an answer does not use the channel before that."""
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        self.server.silent.add("queue.declare")
        inspection = self.make()
        self.assertEqual(self.look(inspection), [])
        self.assertEqual(self.look(inspection), [])
        opened = [channel for channel, method, _ in self.server.calls if method == "channel.open"]
        self.assertEqual(opened, [CHANNEL])
        self.server.silent.clear()
        refusal = "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'lines' in vhost '/'"
        self.server.send(CHANNEL, "channel.close", reply_code=406, reply_text=refusal, class_id=50, method_id=10)
        (line,) = self.reported()
        self.assertIn("lines: its argument x-max-length=5", line)

    def test_policies(self) -> None:
        """With the management API policies are looked at, and AMQP is not used."""
        inspection = self.make(ADDRESS)
        self.apis[0].shown = {
            "lines": ShownQueue(CLASSIC, Policy({"message-ttl": 5}, "blanket")),
            "messages": ShownQueue({"x-queue-type": "quorum"}, Policy({"delivery-limit": -1}, "no-limit")),
        }
        before = len(self.server.calls)
        (line,) = self.look(inspection)
        self.assertIn("lines: policy 'blanket' sets message-ttl=5", line)
        self.assertEqual(len(self.server.calls), before)
        self.assertEqual(self.reported(after=1000.0), [])
        self.assertEqual(self.apis[0].asked, ["lines", "messages"])

    def test_good_news(self) -> None:
        """That no policy breaks a promise is only logged after a look, which needs no channel."""
        inspection = self.make(ADDRESS)
        self.apis[0].shown = dict.fromkeys(("lines", "messages"), ShownQueue(CLASSIC, Policy()))
        client, self.client = self.client, None
        with capturedLogs() as logs:
            self.look(inspection)
            self.assertEqual(logs, [])
            self.client = client
            self.server.client.channel_max = 5
            self.look(inspection)
        self.assertEqual([formatEvent(event) for event in logs], [f"Policies checked at {ADDRESS}: none breaks a promise"])

    def test_not_shown_yet(self) -> None:
        """A queue whose policies are not shown yet is looked at again, some times."""
        inspection = self.make(ADDRESS)
        api = self.apis[0]
        api.shown = {"lines": ShownQueue(CLASSIC, None), "messages": ShownQueue({"x-queue-type": "quorum"}, None)}
        self.assertEqual(self.look(inspection), [])
        api.shown = {name: ShownQueue(CLASSIC, Policy({"expires": 5}, "blanket")) for name in api.shown}
        self.assertEqual(len(self.reported(after=LOOK_AGAIN)), 2)
        self.assertEqual(self.reported(after=100.0), [])
        api.shown["messages"] = ShownQueue({**CLASSIC, "x-expires": 5}, None)
        texts = self.look(inspection)
        for _ in range(MOST_LOOKS):
            texts += self.reported(after=LOOK_AGAIN)
        complaint, finding = texts
        self.assertIn(f"{ADDRESS} does not show them", complaint)
        self.assertIn("messages: its argument x-expires=5", finding)
        asked = len(api.asked)
        self.reported(after=1000.0)
        self.assertEqual(len(api.asked), asked)

    def test_another_server(self) -> None:
        """An address where none of the queues is, such as that of another program, is reported."""
        texts = self.look(self.make(ADDRESS))
        for _ in range(MOST_LOOKS):
            texts += self.reported(after=LOOK_AGAIN)
        (line,) = texts
        self.assertIn(f"{ADDRESS} has none of the queues; is it the management API of this broker", line)

    def test_no_answer(self) -> None:
        """While the management API does not answer it is asked again, ever more rarely, with one warning for each reason."""
        inspection = self.make(ADDRESS)
        api = self.apis[0]
        api.shown["lines"] = ManagementError("http://rabbit.example:15672: Connection refused")
        (line,) = self.look(inspection)
        self.assertEqual(
            line,
            "Broker: policies of queues are not checked, trying again: http://rabbit.example:15672: Connection refused",
        )
        for delay in (2.0, 4.0, 8.0):
            asked = len(api.asked)
            self.assertEqual(self.reported(after=delay - 0.1), [])
            self.assertEqual(len(api.asked), asked)
            self.assertEqual(self.reported(after=0.1), [])
            self.assertEqual(len(api.asked), asked + 1)
        api.shown["lines"] = ManagementError("another reason")
        self.assertEqual(len(self.reported(after=16.0)), 1)
        api.shown = dict.fromkeys(("lines", "messages"), ShownQueue(CLASSIC, Policy()))
        self.assertEqual(self.reported(after=32.0), [])
        api.shown["lines"] = ManagementError("another reason")
        self.assertEqual(len(self.look(inspection)), 1)

    def test_overtaken(self) -> None:
        """The look of an earlier connection is dropped."""
        inspection = self.make(ADDRESS)
        api = self.apis[0]
        api.shown = dict.fromkeys(("lines", "messages"), ShownQueue(CLASSIC, Policy({"expires": 5}, "old")))
        waiting = api.waiting = Deferred()
        self.assertEqual(self.look(inspection), [])
        api.waiting = None
        api.shown = dict.fromkeys(("lines", "messages"), ShownQueue(CLASSIC, Policy()))
        self.assertEqual(self.look(inspection), [])
        waiting.callback(None)
        self.assertEqual(self.reported(after=1000.0), [])

    def test_another_address(self) -> None:
        """A reload with another address begins another look there; the same address changes nothing."""
        inspection = self.make()
        self.server.queues["lines"] = {**CLASSIC, "x-max-length": 5}
        inspection.configure(ADDRESS)
        self.apis[0].shown = dict.fromkeys(("lines", "messages"), ShownQueue(CLASSIC, Policy({"expires": 5}, "blanket")))
        self.assertEqual(len(self.reported()), 2)
        inspection.configure(ADDRESS)
        self.assertEqual((self.reported(), len(self.apis), inspection.management), ([], 1, ADDRESS))
        inspection.configure(None)
        (line,) = self.reported()
        self.assertIn("x-max-length=5", line)

    def test_stop(self) -> None:
        """A stop ends the look, and no other one begins."""
        inspection = self.make(ADDRESS)
        self.apis[0].waiting = Deferred()
        self.look(inspection)
        inspection.stopService()
        inspection.begin()
        self.assertEqual(self.reported(after=1000.0), [])
        self.assertEqual(self.apis[0].asked, ["lines"])
