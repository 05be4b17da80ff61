"""Tests of reading the arguments of a queue from refusals. The texts of refusals are those of RabbitMQ 3.10.8 and 4.0.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from txamqp.client import Closed

from owsla.broker.arguments import MOST_DIFFERENCES, counts_returns, read_arguments, without_difference
from owsla.broker.client import BrokerError

from .fakes import BrokerTestCase, ComparingServer, Result, Server


def different(name: str, received: str) -> str:
    """Return the refusal of a declaration of a queue that exists with other arguments."""
    return f"PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'q' in vhost '/': received {received}"


def refusal(text: str, code: int = 406) -> BrokerError:
    return BrokerError(code, text, scope="channel")


class DifferenceTests(SynchronousTestCase):
    def test_adopted(self) -> None:
        """An argument that is different is made equal, so that the next one can be found."""
        arguments = {"x-max-length": 7, "x-overflow": "reject-publish"}
        for received, name, adopted in (
            ("'7' but current is '5'", "x-max-length", {**arguments, "x-max-length": 5}),
            ("the value '7' of type 'signedint' but current is none", "x-max-length", {"x-overflow": "reject-publish"}),
            ("none but current is the value 'true' of type 'bool'", "x-flag", {**arguments, "x-flag": True}),
            ("none but current is the value 'quorum' of type 'longstr'", "x-type", {**arguments, "x-type": "quorum"}),
            ("none but current is the value '-1' of type 'signedint'", "x-limit", {**arguments, "x-limit": -1}),
        ):
            self.assertEqual(without_difference(arguments, refusal(different(name, received))), adopted)

    def test_no_argument(self) -> None:
        """What is not an argument, or cannot be made equal, ends the comparison."""
        for answer in (
            refusal(different("durable", "'true' but current is 'false'")),
            refusal(different("x-max-length", "'7' but current is '7'")),
            refusal(different("x-other", "something else")),
            refusal("PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q' in vhost '/'"),
            refusal("ACCESS_REFUSED - no", 403),
        ):
            self.assertIsNone(without_difference({"x-max-length": 7}, answer))


class ReadArgumentsTests(BrokerTestCase):
    def read(self, server: Server, expected: Mapping[str, Any]) -> Result:
        result = Result(read_arguments(server.client, 9, "q", expected))
        server.settle()
        return result

    def test_as_they_are(self) -> None:
        """All arguments are found, those that are not expected and those that are missing too, and nothing is declared."""
        expected = {"x-max-length": 7, "x-overflow": "reject-publish"}
        for arguments in (
            {"x-queue-type": "classic", **expected},
            {"x-queue-type": "classic"},
            {"x-queue-type": "quorum", "x-delivery-limit": -1, "x-dead-letter-exchange": "", "x-max-length": 8},
            {"x-queue-type": "quorum", "x-single-active-consumer": True},
        ):
            server = ComparingServer({"q": dict(arguments)})
            self.assertEqual(self.read(server, expected).value, arguments)
            for call in server.called("queue.declare"):
                self.assertIn("x-max-age", call["arguments"])
            self.assertFalse(server.transport.ended)

    def test_a_stream(self) -> None:
        """A stream, which compares its maximum age, is asked with another argument that is never valid."""
        server = ComparingServer({"q": {"x-queue-type": "stream", "x-max-priority": "none"}})
        self.read(server, {})
        last = server.called("queue.declare")[-1]["arguments"]
        self.assertEqual(last, {"x-queue-type": "stream", "x-max-priority": "none"})

    def test_unknown(self) -> None:
        """Of a queue that does not exist, or that must not be declared, nothing is known."""
        server = ComparingServer({})
        self.assertIsNone(self.read(server, {}).value)
        self.assertEqual(server.queues, {})
        for code, text in ((403, "ACCESS_REFUSED - no"), (405, "RESOURCE_LOCKED - no"), (404, "NOT_FOUND - home node is down")):
            refusing = Server().ready()
            refusing.refusals["q", False] = (code, text)
            self.assertIsNone(self.read(refusing, {}).value)
            self.assertEqual(len(refusing.called("queue.declare")), 1)
            self.assertFalse(refusing.transport.ended)

    def test_no_end(self) -> None:
        """A broker that names the same difference again and again is not asked for ever."""
        server = ComparingServer({"q": {"x-queue-type": "classic", **{f"x-{number}": 1 for number in range(50)}}})
        self.assertIsNone(self.read(server, {}).value)
        self.assertEqual(len(server.called("queue.declare")), MOST_DIFFERENCES)

    def test_the_connection_ends(self) -> None:
        """If the connection ends first, reading fails with its reason."""
        server = Server().ready()
        server.silent.add("queue.declare")
        result = self.read(server, {})
        server.drop()
        self.assertIsInstance(result.error, Closed)


class ReturnsTests(BrokerTestCase):
    def counts(self, server: Server) -> object:
        result = Result(counts_returns(server.client, 9, "q"))
        server.settle()
        self.assertFalse(server.transport.ended)
        return result.value

    def test_by_type(self) -> None:
        """A quorum queue counts returns, unless RabbitMQ 4 reports that it was declared without a limit, whatever other
        arguments it has. Nothing is declared.
        """
        quorum = {"x-queue-type": "quorum"}
        for version, arguments, counts in (
            ("3.10.8", {"x-queue-type": "classic"}, False),
            ("4.0.5", {"x-queue-type": "classic", "x-max-length": 5}, False),
            ("4.0.5", {"x-queue-type": "stream", "x-max-length-bytes": 5}, False),
            ("3.10.8", quorum, True),
            ("3.10.8", {**quorum, "x-delivery-limit": -1}, True),
            ("3.10.8", {**quorum, "x-max-length": 5, "x-dead-letter-exchange": ""}, True),
            ("4.0.5", {**quorum, "x-max-length": 5}, True),
            ("4.0.5", {**quorum, "x-delivery-limit": 20}, True),
            ("4.0.5", {**quorum, "x-delivery-limit": -1}, False),
            ("4.0.5", {**quorum, "x-delivery-limit": -1, "x-max-length": 5}, False),
        ):
            server = ComparingServer({"q": dict(arguments)}, version)
            self.assertIs(self.counts(server), counts, (version, arguments))
            for call in server.called("queue.declare"):
                self.assertTrue({"x-max-age", "x-max-priority"} & call["arguments"].keys())

    def test_unknown(self) -> None:
        """A queue counts returns if the broker does not tell its arguments, unless it differs in anything else: quorum queues
        are all durable.
        """
        durable = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is"
        for code, text, counts in (
            (403, "ACCESS_REFUSED - no", True),
            (406, f"{durable} 'false'", False),
            (405, "RESOURCE_LOCKED - no", False),
        ):
            server = Server().ready()
            server.refusals["q", False] = code, text
            self.assertIs(self.counts(server), counts)
