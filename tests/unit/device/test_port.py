"""Tests of the device port on real sockets, with a clock that the test advances: accepting, counting, timeouts and ends."""

from __future__ import annotations

import errno
import inspect
import os
import select
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast
from unittest import mock

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

import owsla
from owsla.device import listening as listening_module
from owsla.device.acceptor import LOST_ALREADY, STAND_BACK, Limits, Share
from owsla.device.admission import (
    OVERLOADED_OF,
    OVERLOADED_QUEUE,
    REPORT_INTERVAL,
    SILENT_SHARE,
    STALLED_AT_FIRST,
    Admission,
    PortAdmission,
)
from owsla.device.closing import LONGEST_GOODBYE
from owsla.device.connected_sockets import ConnectedSockets
from owsla.device.connections import Connection, Connections
from owsla.device.factory import DeviceFactory
from owsla.device.framing import LineFraming
from owsla.device.hangup import PATIENCE, HangupWatch
from owsla.device.listening import BACKLOG, SEND_BUFFER
from owsla.device.poller import UNINTERRUPTED
from owsla.device.port import DevicePort, PortHooks, PortSettings
from owsla.device.protocol import DeviceProtocol
from owsla.device.proxy_senders import Sender
from owsla.device.services import DeviceRuntime, DeviceServices, DeviceTotals
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.device.socket_transport import CLOSING_TIMEOUT
from owsla.device.sources import SourceLimits, Sources
from owsla.device.tls_transport import TLSTransport
from owsla.events import (
    DeviceConnected,
    DeviceDisconnected,
    Event,
    Full,
    HandshakeFailed,
    Listening,
    SilentEvicted,
    TurnedAway,
)
from owsla.routing import ConnectionIds, Registry
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.runtime.memory import ProcessMemory, TrimSchedule
from owsla.runtime.sockets import bind
from owsla.supervision import DynamicSupervisor
from owsla.tls.refusal import HandshakeRefused, Refusal

from ._fakes import Courier, Sink
from ._sockets import Client, Loop, device_tls, polled, reset


