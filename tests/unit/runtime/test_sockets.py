"""Tests of `owsla.runtime.sockets`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.runtime import sockets
from owsla.runtime.sockets import ListeningSocket, UnixSocket, bind, bind_unix, is_loopback, loopback


class OwnAddressTests(SynchronousTestCase):
    def test_families(self) -> None:
        """Programs on this machine reach each other over IPv4 where it is there, and otherwise over IPv6."""
        missing: set[str] = set()

        def bind(sock: socket.socket, address: tuple[str, int]) -> None:
            if address[0] in missing:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

        self.patch(socket.socket, "bind", bind)
        self.assertEqual(loopback(), "127.0.0.1")
        missing = {"127.0.0.1"}
        self.assertEqual(loopback(), "::1")
        missing = {"127.0.0.1", "::1"}  # the interface is down: an error will name the usual address
        self.assertEqual(loopback(), "127.0.0.1")


class ClaimTests(SynchronousTestCase):
    def test_any_port(self) -> None:
        """With port 0 the socket is bound to a free port. It does not block, and does not listen yet."""
        with bind(0, "127.0.0.1") as sock:
            self.assertGreater(sock.getsockname()[1], 0)
            self.assertFalse(sock.getblocking())
            with socket.socket() as client:
                self.assertEqual(client.connect_ex(sock.getsockname()), errno.ECONNREFUSED)

    def test_in_use(self) -> None:
        """The error for a port in use names option, port and interface on one line. No socket is leaked."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            before = set(os.listdir("/proc/self/fd"))
            error = self.assertRaises(ConfigError, bind, port, "127.0.0.1")
            self.assertEqual(str(error), f"--port: port {port} on 127.0.0.1 is in use by another process")
            error = self.assertRaises(ConfigError, bind, port, "127.0.0.1", "--embedded-port")
            self.assertTrue(str(error).startswith("--embedded-port: "), error)
            self.assertEqual(set(os.listdir("/proc/self/fd")), before)

    def test_not_ours(self) -> None:
        """The error for an address that is invalid or not of this machine is one line."""
        for interface in ("192.0.2.1", "2001:db8::1", "no such host.invalid"):
            error = self.assertRaises(ConfigError, bind, 0, interface)
            self.assertIn(f"port 0 on {interface} cannot be used: ", str(error))
            self.assertNotIn("\n", str(error))

    def test_not_allowed(self) -> None:
        """The error for a forbidden port is one line with the system's reason."""
        with mock.patch.object(socket.socket, "bind", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            error = self.assertRaises(ConfigError, bind, 80, "127.0.0.1")
        self.assertRegex(str(error), r"^--port: port 80 on 127\.0\.0\.1 cannot be used: (?i:permission denied)$")

    def test_all_interfaces(self) -> None:
        """All interfaces are those of IPv4, and of IPv6 if the system has it."""
        with bind(0, "") as sock:
            port = sock.getsockname()[1]
            sock.listen()
            with socket.create_connection(("127.0.0.1", port)):
                pass
            if sock.family == socket.AF_INET6:
                with socket.create_connection(("::1", port)):
                    pass

    def test_without_ipv6(self) -> None:
        """On a system without IPv6 all interfaces are those of IPv4."""
        self.patch(sockets, "_has_ipv6", lambda: False)
        with bind(0, "") as sock:
            self.assertEqual((sock.family, sock.getsockname()[0]), (socket.AF_INET, "0.0.0.0"))

    def test_ipv6_interface(self) -> None:
        """A socket for an IPv6 interface takes connections on that interface only."""
        if not sockets._has_ipv6():
            return
        with bind(0, "::1") as sock:
            self.assertEqual(sock.getsockname()[0], "::1")


class UnixSocketTests(SynchronousTestCase):
    """Unix sockets for devices."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "owsla.sock")

    def bound(self, mode: int = 0o660) -> UnixSocket:
        sock = bind_unix(self.path, mode)
        self.addCleanup(sock.close)
        return sock

    def refused(self) -> str:
        before = set(os.listdir("/proc/self/fd"))
        error = str(self.assertRaises(ConfigError, bind_unix, self.path, 0o660))
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)
        return error

    def test_bound(self) -> None:
        """The socket has the permissions that were asked for, whatever the umask, and is removed when it is closed."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        sock = self.bound(0o606)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o606)
        self.assertFalse(sock.getblocking())
        self.assertEqual(os.umask(0o077), 0o077)
        sock.close()
        self.assertFalse(self.path.exists())
        sock.close()

    def test_relative(self) -> None:
        """A relative path is of the working folder at the start, also after a change of that."""
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.path.parent)
        sock = bind_unix(Path(self.path.name), 0o600)
        os.chdir(before)
        sock.close()
        self.assertFalse(self.path.exists())

    def test_left_behind(self) -> None:
        """The socket of a process that was killed is replaced."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(self.path))
        self.bound().listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(self.path))

    def test_in_use(self) -> None:
        """A socket on which another process listens is left alone, also if its queue is full."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, contextlib.ExitStack() as clients:
            other.bind(str(self.path))
            other.listen(0)
            for _ in range(2):
                client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.setblocking(False)
                client.connect_ex(str(self.path))
            self.assertEqual(self.refused(), f"--port: {self.path} is in use by another process")
        self.assertTrue(self.path.is_socket())

    def test_bound_by_another(self) -> None:
        """A path is in use from when it is bound, although its socket listens only once the broker is there."""
        sock = self.bound()
        self.assertEqual(self.refused(), f"--port: {self.path} is in use by another process")
        self.path = self.path.parent / "." / ".." / self.path.parent.name / self.path.name
        self.assertEqual(self.refused(), f"--port: {self.path} is in use by another process")
        sock.close()
        self.assertEqual(os.listdir(self.path.parent), [])
        self.bound().close()

    def test_killed(self) -> None:
        """A process that was killed leaves no lock behind, only its file."""
        lock = self.path.with_name("owsla.sock.lock")
        lock.touch()
        self.bound().close()
        self.assertFalse(lock.exists())

    def test_taken_over(self) -> None:
        """A socket that has replaced ours is not removed with it."""
        sock = self.bound()
        self.path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(self.path))
            sock.close()
            self.assertTrue(self.path.is_socket())

    def test_inherited(self) -> None:
        """A process that has inherited the socket closes it without removing the path."""
        sock = self.bound()
        socket.socket(fileno=os.dup(sock.fileno())).close()
        self.assertTrue(self.path.is_socket())

    def test_refused(self) -> None:
        """Each other fault is one line, and nothing is removed."""
        self.path.write_text("mine")
        self.assertEqual(self.refused(), f"--port: {self.path} exists and is not a socket")
        self.assertEqual(self.path.read_text(), "mine")
        self.path = Path(self.path, "below")
        self.assertRegex(self.refused(), "cannot be used: (?i:not a directory)$")
        self.path = self.path.parents[1] / "missing" / "x.sock"
        self.assertRegex(self.refused(), "cannot be used: (?i:no such file or directory)$")
        self.path = self.path.parents[1] / ("x" * 200)
        self.assertRegex(self.refused(), "cannot be used: .*too long$")


