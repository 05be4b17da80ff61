"""`owsla tree`: where it asks, and what it shows."""

from __future__ import annotations

import io
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli import _tree
from owsla.cli._arguments import parse
from owsla.cli._control import at_url, base_url
from owsla.cli._gateway import guarded
from owsla.cli._print import put
from owsla.supervision import render

from ._fakes import node, tree


class AddressTests(SynchronousTestCase):
    """Where a gateway is."""

    def test_as_the_gateway(self) -> None:
        """What the gateway's own --http takes; where that is every address of the machine, it is asked on this one."""
        for text, expected in (
            ("9100", "http://127.0.0.1:9100"),
            ("10.0.0.5:9100", "http://10.0.0.5:9100"),
            ("gateway.example:9100", "http://gateway.example:9100"),
            ("[::1]:9100", "http://[::1]:9100"),
            ("all:9100", "http://127.0.0.1:9100"),
            ("0.0.0.0:9100", "http://127.0.0.1:9100"),
            ("[::]:9100", "http://127.0.0.1:9100"),
        ):
            self.assertEqual(base_url(text), expected)

    def test_url(self) -> None:
        """A URL is taken as it is, one of the page itself too."""
        for text in ("http://host:1", "http://host:1/", "http://host:1/tree", "http://host:1/tree/"):
            self.assertEqual(base_url(text), "http://host:1")
        self.assertEqual(base_url("https://proxy.example/owsla/"), "https://proxy.example/owsla")

    def test_bad(self) -> None:
        """Anything else is refused, before anybody is asked."""
        for text in (
            "", "x", "0", "65536", "host", "::1:9100", "host:", "ftp://host", "file:///etc/passwd", "http://", "http://host:x",
            "http://host:70000", "http://host/?a", "http://host/#a", "http://host/\r\nX: y", "http://host/a b", "1:2:3",
            "user@host:1",
        ):  # fmt: skip
            self.assertRaises(ValueError, base_url, text)


