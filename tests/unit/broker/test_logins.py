"""Logins: the password file, passwords that change on living connections, and names of users."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from owsla.amqp.wire import HEARTBEAT_FRAME
from owsla.broker.client import Credentials
from owsla.broker.logins import ANSWER_TIMEOUT, READ_TIMEOUT, BrokerLogins, PasswordFile
from owsla.config.addresses import BrokerAddress

from .fakes import START, BrokerTestCase, Result, Server

ADDRESS = BrokerAddress("one", username="me", password="first")
VERSION = {"server_properties": {"product": "RabbitMQ", "version": "3.10.8"}}


class Threads:
    """Threads that run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], str], Deferred[str]]] = []

    def start(self, name: str, call: Callable[[], str]) -> Deferred[str]:
        self.waiting.append((call, Deferred()))
        return self.waiting[-1][1]

    def run(self) -> None:
        call, deferred = self.waiting.pop(0)
        try:
            deferred.callback(call())
        except Exception:
            deferred.errback()


class Reactor(Clock):
    def callFromThread(self, f: Callable[..., object], *args: object) -> None:
        f(*args)


class Base(BrokerTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.warnings: list[str] = []
        self.path = self.new_path()
        self.path.write_text("first\n")

    def new_path(self) -> Path:
        # Not mktemp(): under pytest its folders would be left in the current one.
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return Path(folder, "file")


class PasswordFileTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.threads = Threads()
        self.file = PasswordFile(
            self.reactor, self.path, "first", self.warnings.append, run=self.threads.start
        )

    def read(self) -> str:
        result = Result(self.file.read())
        self.threads.run()
        return str(result.value)

    def test_new_content(self) -> None:
        """Each login reads the file again."""
        self.assertEqual(self.read(), "first")
        self.path.write_text("second\n")
        self.assertEqual(self.read(), "second")
        self.assertEqual(self.warnings, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_faults(self) -> None:
        """While the file is missing, empty or half-written the last password is used, with one warning, which does not quote
        the content.
        """
        for content in (None, b"", b"secret\nsecret\n", b"secret\xff"):
            self.path.unlink(missing_ok=True)
            if content is not None:
                self.path.write_bytes(content)
            self.assertEqual([self.read(), self.read()], ["first", "first"])
        (warning,) = self.warnings
        self.assertIn(f"--broker-password-file: {self.path}: no such file or directory; the last password is used", warning)
        self.path.write_text("second")
        self.assertEqual(self.read(), "second")
        self.path.unlink()
        self.assertEqual(self.read(), "second")
        self.assertEqual(len(self.warnings), 2)

    def test_no_answer(self) -> None:
        """A login does not wait long for a file that cannot be read in time. Only one thread reads it, whose result counts when
        it comes.
        """
        results = [Result(self.file.read()) for _ in range(3)]
        self.assertEqual(len(self.threads.waiting), 1)
        self.reactor.advance(READ_TIMEOUT)
        self.assertEqual([result.value for result in results], ["first"] * 3)
        self.assertEqual(len(self.warnings), 1)
        later = Result(self.file.read())
        self.assertEqual(len(self.threads.waiting), 1)
        self.path.write_text("second")
        self.threads.run()
        self.assertEqual(later.value, "second")
        self.assertEqual(len(self.warnings), 1)

    def test_a_reload_meanwhile(self) -> None:
        """A thread that began to read before a reload does not bring the password from before the reload back."""
        result = Result(self.file.read())
        self.file.use("second")
        self.threads.run()
        self.assertEqual(result.value, "second")

    def test_no_thread(self) -> None:
        """Without room for a thread the last password is used, and the next login tries again."""
        self.file = PasswordFile(self.reactor, self.path, "first", self.warnings.append, run=self.no_thread)
        self.assertEqual([Result(self.file.read()).value for _ in range(2)], ["first"] * 2)
        self.assertEqual(len(self.warnings), 1)

    def no_thread(self, name: str, call: Callable[[], str]) -> Deferred[str]:
        raise RuntimeError("can't start new thread")

    def test_cancelled(self) -> None:
        """A stop cancels a login that waits for the file."""
        waiting = Deferred.fromCoroutine(self.file.read())
        result = Result(waiting)
        waiting.cancel()
        self.assertIsNotNone(result.failure)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.threads.run()


class LoginsTests(Base):
    def logins(self, *addresses: BrokerAddress, path: Path | None = None, **more: Any) -> BrokerLogins:
        return BrokerLogins(self.reactor, addresses or [ADDRESS], path, warn=self.warnings.append, **more)

    def connection(self, logins: BrokerLogins, address: BrokerAddress = ADDRESS, start: Any = VERSION) -> Server:
        """Return a connection that has logged in, with version 3.10.8 of RabbitMQ."""
        credentials = Result(logins.credentials(address)).value
        server = Server(self.reactor, login=credentials).connect()
        server.send(0, "connection.start", **{**START, **start})
        logins.opened(server.client, address, credentials)
        server.settle()
        return server

    def secrets(self, server: Server) -> list[bytes]:
        """Return the passwords that were sent on a living connection so far."""
        server.settle()
        return [fields["new_secret"] for fields in server.called("connection.update-secret")]

    def test_credentials(self) -> None:
        """The credentials are those of the address, after a reload the new ones."""
        logins = self.logins()
        self.assertEqual(Result(logins.credentials(ADDRESS)).value, Credentials("me", "first", "/", "me"))
        other = BrokerAddress("one", username="you", password="second")
        logins.use([other])
        self.assertEqual(logins.addresses, (other,))
        self.assertEqual(logins.users, {"me", "you"})

    def test_new_password_in_a_url(self) -> None:
        """A changed password is sent on living connections of the same user to the same broker, once."""
        there = BrokerAddress("two", username="me", password="other")
        logins = self.logins(ADDRESS, there)
        one, two = self.connection(logins), self.connection(logins, there)
        for _ in range(2):
            logins.use([BrokerAddress("one", username="me", password="second"), there])
        self.assertEqual((self.secrets(one), self.secrets(two)), ([b"second"], []))
        logins.use([BrokerAddress("one", username="me", password="third", vhost="/v")])
        logins.use([BrokerAddress("one", username="you", password="third")])
        self.assertEqual((self.secrets(one), self.secrets(two)), ([b"second"], []))
        logins.ended(one.client)
        logins.use([ADDRESS])
        self.assertEqual(self.secrets(one), [b"second"])

    def test_old_brokers(self) -> None:
        """Nothing is sent to a broker that does not know connection.update-secret, or may not."""
        for properties in ({"product": "RabbitMQ", "version": "3.7.28"}, {"product": "Other", "version": "9.0"}):
            logins = self.logins()
            server = self.connection(logins, start={"server_properties": properties})
            logins.use([BrokerAddress("one", username="me", password="second")])
            self.assertEqual(self.secrets(server), [])

    def test_changes_during_an_update(self) -> None:
        """One update is under way at a time. A password that changed meanwhile is sent after it."""
        logins = self.logins()
        server = self.connection(logins)
        server.silent.add("connection.update-secret")
        for password in ("second", "third", "fourth"):
            logins.use([BrokerAddress("one", username="me", password=password)])
        self.assertEqual(self.secrets(server), [b"second"])
        server.send(0, "connection.update-secret-ok")
        self.assertEqual(self.secrets(server), [b"second", b"fourth"])
        server.send(0, "connection.update-secret-ok")
        self.assertEqual(self.secrets(server), [b"second", b"fourth"])
        logins.use([ADDRESS])
        self.assertEqual(self.secrets(server), [b"second", b"fourth", b"first"])

    def test_no_answer(self) -> None:
        """A missing answer is reported once, and nothing else happens."""
        logins = self.logins()
        servers = [self.connection(logins), self.connection(logins)]
        for server in servers:
            server.silent.add("connection.update-secret")
        logins.use([BrokerAddress("one", username="me", password="second")])
        self.reactor.advance(ANSWER_TIMEOUT / 2)
        for server in servers:
            server.raw(HEARTBEAT_FRAME)
        self.reactor.advance(ANSWER_TIMEOUT / 2)
        (warning,) = self.warnings
        self.assertIn("no answer to connection.update-secret", warning)
        self.assertNotIn("second", warning)

    def test_refused(self) -> None:
        """A connection that the broker closes for a bad secret ends with its reason, as any other."""
        logins = self.logins()
        server = self.connection(logins)
        server.silent.add("connection.update-secret")
        logins.use([BrokerAddress("one", username="me", password="second")])
        server.settle()
        server.send(0, "connection.close", reply_code=530, reply_text="NOT_ALLOWED - New secret was refused")
        server.settle()
        self.assertIn("New secret was refused", str(server.lost[0]))
        self.assertEqual(self.warnings, [])

    def test_the_file_at_a_login(self) -> None:
        """A login that finds a new password in the file sends it on the other living connections, too."""
        logins = self.logins(path=self.path)
        server = self.connection_with_file(logins)
        self.path.write_text("second\n")
        self.assertEqual(self.login_with_file(logins).password, "second")
        self.assertEqual(self.secrets(server), [b"second"])
        self.assertEqual(logins.addresses[0].password, "second")

    def test_a_reload_during_a_login(self) -> None:
        """A login that reads the file while a reload names another one uses the password of the reload."""
        pipe = self.new_path()
        os.mkfifo(pipe)
        logins = self.logins(path=pipe)
        result = Result(logins.credentials(ADDRESS))
        other = self.new_path()
        other.write_text("second")
        logins.use([BrokerAddress(ADDRESS.host, username=ADDRESS.username, password="second")], other)
        pipe.write_text("first\n")
        for thread in threading.enumerate():
            if thread.name == "read the password file":
                thread.join(5)
        value: Credentials = result.value
        self.assertEqual((value.password, logins.addresses[0].password), ("second", "second"))

    def login_with_file(self, logins: BrokerLogins) -> Credentials:
        """Log in: a thread reads the file."""
        result = Result(logins.credentials(ADDRESS))
        for thread in threading.enumerate():
            if thread.name == "read the password file":
                thread.join(5)
        value: Credentials = result.value
        return value

    def connection_with_file(self, logins: BrokerLogins) -> Server:
        credentials = self.login_with_file(logins)
        server = Server(self.reactor, login=credentials).connect()
        server.send(0, "connection.start", **{**START, **VERSION})
        logins.opened(server.client, ADDRESS, credentials)
        return server

    def test_another_file(self) -> None:
        """A reload may name another file, or none."""
        logins = self.logins(path=self.path)
        other = self.new_path()
        other.write_text("second")
        address = BrokerAddress("one", username="me", password="second")
        logins.use([address], other)
        self.assertEqual(self.login_with_file(logins).password, "second")
        logins.use([address])
        other.unlink()
        self.assertEqual(self.login_with_file(logins).password, "first")  # that of the address as it was passed
        self.assertEqual(self.warnings, [])

    def test_external(self) -> None:
        """A login with a certificate has neither name nor password, and reads no file. The common name of the certificate is
        taken for the user until the broker tells another name.
        """
        external = BrokerAddress("one", username="", password="", tls=True)
        name = "gateway"
        logins = self.logins(external, path=Path(tempfile.gettempdir()), common_name=lambda: name)
        self.assertEqual(Result(logins.credentials(external)).value, Credentials("", "", "/", "gateway"))
        self.assertEqual(logins.users, {"gateway"})
        server = Server(self.reactor, login=Credentials("", "", "/", "gateway"))
        logins.opened(server.client, external, server.client.login)
        logins.learned(external, "CN=gateway")
        self.assertEqual(server.client.username, "CN=gateway")  # learned on another connection
        self.assertEqual(Result(logins.credentials(external)).value, Credentials("", "", "/", "CN=gateway"))
        self.assertEqual(logins.users, {"gateway", "CN=gateway"})
        self.assertEqual(Result(self.logins(external).credentials(external)).value.user_id, "owsla")
