"""The client of the control interface: where it asks, and what the user is told when nothing good answers."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from unittest import skipIf

from owsla.cli._control import Control, Sent, Unreachable, at_socket, at_url, base_url

from ._fake_gateway import FakeGateway, sent
from ._running import CommandTestCase


class AddressTests(CommandTestCase):
    """Where a gateway is."""

    def test_default(self) -> None:
        """Without options the socket is `owsla.sock` in the working folder; OWSLA_CONTROL overrides it, and --control both."""
        gateway = self.gateway()
        gateway.routes["POST /api/v1/reload"] = lambda rest, query: (200, {"text": "done"})
        self.in_folder(self.folder)
        for arguments, environ in (
            (["reload"], {}),
            (["reload"], {"OWSLA_CONTROL": self.socket}),
            (["reload", "--control", self.socket], {"OWSLA_CONTROL": "/nowhere"}),
        ):
            self.assertEqual(self.run_it(*arguments, environ=environ), (0, "done\n", ""))

    def test_http(self) -> None:
        """Over TCP the token of the file is sent; it is read for each request, since it may be replaced."""
        gateway = FakeGateway()
        self.addCleanup(gateway.close)
        gateway.routes["GET /prefix/api/v1/devices"] = lambda rest, query: (200, {"devices": [], "total": 0, "next": None})
        token = self.folder / "token"
        token.write_text(" secret \n")
        url = f"http://127.0.0.1:{gateway.port}/prefix/"
        for arguments, environ in (
            (["--http", url, "--token-file", str(token)], {}),
            (["--http", url], {"OWSLA_HTTP_TOKEN_FILE": str(token), "OWSLA_CONTROL": "/nowhere"}),
            ([], {"OWSLA_HTTP": url, "OWSLA_HTTP_TOKEN_FILE": str(token)}),
        ):
            self.assertEqual(self.run_it("devices", *arguments, environ=environ)[0], 0)
            self.assertEqual(gateway.requests[-1][1]["Authorization"], "Bearer secret")
        control = at_url(base_url(url), token)
        token.write_text("other")
        control.get("/api/v1/devices")
        self.assertEqual(gateway.requests[-1][1]["Authorization"], "Bearer other")

    def test_the_socket_of_a_gateway_with_http(self) -> None:
        """OWSLA_HTTP, which the gateway has too, does not keep commands without a token from using the socket."""
        gateway = self.gateway()
        gateway.routes["POST /api/v1/reload"] = lambda rest, query: (200, {"text": "done"})
        self.in_folder(self.folder)
        self.assertEqual(self.run_it("reload", environ={"OWSLA_HTTP": "9100"})[0], 0)

    def test_mistakes(self) -> None:
        """An address that cannot be one is refused before anybody is asked."""
        (self.folder / "empty").touch()
        (self.folder / "binary").write_bytes(b"\xff\xfe")
        for arguments, environ, said in (
            (["--control", "off"], {}, "--control: is the path of the gateway's socket"),
            (["--control=x", "--http=9100"], {}, "argument --http: not allowed with argument --control"),
            (["--control=x", "--token-file=x"], {}, "--token-file: is for --http"),
            (["--token-file=x"], {}, "--token-file: use --http too"),
            (["--http", "host"], {}, "--http: 'host' is neither a URL nor [ADDRESS:]PORT"),
            (["--http", "http://u:p@host"], {}, "--http: 'http://u:p@host' is not a URL"),
            ([], {"OWSLA_CONTROL": "off"}, "no gateway given: OWSLA_CONTROL is off"),
            ([], {"OWSLA_HTTP": "x", "OWSLA_HTTP_TOKEN_FILE": "x"}, "OWSLA_HTTP: 'x' is neither a URL nor"),
            (["--http=1", "--token-file=/nowhere"], {}, "--token-file: /nowhere: no such file or directory"),
            (["--http=1", f"--token-file={self.folder}/empty"], {}, f"--token-file: {self.folder}/empty: a token is one line"),
            (["--http=1", f"--token-file={self.folder}/binary"], {}, f"--token-file: {self.folder}/binary: a token is one"),
        ):
            error = self.refused("reload", *arguments, environ=environ)
            self.assertTrue(error.startswith(f"owsla reload: {said}"), error)


class UnreachableTests(CommandTestCase):
    """What the user is told when no gateway answers: one line, with the address and what to do."""

    def listening(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(sock.close)
        sock.bind(self.socket)
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
        return sock

    def test_no_socket(self) -> None:
        """There is no such file, or it is no socket of a gateway."""
        self.assertEqual(
            self.refused("reload"),
            f"owsla reload: {self.socket}: no such socket: is a gateway running, and is this its --control? (OWSLA_CONTROL)",
        )
        self.assertIn("is a folder, and not the socket", self.refused("reload", "--control", str(self.folder)))
        Path(self.socket).touch()
        self.assertIn("is a file, and not the socket of a gateway", self.refused("reload"))
        self.assertIn("no such socket", self.refused("reload", "--control", f"{self.socket}/x"))

    def test_stale_socket(self) -> None:
        """A gateway was killed, and its socket is left over."""
        self.listening().close()
        self.assertIn("no gateway listens there any longer: the socket is left over", self.refused("reload"))

    def test_other_kind(self) -> None:
        """A datagram socket, such as that of a log."""
        self.listening(socket.SOCK_DGRAM)
        self.assertIn("is a socket of another kind", self.refused("reload"))

    @skipIf(os.geteuid() != 0, "becomes another user")
    def test_no_permission(self) -> None:
        """The socket is of another user, whose name is said."""
        self.listening()
        os.chmod(self.socket, stat.S_IRUSR | stat.S_IWUSR)
        os.chmod(self.folder, 0o755)
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            error = self.refused("reload")
        finally:
            os.seteuid(0)
        self.assertEqual(error, f"owsla reload: {self.socket}: permission denied: the socket is for the user root")

    def test_hanging(self) -> None:
        """A gateway that does not answer, or accepts no connection."""
        listener = self.listening()
        with self.assertRaisesRegex(Unreachable, "no answer within 0.05 s: the gateway is stopped, or hangs"):
            at_socket(self.socket).request("GET", "/", timeout=0.05)
        waiting = []
        while True:  # fill the queue of connections that nobody accepts
            one = socket.socket(socket.AF_UNIX)
            self.addCleanup(one.close)
            one.setblocking(False)
            try:
                one.connect(self.socket)
            except BlockingIOError:
                break
            waiting.append(one)
        with self.assertRaisesRegex(Unreachable, "the gateway accepts no connection: it is stopped, or hangs"):
            at_socket(self.socket).request("GET", "/", timeout=0.05)
        # A gateway that is only busy makes place before the time is over.
        self.patch(time, "sleep", lambda seconds: listener.accept()[0].close())
        with self.assertRaisesRegex(Unreachable, "no answer within 0.5 s"):
            at_socket(self.socket).request("GET", "/", timeout=0.5)
        listener.close()

    def test_trickling(self) -> None:
        """An answer that comes byte by byte ends with the time for it."""
        gateway = self.gateway()
        stop = threading.Event()
        self.addCleanup(stop.set)

        def drip() -> Iterator[bytes]:
            for _ in range(500):
                if stop.wait(0.01):
                    return
                yield b" "

        gateway.routes["GET /"] = lambda rest, query: (200, drip())
        with self.assertRaisesRegex(Unreachable, "no answer within 0.1 s"):
            at_socket(self.socket).request("GET", "/", timeout=0.1)
        stop.set()

    def answering(self, data: bytes) -> None:
        """Answer one connection with bytes, and close it."""
        listener = self.listening()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)

    def test_no_http(self) -> None:
        """Another program, which speaks something else."""
        self.answering(b"220 mail.example ESMTP\r\n")
        self.assertIn("the program there does not speak HTTP", self.refused("reload"))

    def test_no_answer(self) -> None:
        """The connection is closed without an answer."""
        self.answering(b"")
        self.assertIn("the connection was closed without an answer", self.refused("reload"))

    def test_another_programs_http(self) -> None:
        """A web server that is no gateway, or a gateway without the interface."""
        gateway = self.gateway()
        gateway.version = None
        gateway.routes["GET /api"] = lambda rest, query: (200, b"<html>")
        for command in (["reload"], ["device", "x"], ["events"], ["trace", "x"]):
            error = self.refused(*command)
            self.assertIn("no control interface (status ", error)
            self.assertIn("another program answers there, or a gateway without --http-token-file, or an older one", error)

    def test_another_version(self) -> None:
        """A gateway of another release, whose interface has another version."""
        gateway = self.gateway()
        gateway.version = "2"
        for command in (["reload"], ["events"], ["trace", "x"]):
            self.assertIn("the gateway has version 2 of the control interface, and this command", self.refused(*command))

    def test_not_json(self) -> None:
        """An answer that is no JSON object."""
        gateway = self.gateway()
        for body in (b"", b"<html>", b"[1]", b"[" * 100_000, b"\xff"):
            gateway.routes["POST /api/v1/reload"] = lambda rest, query, body=body: (200, body)  # type: ignore[misc]
            self.assertIn("the answer is not a JSON object (status 200)", self.refused("reload"))

    def test_errors_of_the_gateway(self) -> None:
        """The gateway says itself why not; text from it cannot act on the terminal."""
        gateway = self.gateway()
        gateway.routes["POST /api/v1/reload"] = lambda rest, query: (403, {"error": "the token\n is for \x1b[2Jreading"})
        self.assertEqual(self.refused("reload"), f"owsla reload: {self.socket}: the token is for \\x1b[2Jreading")
        gateway.routes["POST /api/v1/reload"] = lambda rest, query: (401, {"error": "a token is needed"})
        self.assertTrue(self.refused("reload").endswith("a token is needed; use --token-file"))


class StreamTests(CommandTestCase):
    """Streams of server-sent events."""

    def streamed(self, *parts: bytes) -> list[Sent]:
        gateway = self.gateway()
        gateway.routes["GET /s"] = lambda rest, query: (200, iter(parts))
        return list(at_socket(self.socket).stream("/s", after="7"))

    def test_events(self) -> None:
        """Events come with their kind and their id; comments, and what is no JSON, are skipped, and so is a cut-off one."""
        found = self.streamed(
            b": hello\n\n",
            sent({"a": 1}, "sample", "x:1")[:7], sent({"a": 1}, "sample", "x:1")[7:],
            b"data: {\r\ndata: }\r\n\r\n",
            b"data: no json\n\n",
            b"event: ping\n\n",
            sent([], "last")[:-1],
        )  # fmt: skip
        self.assertEqual(found, [Sent("sample", "x:1", {"a": 1}), Sent("message", "x:1", {})])

    def test_request(self) -> None:
        """The stream begins after the id that is given."""
        gateway = self.gateway()
        gateway.routes["GET /s"] = lambda rest, query: (200, iter(()))
        self.assertEqual(
            list(at_socket(self.socket).stream("/s", {"kind": ["a", "b"], "query": "", "all": True}, after="7")), []
        )
        (path, headers), = gateway.requests  # fmt: skip
        self.assertEqual(path, "GET /s?kind=a&kind=b&all=1")
        self.assertEqual((headers["Last-Event-ID"], headers["Accept"]), ("7", "text/event-stream"))


class ClockTests(CommandTestCase):
    """The clock of a gateway on another machine."""

    def test_ages(self) -> None:
        """Ages are by the clock of the gateway where it differs from this one; a second is no difference."""
        gateway = FakeGateway()
        self.addCleanup(gateway.close)
        gateway.routes["GET /"] = lambda rest, query: (200, {})
        for ahead, expected in ((3600.0, 3600.0), (0.5, 0.0)):
            here = time.time() - ahead
            control = Control("x", lambda timeout: HTTPConnection("127.0.0.1", gateway.port), clock=partial(float, here))
            control.get("/")
            self.assertLess(abs(control.now() / 1000 - here - expected), 2.0)
