"""Tests of a connection that reconnects, and of readable error messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.error import (
    ConnectBindError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from txamqp.client import Closed

from owsla.amqp.wire import WireError
from owsla.broker.client import BrokerClient, BrokerError
from owsla.broker.connection import (
    CONNECT_TIMEOUT,
    STABLE_AFTER,
    YIELD_INTERVAL,
    BrokerConnection,
    ConnectionSettings,
    explain,
)
from owsla.broker.logins import BrokerLogins
from owsla.broker.retry_delay import RetryDelay
from owsla.config.addresses import BrokerAddress
from owsla.runtime.end_of_turn import EndOfTurn

from .fakes import START, BrokerTestCase, Result, Server

EPOCH = 1_700_000_000.0


class ExplainTests(BrokerTestCase):
    def test_words(self) -> None:
        """An error of the broker is one line without a class name, in any wrapper."""
        for error, words in (
            (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
            (ConnectionRefusedError(), "refused"),
            (ConnectTimeout(), "time"),
            (DNSLookupError("no such name"), "cannot be resolved"),
            (ConnectionDone(), "closed the connection"),
            (ConnectionLost(), "lost"),
            (ConnectionAborted(), "lost"),
            (ConnectBindError(98, "in use"), "in use"),
            (TimeoutError("no login within 15 s"), "no login within 15 s"),
            (WireError("the broker speaks AMQP 1-0-0"), "AMQP 1-0-0"),
            (BrokerError(403, "ACCESS_REFUSED - no", scope="connection"), "ACCESS_REFUSED - no (403)"),
            (
                BrokerError(530, "NOT_ALLOWED - reached maximum (4) of consumers per channel", scope="connection"),
                "(4) of consumers per channel (530): give fewer --consumers",
            ),
            (SSL.Error([("SSL routines", "", "certificate verify failed")]), "TLS: certificate verify failed"),
            (SSL.Error(), "TLS: the handshake failed"),
        ):
            for wrapped in (error, Failure(error), Closed(error), Closed(Failure(error)), Failure(Closed(error))):
                text = explain(wrapped)
                self.assertIn(words, text)
                self.assertNotIn("\n", text)
                self.assertNotIn("Error", text)
                self.assertNotIn("Traceback", text)
                self.assertNotIn("twisted", text)

    def test_what_nobody_thought_of(self) -> None:
        """An unknown error is shown with its class, so that it can be found."""
        self.assertEqual(explain(KeyError("x")), "KeyError: 'x'")
        self.assertEqual(explain(AssertionError()), "AssertionError")


class Role:
    """Role that records its callbacks."""

    name = "role"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.fault: BaseException | None = None
        self.client: BrokerClient | None = None

    async def up(self, client: BrokerClient) -> None:
        if self.fault is not None:
            raise self.fault
        self.client = client
        self.notes.append("up")

    def down(self) -> None:
        self.notes.append("down")

    def blocked(self, reason: str) -> None:
        self.notes.append(f"blocked {reason}")

    def unblocked(self) -> None:
        self.notes.append("unblocked")


class Reporter:
    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str]] = []

    def up(self, role: str, address: BrokerAddress) -> None:
        self.notes.append(("up", address.host, ""))

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        self.notes.append(("down", address.host, reason))

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        self.notes.append(("failed", address.host, reason))

    def blocked(self, role: str, reason: str) -> None:
        self.notes.append(("blocked", role, reason))

    def unblocked(self, role: str) -> None:
        self.notes.append(("unblocked", role, ""))


class Remote(Server):
    """Server at the remote end of a connection."""

    def __init__(self, clock: Any, factory: Any) -> None:
        super().__init__(clock)
        self.client = factory.buildProtocol(None)
        self.transport.protocol = self.client


class ConnectionTests(BrokerTestCase):
    def setUp(self) -> None:
        self.reactor = cast("Any", MemoryReactorClock())
        self.role = Role()
        self.reporter = Reporter()
        self.service = self.make("10.0.0.1")

    def make(self, *hosts: str, tls: Callable[[str], Any] | None = None) -> BrokerConnection:
        return BrokerConnection(
            self.reactor,
            EndOfTurn(self.reactor),
            self.logins(*hosts, tls=tls is not None),
            self.role,
            self.reporter,
            ConnectionSettings(1000, lambda: "test", tls, now=lambda: EPOCH + self.reactor.seconds()),
            backoff=RetryDelay(first=1, most=60, random=lambda: 1.0),
        )

    def logins(self, *hosts: str, tls: bool) -> BrokerLogins:
        addresses = [BrokerAddress(host, username="me", password="secret", vhost="/v", tls=tls) for host in hosts]
        return BrokerLogins(self.reactor, addresses)

    def attempts(self) -> list[Any]:
        """Return the addresses of the attempts so far. The reactor in memory resolves every name to 127.0.0.1."""
        self.reactor.advance(0)
        return [(host, port) for host, port, *_ in self.reactor.tcpClients]

    def accept(self) -> Remote:
        """Accept the connection of the last attempt."""
        self.reactor.advance(0)
        remote = Remote(self.reactor, self.reactor.tcpClients[-1][2])
        remote.connect()
        return remote

    def welcome(self) -> Remote:
        remote = self.accept()
        remote.send(0, "connection.start", **START)
        return remote

    def refuse(self, error: BaseException) -> None:
        self.reactor.advance(0)
        self.reactor.tcpClients[-1][2].clientConnectionFailed(self.reactor.connectors[-1], Failure(error))
        self.reactor.advance(0.31)  # the time after which the endpoint of Twisted tries another address of the host

    def test_others_go_first(self) -> None:
        """Attempts wait until they are allowed. A stop does not."""
        allowed: list[bool] = []
        service = BrokerConnection(
            self.reactor,
            EndOfTurn(self.reactor),
            self.logins("10.0.0.1", tls=False),
            self.role,
            self.reporter,
            ConnectionSettings(1000, lambda: "test"),
            may_connect=lambda: bool(allowed),
        )
        service.startService()
        self.reactor.advance(1)
        self.assertEqual(self.attempts(), [])
        allowed.append(True)
        self.reactor.advance(YIELD_INTERVAL)
        self.assertEqual(len(self.attempts()), 1)
        stopped = service.stopService()
        self.reactor.advance(1)
        self.successResultOf(stopped)
        allowed.clear()
        service.startService()
        stopped = service.stopService()
        self.reactor.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_up_and_down(self) -> None:
        """A connection logs in, sets up its role, and reconnects after a loss. Each step is reported once."""
        self.service.startService()
        self.assertEqual(self.attempts(), [("127.0.0.1", 5672)])
        remote = self.welcome()
        self.assertEqual(remote.called("connection.start-ok")[0]["response"], b"\0me\0secret")
        self.assertEqual(remote.called("connection.open")[0]["virtual_host"], "/v")
        self.assertEqual(self.role.notes, ["up"])
        remote.drop()
        self.assertEqual(self.role.notes, ["up", "down"])
        self.assertEqual(
            self.reporter.notes, [("up", "10.0.0.1", ""), ("down", "10.0.0.1", "the broker closed the connection")]
        )
        self.reactor.advance(1)
        self.welcome()
        self.assertEqual(self.role.notes, ["up", "down", "up"])

    def test_backing_off(self) -> None:
        """The pauses between failed attempts grow, also for a refused login, where TCP connects."""
        self.service.startService()
        for wait, login in ((1, False), (2, True), (4, False), (8, True), (16, True)):
            before = len(self.attempts())
            if login:
                remote = self.accept()
                remote.silent.add("connection.start-ok")
                remote.send(0, "connection.start", **START)
                remote.send(0, "connection.close", reply_code=403, reply_text="ACCESS_REFUSED - Login was refused")
            else:
                self.refuse(ConnectionRefusedError(111, "Connection refused"))
            self.reactor.advance(wait - 0.1)
            self.assertEqual(len(self.attempts()), before)
            self.reactor.advance(0.2)
            self.assertEqual(len(self.attempts()), before + 1)
        self.assertEqual([what for what, *_ in self.reporter.notes], ["failed"] * 5)
        self.assertIn("Login was refused", self.reporter.notes[-1][2])
        self.assertNotIn("secret", str(self.reporter.notes))
        self.assertEqual(self.role.notes, [])

    def test_a_steady_connection(self) -> None:
        """Only a connection that has worked for some time resets the pause."""
        self.service.startService()
        for lasting, wait in ((0.0, 1), (0.0, 2), (STABLE_AFTER, 1)):
            before = len(self.attempts())
            remote = self.welcome()
            self.reactor.advance(lasting)
            remote.drop()
            self.reactor.advance(wait - 0.1)
            self.assertEqual(len(self.attempts()), before)
            self.reactor.advance(0.2)
            self.assertEqual(len(self.attempts()), before + 1)

    def test_several_addresses(self) -> None:
        """Several addresses are tried in turn."""
        self.service = self.make("10.0.0.1", "10.0.0.2")
        self.service.startService()
        for _ in range(4):
            self.refuse(ConnectionRefusedError())
            self.reactor.advance(8)
        self.assertEqual([host for _, host, _ in self.reporter.notes], ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"])

    def test_a_reload(self) -> None:
        """The next attempt uses the brokers and passwords of a reload; a new password is sent on a living connection, too."""
        logins = self.logins("10.0.0.1", tls=False)
        self.service = BrokerConnection(
            self.reactor,
            EndOfTurn(self.reactor),
            logins,
            self.role,
            self.reporter,
            ConnectionSettings(1000, lambda: "test"),
            backoff=RetryDelay(first=1, most=60, random=lambda: 1.0),
        )
        self.service.startService()
        remote = self.accept()
        server = {"product": "RabbitMQ", "version": "4.0.5"}
        remote.send(0, "connection.start", **{**START, "server_properties": server})
        (address,) = logins.addresses
        logins.use([replace(address, password="new")])
        remote.settle()
        self.assertEqual(remote.called("connection.update-secret")[0]["new_secret"], b"new")
        remote.drop()
        logins.use([replace(address, host="10.0.0.2", password="newer")])
        self.reactor.advance(1)
        self.assertEqual(remote.called("connection.update-secret")[1:], [])
        self.assertEqual(self.welcome().called("connection.start-ok")[0]["response"], b"\0me\0newer")
        self.assertEqual(self.reporter.notes[-1], ("up", "10.0.0.2", ""))

    def test_a_name_that_is_none(self) -> None:
        """An invalid host name, or invalid TLS settings for a broker, is logged and retried like an unreachable broker. Other
        brokers are tried.
        """

        def tls(host: str) -> Any:
            raise UnicodeError("no such name")

        self.service = self.make("rabbit_mq", "10.0.0.2")
        self.service.startService()
        self.assertEqual(self.attempts(), [])
        self.reactor.advance(1)
        self.assertEqual(self.attempts(), [("127.0.0.1", 5672)])
        self.stop()
        self.service = self.make("10.0.0.1", tls=tls)
        self.service.startService()
        self.assertEqual(
            self.reporter.notes,
            [
                ("failed", "rabbit_mq", "cannot connect to it: invalid hostname: rabbit_mq"),
                ("failed", "10.0.0.1", "cannot connect to it: no such name"),
            ],
        )

    def test_a_name_that_is_not_in_ascii(self) -> None:
        """A broker may have an internationalized host name."""
        self.service = self.make("b\u00fccher.example")
        self.service.startService()
        self.assertEqual(len(self.attempts()), 1)

    def test_setting_up_fails(self) -> None:
        """A role that cannot be set up ends the connection, gets the reason of the broker, and is set up again."""
        self.role.fault = BrokerError(404, "NOT_FOUND - home node is down", scope="channel")
        self.service.startService()
        remote = self.welcome()
        self.assertTrue(remote.transport.ended)
        self.assertEqual(self.reporter.notes, [("failed", "10.0.0.1", "NOT_FOUND - home node is down (404)")])
        self.role.fault = None
        self.reactor.advance(1)
        self.welcome()
        self.assertEqual(self.role.notes[-1], "up")

    def test_a_fault_of_ours(self) -> None:
        """An exception of a defect ends the worker. After a restart it connects again."""
        ends: list[Failure | None] = []
        self.service.supervise(ends.append)
        self.role.fault = ZeroDivisionError()
        self.service.startService()
        self.welcome()
        self.assertEqual([end and end.type for end in ends], [ZeroDivisionError])
        self.assertTrue(self.stop().done)
        self.role.fault = None
        self.service.supervise(ends.append)
        self.service.startService()
        self.welcome()
        self.assertEqual(self.role.notes[-1], "up")
        self.assertEqual(len(ends), 1)

    def test_a_broker_that_does_not_speak(self) -> None:
        """A broker that accepts the connection and sends nothing is left after a timeout."""
        self.service.startService()
        remote = self.accept()
        self.reactor.advance(CONNECT_TIMEOUT - 1)
        self.assertFalse(remote.transport.aborted)
        self.reactor.advance(1)
        remote.settle()
        self.assertTrue(remote.transport.aborted)
        self.assertIn("no login within", self.reporter.notes[0][2])

    def test_blocked(self) -> None:
        """connection.blocked is passed on to the role and to the reporter."""
        self.service.startService()
        remote = self.welcome()
        remote.send(0, "connection.blocked", reason="low on memory")
        remote.send(0, "connection.unblocked")
        self.assertEqual(self.role.notes[1:], ["blocked low on memory", "unblocked"])
        self.assertEqual(
            self.reporter.notes[1:], [("blocked", "role", "low on memory"), ("unblocked", "role", "")]
        )

    def status(self) -> tuple[str, float]:
        """Return the state of the connection, and the time of its last change in seconds since the start of the test."""
        return self.service.status.state, round(self.service.status.since - EPOCH, 2)

    def test_status(self) -> None:
        """The status has the state and its time, the address of the last attempt, and the last fault with its time."""
        status = self.service.status
        self.assertEqual((*self.status(), status.role, status.address), ("stopped", 0.0, "role", None))
        self.reactor.advance(5)
        self.service.startService()
        self.assertEqual((*self.status(), status.address), ("connecting", 5.0, "amqp://me@10.0.0.1:5672/%2Fv"))
        self.refuse(ConnectionRefusedError(111, "Connection refused"))
        self.assertEqual((status.state, status.fault), ("waiting", "Connection refused"))
        self.assertEqual(status.fault_time, status.since)
        self.reactor.advance(1.5)
        remote = self.accept()
        self.assertEqual(self.status()[0], "connecting")
        remote.send(0, "connection.start", **START)
        self.assertEqual(self.status(), ("up", round(self.reactor.seconds(), 2)))
        self.reactor.advance(10)
        remote.send(0, "connection.blocked", reason="low on memory")
        self.assertEqual(self.status(), ("blocked", round(self.reactor.seconds(), 2)))
        self.reactor.advance(10)
        remote.send(0, "connection.unblocked")
        self.assertEqual(self.status(), ("up", round(self.reactor.seconds(), 2)))
        self.assertEqual(status.fault, "Connection refused")
        remote.drop()
        self.assertEqual((*self.status(), status.fault), ("waiting", 26.81, "the broker closed the connection"))
        stopped = self.stop()
        self.assertTrue(stopped.done)
        self.assertEqual(self.status(), ("stopped", round(self.reactor.seconds(), 2)))

    def test_status_of_a_refused_setup(self) -> None:
        """A connection whose queues cannot be declared is not up. A stop is no fault."""
        self.role.fault = BrokerError(406, "PRECONDITION_FAILED", scope="channel")
        self.service.startService()
        self.welcome().settle()
        self.assertEqual(self.status()[0], "waiting")
        self.assertIn("PRECONDITION_FAILED", str(self.service.status.fault))
        self.role.fault = None
        self.reactor.advance(1)
        remote = self.welcome()
        self.service.status.fault = None
        self.stop()
        remote.settle()
        self.assertEqual((self.status()[0], self.service.status.fault), ("stopped", None))

    def stop(self) -> Result:
        return Result(self.service.stopService())

    def test_stopping(self) -> None:
        """A stop closes the connection in the way of the protocol, tells the role, and reports no loss."""
        self.service.startService()
        remote = self.welcome()
        stopped = self.stop()
        remote.settle()
        self.assertTrue(stopped.done)
        self.assertIsNone(stopped.failure)
        self.assertEqual(len(remote.called("connection.close")), 1)
        self.assertEqual([what for what, *_ in self.reporter.notes], ["up"])
        self.reactor.advance(1000)
        self.assertEqual(len(self.attempts()), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stopping_at_any_other_moment(self) -> None:
        """A stop works in every phase: connecting, login, waiting for a retry, and with a lost, silent or confused broker."""

        def connecting() -> None:
            self.reactor.advance(0)

        def logging_in() -> None:
            self.accept()

        def waiting() -> None:
            self.refuse(ConnectionRefusedError())

        def hung() -> None:
            self.welcome().silent.add("connection.close")

        def going() -> None:
            remote = self.welcome()
            remote.silent.add("connection.close")
            self.reactor.callLater(0.5, remote.drop)

        def misled() -> None:
            remote = self.welcome()
            remote.silent.add("connection.close")
            self.reactor.callLater(0.5, remote.send, 0, "connection.open-ok")

        for moment in (connecting, logging_in, waiting, hung, going, misled):
            self.setUp()
            self.service.startService()
            moment()
            stopped = self.stop()
            for _ in range(30):
                self.reactor.advance(0.1)
            self.assertTrue(stopped.done, moment)
            self.assertIsNone(stopped.failure, moment)
            before = len(self.attempts())
            self.reactor.advance(1000)
            self.assertEqual(len(self.attempts()), before, moment)

    def test_closed_within(self) -> None:
        """A close waits for the broker no longer than the limit. With a limit of 0 connection.close is not sent."""
        for within, asked in ((0.5, 1), (0.0, 0)):
            self.setUp()
            self.service.startService()
            remote = self.welcome()
            remote.silent.add("connection.close")
            self.service.close_within(within)
            stopped = self.stop()
            remote.settle()
            self.assertEqual((len(remote.called("connection.close")), stopped.done), (asked, not asked))
            self.reactor.advance(within)
            self.assertTrue(stopped.done)

    def test_hurry(self) -> None:
        """A hurried stop ends the wait for an answer to connection.close, or does not send it."""
        self.service.startService()
        self.welcome().silent.add("connection.close")
        stopped = self.stop()
        self.assertFalse(stopped.done)
        self.service.hurry()
        self.reactor.advance(0)
        self.assertTrue(stopped.done)
        self.setUp()
        self.service.startService()
        remote = self.welcome()
        self.service.hurry()
        remote.settle()
        self.assertFalse(remote.transport.aborted, "it is not told to stop yet")
        self.assertTrue(self.stop().done)
        self.assertEqual(remote.called("connection.close"), [])
