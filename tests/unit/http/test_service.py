"""The port: taken at the start, served, let go."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.http import HttpService, ProcessSource, Tokens, claim, claim_control, control_listener, tcp_listener
from owsla.http._connections import REQUEST_TIMEOUT
from owsla.http._service import CONNECTIONS

from ._fakes import World, api_parts


class ClaimTests(SynchronousTestCase):
    """Taking the port."""

    def test_local(self) -> None:
        """Unless told otherwise nobody beyond this machine can connect; here anybody can, from now on."""
        with claim(0) as sock:
            self.assertEqual(sock.getsockname()[0], "127.0.0.1")
            with socket.create_connection(sock.getsockname(), timeout=5):
                pass

    def test_all(self) -> None:
        """An empty address is every one, IPv4 among them."""
        with claim(0, "") as sock, socket.create_connection(("127.0.0.1", sock.getsockname()[1]), timeout=5):
            pass

    def test_in_use(self) -> None:
        """A busy port is a user's error that names the option, also when it was only bound a moment ago."""
        with claim(0) as other:
            port = other.getsockname()[1]
            error = self.assertRaises(ConfigError, claim, port)
            self.assertEqual(str(error), f"--http: port {port} on 127.0.0.1 is in use by another process")

    def test_not_ours(self) -> None:
        """So is an address of another machine."""
        self.assertIn("--http: port 0 on 192.0.2.1 cannot", str(self.assertRaises(ConfigError, claim, 0, "192.0.2.1")))


class Transport(StringTransportWithDisconnection):
    """A connection that can be dropped."""

    def abortConnection(self) -> None:
        self.loseConnection()


