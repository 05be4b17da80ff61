"""Sockets of a process, and those that systemd passes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.sources import load_settings
from owsla.errors import ConfigError
from owsla.runtime.sockets import bind
from owsla.wiring import sockets as module
from owsla.wiring.sockets import Sockets, claim_sockets


class ClaimTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "owsla.sock")

    def claim(self, *argv: str, passed: dict[str, list[socket.socket]] | None = None) -> Sockets:
        given = ["--broker=amqp://h", "--interface=127.0.0.1", "--control=off", *argv]
        settings = load_settings(given, {}, certificates="left")
        with mock.patch.object(module, "passed_sockets", return_value=passed or {}):
            claimed = claim_sockets(None, settings)
        for sock in claimed.doors.values():
            self.addCleanup(sock.close)
        return claimed

    def test_doors(self) -> None:
        """Each door has its socket, by name."""
        doors = self.claim("--port=0", "--listen=tcp:0:name=a", f"--listen=unix:{self.path}").doors
        self.assertEqual(list(doors), ["default", "a", "owsla.sock"])
        self.assertEqual(doors["a"].getsockname()[0], "127.0.0.1")
        self.assertEqual(doors["owsla.sock"].getsockname(), str(self.path))

    def test_passed(self) -> None:
        """A door for which systemd passes a socket has that one, and does not bind its own port."""
        with bind(0, "127.0.0.1") as sock, bind(0, "127.0.0.1") as other:
            port = sock.getsockname()[1]
            doors = self.claim(
                f"--port={port}", "--listen=systemd:a", passed={"owsla.socket": [sock], "a": [other]}
            ).doors
            self.assertIs(doors["default"], sock)
            self.assertIs(doors["a"], other)

    def test_not_passed(self) -> None:
        """A door without a port takes a socket from systemd. Nothing is bound if there is none."""
        before = set(os.listdir("/proc/self/fd"))
        error = self.assertRaises(ConfigError, self.claim, "--port=0", f"--listen=unix:{self.path}", "--listen=systemd:a")
        self.assertEqual(str(error), "--listen a: it has no port, and systemd passes no socket of this name")
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)
        self.assertFalse(self.path.exists())

    def test_proxies(self) -> None:
        """Trusted proxies that cannot be peers of the door's socket are refused, whoever has bound the socket."""
        error = self.assertRaises(ConfigError, self.claim, "--port=0", "--proxy-protocol=unix")
        self.assertIn("--proxy-protocol: unix stands for the peers of a unix socket, and this is a TCP port", str(error))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            self.claim("--proxy-protocol=unix", passed={"default": [sock]})
            arguments = ("--port=0", "--listen=systemd:a:proxy-protocol=10.0.0.0/8")
            error = self.assertRaises(ConfigError, self.claim, *arguments, passed={"a": [sock]})
        self.assertIn("--listen a: proxy-protocol: the peers of a unix socket have no address", str(error))

    def test_busy(self) -> None:
        """The line for a busy port names the door."""
        with bind(0, "127.0.0.1") as sock:
            sock.listen()
            port = sock.getsockname()[1]
            error = self.assertRaises(ConfigError, self.claim, "--port=0", f"--listen=tcp:{port}:name=meters")
        self.assertEqual(str(error), f"--listen meters: port {port} on 127.0.0.1 is in use by another process")

    def control(self, *argv: str) -> socket.socket | None:
        """Claim the control socket, and return it."""
        claimed = self.claim("--port=0", *argv).control
        if claimed is not None:
            self.addCleanup(claimed.close)
        return claimed

    def test_control(self) -> None:
        """The control socket is for the user of the process only, and listens. Closing it removes its file."""
        claimed = self.control(f"--control={self.path}")
        assert claimed is not None
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
        claimed.close()
        self.assertEqual(list(self.path.parent.iterdir()), [])
        self.assertIsNone(self.control("--control=off"))

    def test_named_control(self) -> None:
        """A named control socket that cannot be had is an error in one line, and nothing stays bound."""
        self.path.write_text("mine")
        before = set(os.listdir("/proc/self/fd"))
        long, nowhere = self.path.with_name("x" * 108), self.path.parent / "no" / "a"
        for path, reason in (
            (self.path, "exists and is not a socket"),
            (long, "cannot be used: AF_UNIX path too long"),
            (nowhere, "cannot be used: no such file or directory"),
        ):
            error = self.assertRaises(ConfigError, self.control, f"--control={path}")
            self.assertEqual(str(error), f"--control: {path} {reason}")
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)

    def test_default_control(self) -> None:
        """The default control socket is in the working folder. One that cannot be had is left out, with a warning."""
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.path.parent)
        settings = load_settings(["--broker=amqp://h", "--port=0", "--interface=127.0.0.1"], {}, certificates="left")
        for expected in ("owsla.sock", None):
            claimed = claim_sockets(None, settings)
            for sock in claimed.doors.values():
                self.addCleanup(sock.close)
            if expected is None:
                self.assertIsNone(claimed.control)
            else:
                assert claimed.control is not None
                self.addCleanup(claimed.control.close)
                self.assertEqual(claimed.control.getsockname(), str(Path.cwd() / expected))
