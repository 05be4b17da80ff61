"""Tests of questions to the management API: what is asked, and which answers are accepted. The answers are RabbitMQ 4.0's."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
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

    def deliverBody(self, protocol: Any) -> None:
        for part in self.parts:
            protocol.dataReceived(part)
        protocol.connectionLost(Failure(ResponseDone()))


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

    def test_connection(self) -> None:
        """A connection that cannot be made or breaks is reported in the words of connections to the broker."""
        refused: Deferred[Any] = Deferred()
        refused.errback(ConnectionRefusedError(111, "Connection refused"))
        self.assertEqual(self.refused(refused), "http://h:15672: Connection refused")
        broken: Deferred[Any] = Deferred()
        broken.errback(ResponseFailed([Failure(ConnectionRefusedError(111, "Connection refused"))]))
        self.assertEqual(self.refused(broken), "http://h:15672: Connection refused")


class Transport(StringTransportWithDisconnection):
    """Transport of a server that closes nothing."""

    protocol: Any
    aborted = False
    closing = False

    def loseConnection(self) -> None:
        """Begin a close that the server does not answer."""
        self.closing = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.end()

    def end(self) -> None:
        super().loseConnection()


class Endpoint:
    """An endpoint whose connections are the `transports`."""

    transports: list[Transport]

    def __init__(self, reactor: object, host: str, port: int, timeout: float) -> None: ...

    def connect(self, factory: Any) -> Deferred[Any]:
        transport = Transport()
        transport.protocol = factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        self.transports.append(transport)
        return succeed(transport.protocol)


class ConnectionTests(SynchronousTestCase):
    """The connection of a question, with the HTTP client of Twisted."""

    def setUp(self) -> None:
        self.patch(management, "HostnameEndpoint", Endpoint)
        self.transports = Endpoint.transports = []
        self.clock = Clock()

    def ask(self, *parts: bytes) -> Deferred[ShownQueue | None]:
        """Ask for a queue, and let the server send parts of an answer while the connection is open."""
        api = Management(self.clock, ManagementAddress.parse("http://h"), lambda host: None)  # type: ignore[arg-type, return-value]
        asking = Deferred.fromCoroutine(api.queue("to_device", LOGIN))
        (transport,) = self.transports
        for part in parts:
            if transport.connected:
                transport.protocol.dataReceived(part)
        return asking

    def assert_given_up(self, asking: Deferred[ShownQueue | None], text: str) -> None:
        """Assert that a question has failed, and that its connection is closed at once, without a handshake."""
        self.assertEqual(str(self.failureResultOf(asking, ManagementError).value), f"http://h:15672: {text}")
        (transport,) = self.transports
        self.assertEqual((transport.aborted, transport.connected), (True, False))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answer(self) -> None:
        """A whole answer ends the connection, whether the server closes it or not."""
        asking = self.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n", b'{"type":"classic"}')
        self.assertEqual(self.successResultOf(asking), ShownQueue({"x-queue-type": "classic"}, None))
        self.assertFalse(self.transports[0].connected)

    def test_not_http(self) -> None:
        """An answer of another protocol, as of the AMQP port, or one that breaks the rules of HTTP is named as such."""
        for answer in (
            b"AMQP\0\0\x09\x01\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            self.transports.clear()
            self.assert_given_up(self.ask(answer), "its answer is not HTTP")

    def test_answer_without_length(self) -> None:
        """An answer of HTTP/1.0, as of some proxies, ends with the connection."""
        for body, found in ((b'{"type":"classic"}', "x-queue-type"), (b'{"type":"cla', "does not answer like")):
            self.transports.clear()
            asking = self.ask(b"HTTP/1.0 200 OK\r\n\r\n", body)
            self.transports[0].end()
            asking.addErrback(lambda failure: failure.trap(ManagementError) and failure.value)
            self.assertIn(found, str(self.successResultOf(asking)))

    def test_no_answer(self) -> None:
        """A server that does not answer, or does not end its answer, is given up in time."""
        for parts in ((), (b"HTTP/1.1 200 OK\r\n",), (b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n", b"{")):
            self.transports.clear()
            asking = self.ask(*parts)
            self.clock.advance(ANSWER_TIMEOUT)
            self.assert_given_up(asking, f"no answer within {ANSWER_TIMEOUT:g} s")

    def test_too_long(self) -> None:
        """A line, headers or a body without an end are given up."""
        header = b"X-Header: %s\r\n" % (b"x" * 1000)
        chunk = b"10000\r\n%s\r\n" % bytes(0x10000)
        for start, part in (
            (b"", header),
            (b"Transfer-Encoding: chunked\r\n\r\n", chunk),
            (b"\r\n", chunk),  # without a length
            (b"X-Header: ", b"x" * 1000),
        ):
            self.transports.clear()
            parts = [part] * (LONGEST_ANSWER // len(part) + 1)
            asking = self.ask(b"HTTP/1.1 200 OK\r\n", start, *parts)
            (transport,) = self.transports
            if transport.closing:
                transport.end()
            self.assert_given_up(asking, "its answer is too long")

    def test_closed(self) -> None:
        """A connection that the server closes in the middle of an answer is no long answer."""
        asking = self.ask(b"HTTP/1.1 200 OK\r\nContent-Le")
        self.transports[0].end()
        text = str(self.failureResultOf(asking, ManagementError).value)
        self.assertEqual(text, "http://h:15672: the broker closed the connection")