def close(listener: DevicePort) -> None:
    """Stop the port for good: its socket survives a restart."""
    listener.stopListening()
    listener.stopService()


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        device_tls()
        import twisted.internet.reactor  # noqa: F401  a LoopingCall does it otherwise, and its descriptors would count as leaked

        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.patch(listening_module, "DEFER_ACCEPT", 0)  # silent connections are noticed at once
        self.loop = cast(Any, Loop())
        self.events: list[Event] = []
        self.sink = Sink()
        self.failures: list[str] = []
        self.clients: list[socket.socket] = []
        self.listener: DevicePort | None = None

    def tearDown(self) -> None:
        """When the port is stopped and all connections are closed, nothing is left."""
        if self.listener is None:
            return
        for client in self.clients:
            client.close()
        self.loop.settle()
        for one in polled(self.connected.poller, self.connected.handshake_poller):
            one.abortConnection()
        self.loop.settle()
        close(self.listener)
        self.connected.stopService()
        self.assertEqual((self.loop.readers, self.loop.writers, self.loop.getDelayedCalls()), (set(), set(), []))
        self.assertEqual((self.admission.connections, len(self.registry)), (0, 0))
        self.assertEqual(len(self.sources), 0)
        self.assertEqual(self.totals.paused_connections, 0)
        self.assertEqual(set(os.listdir("/proc/self/fd")) - self.descriptors, set())

    def listen(
        self,
        max_connections: int = 100,
        max_handshakes: int = 100,
        idle_timeout: float = 0.0,
        max_per_address: int | None = None,
        share: Share | None = None,
        memory: ProcessMemory | None = None,
        plain: bool = False,
        sock: socket.socket | None = None,
        proxy_senders: tuple[Sender, ...] = (),
        handshake_timeout: float = 15.0,
        **options: Any,
    ) -> DevicePort:
        """Return a port that is open."""
        self.registry: Registry[Any] = Registry()
        hangups = HangupWatch(self.loop)
        endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(self.loop)
        endpoints.startService()
        self.turn = EndOfTurn(self.loop)
        self.services = DeviceServices(
            DeviceRuntime(self.loop, self.turn, self.events.append, self.loop.seconds),
            SharedSettings(),
            Connections(ConnectionIds(), self.registry, endpoints),
            self.sink,
            Courier(),
            hangups,
        )
        self.factory = DeviceFactory(
            self.services,
            DeviceSettings(idle_timeout=idle_timeout, **options),
            DeviceProtocol,
            identify=lambda connection: self.identify(),
        )
        self.totals = DeviceTotals(self.services)
        self.admission: Admission[TLSTransport] = Admission(max_connections, max_handshakes)
        self.port_admission = PortAdmission(self.admission, max_connections)
        self.connected = ConnectedSockets(
            self.loop, self.admission, hangups, self.turn, housekeeping=self.services.housekeeping, memory=memory
        )
        self.sources = Sources(SourceLimits(max_per_address), self.loop.seconds)
        self.listener = DevicePort(
            self.loop,
            bind(0, "127.0.0.1") if sock is None else sock,
            None if plain else device_tls(),
            self.factory,
            self.connected,
            Limits(self.port_admission, self.sources, share),
            PortSettings(handshake_timeout, proxy_senders=proxy_senders),
            PortHooks(self.events.append, self.failures.append),
        )
        self.connected.startService()
        self.listener.startService()
        if self.listener.startListening():
            self.listener.startAccepting()
        return self.listener

    def watched(self) -> list[Any]:
        """Return the descriptors in the set of handshakes, the accepting ones included."""
        return [one for one in self.connected.handshake_poller._sockets if one is not None]

    def identify(self) -> str:
        """Return the device id of a connection."""
        return "somebody"

    def knock(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect a silent client, which the port has not processed yet."""
        assert self.listener is not None
        client = socket.create_connection(("127.0.0.1", self.listener.port), source_address=(source, 0))
        client.setblocking(False)
        self.clients.append(client)
        return client

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect a silent client."""
        client = self.knock(source)
        self.loop.settle()
        return client

    def device(self, source: str = "127.0.0.1") -> Client:
        """Connect a device and complete its handshake."""
        client = Client(self.connect(source))
        before = len(self.registry)
        self.loop.until(lambda: client.secure and len(self.registry) > before, client.step)
        self.loop.settle(client.step)
        return client

    def later(self, seconds: int) -> None:
        for _ in range(seconds):
            for _ in range(10):
                self.loop.advance(0.1)
            self.loop.settle()

    def of_type(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


CALLS = 159
"""Limit on calls of functions of Owsla for a connection that connects and closes, without those of the sink and of events."""

LEFT_OUT = frozenset({"fileno", "port", "__len__", "<genexpr>", "<listcomp>"})
"""Names of functions that this test calls, or that some versions of Python do not call."""


class CallsTests(Base):
    """Tests of the cost of a connection, in calls: unlike a time, their number is the same on all machines."""

    def come_and_go(self) -> None:
        """Connect a device, and let it close in order."""
        client = self.device()
        client.shutdown()
        self.loop.until(lambda: client.ended, client.step)
        client.close()
        self.loop.settle()

    def test_calls(self) -> None:
        """A connection, from accepting it to its end, makes no more calls than this. A storm of devices makes nothing else."""
        self.listen()
        self.come_and_go()
        folder = str(Path(owsla.__file__).parent)
        calls: Counter[str] = Counter()

        def count(frame: FrameType, event: str, argument: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(folder) and code.co_name not in LEFT_OUT:
                calls[f"{Path(code.co_filename).name}: {code.co_qualname}"] += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            self.come_and_go()
        finally:
            sys.setprofile(before)
        self.assertEqual((len(self.of_type(DeviceConnected)), len(self.of_type(DeviceDisconnected))), (2, 2))
        self.assertLessEqual(calls.total(), CALLS, calls)


class PortTests(Base):
    def test_opens_once(self) -> None:
        """The port opens once, with an event, when it is told to and not at the start."""
        listener = self.listen()
        listener.startListening()
        self.assertEqual(self.events, [Listening("127.0.0.1", listener.port)])
        self.assertIn(listener._acceptor, self.watched())

    def test_not_before_the_start(self) -> None:
        """The port does not open before the service starts, nor after it has stopped."""
        listener = self.listen()
        self.events.clear()
        listener.stopService()
        listener.startListening()
        self.assertEqual(self.events, [])
        self.assertNotIn(listener._acceptor, self.watched())

    def test_cannot_listen(self) -> None:
        """If another process listens on the port already, the reason is logged once, and nothing is accepted."""
        with mock.patch.object(socket.socket, "listen", side_effect=OSError(errno.EADDRINUSE, "in use")):
            listener = self.listen()
            listener.startListening()
        self.assertEqual(len(self.failures), 1)
        self.assertIn(str(listener.port), self.failures[0])
        self.assertEqual((self.events, listener._acceptor in self.watched()), ([], False))

    def test_settles(self) -> None:
        """When the port opens, and after each given number of connections, objects are frozen for the garbage collector."""
        memory = mock.Mock(spec=ProcessMemory)
        settled: list[int] = []
        memory.freeze.side_effect = lambda: settled.append(len(self.registry))
        with mock.patch("owsla.device.connected_sockets.FREEZE_EVERY", 2):
            self.listen(memory=memory)
            for _ in range(5):
                self.device()
        self.assertEqual(settled, [0, 2, 4])

    def test_gives_back(self) -> None:
        """Once the handshakes of a stampede have ended, memory is returned to the system."""
        memory = mock.Mock(spec=ProcessMemory)
        with mock.patch.multiple(TrimSchedule, HANDSHAKES=2, CALM=1):
            self.listen(memory=memory)
            for expected in (0, 1):
                self.device()
                self.later(1)
                self.assertEqual(memory.trim.call_count, 0)
                self.later(2)
                self.assertEqual(memory.trim.call_count, expected)

    def test_deep_backlog(self) -> None:
        """The backlog holds a stampede in the accept queue."""
        asked = []
        real = socket.socket.listen

        def listen(sock: socket.socket, backlog: int) -> None:
            asked.append(backlog)
            real(sock, backlog)

        with mock.patch.object(socket.socket, "listen", listen):
            self.listen()
        self.assertEqual(asked, [BACKLOG])
        self.assertGreaterEqual(BACKLOG, 1024)

    def test_short_backlog(self) -> None:
        """While the process is overloaded, the accept queue of the kernel is short. Then it is deep again."""
        asked = []
        real = socket.socket.listen

        def listen(sock: socket.socket, backlog: int) -> None:
            asked.append(backlog)
            real(sock, backlog)

        with mock.patch.object(socket.socket, "listen", listen):
            self.listen(max_handshakes=1)
            clients = []
            for _ in range(OVERLOADED_OF + 1):
                clients.append(Client(self.connect()))
                clients[-1].step()
                self.loop.settle()
            stalled, *gone = clients
            for client in gone:
                client.socket.close()
            for _ in range(OVERLOADED_OF // SILENT_SHARE):
                self.later(1)
            self.assertEqual((self.admission.waiting, self.admission.overloaded), (0, True))
            stalled.socket.close()
            self.device()
            self.assertEqual(asked, [BACKLOG, OVERLOADED_QUEUE])
            while self.admission.overloaded:
                self.device().socket.close()
            self.device()
            self.assertEqual(asked, [BACKLOG, OVERLOADED_QUEUE, BACKLOG])

    def test_options_of_accepted_sockets(self) -> None:
        """The socket of a device sends at once, has keepalive probes, and does not block."""
        self.listen()
        self.device()
        (endpoint,) = self.registry
        sock = endpoint.transport._socket
        self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 120)
        self.assertFalse(sock.getblocking())

    def test_stopListening(self) -> None:
        """When the port closes, connections stay open, and their lines are published."""
        listener = self.listen()
        device = self.device()
        listener.stopListening()
        self.assertNotIn(listener._acceptor, self.watched())
        device.write(b"still here\n")
        self.loop.until(lambda: self.sink.lines)
        self.assertEqual(len(self.registry), 1)

    def test_stopped_before_it_was_open(self) -> None:
        """A port that was not open when the node began to stop stays closed."""
        with mock.patch.object(DevicePort, "startListening", return_value=False):
            listener = self.listen()
        listener.stopListening()
        self.assertFalse(listener.startListening())

    def test_handshake_after_the_port_closed(self) -> None:
        """A connection that was accepted just before the port closed is not let in: it would never get its turn to drain."""
        listener = self.listen()
        late = Client(self.connect())
        listener.stopListening()
        self.loop.until(lambda: late.ended, late.step)
        self.assertEqual((late.ended, len(self.registry), self.of_type(DeviceConnected)), ("notify", 0, []))


class CountingTests(Base):
    def test_counted_when_secured(self) -> None:
        """A device is registered and announced when its handshake is complete, and not before."""
        listener = self.listen()
        silent = self.connect()
        self.assertEqual((self.admission.connections, self.admission.handshaking), (1, 0))
        client = Client(silent)
        client.step()
        self.loop.settle()
        self.assertEqual((self.admission.handshaking, len(self.registry), listener.handshakes), (1, 0, 0))
        self.assertEqual(listener.accepted, 1)
        self.loop.until(lambda: len(self.registry), client.step)
        (endpoint,) = self.registry
        (event,) = self.of_type(DeviceConnected)
        self.assertEqual(event.connection_id, endpoint.connection_id.decode())
        self.assertEqual((event.device_id, event.tls), ("somebody", "TLSv1.3"))
        self.assertEqual((self.admission.open, self.admission.handshaking, listener.handshakes), (1, 0, 1))
        client.close()
        self.loop.until(lambda: not len(self.registry))
        self.assertEqual((self.admission.connections, len(self.of_type(DeviceDisconnected))), (0, 1))
        self.assertEqual(listener.failed_handshakes, 0)

    def test_failed_handshake(self) -> None:
        """A failed handshake is an event, and counted. No device is announced."""
        listener = self.listen()
        self.connect().send(b"GET / HTTP/1.0\r\n\r\n")
        self.loop.until(lambda: self.of_type(HandshakeFailed))
        self.assertEqual((listener.failed_handshakes, self.admission.connections), (1, 0))
        self.assertEqual((self.of_type(DeviceConnected), self.of_type(DeviceDisconnected)), ([], []))

    def test_full(self) -> None:
        """At the limit accepting pauses, with one event, and resumes when a connection is lost: waiting devices are accepted.
        """
        listener = self.listen(max_connections=3)
        inside = [self.device() for _ in range(3)]
        self.assertNotIn(listener._acceptor, self.watched())
        self.assertFalse(listener.accepting)
        waiting = Client(self.connect())
        for _ in range(3):
            waiting.step()
            self.later(1)
        self.assertEqual((self.admission.connections, waiting.secure), (3, False))
        self.assertEqual([event.connections for event in self.of_type(Full)], [3])
        reset(inside[0].socket)
        self.loop.until(lambda: waiting.secure, waiting.step)
        self.assertEqual(self.admission.connections, 3)

    def test_a_stampede(self) -> None:
        """However many devices connect at once, no more than the limit are accepted at a time, and all get their turn."""
        self.listen(max_connections=10)
        assert self.listener is not None
        waiting = []
        for _ in range(35):
            sock = socket.create_connection(("127.0.0.1", self.listener.port))
            sock.setblocking(False)
            self.clients.append(sock)
            waiting.append(Client(sock))
        served = 0
        while waiting:
            for client in waiting:
                client.step()
            self.loop.turn(0.01)
            self.assertLessEqual(self.admission.connections, 10)
            for client in [client for client in waiting if client.secure]:
                waiting.remove(client)
                served += 1
                client.close()
        self.assertEqual(served, 35)

    def test_handshakes_are_bounded(self) -> None:
        """Handshakes in progress stay within the limit, and others wait. If the waiting ones reach their own limit, accepting
        pauses until a handshake completes or fails. This is not reported as a full gateway.
        """
        listener = self.listen(max_handshakes=2)
        clients = [Client(self.knock()) for _ in range(2 + self.admission.max_silent)]
        for client in clients:
            client.step()
        self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (2, self.admission.max_silent))
        self.assertNotIn(listener._acceptor, self.watched())
        self.loop.until(lambda: self.registry and listener._acceptor in self.watched(), *[client.step for client in clients])
        self.assertEqual(self.of_type(Full), [])

    def test_silent_ones_take_no_handshake(self) -> None:
        """Silent connections, such as health checks and stalled devices, do not delay handshakes of others."""
        self.listen(max_handshakes=2)
        for _ in range(10):
            self.connect()
        self.device()
        self.assertEqual(len(self.registry), 1)

    def test_silent_ones_keep_nobody_out(self) -> None:
        """At the limit of connections, silent ones are closed to make room for devices."""
        listener = self.listen(max_connections=4)
        silent = [self.connect() for _ in range(2)]
        for _ in range(4):
            self.assertTrue(listener.accepting)
            self.device()
        self.assertEqual((self.admission.open, self.admission.connections, listener.evicted), (4, 4, 2))
        self.assertFalse(listener.accepting)
        for client in silent:
            self.assertRaises(ConnectionResetError, client.recv, 1)

    def test_no_open_files(self) -> None:
        """If no file descriptor is free, accepting pauses with one event, and is tried again a second later."""
        for code in (errno.EMFILE, errno.ENFILE):
            self.events.clear()
            listener = self.listen()
            with mock.patch.object(listener._acceptor, "_socket", mock.Mock(wraps=listener._socket)) as sock:
                sock.accept.side_effect = OSError(code, os.strerror(code))
                waiting = Client(self.connect())
                self.assertNotIn(listener._acceptor, self.watched())
                self.later(3)
                self.assertEqual(len(self.of_type(Full)), 1)
            self.later(1)
            self.loop.until(lambda: len(self.registry) == 1, waiting.step)
            self.tearDown()
            self.setUp()

    def test_gone_before_accept(self) -> None:
        """A connection that has ended when it is accepted is ignored."""
        listener = self.listen()
        with mock.patch.object(listener._acceptor, "_socket", mock.Mock(wraps=listener._socket)) as sock:
            for code in (errno.EAGAIN, errno.EINTR, *LOST_ALREADY):
                sock.accept.side_effect = OSError(code, os.strerror(code))
                listener._acceptor.doRead()
        self.assertIn(listener._acceptor, self.watched())
        self.device()


class StampedeTests(Base):
    def test_all_speak_at_once(self) -> None:
        """When all silent connections send at once, handshakes stay within the limit. The others wait unread, and get their
        turn in the order in which they sent.
        """
        self.listen(max_handshakes=2)
        clients = [Client(self.connect()) for _ in range(8)][::-1]
        for client in clients:
            client.step()
            self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (2, 6))
        self.assertEqual(len(polled(self.connected.handshake_poller)), 2)
        for served in range(1, 9):
            self.loop.until(lambda served=served: len(self.registry) == served, clients[served - 1].step)
            self.assertEqual(self.admission.handshaking, min(2, 8 - served))
        self.assertEqual(self.of_type(HandshakeFailed), [])

    def test_stalled_handshakes(self) -> None:
        """A stalled handshake keeps its slot until its timeout. If others wait, the oldest one is closed as soon as it takes
        much longer than usual.
        """
        self.listen(max_handshakes=2)
        for _ in range(2):
            Client(self.connect()).step()
            self.loop.settle()
        late = Client(self.connect())
        late.step()
        self.later(int(STALLED_AT_FIRST) - 1)
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (2, 1))
        self.later(2)
        self.loop.until(lambda: len(self.registry) == 1, late.step)
        self.assertEqual(
            [event.reason for event in self.of_type(HandshakeFailed)],
            ["its handshake stalled, and others waited for its place"],
        )
        self.later(15 - int(STALLED_AT_FIRST))
        self.assertEqual([event.reason for event in self.of_type(HandshakeFailed)][1:], ["no handshake within 15 s"])

    def test_stalled_and_overdue(self) -> None:
        """A stalled handshake that is already being closed when its slot is needed frees it at once, with its own reason."""
        self.listen(max_handshakes=1)
        Client(self.connect()).step()
        self.loop.settle()
        (stalled,) = polled(self.connected.handshake_poller)
        late = Client(self.connect())
        late.step()
        self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 1))
        self.loop.rightNow += STALLED_AT_FIRST
        self.connected.scheduler.start_soon()
        stalled.handshakeOverdue("no handshake in time")
        self.loop.until(lambda: len(self.registry) == 1, late.step)
        self.assertEqual([event.reason for event in self.of_type(HandshakeFailed)], ["no handshake in time"])

    def test_refused_certificate(self) -> None:
        """A certificate without a usable identity is a failed handshake, reported with the known details. Nothing is published
        for it.
        """
        listener = self.listen()

        def refuse() -> str | None:
            raise HandshakeRefused(Refusal("the device's certificate cannot be read", "CN=dev", "0A", "urn:dev:7"))

        with mock.patch.object(self, "identify", refuse):
            client = Client(self.connect())
            self.loop.until(lambda: client.ended, client.step)
            client.close()
            self.loop.settle()
        (event,) = self.of_type(HandshakeFailed)
        reason = "TLS: the device's certificate cannot be read"
        self.assertEqual(event, HandshakeFailed(event.peer, reason, "CN=dev", "0A", claimed_id="urn:dev:7"))
        self.assertEqual((listener.handshakes, listener.failed_handshakes), (0, 1))
        self.assertEqual((self.of_type(DeviceConnected), self.of_type(DeviceDisconnected)), ([], []))

    def test_gone_before_its_turn(self) -> None:
        """No handshake begins for a peer that has gone: the newest connection that is still there is served first."""
        self.listen(max_handshakes=1)
        stalled, gone, patient, newest = clients = [Client(self.connect()) for _ in range(4)]
        for client in clients:
            client.step()
            self.loop.settle()
        gone.socket.close()
        begin = TLSTransport.begin_handshake
        with mock.patch.object(TLSTransport, "begin_handshake", autospec=True, side_effect=begin) as begun:
            stalled.socket.close()
            self.loop.settle()
            self.assertEqual(begun.call_count, 1)
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 1))
        self.assertEqual(
            [event.reason for event in self.of_type(HandshakeFailed)], ["lost", "closed while it waited for its handshake"]
        )
        newest.socket.close()
        self.loop.until(lambda: patient.secure, patient.step)

    def test_gone_while_others_are_served(self) -> None:
        """A peer that goes while it waits is dropped within a second, also if its turn never comes."""
        self.listen(max_handshakes=1)
        stalled, gone = clients = [Client(self.connect()) for _ in range(2)]
        for client in clients:
            client.step()
            self.loop.settle()
        gone.socket.close()
        self.later(2)
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 0))
        stalled.socket.close()

    def test_what_is_begun_is_completed_first(self) -> None:
        """If one handshake uses all the time of a turn, no second one begins in that turn: answers of peers come first."""
        self.listen()
        clients = [Client(self.connect()) for _ in range(4)]
        begin = SSL.Connection.set_accept_state
        with mock.patch.object(SSL.Connection, "set_accept_state", self.slowly(begin)):
            for client in clients:
                client.step()
            for begun in range(1, 5):
                self.connected.handshake_poller._take()
                self.assertEqual((self.admission.handshaking, self.admission.waiting), (begun, 0))
        self.loop.until(lambda: len(self.registry) == 4, *[client.step for client in clients])

    def test_sets_stay(self) -> None:
        """While the service runs, connections that come one by one share an epoll set. It is closed with the service."""
        self.listen()
        sets = set()
        for _ in range(2):
            device = self.device()
            sets.add((self.connected.poller.fileno(), self.connected.handshake_poller.fileno()))
            device.close()
            self.loop.until(lambda: not self.admission.connections)
        self.assertEqual(sets, {(self.connected.poller.fileno(), self.connected.handshake_poller.fileno())})
        self.assertNotIn(-1, *sets)

    def slowly(self, call: Callable[[SSL.Connection], None], seconds: float = 0.1) -> Callable[[SSL.Connection], None]:
        """Return a function that takes some time, in which no timer is called."""

        def slow(tls: SSL.Connection) -> None:
            self.loop.rightNow += seconds
            call(tls)

        return slow

    def waiting(self, count: int) -> list[Client]:
        """Return this many clients that wait for their handshake, which may begin at the next opportunity."""
        self.listen(max_handshakes=1)
        clients = [Client(self.connect()) for _ in range(count + 1)]
        for client in clients:
            client.step()
            self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, count))
        self.admission.configure(100, 100)
        return clients

    def test_waiting_handshakes_share_turns(self) -> None:
        """Handshakes that have waited begin in as many turns as they need."""
        clients = self.waiting(3)
        later: list[Any] = []
        begin = SSL.Connection.set_accept_state
        with (
            mock.patch.object(SSL.Connection, "set_accept_state", self.slowly(begin)),
            mock.patch.object(self.connected.handshake_poller, "callLater", lambda delay, call: later.append(call)),
        ):
            self.connected.scheduler.start_soon()
            for waiting in (2, 1, 0):
                later.pop()()
                self.assertEqual((self.admission.handshaking, self.admission.waiting), (4 - waiting, waiting))
                self.assertEqual(len(later), min(waiting, 1))
        self.loop.until(lambda: len(self.registry) == 4, *[client.step for client in clients])

    def begun(self) -> list[int]:
        """Return a list to which the port number of each device is added when its handshake begins."""
        ports: list[int] = []
        begin = TLSTransport.begin_handshake

        def noting(transport: TLSTransport) -> None:
            ports.append(int(transport.peer.rpartition(":")[2]))
            begin(transport)

        self.patch(TLSTransport, "begin_handshake", noting)
        return ports

    def test_gone_at_once(self) -> None:
        """No handshake begins for a peer that has closed right after its ClientHello. It counts as one that gave up."""
        begun = self.begun()
        self.listen()
        for _ in range(OVERLOADED_OF):
            client = Client(self.connect())
            client.step()
            client.close()
            self.loop.settle()
        self.assertEqual(begun, [])
        reasons = {event.reason for event in self.of_type(HandshakeFailed)}
        self.assertEqual(reasons, {"closed while it waited for its handshake"})
        self.assertTrue(self.admission.overloaded)

    def test_newest_next(self) -> None:
        """When a peer turns out to be gone at its turn, the newest of the others is next."""
        begun = self.begun()
        clients = self.waiting(3)
        self.assertEqual(len(begun), 1)
        clients[1].close()
        self.connected.scheduler.start_soon()
        self.loop.until(lambda: len(self.registry) == 3, *[client.step for client in (clients[0], *clients[2:])])
        self.assertEqual(begun[1:], [clients[3].socket.getsockname()[1], clients[2].socket.getsockname()[1]])

    def test_stopped_while_some_wait(self) -> None:
        """A ClientHello that arrives while the service is stopped does not overtake those that wait, and none is forgotten."""
        clients = self.waiting(1)
        self.connected.scheduler.start_soon()
        self.connected.stopService()
        clients.append(Client(self.connect()))
        clients[-1].step()
        self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 2))
        self.connected.startService()
        self.loop.until(lambda: len(self.registry) == 3, *[client.step for client in clients])

    def test_a_line_before_the_next_handshake(self) -> None:
        """While something urgent waits, each turn begins one handshake: lines and their answers are served in between. Lines
        that have arrived before are written to the broker first.
        """
        clients = self.waiting(3)
        ours, broker = socket.socketpair()
        self.clients += ours, broker
        self.turn.watch(ours.fileno())
        self.addCleanup(self.turn.unwatch, ours.fileno())
        broker.send(b"a")
        written: list[int] = []
        self.turn.call_last(lambda: written.append(self.admission.handshaking))
        later: list[Any] = []
        begin = SSL.Connection.set_accept_state
        with (
            mock.patch.object(SSL.Connection, "set_accept_state", self.slowly(begin, 2 * UNINTERRUPTED)),
            mock.patch.object(self.connected.handshake_poller, "callLater", lambda delay, call: later.append(call)),
        ):
            self.connected.scheduler.start_soon()
            later.pop()()
            self.assertEqual((self.admission.handshaking, self.admission.waiting, written), (2, 2, [1]))
            self.turn.unwatch(ours.fileno())
            later.pop()()
            self.assertEqual((self.admission.waiting, later), (0, []))
        self.loop.until(lambda: len(self.registry) == 4, *[client.step for client in clients])

    def test_waiting_is_bounded(self) -> None:
        """Waiting for a slot counts towards the handshake timeout, which begins when the connection is accepted."""
        self.listen(max_handshakes=1)
        waiting = Client(self.connect())
        self.later(10)
        stalled = Client(self.connect())
        stalled.step()
        self.loop.settle()
        waiting.step()
        self.later(4)
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 1))
        self.later(2)
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 0))
        self.assertEqual([event.reason for event in self.of_type(HandshakeFailed)], ["no handshake within 15 s"])

    def test_gone_while_waiting(self) -> None:
        """A connection that ends while it waits for a slot is removed as soon as that is noticed."""
        self.listen(max_handshakes=1)
        for leave in (socket.socket.close, reset):
            stalled, gone, patient = clients = [Client(self.connect()) for _ in range(3)]
            for client in clients:
                client.step()
                self.loop.settle()
            self.assertEqual(self.admission.waiting, 2)
            leave(gone.socket)
            self.loop.settle()
            leave(stalled.socket)
            self.loop.until(lambda patient=patient: patient.secure, patient.step)
            self.loop.settle()
            self.assertEqual((self.admission.handshaking, self.admission.waiting), (0, 0))

    def test_many_fail_in_a_row(self) -> None:
        """Any number of immediate handshake failures follow one another without recursion."""
        self.listen(max_handshakes=100, max_connections=10_000)
        crowd = [self.knock() for _ in range(390)]
        self.loop.settle()
        stalled = Client(self.connect())
        depths = set()
        lost = Admission.lost

        def measure(admission: Admission[TLSTransport], connection: TLSTransport) -> None:
            depths.add(len(inspect.stack(0)))
            lost(admission, connection)

        with mock.patch.object(self.admission, "max_handshakes", 1), mock.patch.object(Admission, "lost", measure):
            stalled.step()
            self.loop.settle()
            for client in crowd:
                client.send(b"no TLS at all\r\n")
            self.loop.settle()
            self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 390))
            stalled.close()
            self.loop.settle()
        self.assertEqual(self.admission.connections, 0)
        self.assertLess(max(depths) - min(depths), 10)
        self.assertEqual(len(self.of_type(HandshakeFailed)), 391)

    def test_half_a_hello(self) -> None:
        """An incomplete ClientHello uses no handshake slot, and does not wake the reactor again and again. The connection
        continues when the rest arrives, and a hang-up is noticed.
        """
        self.listen(max_handshakes=1)
        memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        memory.set_connect_state()
        self.assertRaises(SSL.WantReadError, memory.do_handshake)
        hello = memory.bio_read(65536)
        halves = []
        for size in (1, 5, 6, len(hello) - 1):
            halves.append(self.connect())
            halves[-1].send(hello[:size])
            self.loop.settle()
            self.assertFalse(self.loop.turn())
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (0, 0))
        self.device()  # the oldest one is closed for it
        self.assertRaises(ConnectionResetError, halves.pop(0).recv, 1)
        for byte in hello[5:]:
            halves[0].send(bytes([byte]))
            self.loop.turn()
        self.loop.until(lambda: self.admission.handshaking)
        self.loop.settle()
        self.assertTrue(halves[0].recv(100).startswith(b"\x16"))
        for leave, half in zip((reset, socket.socket.close, reset), halves, strict=True):
            leave(half)
            self.loop.settle()
        self.assertEqual(self.admission.connections, 1)
        self.assertEqual(len(self.of_type(HandshakeFailed)), 3)

    def test_everything_in_pieces(self) -> None:
        """A device whose bytes arrive a few at a time is served like others: short lines are published on arrival."""
        self.listen()
        sock = self.connect()
        tls = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        tls.set_connect_state()

        def step() -> None:
            try:
                tls.bio_write(sock.recv(65536))
            except BlockingIOError:
                pass
            try:
                tls.do_handshake()
                said = tls.bio_read(65536)
            except SSL.WantReadError:
                try:
                    said = tls.bio_read(65536)
                except SSL.WantReadError:
                    return
            for start in range(0, len(said), 100):
                sock.send(said[start : start + 100])
                self.loop.settle()

        self.loop.until(lambda: len(self.registry) == 1, step)
        for line in (b"1", b"2"):
            tls.send(line + b"\n")
            sock.send(tls.bio_read(65536))
            self.loop.until(lambda line=line: self.sink.lines and self.sink.lines[-1][2] == line)

    def test_half_a_hello_and_no_place(self) -> None:
        """A peer that goes in the middle of its ClientHello, while no slot is free, leaves nothing behind."""
        self.listen(max_handshakes=1)
        half = self.connect()
        stalled = Client(self.connect())
        stalled.step()
        half.send(b"\x16\x03")
        self.loop.settle()
        half.close()
        self.loop.settle()
        self.assertEqual((self.admission.handshaking, self.admission.waiting), (1, 1))
        self.assertFalse(self.loop.turn())
        stalled.close()
        self.loop.settle()
        self.assertEqual(self.admission.connections, 0)

    def test_silent_pool(self) -> None:
        """When too many connections are silent, the oldest are closed with a reset, counted, and reported as a number."""
        listener = self.listen(max_connections=8)
        silent = [self.connect() for _ in range(4)]
        self.assertEqual(listener.evicted, 0)
        silent += [self.knock() for _ in range(6)]
        self.loop.settle()
        self.assertEqual((self.admission.connections, listener.evicted), (4, 6))
        for client in silent[:6]:
            self.assertRaises(ConnectionResetError, client.recv, 1)
        for client in silent[6:]:
            self.assertRaises(BlockingIOError, client.recv, 1)
        self.assertEqual(self.of_type(SilentEvicted), [])
        self.later(2)
        self.assertEqual(self.of_type(SilentEvicted), [SilentEvicted(6, 4, address="127.0.0.1")])
        for _ in range(3):
            self.connect()
            self.later(1)
        self.assertEqual(len(self.of_type(SilentEvicted)), 1)
        self.later(int(REPORT_INTERVAL))
        self.assertEqual(self.of_type(SilentEvicted)[1:], [SilentEvicted(3, 4, address="127.0.0.1")])
        self.assertEqual(self.of_type(HandshakeFailed), [])
        self.assertEqual(listener.failed_handshakes, 0)

    def test_heard_before_it_is_evicted(self) -> None:
        """A connection that has just sent data is not silent, even if the port has not noticed yet."""
        listener = self.listen(max_connections=8)
        clients = [Client(self.connect()) for _ in range(4)]
        for client in clients[:2]:
            client.step()
        self.knock()
        listener._acceptor.doRead()
        self.assertEqual((self.admission.spoken, listener.evicted), (2, 0))
        self.knock()
        self.knock()
        listener._acceptor.doRead()
        self.assertEqual((self.admission.spoken, listener.evicted), (2, 1))
        self.loop.until(lambda: len(self.registry) == 2, clients[0].step, clients[1].step)

    def test_all_have_spoken(self) -> None:
        """If no connection is silent after all, and the waiting ones are at their limit, none is accepted or closed."""
        listener = self.listen(max_connections=8, max_handshakes=1)
        clients = [Client(self.connect()) for _ in range(4)]
        for client in clients:
            client.step()
        clients.append(Client(self.knock()))
        listener._acceptor.doRead()
        begun = self.admission.waiting + self.admission.handshaking
        self.assertEqual((self.admission.connections, begun, listener.evicted), (5, 2, 0))
        clients[-1].step()
        self.loop.settle()
        self.knock()
        listener._acceptor.doRead()
        self.assertEqual((self.admission.connections, self.admission.waiting, listener.evicted), (5, 4, 0))
        self.loop.until(lambda: self.admission.connections == 6, *[client.step for client in clients])
        self.assertEqual(listener.evicted, 0)

    def test_another_process_was_quicker(self) -> None:
        """If several processes listen, a wake-up without a connection to accept has no effect."""
        listener = self.listen(max_connections=8)
        silent = [self.connect() for _ in range(4)]
        for _ in range(3):
            listener._acceptor.doRead()
        self.assertEqual((self.admission.connections, listener.evicted), (4, 0))
        for client in silent:
            self.assertRaises(BlockingIOError, client.recv, 1)

    def test_told_at_the_end(self) -> None:
        """Occurrences that were only counted are reported when the service stops."""
        listener = self.listen(max_connections=2)
        for _ in range(3):
            self.connect()
        self.later(2)
        self.connect()
        listener.stopService()
        self.assertEqual(self.of_type(SilentEvicted), [SilentEvicted(count, 1, address="127.0.0.1") for count in (2, 1)])


