"""Tests of the life cycle of a connection: the state machine alone, its diagram, and real connections."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, cast, get_args

from automat import NoTransition, TypeMachineBuilder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.acceptor import Limits
from owsla.device.admission import Admission, PortAdmission
from owsla.device.connected_sockets import ConnectedSockets
from owsla.device.connections import Connection, Connections
from owsla.device.factory import DeviceFactory
from owsla.device.hangup import HangupWatch
from owsla.device.lifecycle import TRANSITIONS, Input, Lifecycle, diagram
from owsla.device.port import DevicePort, PortHooks, PortSettings
from owsla.device.protocol import DeviceProtocol
from owsla.device.services import DeviceRuntime, DeviceServices, DeviceTotals
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.device.socket_transport import SocketTransport
from owsla.device.tcp_transport import TCPTransport
from owsla.device.tls_transport import TLSTransport
from owsla.events import DeviceConnected, DeviceDisconnected, Event, HandshakeFailed
from owsla.letter import Letter
from owsla.routing import ConnectionIds, Registry
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.runtime.sockets import bind
from owsla.supervision import DynamicSupervisor

from ._fakes import Courier, Sink, Source
from ._sockets import Loop, device_tls, reset, tcp_pair, unix_pair

NO: Final = ""
"""The input is impossible in that state."""

INPUTS: Final[tuple[Input, ...]] = (
    "hello_received", "secured", "opened", "pause", "resume", "drain", "close", "abort",
    "handshake_overdue", "idle_overdue", "close_overdue", "ended",
)  # fmt: skip

LIVES: Final = {
    "accepted": (
        "handshaking", NO, "open", NO, NO, NO, "closed", "closed",
        "closed", NO, NO, "closed",
    ),
    "handshaking": (
        NO, "open", NO, NO, NO, NO, "closed", "closed",
        "closed", NO, NO, "closed",
    ),
    "open": (
        NO, NO, NO, "paused", "open", "draining", "closing", "closed",
        NO, "closing", NO, "closed",
    ),
    "paused": (
        NO, NO, NO, "paused", "open", "draining", "closing", "closed",
        NO, "closing", NO, "closed",
    ),
    "draining": (
        NO, NO, NO, "draining", "draining", "draining", "closing", "closed",
        NO, "draining", NO, "closed",
    ),
    "closing": (
        NO, NO, NO, "closing", "closing", "closing", "closing", "closed",
        NO, "closing", "closed", "closed",
    ),
    "closed": (
        NO, NO, NO, "closed", "closed", "closed", "closed", "closed",
        "closed", "closed", "closed", "closed",
    ),
}  # fmt: skip
"""Every state, and the result of each of `INPUTS`."""

WAYS: Final[dict[str, tuple[Input, ...]]] = {
    "accepted": (),
    "handshaking": ("hello_received",),
    "open": ("hello_received", "secured"),
    "paused": ("hello_received", "secured", "pause"),
    "draining": ("hello_received", "secured", "drain"),
    "closing": ("hello_received", "secured", "close"),
    "closed": ("abort",),
}
"""Inputs that lead to each state."""


class Machine(Lifecycle):
    """Machine that records its actions."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def begin_handshake(self) -> None:
        self.done.append("begin_handshake")

    def begin_data(self) -> None:
        self.done.append("begin_data")

    def stop_reading(self) -> None:
        self.done.append("stop_reading")

    def start_reading(self) -> None:
        self.done.append("start_reading")

    def begin_close(self) -> None:
        self.done.append("begin_close")

    def close_socket(self) -> None:
        self.done.append("close_socket")

    def close_socket_soon(self) -> None:
        self.done.append("close_socket_soon")