class Server:
    """Answers one connection with some bytes; without any, it only listens."""

    def __init__(self, answer: bytes | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self.asked = b""
        self.base = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        with connection:
            if self._answer is not None:
                while b"\r\n\r\n" not in self.asked:
                    self.asked += connection.recv(4096)
                connection.sendall(self._answer)
            else:
                connection.recv(65536)
                connection.recv(65536)  # until the other side gives up

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def show(base: str) -> int:
    """Run the command for the gateway at a URL."""
    return guarded("tree", lambda: _tree.show(at_url(base)))()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Case(SynchronousTestCase):
    """Runs the command."""

    def server(self, answer: bytes | None) -> Server:
        server = Server(answer)
        self.addCleanup(server.close)
        return server

    def run_it(self, command: Callable[[], int]) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = command()
            except SystemExit as end:
                status = int(str(end.code))
        return status, out.getvalue(), err.getvalue()

    def shown(self, text: str, encoding: str) -> str:
        """What `put` writes to a terminal with this encoding."""
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with redirect_stdout(out):
            put(text)
        out.seek(0)
        return out.read()

    def failed(self, base: str) -> str:
        """The one line that is said, with status 1."""
        status, out, err = self.run_it(lambda: show(base))
        self.assertEqual((status, out, err.count("\n")), (1, "", 1))
        self.assertTrue(err.startswith("owsla tree: http://127.0.0.1:"), err)
        return err


class CommandTests(Case):
    """The command against servers, good and bad."""

    def test_terminal_without_utf8(self) -> None:
        """A terminal that has ASCII only gets a tree of ASCII; what else it cannot show is escaped."""
        text = "owsla\n├── events: a…\n│   └── ö 装\n"
        self.assertEqual(self.shown(text, "ascii"), "owsla\n|-- events: a.\n|   `-- \\xf6 \\u88c5\n")
        self.assertEqual(self.shown(text, "utf-8"), text)

    def test_shows(self) -> None:
        """The tree is shown as supervision renders it; a proxy that the environment names is not asked."""
        self.patch(_tree, "TIMEOUT", 5.0)
        server = self.server(http(json.dumps(tree()).encode()))
        self.patch(os, "environ", {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""})
        self.assertEqual(self.run_it(lambda: show(server.base)), (0, render(tree()) + "\n", ""))
        self.assertTrue(server.asked.startswith(b"GET /tree HTTP/1.1\r\n"))

    def test_many_workers(self) -> None:
        """A parent's tree with each of its workers' trees in it is shown as a whole, however many there are."""
        whole = node("owsla", 0, *(node(f"worker-{number}", 0, tree()) for number in range(500)))
        body = json.dumps(whole, indent=2).encode()
        self.assertGreater(len(body), 1 << 20)
        status, out, err = self.run_it(lambda: show(self.server(http(body)).base))
        self.assertEqual((status, out, err), (0, render(whole) + "\n", ""))

    def test_terminal(self) -> None:
        """Nothing in a failure's text moves the terminal's cursor."""
        server = self.server(http(json.dumps(node("owsla", 0, node("a", 1, failure="\x1b[2J\u202egone"))).encode()))
        status, out, _ = self.run_it(lambda: show(server.base))
        self.assertEqual(status, 0)
        self.assertIn("\ufffd[2J\ufffdgone", out)

    def test_nobody(self) -> None:
        """A port that nobody listens on."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        self.assertIn("connection refused", self.failed(f"http://127.0.0.1:{port}"))

    def test_silent(self) -> None:
        """A server that does not answer is not waited for much longer than it takes."""
        self.patch(_tree, "TIMEOUT", 0.2)
        self.assertIn("no answer within 0.2 s", self.failed(self.server(None).base))

    def test_other_servers(self) -> None:
        """What answers something else: an error, no HTTP, no JSON, JSON of something else, half of it."""
        for answer, expected in (
            (http(b"", "404 Not Found"), "answers 404"),
            (http(b"", "503 Service Unavailable"), "answers 503"),
            (b"AMQP\x00\x00\x09\x01", "does not speak HTTP"),
            (b"", "closed without an answer"),
            (http(b"<html>"), "does not answer with a tree"),
            (http(b"\xff\xfe\xff"), "does not answer with a tree"),
            (http(b"[]"), "does not answer with a tree"),
            (http(b"{}"), "does not answer with a tree"),
            (http(b'{"id": "owsla", "state": 1}'), "does not answer with a tree"),
            (http(b"null"), "does not answer with a tree"),
            (http(b"[" * 100_000), "does not answer with a tree"),
            (http(b"{}").replace(b": 2", b": 200"), "does not answer with a tree"),
        ):
            self.assertIn(expected, self.failed(self.server(answer).base))


class ArgumentsTests(Case):
    """What is typed."""

    def typed(self, *arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        return self.run_it(lambda: parse(["tree", *arguments], environ or {})())

    def test_where(self) -> None:
        """The command line counts before the environment."""
        good, bad = json.dumps(node("owsla")).encode(), "127.0.0.1:1"
        for arguments, environ in (
            (lambda port: ["--http", port], {"OWSLA_HTTP": bad}),
            (lambda port: [f"--http=127.0.0.1:{port}"], {}),
        ):
            server = self.server(http(good))
            self.assertEqual(self.typed(*arguments(server.base.rpartition(":")[2]), environ=environ)[0], 0)
        server = self.server(http(good))
        self.assertEqual(self.typed(environ={"OWSLA_HTTP": server.base})[0], 0)

    def test_nowhere(self) -> None:
        """Without an address it is the socket in the working folder."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        for environ in ({}, {"OWSLA_HTTP": ""}, {"OWSLA_HTTP": "off"}):
            status, out, err = self.typed(environ=environ)
            self.assertEqual((status, out), (1, ""))
            self.assertTrue(err.startswith("owsla tree: owsla.sock: no such socket"), err)

    def test_bad(self) -> None:
        """What is wrong is said with where it came from."""
        self.assertEqual(self.typed("--http", "x"), (1, "", "owsla tree: --http: 'x' is neither a URL nor [ADDRESS:]PORT\n"))
        self.assertTrue(self.typed(environ={"OWSLA_HTTP": "x"})[2].startswith("owsla tree: OWSLA_HTTP: "))

    def test_help(self) -> None:
        """Its help fits a terminal's 80 columns, and says nothing of brokers."""
        status, out, err = self.typed("--help")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([line for line in out.splitlines() if len(line) > 80], [])
        self.assertIn("--http", out)
        self.assertNotIn("broker", out)