class AddressTests(Base):
    def test_limit(self) -> None:
        """One connection more than --max-per-address from an address is closed at once. Others are not affected."""
        listener = self.listen(max_per_address=2)
        self.device("127.0.0.2")
        kept = self.connect("127.0.0.2")
        refused = [self.connect("127.0.0.2") for _ in range(5)]
        for client in refused:
            self.assertRaises(ConnectionResetError, client.recv, 1)
        self.assertRaises(BlockingIOError, kept.recv, 1)
        self.device("127.0.0.3")
        self.assertEqual((self.admission.open, self.admission.connections, listener.turned_away), (2, 3, 5))
        self.assertEqual((listener.failed_handshakes, self.of_type(HandshakeFailed)), (0, []))
        self.later(2)
        self.assertEqual(self.of_type(TurnedAway), [TurnedAway(5, 2, "127.0.0.2")])
        self.connect("127.0.0.2")
        self.later(5)
        self.assertEqual(len(self.of_type(TurnedAway)), 1)
        self.later(int(REPORT_INTERVAL))
        self.assertEqual(self.of_type(TurnedAway)[1:], [TurnedAway(1, 2, "127.0.0.2")])

    def test_leaving(self) -> None:
        """When a connection ends, in any state, another one of its address is accepted."""
        listener = self.listen(max_per_address=1)
        for leave in (socket.socket.close, reset):
            leave(self.connect())
            self.loop.settle()
            half = self.connect()
            half.send(b"\x16\x03")
            self.loop.settle()
            leave(half)
            self.loop.settle()
            stalled = Client(self.connect())
            stalled.step()
            self.loop.settle()
            leave(stalled.socket)
            self.loop.settle()
            leave(self.device().socket)
            self.loop.settle()
        self.connect()
        self.assertEqual((self.admission.connections, listener.turned_away), (1, 0))

    def test_a_crowd_of_one_address(self) -> None:
        """Many refused connections do not delay those behind them: one turn closes dozens."""
        listener = self.listen(max_per_address=1)
        self.connect("127.0.0.2")
        for _ in range(50):
            self.knock("127.0.0.2")
        self.knock("127.0.0.3")
        listener._acceptor.doRead()
        self.assertEqual((listener.turned_away, self.admission.connections), (50, 2))

    def test_in_spite_of_all(self) -> None:
        """A refused connection closes no silent one."""
        listener = self.listen(max_connections=4, max_per_address=2)
        for _ in range(3):
            self.connect("127.0.0.2")
        self.assertEqual((listener.turned_away, listener.evicted, self.admission.connections), (1, 0, 2))