class ServiceTests(SynchronousTestCase):
    """Serving."""

    def setUp(self) -> None:
        self.world = World()
        self.reactor: Any = MemoryReactorClock()
        self.socket = claim(0)
        self.addCleanup(self.socket.close)
        self.service = self.make(self.socket)

    def make(self, sock: socket.socket) -> HttpService:
        parts = api_parts(ProcessSource(self.world.readings))
        return HttpService(self.reactor, [tcp_listener(self.reactor, sock, parts, Tokens)])

    def connect(self) -> Transport | None:
        factory = self.reactor.adoptedPorts[-1][2]
        factory.doStart()
        protocol = factory.buildProtocol(None)
        if protocol is None:
            return None
        transport = Transport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def test_start(self) -> None:
        """It serves on the socket that it was given."""
        self.service.startService()
        self.assertEqual(self.reactor.adoptedPorts[0][:2], (self.socket.fileno(), socket.AF_INET))
        transport = self.connect()
        assert transport is not None
        protocol: Any = transport.protocol
        protocol.dataReceived(b"GET /healthz HTTP/1.0\r\n\r\n")
        self.assertTrue(transport.value().endswith(b"\r\n\r\nok\n"))

    def test_stop(self) -> None:
        """It leaves no connection, no port and no timer; and can be made and started again on the same socket."""
        self.service.startService()
        transport = self.connect()
        self.successResultOf(self.service.stopService())
        assert transport is not None
        self.assertFalse(transport.connected)
        again = self.make(self.socket)
        again.startService()
        self.assertEqual(len(self.reactor.adoptedPorts), 2)
        self.successResultOf(again.stopService())

    def test_the_end_of_a_connection_with_a_defect(self) -> None:
        """The end of a connection is known, and a stop does not wait for it, also if the HTTP channel fails at it."""
        self.service.startService()
        protocol: Any = self.connected().protocol
        self.patch(protocol.wrappedProtocol, "connectionLost", lambda reason: 1 // 0)
        self.assertRaises(ZeroDivisionError, protocol.connectionLost, Failure(ConnectionDone()))
        self.successResultOf(protocol.lost)

    def test_stop_before_start(self) -> None:
        """Stopping what never started is nothing."""
        self.successResultOf(self.service.stopService())

    def connected(self) -> Transport:
        transport = self.connect()
        assert transport is not None
        return transport

    def says(self, transport: Transport, data: bytes) -> None:
        protocol: Any = transport.protocol
        protocol.dataReceived(data)

    def test_limit(self) -> None:
        """There are only so many connections: they must not use up the files that are for devices. The oldest makes way."""
        self.service.startService()
        all_of_them = [self.connected() for _ in range(CONNECTIONS)]
        self.reactor.advance(1)
        newest = self.connected()
        self.assertEqual([one.connected for one in all_of_them].count(False), 1)
        self.assertTrue(newest.connected)

    def test_limit_spares_who_was_answered(self) -> None:
        """Connections that send a header line now and then keep nobody out: one that was answered lately stays."""
        self.service.startService()
        good = self.connected()
        bad = [self.connected() for _ in range(CONNECTIONS - 1)]
        for one in bad:
            self.says(one, b"GET / HTTP/1.1\r\n")
        for _ in range(5):
            self.reactor.advance(1)
            for one in bad:
                self.says(one, b"a: b\r\n")
            self.says(good, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(CONNECTIONS - 1):
            self.says(self.connected(), b"GET / HTTP/1.1\r\n")
        self.assertTrue(good.connected)
        self.assertFalse(any(one.connected for one in bad))

    def test_whole_request(self) -> None:
        """A request has a time as a whole; the next one on the same connection has one of its own."""
        self.service.startService()
        transport = self.connected()
        for _ in range(3):
            self.says(transport, b"GET /healthz HTTP/1.1\r\n")
            self.reactor.pump([1.0] * (int(REQUEST_TIMEOUT) - 1))
            self.says(transport, b"Host: localhost\r\n\r\n")
        self.assertEqual(transport.value().count(b"200 OK"), 3)
        self.says(transport, b"GET /healthz HTTP/1.1\r\n")
        for _ in range(int(REQUEST_TIMEOUT) - 1):
            self.reactor.advance(1)
            self.says(transport, b"a: b\r\n")
        self.reactor.advance(1)
        self.assertFalse(transport.connected)

    def test_host(self) -> None:
        """On this machine's own address it answers to addresses, localhost and this machine's name: no web page has those."""
        self.service.startService()
        own = socket.gethostname()
        for host, status in (
            ("127.0.0.1:9100", 200),
            ("127.0.0.1", 200),
            ("[::1]:9100", 200),
            ("10.1.2.3", 200),
            ("localhost:9100", 200),
            ("LocalHost.", 200),
            (f"{own}:9100", 200),
            ("rebind.example:9100", 421),
            ("localhost.example", 421),
            ("127.0.0.1.example", 421),
            ("", 421),
            ("[", 421),
            ("h\u00f6st", 421),
        ):
            for path in ("/", "/metrics", "/tree", "/healthz", "/readyz"):
                transport = self.connected()
                self.says(transport, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                expected = 200 if path in ("/healthz", "/readyz") else status
                self.assertEqual(transport.value().split()[1], b"%d" % expected, (host, path))
        transport = self.connected()
        self.says(transport, b"GET /metrics HTTP/1.0\r\n\r\n")
        self.assertEqual(transport.value().split()[1], b"200")

    def test_host_on_the_network(self) -> None:
        """On an address of the network it answers to every name: operators have their own, and whoever is there may read it."""
        with claim(0, "") as sock:
            service = self.make(sock)
            service.startService()
            transport = self.connected()
            self.says(transport, b"GET /metrics HTTP/1.1\r\nHost: gateway.example\r\n\r\n")
            self.assertEqual(transport.value().split()[1], b"200")
            self.successResultOf(service.stopService())


class ControlTests(SynchronousTestCase):
    """The control socket of a process that forks after it has claimed it, as twistd does for a daemon."""

    def test_process(self) -> None:
        """Clients see the process that serves, and can wait for its end."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "owsla.sock")
        sock = claim_control(path)
        self.addCleanup(sock.close)
        with warnings.catch_warnings():
            # Threads of earlier tests are not in the child, which needs none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                reactor: Any = MemoryReactorClock()
                listener = control_listener(reactor, sock, api_parts(ProcessSource(World().readings)))
                HttpService(reactor, [listener]).startService()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.assertEqual(struct.unpack("3i", credentials)[0], child)
