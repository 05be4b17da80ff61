"""Tests of questions to the management API: what is asked, and which answers are accepted. The answers are RabbitMQ 4.0's."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed

from owsla.broker import management
from owsla.broker.client import Credentials
from owsla.broker.management import ANSWER_TIMEOUT, LONGEST_ANSWER, Management, ManagementError, ShownQueue
from owsla.broker.promises import Policy
from owsla.config.addresses import ManagementAddress

LOGIN = Credentials("me", "secret", "v/h")


class Answer:
    """An answer of the server."""

    def __init__(self, code: int, *parts: bytes) -> None:
        self.code = code
        self.parts = parts
        self.aborted = False

    def deliverBody(self, protocol: Any) -> None:
        protocol.transport = self
        for part in self.parts:
            protocol.dataReceived(part)
        protocol.connectionLost(Failure(ResponseDone()))

    def abortConnection(self) -> None:
        self.aborted = True


class Agents:
    """Stands for the `Agent` of Twisted: it notes requests, and gives one answer."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.requests: list[tuple[str, str]] = []

    def usingEndpointFactory(self, reactor: object, endpoints: object) -> Agents:
        return self

    def request(self, method: bytes, uri: bytes, headers: Any, body: object) -> Deferred[Any]:
        assert method == b"GET"
        (login,) = headers.getRawHeaders("Authorization")
        self.requests.append((uri.decode(), base64.b64decode(login.removeprefix("Basic ")).decode()))
        return self.answer if isinstance(self.answer, Deferred) else succeed(self.answer)


class ManagementTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.agents = Agents()
        self.patch(management, "Agent", self.agents)
        self.clock = Clock()

    def ask(self, answer: object, url: str = "http://h", queue: str = "to_device") -> Deferred[ShownQueue | None]:
        self.agents.answer = answer
        api = Management(self.clock, ManagementAddress.parse(url), lambda host: None)  # type: ignore[arg-type, return-value]
        return Deferred.fromCoroutine(api.queue(queue, LOGIN))

    def refused(self, answer: object, url: str = "http://h") -> str:
        """Return the text of the error that an answer leads to."""
        text = str(self.failureResultOf(self.ask(answer, url), ManagementError).value)
        self.assertNotIn("secret", text)
        return text

    def test_question(self) -> None:
        """Names are percent-encoded. User and password are those of the broker, unless the URL has its own."""
        self.ask(Answer(404), queue="a/b ö")
        self.ask(Answer(404), "https://u:pw@[::1]:443/prefix/")
        columns = "columns=type,arguments,policy,operator_policy,effective_policy_definition"
        self.assertEqual(
            self.agents.requests,
            [
                (f"http://h:15672/api/queues/v%2Fh/a%2Fb%20%C3%B6?{columns}", "me:secret"),
                (f"https://[::1]:443/prefix/api/queues/v%2Fh/to_device?{columns}", "u:pw"),
            ],
        )

    def test_answers(self) -> None:
        """A queue has arguments with its type, and policies if they are shown; RabbitMQ may show nothing as null or []."""
        for shown, found in (
            (
                {
                    "arguments": {"x-expires": 5},
                    "effective_policy_definition": {"message-ttl": 7},
                    "operator_policy": "theirs",
                    "policy": "blanket",
                    "type": "quorum",
                },
                ShownQueue({"x-queue-type": "quorum", "x-expires": 5}, Policy({"message-ttl": 7}, "blanket", "theirs")),
            ),
            (
                {"arguments": [], "effective_policy_definition": [], "operator_policy": None, "policy": "", "type": "classic"},
                ShownQueue({"x-queue-type": "classic"}, Policy()),
            ),
            ({"arguments": {}, "type": "classic"}, ShownQueue({"x-queue-type": "classic"}, None)),
            ({}, ShownQueue({}, None)),
        ):
            body = json.dumps(shown).encode()
            self.assertEqual(self.successResultOf(self.ask(Answer(200, body[:3], body[3:]))), found)
        self.assertIsNone(self.successResultOf(self.ask(Answer(404, b'{"error":"Object Not Found"}'))))

    def test_refusals(self) -> None:
        """A status that is not expected, and an answer that is none of RabbitMQ's, are one line with the address."""
        refused = self.refused(Answer(401))
        self.assertIn("http://h:15672 refuses the user me (401): wrong password, or the user lacks the tag management", refused)
        self.assertIn("the user u (401)", self.refused(Answer(401), "http://u:secret@h"))
        self.assertEqual(self.refused(Answer(302, b"elsewhere")), "http://h:15672 answers with the HTTP status 302")
        for body in (b"<html>", b"", b"[1]", b"7", b'"x"', b'{"arguments": 5}', b'{"effective_policy_definition": 5}', b"\xff"):
            self.assertIn("does not answer like the management API of RabbitMQ", self.refused(Answer(200, body)))
        deep = b"[" * 500_000
        self.assertIn("does not answer like", self.refused(Answer(200, deep)))

    def test_too_long(self) -> None:
        """An answer without an end is given up."""
        endless = Answer(200, *[bytes(LONGEST_ANSWER)] * 3)
        self.assertEqual(self.refused(endless), "http://h:15672: its answer is too long")
        self.assertTrue(endless.aborted)

    def test_no_answer(self) -> None:
        """A server that does not answer, or an answer that never ends, is given up in time."""
        asking = self.ask(Deferred())
        self.clock.advance(ANSWER_TIMEOUT)
        error = self.failureResultOf(asking, ManagementError).value
        self.assertEqual(str(error), f"http://h:15672: no answer within {ANSWER_TIMEOUT:g} s")

        unfinished = Answer(200)
        self.patch(Answer, "deliverBody", lambda answer, protocol: protocol.makeConnection(answer))
        asking = self.ask(unfinished)
        self.clock.advance(ANSWER_TIMEOUT)
        self.failureResultOf(asking, ManagementError)
        self.assertTrue(unfinished.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connection(self) -> None:
        """A connection that cannot be made or breaks is reported in the words of connections to the broker."""
        refused: Deferred[Any] = Deferred()
        refused.errback(ConnectionRefusedError(111, "Connection refused"))
        self.assertEqual(self.refused(refused), "http://h:15672: Connection refused")
        broken: Deferred[Any] = Deferred()
        broken.errback(ResponseFailed([Failure(ConnectionRefusedError(111, "Connection refused"))]))
        self.assertEqual(self.refused(broken), "http://h:15672: Connection refused")
