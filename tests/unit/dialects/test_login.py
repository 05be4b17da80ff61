"""The login dialect, with checkers of Twisted's cred."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import LoginDenied, UnauthorizedLogin
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from owsla.config.deny_list import parse_deny_list
from owsla.config.sources import load_settings
from owsla.dialects.login import Login, LoginService, make_login_checker
from owsla.errors import ConfigError
from owsla.events import DeviceDisconnected, DialectFailed, LoginFailed

from ..device._fakes import Source
from ._fakes import DialectWorld


@implementer(ICredentialsChecker)
class Asking:
    """A checker whose result comes later."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.answer: Deferred[Any] = Deferred()

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        self.asked.append((credentials.username, credentials.password))
        return self.answer


class LoginTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin()

    def begin(self, **options: Any) -> None:
        self.checker = Asking()
        checker: Any = self.checker
        settings = replace(load_settings([], {}), login_checker=checker, login_timeout=5.0)
        self.world = DialectWorld(Login.configured(settings), **options)

    def reason(self, endpoint: Any) -> str:
        self.world.end(endpoint)
        return self.world.of_type(DeviceDisconnected)[-1].reason

    def test_welcome(self) -> None:
        """A login that succeeds is answered, and not published. Later lines have the id from the checker."""
        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 s3cret with spaces\n")
        self.assertEqual((self.checker.asked, self.world.heard(wire)), ([(b"d1", b"s3cret with spaces")], []))
        self.checker.answer.callback(b"D1")
        self.assertEqual((endpoint.device_id, self.world.heard(wire)), ("D1", [b"WELCOME D1"]))
        endpoint.dataReceived(b"a\n")
        self.assertEqual((self.world.sink.of(endpoint), endpoint.template[1]), ([b"a"], "D1"))
        self.world.later(20.0)
        self.assertEqual(wire.closed, "")

    def test_acknowledged_after_the_answer(self) -> None:
        """With --device-ack the login is acknowledged after WELCOME, however slow the checker is, and never after DENIED."""
        for known in (True, False):
            self.begin(device_ack=lambda seq: b"ACK %d\r\n" % seq)
            endpoint, wire = self.world.speak()
            endpoint.dataReceived(b"HELLO d1 t\n")
            self.assertEqual(self.world.heard(wire), [])
            if known:
                self.checker.answer.callback(b"d1")
                self.assertEqual(self.world.heard(wire), [b"WELCOME d1", b"ACK 0"])
            else:
                self.checker.answer.errback(UnauthorizedLogin())
                self.assertEqual(self.world.heard(wire), [b"DENIED"])

    def test_impatient(self) -> None:
        """Lines that follow the login wait for its result. Then they are published in order, or dropped."""
        for known in (True, False):
            self.setUp()
            endpoint, wire = self.world.speak()
            endpoint.dataReceived(b"HELLO d1 t\na\nb\n")
            self.assertEqual(self.world.sink.lines, [])
            if known:
                self.checker.answer.callback(b"d1")
                self.assertEqual(self.world.sink.of(endpoint), [b"a", b"b"])
            else:
                self.checker.answer.errback(UnauthorizedLogin())
                self.assertEqual((self.world.heard(wire), wire.closed), ([b"DENIED"], "lost"))
                self.assertEqual(self.reason(endpoint), "login denied")
                self.assertEqual(self.world.sink.lines, [])

    def test_no_login(self) -> None:
        """A line that is not a login, or not for the id in the certificate, is denied without a check."""
        for line, device_id in [
            (b"", None),
            (b"hello d1 t", None),
            (b"HELLO", None),
            (b"HELLO d1", None),
            (b"HELLO d1 ", None),
            (b"HELLO  t", None),
            (b"a line", None),
            (b"HELLO d1 t", "d2"),
            (b"HELLO \xff t", "d2"),
        ]:
            endpoint, wire = self.world.speak(device_id=device_id)
            endpoint.dataReceived(line + b"\nmore\n")
            self.assertEqual((self.world.heard(wire), wire.closed), ([b"DENIED"], "lost"), line)
            self.assertEqual(self.reason(endpoint), "login denied")
        self.assertEqual((self.checker.asked, self.world.sink.lines), ([], []))
        self.assertEqual(self.world.of_type(DialectFailed), [])

    def test_timeout(self) -> None:
        """A device that does not log in in time is denied. Half a line is not a login."""
        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 ")
        self.world.later(4.5)
        self.assertEqual(wire.closed, "")
        self.world.later(1.0)
        self.assertEqual((self.world.heard(wire), wire.closed), ([b"DENIED"], "lost"))
        self.assertEqual(self.reason(endpoint), "no login within 5 s")

    def test_outage(self) -> None:
        """While devices are not read, the time for the login stops."""
        self.world.sink.stop()
        endpoint, wire = self.world.speak()
        self.world.later(20.0)
        self.world.sink.resume()
        self.world.later(4.0)
        endpoint.dataReceived(b"HELLO d1 t\n")
        self.checker.answer.callback(b"d1")
        self.assertEqual(self.world.heard(wire), [b"WELCOME d1"])

    def test_messages_before(self) -> None:
        """A message for a device that has not logged in is refused."""
        endpoint, wire = self.world.speak()
        source = Source()
        self.world.send(endpoint, source, b"secret")
        self.assertEqual(self.world.courier.reasons, [(b"secret", "refused-by-dialect")])
        endpoint.dataReceived(b"HELLO d1 t\n")
        self.checker.answer.callback(b"d1")
        self.world.send(endpoint, source, b"news")
        self.assertEqual(self.world.heard(wire), [b"WELCOME d1", b"news"])

    def test_gone_while_asking(self) -> None:
        """A result for a device that has disconnected is ignored."""
        for known in (True, False):
            self.setUp()
            endpoint, _ = self.world.speak()
            endpoint.dataReceived(b"HELLO d1 t\na\n")
            self.world.end(endpoint)
            if known:
                self.checker.answer.callback(b"d1")
            else:
                self.checker.answer.errback(UnauthorizedLogin())
            self.assertEqual((self.world.sink.lines, self.world.of_type(DialectFailed)), ([], []))

    def test_deny_list(self) -> None:
        """A device that may not connect is denied, with one event: that of the login, or that it is held off."""
        self.world.factory.denied.use(parse_deny_list(b"device d1"))
        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 t\na line\n")
        self.checker.answer.callback(b"d1")
        self.assertEqual((self.world.heard(wire), wire.closed), ([b"DENIED"], "lost"))
        self.assertEqual((self.reason(endpoint), self.world.sink.lines), ("the device is denied: d1", []))
        (event,) = self.world.of_type(LoginFailed)
        self.assertEqual((event.claimed_id, event.reason), ("d1", "the device is denied: d1"))

    def test_held_off(self) -> None:
        """A device that is held off is denied, without an event of its login."""
        self.begin()
        self.world.factory.devices.flaps.configure(1)
        endpoints = [self.world.speak() for _ in range(3)]
        for endpoint, _ in endpoints:
            self.checker.answer = succeed(b"d1")
            endpoint.dataReceived(b"HELLO d1 t\n")
        self.assertEqual([self.world.heard(wire) for _, wire in endpoints], [[b"WELCOME d1"], [b"DENIED"], [b"DENIED"]])
        self.assertEqual((self.reason(endpoints[1][0]), self.world.of_type(LoginFailed)), ("the device is held off", []))
        self.assertEqual(self.world.of_type(DialectFailed), [])

    def test_denied_otherwise(self) -> None:
        """A checker may refuse a login by another error of cred."""
        endpoint, wire = self.world.speak()
        with capturedLogs() as logs:
            endpoint.dataReceived(b"HELLO d1 t\n")
            self.checker.answer.errback(LoginDenied("too many of them"))
        self.assertEqual((self.world.heard(wire), self.reason(endpoint)), ([b"DENIED"], "login denied"))
        self.assertEqual(_said(logs), [])

    def test_bug(self) -> None:
        """An error in the dialect is reported as one."""

        def broken(line: bytes) -> None:
            raise ZeroDivisionError("ours")

        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 t\n")
        self.patch(type(endpoint), "answer", lambda self, line: broken(line))
        self.checker.answer.callback(b"d1")
        self.assertEqual(wire.closed, "lost")
        self.assertIn("ours", self.world.of_type(DialectFailed)[0].reason)
        self.world.end(endpoint)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


