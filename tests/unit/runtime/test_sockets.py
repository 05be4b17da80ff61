"""Tests of `owsla.runtime.sockets`."""

from __future__ import annotations

import errno
import os
import socket
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.runtime import sockets
from owsla.runtime.sockets import bind


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
