"""The port: taken at the start, served, let go."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from owsla.config import ConfigError
from owsla.http import Alone, Beat, Histogram, HttpService, claim
from owsla.http._service import BEAT, CONNECTIONS

from ._fakes import World


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
        self.service = HttpService(self.reactor, self.socket, Alone(self.world.readings))

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
        self.assertEqual(self.service.url, f"http://127.0.0.1:{self.socket.getsockname()[1]}/")
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
        again = HttpService(self.reactor, self.socket, Alone(self.world.readings))
        again.startService()
        self.assertEqual(len(self.reactor.adoptedPorts), 2)
        self.successResultOf(again.stopService())

    def test_stop_before_start(self) -> None:
        """Stopping what never started is nothing."""
        self.successResultOf(self.service.stopService())

    def test_limit(self) -> None:
        """Too many connections are refused: they must not use up the files that are for devices."""
        self.service.startService()
        first = [self.connect() for _ in range(CONNECTIONS)]
        self.assertNotIn(None, first)
        self.assertIsNone(self.connect())
        assert first[0] is not None
        first[0].loseConnection()
        self.assertIsNotNone(self.connect())

    def test_lateness(self) -> None:
        """Once a second it is seen how late the reactor is."""
        self.service.startService()
        self.reactor.advance(BEAT)
        lateness = self.world.readings.lateness
        self.assertEqual(lateness.sum, 0.0)
        self.reactor.advance(BEAT + 0.2)
        self.assertAlmostEqual(lateness.sum, 0.2)
        self.assertEqual([count for _, count in lateness.buckets()][-1], 2)


class BeatTests(SynchronousTestCase):
    """Lateness without HTTP: of a worker, whose parent serves it."""

    def test_it(self) -> None:
        """It is looked at once a second, from the start to the stop, and again after another start."""
        reactor: Any = MemoryReactorClock()
        lateness = Histogram()
        beat = Beat(reactor, lateness)
        for expected in (2, 4):
            beat.startService()
            reactor.advance(BEAT)
            reactor.advance(BEAT + 0.5)
            beat.stopService()
            reactor.advance(5 * BEAT)
            self.assertEqual([count for _, count in lateness.buckets()][-1], expected)
        self.assertAlmostEqual(lateness.sum, 1.0)