class ListeningSocketTests(SynchronousTestCase):
    def test_enumerations_are_made_once(self) -> None:
        """A listening socket makes the enumerations of its family and type once, not for each connection that it accepts."""
        sock = bind(0, "127.0.0.1")
        self.addCleanup(sock.close)
        sock.listen()
        sock.setblocking(True)
        made: list[type] = []
        clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
        call: Any = type(socket.AddressFamily).__call__

        def count(kind: type, *args: object) -> object:
            made.append(kind)
            return call(kind, *args)

        self.patch(type(socket.AddressFamily), "__call__", count)
        for client in clients:
            self.addCleanup(client.close)
            accepted, address = sock.accept()
            self.addCleanup(accepted.close)
            self.assertEqual(address, client.getsockname())
        self.assertCountEqual(made, [socket.AddressFamily, socket.SocketKind])
        self.assertEqual((sock.family, sock.type), (socket.AF_INET, socket.SOCK_STREAM))

    def test_sockets_of_other_processes(self) -> None:
        """The family and the type of a socket that another program made are those that the system knows."""
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            sock = ListeningSocket(fileno=socket.socket(family, socket.SOCK_STREAM).detach())
            self.addCleanup(sock.close)
            self.assertIs(sock.family, family)
            self.assertIs(sock.type, socket.SOCK_STREAM)


class LoopbackTests(SynchronousTestCase):
    def test_loopback(self) -> None:
        """Only addresses of the loopback interface are reachable by this machine alone."""
        for interface, expected in [("", False), ("0.0.0.0", False), ("127.3.2.1", True), ("::1", True), ("192.0.2.1", False)]:
            self.assertEqual(is_loopback(interface), expected, interface)