@implementer(ICredentialsChecker)
class Saying:
    """A checker that returns or raises at once what a test sets."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.what: Any = None
        self.asked = False

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked = True
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


class TroubleTests(SynchronousTestCase):
    """A checker that fails: devices are denied, and the log has a line."""

    def setUp(self) -> None:
        self.checker = Saying()
        self.clock = Clock()
        checker: Any = self.checker
        gate = LoginService(checker, self.clock.seconds)
        self.world = DialectWorld(lambda conversation: Login(conversation, gate, 5.0))

    def denied(self, what: Any, line: bytes = b"HELLO d1 s3cret") -> list[str]:
        """Return the log lines of a denied login."""
        self.checker.what = what
        endpoint, wire = self.world.speak()
        with capturedLogs() as logs:
            endpoint.dataReceived(line + b"\nmore\n")
        self.assertEqual((self.world.heard(wire), wire.closed), ([b"DENIED"], "lost"))
        self.world.end(endpoint)
        self.assertEqual(self.world.of_type(DeviceDisconnected)[-1].reason, "login could not be checked")
        self.assertEqual((self.world.of_type(DialectFailed), self.world.sink.lines), ([], []))
        return _said(logs)

    def test_said(self) -> None:
        """The line names the checker and the error. The dialect does not fail."""
        self.assertEqual(
            self.denied(OSError("no database")),
            ["warn: The login checker Saying failed, and the device was denied: OSError: no database"],
        )

    def test_later(self) -> None:
        """A checker may fail later, too."""
        later: Deferred[Any] = Deferred()
        self.checker.what = later
        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 t\n")
        with capturedLogs() as logs:
            later.errback(OSError("no database"))
        self.assertEqual((self.world.heard(wire), len(_said(logs))), ([b"DENIED"], 1))

    def test_sparingly(self) -> None:
        """There is one line a minute. It has the number of those that were left out."""
        self.assertEqual(len(self.denied(OSError("no database"))), 1)
        for number in range(99):
            self.clock.advance(0.5)
            self.assertEqual(self.denied(OSError(f"no database {number}")), [])
        self.clock.advance(10.5)
        [line] = self.denied(OSError("no database"))
        self.assertIn("no database (99 more since the last such line)", line)
        self.clock.advance(60.0)
        [line] = self.denied(OSError("no database"))
        self.assertTrue(line.endswith("OSError: no database"), line)

    def test_recovered(self) -> None:
        """A device that tries again when the checker works can log in."""
        self.denied(OSError("no database"))
        self.checker.what = b"d1"
        endpoint, wire = self.world.speak()
        endpoint.dataReceived(b"HELLO d1 s3cret\n")
        self.assertEqual(self.world.heard(wire), [b"WELCOME d1"])

    def test_no_name(self) -> None:
        """An id from the checker that is not a possible device id is an error of the checker."""
        for name in (b"\xff", "a\nb", "x" * 300):
            [line] = self.denied(name)
            self.assertIn("The login checker Saying failed", line)
            self.clock.advance(60.0)

    def test_token(self) -> None:
        """No token is in the log, even if the text of the error contains it."""
        for error, line in [
            (OSError("no row ('d1', 's3cret')"), b"HELLO d1 s3cret"),
            (OSError("no row ('d1', b'\\xffs3cret')"), b"HELLO d1 \xffs3cret"),
            (OSError("no row ('d1', 's3cret  x')"), b"HELLO d1 s3cret  x"),
        ]:
            [said] = self.denied(error, line)
            self.assertTrue(said.endswith("was denied: OSError, with the token in its text"), said)
            self.clock.advance(60.0)

    def test_one_line(self) -> None:
        """An error of several lines is one line in the log."""
        [line] = self.denied(OSError("no database\nat all"))
        self.assertTrue(line.endswith("OSError: no database at all"), line)


def _said(logs: Sequence[Any]) -> list[str]:
    """Return the log lines with their level, without events."""
    return [f"{event['log_level'].name}: {formatEvent(event)}" for event in logs]


class FailedTests(SynchronousTestCase):
    """Failed logins: each is an event, and their rate is limited."""

    def setUp(self) -> None:
        self.checker = Saying()
        self.clock = Clock()
        checker: Any = self.checker
        gate = LoginService(checker, self.clock.seconds)
        self.world = DialectWorld(lambda conversation: Login(conversation, gate, 5.0))

    def login(self, line: bytes, what: Any, host: str = "192.0.2.1", device_id: str | None = None) -> list[bytes]:
        """Return the answer to a login from an address, with a given result of the checker."""
        self.checker.what = what
        self.checker.asked = False
        endpoint, wire = self.world.speak(device_id=device_id)
        wire.host = host
        endpoint.dataReceived(line + b"\n")
        heard = self.world.heard(wire)
        self.world.end(endpoint)
        return heard

    def failed(self) -> list[LoginFailed]:
        """Return the events of failed logins since the last call."""
        events = self.world.of_type(LoginFailed)
        self.world.events.clear()
        return events

    def test_told(self) -> None:
        """The event has the connection, its peer and the claimed id, printable and bounded. It never has the token."""
        for line, claimed in [
            (b"HELLO d1 s3cret", "d1"),
            (b"HELLO d\xff\x1b[2J s3cret", "d\\xff\\x1b[2J"),
            (b"HELLO " + b"d" * 300 + b" s3cret", "d" * 255),
            (b"HELLO s3cret", None),
            (b"s3cret", None),
        ]:
            self.login(line, UnauthorizedLogin())
            (event,) = self.failed()
            self.assertEqual((event.claimed_id, event.device_id, event.peer), (claimed, None, "192.0.2.1:5"))
            self.assertEqual(len(event.connection_id), 36)
            self.assertNotIn("s3cret", str(event))

    def test_other_reasons(self) -> None:
        """A login with another id than the certificate, an unchecked one and a missing one are events with the reason."""
        self.login(b"HELLO d1 t", b"d1", device_id="d2")
        (event,) = self.failed()
        self.assertEqual((event.claimed_id, event.device_id), ("d1", "d2"))
        self.login(b"HELLO d1 t", OSError("no database"))
        self.assertEqual([event.reason for event in self.failed()], ["login could not be checked"])
        self.world.speak()
        self.world.later(6.0)
        self.assertEqual([event.reason for event in self.failed()], ["no login within 5 s"])

    def test_limit(self) -> None:
        """After some failures in a row logins are refused without a check, even with the right token, for a while.

        One such refusal a minute is an event, with the number of the others.
        """
        for _ in range(10):
            self.login(b"HELLO d1 wrong", UnauthorizedLogin())
        self.assertEqual(len(self.failed()), 10)
        for _ in range(20):
            self.assertEqual(self.login(b"HELLO d1 right", b"d1"), [b"DENIED"])
            self.assertFalse(self.checker.asked)
        (event,) = self.failed()
        self.assertEqual((event.claimed_id, event.unreported), ("d1", 0))
        self.assertIn("too many failed logins", event.reason)
        self.clock.advance(6.1)
        self.login(b"HELLO d1 wrong", UnauthorizedLogin())
        self.assertTrue(self.checker.asked)
        self.clock.advance(54.0)
        for _ in range(10):
            self.login(b"HELLO d1 wrong", UnauthorizedLogin())
        self.assertEqual([event.unreported for event in self.failed()][-1], 19)
        self.clock.advance(60.0)
        self.assertEqual(self.login(b"HELLO d1 right", b"d1"), [b"WELCOME d1"])

    def test_others(self) -> None:
        """Failures of one device at one address do not affect other devices, or the device at another address."""
        for _ in range(30):
            self.login(b"HELLO d1 wrong", UnauthorizedLogin())
        self.assertEqual(self.login(b"HELLO d2 right", b"d2"), [b"WELCOME d2"])
        self.assertEqual(self.login(b"HELLO d1 right", b"d1", host="192.0.2.2"), [b"WELCOME d1"])

    def test_trouble(self) -> None:
        """Errors of the checker and successful logins do not count."""
        for what in (OSError("no database"), b"d1"):
            for _ in range(30):
                self.login(b"HELLO d1 right", what)
        self.assertEqual(self.login(b"HELLO d1 right", b"d1"), [b"WELCOME d1"])

    def test_at_the_same_time(self) -> None:
        """Guesses while a slow checker works are limited, too."""
        asked = []
        for _ in range(30):
            later: Deferred[Any] = Deferred()
            self.login(b"HELLO d1 wrong", later)
            asked.append(self.checker.asked)
        self.assertEqual(asked.count(True), 10)


class CheckerTests(SynchronousTestCase):
    def test_file(self) -> None:
        """Devices log in by a file with a line `id:token` for each. A change of the file applies at once."""
        descriptor, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        os.write(descriptor, b"d1:one\n")
        os.close(descriptor)
        settings = load_settings(["--dialect", "login", "--login-checker", f"file:{path}"], {})
        world = DialectWorld(Login.configured(settings))

        def answer(line: bytes) -> list[bytes]:
            endpoint, wire = world.speak()
            endpoint.dataReceived(line + b"\n")
            return world.heard(wire)

        self.assertEqual(answer(b"HELLO d1 one"), [b"WELCOME d1"])
        self.assertEqual(answer(b"HELLO d1 two"), [b"DENIED"])
        self.assertEqual(answer(b"HELLO d2 one"), [b"DENIED"])
        self.assertEqual(answer(b"HELLO \xff\xfe one"), [b"DENIED"])
        with open(path, "w") as file:
            file.write("d2:one\n")
        os.utime(path, (2e9, 2e9))
        self.assertEqual(answer(b"HELLO d1 one"), [b"DENIED"])
        self.assertEqual(answer(b"HELLO d2 one"), [b"WELCOME d2"])

    def test_refused(self) -> None:
        """A checker that cannot be used is an error of one line."""
        descriptor, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        os.write(descriptor, b"d1:one\nd2 s3cret\n")
        os.close(descriptor)
        for text, reason in [
            ("file:/bin/ls", "file: /bin/ls: this is not a text file"),
            (f"file:{path}", f"file: {path}: line 2: the colon is missing"),
            ("file:/nonexistent/x", "file: /nonexistent/x: no such file or directory"),
            ("file:", "file: the path is missing"),
            ("qqqq:x", "there is no checker named 'qqqq' (file, unix)"),
            ("anonymous", "anonymous: this checker does not take a name and a token"),
            ("memory:d1:s3cret", "memory: the tokens would be visible in the process list"),
        ]:
            message = str(self.assertRaises(ConfigError, make_login_checker, text))
            self.assertIn(reason, message)
            self.assertNotIn("s3cret", message)

    def test_together(self) -> None:
        """The login dialect needs a checker."""
        error = self.assertRaises(ConfigError, Login.configured, load_settings(["--dialect", "login"], {}))
        self.assertIn("needs --login-checker", str(error))
        error = self.assertRaises(ConfigError, load_settings, ["--login-checker", "file:/dev/null"], {})
        self.assertIn("--login-checker: has an effect only with", str(error))