class OneOfSeveral:
    """This process among others on the same port."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.least = 0

    def tell(self, connections: int) -> None:
        self.told.append(connections)

    def stands_back(self, connections: int) -> bool:
        return connections > self.least


class SharedPortTests(Base):
    def test_tells(self) -> None:
        """The number of connections is shared with the other processes: when the port opens, and at each begin and end."""
        share = OneOfSeveral()
        self.listen(share=share)
        self.assertEqual(share.told, [0])
        client = self.connect()
        self.assertEqual(share.told[-1], 1)
        client.close()
        self.loop.settle()
        self.assertEqual(share.told[-1], 0)

    def test_stands_back(self) -> None:
        """A process with more connections than others leaves the next one to them, and takes it if it is still there a moment
        later.
        """
        share = OneOfSeveral()
        listener = self.listen(share=share)
        self.connect()
        self.connect()
        self.assertEqual(self.admission.connections, 1)
        self.assertNotIn(listener._acceptor, self.watched())
        self.loop.advance(STAND_BACK)
        self.loop.settle()
        self.assertEqual(self.admission.connections, 2)
        self.connect()
        self.assertEqual(self.admission.connections, 2, "each time anew")
        share.least = 5
        self.loop.advance(STAND_BACK)
        self.loop.settle()
        self.connect()
        self.assertEqual(self.admission.connections, 4)

    def test_taken_by_another(self) -> None:
        """If another process took the connection, nothing is left to accept, and the port continues as before."""
        share = OneOfSeveral()
        listener = self.listen(share=share)
        self.connect()
        late = self.connect()
        other = listener._socket.dup()
        other.setblocking(False)
        with other:
            other.accept()[0].close()
        self.loop.advance(STAND_BACK)
        self.loop.settle()
        self.assertEqual(self.admission.connections, 1)
        self.assertIn(listener._acceptor, self.watched())
        late.close()

    def test_stopped_meanwhile(self) -> None:
        """A stop in that moment leaves no timer. After a start the port is served again."""
        share = OneOfSeveral()
        listener = self.listen(share=share)
        self.connect()
        self.connect()
        listener.stopService()
        self.loop.advance(STAND_BACK)
        self.assertEqual(self.admission.connections, 1)
        listener.startService()
        self.assertIn(listener._acceptor, self.watched())


class TimeTests(Base):
    def test_handshake_timeout(self) -> None:
        """A connection that has not completed its handshake in time is closed and reported, silent or not. Others stay open."""
        self.listen()
        self.device()
        self.connect()
        Client(self.connect()).step()
        self.loop.settle()
        self.later(14)
        self.assertEqual(self.admission.connections, 3)
        self.later(2)
        self.assertEqual(self.admission.connections, 1)
        self.assertEqual([event.reason for event in self.of_type(HandshakeFailed)], ["no handshake within 15 s"] * 2)

    def test_goodbye_is_bounded(self) -> None:
        """A device that does not answer close_notify keeps its slot for a limited time."""
        self.listen()
        client = self.device()
        client.reading = False
        (endpoint,) = self.registry
        endpoint.close("enough")
        self.later(int(CLOSING_TIMEOUT) - 1)
        self.assertEqual(self.admission.connections, 1)
        self.later(3)
        self.assertEqual(self.admission.connections, 0)
        self.assertEqual([event.reason for event in self.of_type(DeviceDisconnected)], ["enough"])

    def take(self, client: Client) -> None:
        """Read part of the data for a device: enough for its kernel to request more."""
        select.select([client.socket], [], [], 5)  # the kernel delivers in its own time, and the clock of the test is faster
        for _ in range(10):
            try:
                client.socket.recv(20_000)
            except BlockingIOError:
                break

    def test_goodbye_to_a_slow_device(self) -> None:
        """A device that reads the data before close_notify has time for it while it makes progress, within limits."""
        self.listen(framing=LineFraming(max_line=32_000_000))
        for takes, longest in ((False, CLOSING_TIMEOUT), (True, LONGEST_GOODBYE)):
            client = self.device()
            client.reading = False
            # Of a buffer that the kernel enlarges, the device takes all that there is before the minute is over.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            (endpoint,) = self.registry
            endpoint.send(mock.Mock(), 1, b"", bytes(32_000_000), b"", None)
            self.later(1)
            transport = endpoint.transport
            endpoint.close("enough")
            seconds, untaken = 0, transport.untaken
            while self.admission.connections and seconds < 100:
                if takes:
                    self.take(client)
                elif transport.untaken < untaken:
                    # The kernel of the device still takes some, in its own time.
                    seconds, untaken = 0, transport.untaken
                self.later(1)
                seconds += 1
            self.assertTrue(longest - 1 <= seconds <= longest + CLOSING_TIMEOUT + 2, seconds)

    def test_goodbye_to_a_flood(self) -> None:
        """A device that is closed while it waits for its turn keeps its slot for a minute at most, however much it sends."""
        self.listen()
        self.device()
        (endpoint,) = self.registry
        self.sink.room = 1
        endpoint.dataReceived(b"a\nb\n")
        endpoint.close("enough")
        self.later(int(LONGEST_GOODBYE) - 2)
        self.assertEqual(self.admission.connections, 1)
        self.later(int(CLOSING_TIMEOUT) + 5)
        self.assertEqual(self.admission.connections, 0)

    def test_idle(self) -> None:
        """A device without a line in either direction is closed within the timeout and an eighth. A line in either direction
        prevents it.
        """
        self.listen(idle_timeout=80.0)
        quiet, talking, told = self.device(), self.device(), self.device()
        by_age = list(self.registry)
        for _ in range(9):
            talking.write(b"x\n")
            by_age[2].send(mock.Mock(), 1, b"", b"hello", b"", None)
            self.later(10)
            if self.loop.seconds() < 79:
                self.assertEqual(len(self.registry), 3)
        for client in (quiet, talking, told):
            client.step()
        self.assertEqual((quiet.ended, talking.ended, told.ended), ("notify", "", ""))

    def test_no_idle_timeout(self) -> None:
        """An idle timeout of 0 disables it."""
        self.listen(idle_timeout=0.0)
        self.device()
        for _ in range(10):
            self.loop.advance(1000)
        self.assertEqual(len(self.registry), 1)

    def test_idle_time_stands_still(self) -> None:
        """Devices that are not read are not idle: their time begins again when they are read."""
        self.listen(idle_timeout=40.0)
        client = self.device()
        self.later(30)
        self.sink.stop()
        self.later(100)
        self.sink.resume()
        self.later(38)
        client.step()
        self.assertEqual(client.ended, "")
        self.later(10)
        client.step()
        self.assertEqual(client.ended, "notify")

    def test_not_idle_while_it_is_slowed_down(self) -> None:
        """A device that --max-rate slows down is not idle: its data is still to be read."""
        self.listen(idle_timeout=40.0, max_rate=5.0)
        client = self.device()
        for _ in range(2):
            client.write(b"x\n" * 500)  # a hundred seconds of lines, each time
        for _ in range(215):
            self.later(1)
            client.step()
        self.assertEqual((len(self.sink.lines), client.ended), (1000, ""))

    def test_not_idle_while_it_drains(self) -> None:
        """A device that drains is closed at the end of its drain, and not as idle."""
        self.listen(idle_timeout=40.0, device_ack=lambda seq: b"ACK %d\r\n" % seq)
        client = self.device()
        (endpoint,) = self.registry
        endpoint.drain()
        self.later(100)
        client.step()
        self.assertEqual(client.ended, "")
        endpoint.close("enough")
        self.loop.until(lambda: client.ended, client.step)
        client.close()
        self.loop.until(lambda: self.of_type(DeviceDisconnected))
        self.assertEqual([event.reason for event in self.of_type(DeviceDisconnected)], ["enough"])

    def test_send_buffer(self) -> None:
        """For a device that does not read, the kernel buffers no more than the promised size, for writes of any size."""
        self.listen()
        for size in (1_000_000, 16384, 4000, 50):
            before = set(self.registry)
            self.device()
            (endpoint,) = set(self.registry) - before
            accepted = endpoint.transport._socket
            self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 2 * SEND_BUFFER)
            for _ in range(0, 1_000_000, size):
                endpoint.transport.write(b"x" * size)
            self.loop.settle()
            self.assertTrue(endpoint.backlog)
            self.assertLessEqual(endpoint.transport._unsent(), 2 * SEND_BUFFER, size)
            self.assertGreater(endpoint.transport._unsent(), SEND_BUFFER // 2)

    def test_gone_while_paused(self) -> None:
        """A device that goes while the sink is paused frees its slot within seconds. Its complete lines are published."""
        for leave in (Client.close, lambda client: reset(client.socket)):
            self.listen()
            client = self.device()
            self.sink.stop()
            client.write(b"whole\nrest")
            self.loop.until(lambda: self.totals.paused_connections, client.step)
            leave(client)
            self.later(int(PATIENCE) + 2)
            self.assertEqual((self.admission.connections, len(self.registry)), (0, 0))
            self.assertEqual([line for _, _, line in self.sink.lines], [b"whole"])
            self.tearDown()
            self.setUp()

    def test_an_error_in_a_tick(self) -> None:
        """An exception in a tick is logged, and the next tick runs."""
        self.listen()
        self.connect()
        with mock.patch.object(self.services.housekeeping, "tick", side_effect=RuntimeError("ours")):
            self.later(1)
        with mock.patch.object(PortAdmission, "overdue", side_effect=RuntimeError("ours")):
            self.later(1)
        self.assertTrue(self.flushLoggedErrors(RuntimeError))
        with mock.patch.object(self.services.housekeeping, "tick") as tick:
            self.later(1)
        self.assertTrue(tick.called)
        self.later(16)
        self.assertEqual(self.admission.connections, 0)


class ConfigureTests(Base):
    """Limits and times that change while connections are open, in all states."""

    def change(
        self,
        max_connections: int = 100,
        max_handshakes: int = 100,
        *,
        max_per_address: int | None = None,
        handshake_timeout: float = 15.0,
        linger: float = 0.0,
    ) -> None:
        listener = self.listener
        assert listener is not None
        self.admission.configure(max_connections, max_handshakes)
        self.port_admission.configure(max_connections)
        listener.configure(PortSettings(handshake_timeout), SourceLimits(max_per_address))
        self.connected.configure(linger)

    def test_more_connections(self) -> None:
        """A higher limit lets a waiting device in. Being full is reported again only when there was room meanwhile."""
        listener = self.listen(max_connections=2)
        for _ in range(2):
            self.device()
        waiting = Client(self.connect())
        self.change(2)
        self.loop.settle(waiting.step)
        self.assertEqual((len(self.registry), listener.accepting, len(self.of_type(Full))), (2, False, 1))
        self.change(3)
        self.loop.until(lambda: len(self.registry) == 3, waiting.step)
        self.assertEqual((listener.accepting, self.of_type(Full)), (False, [Full(2, mock.ANY), Full(3, mock.ANY)]))

    def test_fewer_connections(self) -> None:
        """A lower limit closes no device, and lets none in until there is room."""
        listener = self.listen()
        devices = [self.device() for _ in range(4)]
        self.change(2)
        self.assertEqual((listener.accepting, self.of_type(Full)), (False, [Full(4, mock.ANY)]))
        waiting = Client(self.connect())
        for open_ones in (4, 3, 2):
            self.loop.settle(waiting.step)
            self.assertEqual(len(self.registry), open_ones)
            devices.pop().socket.close()
            self.loop.until(lambda: self.admission.open < open_ones, waiting.step)  # noqa: B023
        self.loop.until(lambda: len(self.registry) == 2, waiting.step)
        self.assertTrue(waiting.secure)

    def test_closed_port(self) -> None:
        """A change does not open a port that is closed for good."""
        listener = self.listen()
        listener.stopListening()
        self.change(5, max_per_address=3)
        self.assertFalse(listener.accepting)
        self.assertNotIn(listener._acceptor, self.watched())

    def test_per_address(self) -> None:
        """A new limit for each address counts connections in all states, and each makes room when it ends."""
        listener = self.listen(max_handshakes=1)
        established = self.device()
        closing = self.device()
        closing.reading = False
        list(self.registry)[-1].close("enough")
        silent = self.connect()
        handshaking, waiting = Client(self.connect()), Client(self.connect())
        handshaking.step()
        self.loop.settle()
        waiting.step()
        self.loop.settle()
        self.assertEqual((self.admission.connections, self.admission.handshaking, self.admission.waiting), (5, 1, 1))
        self.change(max_handshakes=1, max_per_address=5)
        self.assertEqual((listener.turned_away, len(self.sources)), (0, 1))
        for client in (silent, waiting.socket, handshaking.socket, closing.socket, established.socket):
            turned_away = listener.turned_away
            self.connect()
            self.assertEqual(listener.turned_away, turned_away + 1)
            client.close()
            self.later(1)  # a waiting one is not read
            self.connect()
            self.assertEqual(listener.turned_away, turned_away + 1)

    def test_per_address_of_refused_devices(self) -> None:
        """A device that was refused, and that has not taken the close of its connection yet, counts until it is gone."""
        listener = self.listen()
        refused = HandshakeRefused(Refusal("too old"))
        with mock.patch.object(self, "identify", side_effect=refused):
            client = Client(self.connect())
            client.reading = False
            self.loop.until(lambda: self.of_type(HandshakeFailed), client.step)
        self.assertEqual((self.admission.open, len(self.registry)), (1, 0))
        self.change(max_per_address=1)
        self.connect()
        self.assertEqual(listener.turned_away, 1)
        client.close()
        self.loop.settle()
        self.connect()
        self.assertEqual(listener.turned_away, 1)

    def test_per_address_changes(self) -> None:
        """Another limit for each address holds for the connections that are open, also after a time without a limit."""
        listener = self.listen(max_per_address=3)
        for _ in range(3):
            self.device()
        self.change(max_per_address=2)
        self.connect()
        self.assertEqual((listener.turned_away, len(self.registry)), (1, 3))
        self.later(2)
        self.assertEqual(self.of_type(TurnedAway), [TurnedAway(1, 2, "127.0.0.1")])
        self.change()
        self.device()
        self.change(max_per_address=5)
        self.device()
        self.connect()
        self.assertEqual((listener.turned_away, len(self.registry)), (2, 5))

    def test_handshake_timeout(self) -> None:
        """Another time for handshakes counts from the begin of those in progress."""
        for timeout, before, after in ((5.0, 3, 2), (30.0, 25, 6)):
            self.events.clear()
            self.listen()
            self.connect()
            Client(self.connect()).step()
            self.loop.settle()
            self.later(1)
            self.change(handshake_timeout=timeout)
            self.later(before)
            self.assertEqual(self.admission.connections, 2)
            self.later(after)
            self.assertEqual(self.admission.connections, 0)
            self.assertEqual(
                [event.reason for event in self.of_type(HandshakeFailed)], [f"no handshake within {timeout:g} s"] * 2
            )
            self.tearDown()
            self.setUp()