class Life(Protocol):
    """Inputs of the machine, for Automat."""

    def hello_received(self) -> None: ...

    def secured(self) -> None: ...

    def opened(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def handshake_overdue(self) -> None: ...

    def idle_overdue(self) -> None: ...

    def close_overdue(self) -> None: ...

    def ended(self) -> None: ...


def _carry_out(action: str) -> Callable[[Life, Machine], None]:
    """Return an output of Automat that calls an action."""

    def output(life: Life, machine: Machine) -> None:
        getattr(machine, action)()

    output.__name__ = action
    return output


def happen(machine: Lifecycle, *inputs: Input) -> None:
    for one in inputs:
        machine._take(one)


class MachineTests(SynchronousTestCase):
    """The state machine alone."""

    def machine(self, state: str) -> Machine:
        machine = Machine()
        happen(machine, *WAYS[state])
        self.assertEqual(machine._phase, state)
        machine.done.clear()
        return machine

    def test_diagram(self) -> None:
        """docs/lifecycle.md has the diagram of the machine."""
        page = (Path(__file__).parents[3] / "docs" / "lifecycle.md").read_text()
        (shown,) = [part.partition("\n```")[0] for part in page.split("```mermaid\n")[1:]]
        self.assertEqual(shown, diagram())

    def test_complete(self) -> None:
        """The table of these tests has all states and all inputs."""
        self.assertEqual(set(TRANSITIONS), set(LIVES))
        self.assertEqual(get_args(Input), INPUTS)
        for row in LIVES.values():
            self.assertEqual(len(row), len(INPUTS))

    def test_automat(self) -> None:
        """Automat accepts the table as a machine, and its instance does the same as ours on every path of four inputs."""
        builder = TypeMachineBuilder(Life, Machine)
        states = {name: builder.state(name) for name in TRANSITIONS}
        for name, transitions in TRANSITIONS.items():
            for event, (target, action) in transitions.items():
                step = states[name].upon(getattr(Life, event)).to(states[target])
                step.returns(None) if action is None else step(_carry_out(action))
        build = builder.build()
        for path in itertools.product(INPUTS, repeat=4):
            ours, theirs = Machine(), Machine()
            outcomes = []
            automat = build(theirs)
            for machine, inputs in (
                (ours, [partial(ours._take, event) for event in path]),
                (theirs, [getattr(automat, event) for event in path]),
            ):
                taken = 0
                try:
                    for taken, take in enumerate(inputs):  # noqa: B007
                        take()
                    taken += 1
                except NoTransition:
                    pass
                outcomes.append((taken, machine.done))
            self.assertEqual(outcomes[0], outcomes[1], path)

    def test_every_pair(self) -> None:
        """Every input in every state leads to the declared state, or is impossible."""
        for state, row in LIVES.items():
            for what, next_state in zip(INPUTS, row, strict=True):
                if next_state == NO:
                    continue
                machine = self.machine(state)
                happen(machine, what)
                self.assertEqual(machine._phase, next_state, (state, what))
                if next_state == state:
                    # A protocol may still pause the transport before it is told of the close.
                    done = {("closing", "pause"): ["stop_reading"], ("closing", "resume"): ["start_reading"]}
                    self.assertEqual(machine.done, done.get((state, what), []), (state, what))

    def test_impossible(self) -> None:
        """An impossible input raises, has no effect, and leaves the machine usable."""
        for state, row in LIVES.items():
            for what, next_state in zip(INPUTS, row, strict=True):
                if next_state != NO:
                    continue
                machine = self.machine(state)
                self.assertRaises(NoTransition, happen, machine, what)
                self.assertEqual((machine._phase, machine.done), (state, []), (state, what))
                happen(machine, "ended")
                self.assertEqual(machine._phase, "closed")

    def test_effects(self) -> None:
        """A whole life runs each action once, in order."""
        machine = Machine()
        happen(machine, "hello_received", "secured", "pause", "pause", "resume", "resume")
        happen(machine, "drain", "drain", "close", "close", "ended")
        self.assertEqual(
            machine.done,
            ["begin_handshake", "begin_data", "stop_reading", "start_reading", "stop_reading", "begin_close", "close_socket"],
        )

    def test_during_an_action(self) -> None:
        """An input that arrives during an action is taken after it."""

        class Impatient(Machine):
            def begin_data(self) -> None:
                self._take("pause")
                self._take("abort")
                super().begin_data()

        machine = Impatient()
        happen(machine, "opened")
        self.assertEqual((machine._phase, machine.done), ("closed", ["begin_data", "stop_reading", "close_socket_soon"]))

    def test_memory(self) -> None:
        """A machine adds two slots to a connection, and no object after any input."""
        self.assertEqual(len(Lifecycle.__slots__), 2)
        machine = self.machine("paused")
        self.assertEqual((machine._phase, machine._pending), ("paused", None))


# -- A real connection, and all that may happen to it --------------------------------------------------------------------


class Peer:
    """Device that sends its bytes when, and as far as, the test wants: OpenSSL over memory, beside a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.tls = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        self.tls.set_connect_state()
        self.secure = False
        self.reading = True
        self._outgoing = b""

    @property
    def there(self) -> bool:
        return self.socket.fileno() >= 0

    def flush(self, limit: int | None = None) -> None:
        """Send the pending output of OpenSSL, or this many bytes of it."""
        if not self.there:
            return
        try:
            while True:
                self._outgoing += self.tls.bio_read(65536)
        except SSL.Error:
            pass
        self.send(self._outgoing[:limit])

    def send(self, data: bytes) -> None:
        try:
            sent = self.socket.send(data)
        except OSError:
            return
        if self._outgoing.startswith(data):
            self._outgoing = self._outgoing[sent:]

    def step(self) -> None:
        """Read, unless it stalls, and continue the handshake."""
        if not self.there:
            return
        if self.reading:
            try:
                data = self.socket.recv(65536)
                if data:
                    self.tls.bio_write(data)
            except OSError:
                pass
        try:
            if not self.secure:
                self.tls.do_handshake()
                self.secure = True
            while True:
                self.tls.recv(65536)
        except SSL.Error:
            pass

    def say(self, data: bytes) -> None:
        try:
            self.tls.send(data)
        except SSL.Error:
            return
        self.flush()


class PlainPeer(Peer):
    """Device without TLS."""

    secure = True

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.tls = cast(SSL.Connection, _Nothing())
        self.reading = True
        self._outgoing = b""

    def flush(self, limit: int | None = None) -> None:
        """Send a piece of a line."""
        if self.there:
            self.send(b"x" if limit is not None else b"\n")

    def step(self) -> None:
        if self.there and self.reading:
            try:
                self.socket.recv(65536)
            except OSError:
                pass

    def say(self, data: bytes) -> None:
        if self.there:
            self.send(data)


class _Nothing:
    """OpenSSL connection of a device without TLS: it has no close_notify to send."""

    def shutdown(self) -> None:
        raise SSL.Error()


class LifeWorld:
    """Real port, factory and transports on the loop of the test. The test passes accepted sockets by hand."""

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self.impossible: list[tuple[str, str]] = []
        self.seen: set[tuple[str, str]] = set()
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.loop = cast(Any, Loop())
        self.events: list[Event] = []
        self.sink = Sink()
        self.source = Source(prefetch=65535)
        self.registry: Registry[Connection] = Registry()
        self.admission: Admission[Any] = Admission(100, 100)
        self.lost: list[SocketTransport] = []
        self.transports: list[SocketTransport] = []
        self.peers: list[Peer] = []
        self.failures: list[Failure | None] = []
        self.endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(self.loop, name="endpoints")
        hangups = HangupWatch(self.loop)
        turn = EndOfTurn(self.loop)
        self.services = DeviceServices(
            DeviceRuntime(self.loop, turn, self.events.append, self.loop.seconds),
            SharedSettings(),
            Connections(ConnectionIds(), self.registry, self.endpoints),
            self.sink,
            Courier(),
            hangups,
        )
        settings = DeviceSettings(max_rate=2.0, idle_timeout=60.0, device_ack=lambda seq: b"ACK %d\r\n" % seq)
        self.factory = DeviceFactory(self.services, settings, DeviceProtocol)
        self.totals = DeviceTotals(self.services)
        self.sockets = ConnectedSockets(self.loop, self.admission, hangups, turn, housekeeping=self.services.housekeeping)
        self.port_admission = PortAdmission(self.admission, 100)
        world = self

        class Counting(DevicePort):
            """Owner that counts lost connections."""

            def connectionClosed(self, transport: SocketTransport, failed: str | None) -> None:
                world.lost.append(transport)
                super().connectionClosed(transport, failed)

        self.listener = Counting(
            self.loop,
            bind(0, "127.0.0.1"),
            None if plain else device_tls(),
            self.factory,
            self.sockets,
            Limits(self.port_admission),
            PortSettings(handshake_timeout=5.0),
            PortHooks(self.events.append, lambda reason: None),
        )
        self.sockets.supervise(self.failures.append)
        self.listener.supervise(self.failures.append)
        self.endpoints.startService()
        self.sockets.startService()
        self.listener.startService()

    def watched(self, kind: Any) -> Any:
        """Return a transport class that records inputs by state, and impossible ones."""
        world = self

        class Watched(kind):  # type: ignore[misc]
            __slots__ = ()

            def _take(self, event: Input) -> None:
                state = self._phase
                world.seen.add((state, event))
                try:
                    super()._take(event)
                except NoTransition:
                    world.impossible.append((state, event))
                    raise

        return Watched

    def connect(self, tcp: bool) -> tuple[SocketTransport, Peer]:
        """Accept a connection: as `Acceptor.doRead` does, with a socket of the test."""
        server, client = tcp_pair() if tcp else unix_pair()
        kind = TCPTransport if self.plain else TLSTransport
        transport = self.watched(kind)(self.loop, server, ("127.0.0.1", 5), self.listener)
        self.port_admission.accepted(transport, self.loop.seconds())
        peer = PlainPeer(client) if self.plain else Peer(client)
        self.transports.append(transport)
        self.peers.append(peer)
        return transport, peer

    def endpoint(self, transport: SocketTransport) -> DeviceProtocol | None:
        """Return the protocol of the connection, while there is one."""
        lines = transport._protocol
        assert lines is None or isinstance(lines, DeviceProtocol)
        return lines if lines is not None and lines.transport is not None else None

    def turn(self) -> None:
        for peer in self.peers:
            peer.step()
        self.loop.turn()

    def end(self) -> None:
        """End all peers and let time pass: nothing is left after any history."""
        for peer in self.peers:
            if _unsent(peer.socket):
                # Its end would stay behind that, for as long as it is not read. What a system does in the end is to reset.
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.socket.close()
        if not self.sink.away:
            # A connection that waits for a working broker is kept until its turn, which comes when lines are confirmed.
            self.sink.resume()
        # On a busy machine the kernel delivers the end of a connection over the loopback interface a moment later (ksoftirqd),
        # so real time has to pass as well.
        give_up = time.monotonic() + 10.0
        while self.admission.connections and time.monotonic() < give_up:
            self.loop.turn(0.001)
            self.loop.advance(1.0)
        assert self.admission.connections == 0, "a connection outlives its peer"
        self.listener.stopListening()
        self.listener.stopService()
        self.sockets.stopService()
        self.endpoints.stopService()
        self.loop.turn()
        assert (self.failures, self.endpoints.failures, len(self.endpoints)) == ([], 0, 0)
        assert (self.loop.readers, self.loop.writers, self.loop.getDelayedCalls()) == (set(), set(), [])
        assert set(os.listdir("/proc/self/fd")) <= self.descriptors, "a descriptor is left"
        assert sorted(map(id, self.lost)) == sorted(map(id, self.transports)), "each ends once"
        assert (len(self.registry), self.totals.paused_connections) == (0, 0)
        connected = [event.connection_id for event in self.events if isinstance(event, DeviceConnected)]
        disconnected = [event.connection_id for event in self.events if isinstance(event, DeviceDisconnected)]
        assert sorted(connected) == sorted(disconnected), "each endpoint hears of its end once"
        failed = sum(isinstance(event, HandshakeFailed) for event in self.events)
        assert failed + len(connected) == len(self.transports)
        assert not self.source.outstanding, "each message has a fate"
        assert self.impossible == []


def _unsent(sock: socket.socket) -> int:
    """Return the number of bytes that the kernel of the other end has not accepted (SIOCOUTQ, tcp(7))."""
    if sock.fileno() < 0:
        return 0
    unsent: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]
    return unsent


NUMBERS: Final = st.integers(0, 4)
"""Index of a connection."""


class ConnectionMachine(RuleBasedStateMachine):
    """Up to five connections, with any actions of peers and owners, in any order."""

    plain = False
    seen: set[tuple[str, str]] = set()
    """Pairs of state and input, over all runs."""

    def __init__(self) -> None:
        super().__init__()
        self.world = LifeWorld(self.plain)

    @property
    def pairs(self) -> list[tuple[SocketTransport, Peer]]:
        return list(zip(self.world.transports, self.world.peers, strict=True))

    def one(self, number: int) -> tuple[SocketTransport, Peer]:
        if not self.world.transports:
            self.world.connect(tcp=number % 2 == 0)
        return self.pairs[number % len(self.pairs)]

    # -- the peers -----------------------------------------------------------------------------------------------------------

    @rule(tcp=st.booleans())
    def connect(self, tcp: bool) -> None:
        if len(self.world.transports) < 5:
            self.world.connect(tcp)

    @rule(tcp=st.booleans())
    def connect_and_shake_hands(self, tcp: bool) -> None:
        if len(self.world.transports) < 5:
            transport, peer = self.world.connect(tcp)
            for _ in range(20):
                peer.step()
                peer.flush()
                self.world.loop.turn(0.01)
                if transport._protocol is not None:
                    break

    @rule(number=NUMBERS, limit=st.integers(1, 300))
    def a_piece_of_the_handshake(self, number: int, limit: int) -> None:
        _, peer = self.one(number)
        peer.step()
        peer.flush(limit)

    @rule(number=NUMBERS)
    def the_rest_of_the_handshake(self, number: int) -> None:
        _, peer = self.one(number)
        peer.step()
        peer.flush()

    @rule(number=NUMBERS, lines=st.integers(1, 200), whole=st.booleans())
    def lines(self, number: int, lines: int, whole: bool) -> None:
        self.one(number)[1].say(b"a line\n" * lines + (b"" if whole else b"a beg"))

    @rule(number=NUMBERS)
    def a_line_too_long(self, number: int) -> None:
        self.one(number)[1].say(b"x" * 20_000)

    @rule(number=NUMBERS, data=st.binary(min_size=1, max_size=40))
    def garbage(self, number: int, data: bytes) -> None:
        peer = self.one(number)[1]
        if peer.there:
            peer.send(data)

    @rule(number=NUMBERS)
    def close_notify(self, number: int) -> None:
        peer = self.one(number)[1]
        try:
            peer.tls.shutdown()
        except SSL.Error:
            return
        peer.flush()

    @rule(number=NUMBERS)
    def fin(self, number: int) -> None:
        peer = self.one(number)[1]
        if peer.there:
            try:
                peer.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    @rule(number=NUMBERS)
    def rst(self, number: int) -> None:
        peer = self.one(number)[1]
        if peer.there:
            reset(peer.socket)

    @rule(number=NUMBERS, count=st.integers(10, 100))
    def a_slow_device(self, number: int, count: int) -> None:
        self.one(number)[1].reading = False
        self.messages(number, 16_000, count, False)
        self.world.loop.turn()

    @rule(number=NUMBERS, reading=st.booleans())
    def stall(self, number: int, reading: bool) -> None:
        self.one(number)[1].reading = reading

    # -- the broker's side -------------------------------------------------------------------------------------------------

    @rule(room=st.none() | st.integers(1, 5))
    def the_sink_takes(self, room: int | None) -> None:
        self.world.sink.resume(room)

    @rule()
    def the_sink_stops(self) -> None:
        self.world.sink.stop()

    @rule(number=NUMBERS, size=st.sampled_from([0, 10, 16_000]), count=st.integers(1, 20), close=st.booleans())
    def messages_come(self, number: int, size: int, count: int, close: bool) -> None:
        self.messages(number, size, count, close)

    def messages(self, number: int, size: int, count: int, close: bool) -> None:
        endpoint = self.world.endpoint(self.one(number)[0])
        if endpoint is None:
            return  # the router finds no connection
        source = self.world.source
        for _ in range(count):
            endpoint.send(source, source.next(), b"", b"x" * size, endpoint.connection_id, None)
        if close:
            endpoint.post(Letter(source, source.next(), b"", b"", endpoint.connection_id, None, close=True))

    # -- their owners --------------------------------------------------------------------------------------------------------

    @rule(number=NUMBERS)
    def drain(self, number: int) -> None:
        endpoint = self.world.endpoint(self.one(number)[0])
        if endpoint is not None:
            endpoint.drain()

    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        """Close connections that the gateway has drained, or must give up."""
        endpoint = self.world.endpoint(self.one(number)[0])
        if endpoint is not None:
            endpoint.close("the gateway stops")

    @rule(number=NUMBERS)
    def abort(self, number: int) -> None:
        self.one(number)[0].abortConnection()

    @rule(number=NUMBERS, size=st.sampled_from([1, 100_000]), close=st.booleans())
    def what_a_protocol_may_do(self, number: int, size: int, close: bool) -> None:
        """Write and close without the protocol of the device. Only that protocol pauses, and then watches for a hang-up."""
        transport, _ = self.one(number)
        if transport._protocol is not None:
            transport.write(b"x" * size)
            if close:
                transport.unregisterProducer()
                transport.loseConnection()

    @rule(number=NUMBERS)
    def the_reactor_finds_it_dead(self, number: int) -> None:
        """Do what a reactor does with a descriptor that reports an error or has raised."""
        transport, _ = self.one(number)
        loop = self.world.loop
        if transport in loop.readers or transport in loop.writers:
            loop.removeReader(transport)
            loop.removeWriter(transport)
            transport.connectionLost(Failure(ConnectionLost()))

    # -- time ------------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.1, 5.1, 31.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        """Run the timers of the port and the factory, which close overdue connections."""
        steps = max(1, int(seconds))
        for _ in range(steps):
            self.world.loop.advance(seconds / steps)

    @rule(turns=st.integers(1, 5))
    def turns(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()

    @invariant()
    def nothing_impossible(self) -> None:
        assert self.world.impossible == []

    def teardown(self) -> None:
        self.world.end()
        ConnectionMachine.seen |= self.world.seen


class PlainConnectionMachine(ConnectionMachine):
    """The same without TLS."""

    plain = True


class ConnectionTests(SynchronousTestCase):
    """Real connections, through transport, protocol, factory and port."""

    def test_any_sequence(self) -> None:
        """After any sequence of actions, in any order: no impossible input occurred, every connection ended once, and no
        descriptor is left.
        """
        self.run_machine(ConnectionMachine)

    def test_any_sequence_without_tls(self) -> None:
        """The same holds for plain connections."""
        self.run_machine(PlainConnectionMachine)

    def run_machine(self, machine: type[ConnectionMachine]) -> None:
        """Run a machine with many sequences, and check what it has seen."""
        device_tls()
        import twisted.internet.reactor  # noqa: F401  a LoopingCall does it otherwise, and its descriptors would count as leaked

        ConnectionMachine.seen = set()
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)),
        )
        self.assertGreater(len(ConnectionMachine.seen), 15, "the sequences are too tame to show anything")
        for state, what in ConnectionMachine.seen:
            self.assertNotEqual(LIVES[state][INPUTS.index(what)], NO)
