"""In-memory collaborators of a device protocol: sink, courier, consumers, and a transport with a limited buffer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from owsla.device.connections import Connection, Connections
from owsla.device.factory import DeviceFactory
from owsla.device.framing import Framing, LineFraming
from owsla.device.interfaces import IDeviceTransport
from owsla.device.protocol import DeviceProtocol
from owsla.device.services import DeviceRuntime, DeviceServices, DeviceTotals
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.events import DeviceConnected, Event
from owsla.interfaces import LineSource
from owsla.letter import DeliverySource, Letter
from owsla.routing import ConnectionIds, Registry
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.supervision import DynamicSupervisor

EventType = TypeVar("EventType", bound=Event)

GONE = Failure(ConnectionLost("gone"))


class Sink:
    """Sink with a limited number of lines, which records the number of each line."""

    def __init__(self) -> None:
        self.accepting = True
        self.share = 1_000_000
        self.line_size = 16384
        self.spare = 1000
        """Number of lines of a disconnected device that are kept."""
        self.away = False
        """True while nothing is confirmed."""
        self.settled = 0
        """Number of confirmed lines."""
        self.room: int | None = None
        """Number of further lines that the sink accepts; None for any number."""
        self.lines: list[tuple[bytes, int, bytes]] = []
        self.received: list[float] = []
        """Time at which each line was received; 0 stands for the time of its publication."""
        self.waiting: list[LineSource] = []
        self.traces: dict[bytes, str] = {}
        """The last traceparent of connections."""

    def open(self, connection_id: bytes, device_id: str | None) -> Any:
        return connection_id, device_id

    def traceparent(self, source: LineSource) -> str | None:
        return self.traces.get(source.connection_id)

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        self.received.append(received)
        self.lines.append((source.connection_id, source.seq, line))
        source.seq += 1
        if not self.accepting:
            self.spare = max(0, self.spare - 1)
        if self.room is not None:
            self.room -= 1
            if self.room <= 0:
                self.accepting = False

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        for taken, line in enumerate(lines, 1):
            before = source.seq
            self.publish(source, line, received)
            if not self.accepting or source.seq == before:
                return taken
        return len(lines)

    def position(self, since: int) -> int:
        return len(self.lines) if self.settled >= since else -1

    def wait(self, source: LineSource, since: int = 0) -> None:
        self.waiting.append(source)

    def leave(self, source: LineSource) -> None:
        if source in self.waiting:
            self.waiting.remove(source)

    def resume(self, room: int | None = None) -> None:
        """Accept lines again. Call each waiting connection once, while there is room."""
        self.room = room
        self.away = False
        self.accepting = True
        for _ in range(len(self.waiting)):
            if not self.accepting:
                return
            self.waiting.pop(0).resume()

    def serves(self, source: LineSource) -> bool:
        return not self.away

    def stop(self) -> None:
        """Stop confirming: the broker is gone."""
        self.away = True
        self.accepting = False

    def of(self, source: LineSource) -> list[bytes]:
        """Return the lines of a connection, after a check that their numbers are 0, 1, 2 …"""
        own = [(seq, line) for connection_id, seq, line in self.lines if connection_id == source.connection_id]
        assert [seq for seq, _ in own] == list(range(len(own))), own
        return [line for _, line in own]


class Courier:
    """Courier that records its calls, and acknowledges recorded messages, as the real one does."""

    def __init__(self) -> None:
        self.records: list[tuple[Letter, str]] = []
        self.reports: list[tuple[Letter, str]] = []

    def record(self, letter: Letter, reason: str) -> None:
        self.records.append((letter, reason))
        letter.source.done(letter.tag)

    def forward(self, letter: Letter, node: bytes) -> None:
        raise AssertionError("a device protocol forwards nothing")

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        raise AssertionError("a device protocol forwards nothing")

    def report(self, letter: Letter, outcome: str) -> None:
        self.reports.append((letter, outcome))

    @property
    def reasons(self) -> list[tuple[bytes, str]]:
        return [(letter.body, reason) for letter, reason in self.records]


class Source:
    """Consumer that assigns delivery tags, and records acknowledged ones."""

    def __init__(self, prefetch: int = 500) -> None:
        self.open = True
        self.prefetch = prefetch
        self.own = False
        self.tags = 0
        self.acked: list[int] = []
        self.bodies: list[bytes] = []
        """Bodies of delivered messages without a number."""

    def next(self) -> int:
        self.tags += 1
        return self.tags

    def done(self, tag: int) -> None:
        assert 0 < tag <= self.tags, f"no such delivery: {tag}"
        assert tag not in self.acked, f"acknowledged twice: {tag}"
        self.acked.append(tag)

    def written(self, header: bytes, body: bytes) -> None:
        self.bodies.append(body)

    @property
    def outstanding(self) -> int:
        return self.tags - len(self.acked)


@implementer(IDeviceTransport)
class Wire:
    """Transport that accepts `room` bytes, by default any number, and pauses its producer beyond."""

    tls_version = "TLSv1.3"

    def __init__(self, room: float = float("inf"), device_id: str | None = None, peer: str = "192.0.2.1:1234") -> None:
        self.room = room
        self.peer = peer
        self.device_id = device_id
        """Device id in the certificate."""
        self.producer: Any = None
        self.written: list[bytes] = []
        self.congested = False
        self.unread = 0
        self.untaken = 0
        """Number of written bytes that the device has not read."""
        self.reading = True
        self.closed = ""
        self.lost = False
        """True after the connection is lost. Its transport must not be used then."""

    def write(self, data: bytes) -> None:
        assert not self.lost
        if self.closed:
            return
        self.written.append(data)
        self.room -= len(data)
        if self.room < 0 and not self.congested:
            self.congested = True
            if self.producer is not None:
                self.producer.pauseProducing()

    def drained(self, room: float = float("inf")) -> None:
        """Let the device read everything, and set the new room."""
        self.room = room
        self.congested = False
        if self.producer is not None:
            self.producer.resumeProducing()

    @property
    def data(self) -> bytes:
        return b"".join(self.written)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def getHandle(self) -> Any:
        return self

    def lossReason(self, reason: Failure) -> Failure:
        return reason

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def loseConnection(self) -> None:
        self.closed = self.closed or "lost"

    def abortConnection(self, reason: Failure | None = None) -> None:
        self.closed = "aborted"

    idleOverdue = loseConnection

    def drain(self) -> None:
        self.reading = False

    def fileno(self) -> int:
        return id(self)


SHARED = {field.name for field in fields(SharedSettings)}


class World:
    """Factory of a door and its collaborators."""

    def __init__(self, framing: Framing | None = None, *, hangups: Any = None, **settings: Any) -> None:
        self.clock = cast(Any, Clock())
        self.epoch = 1_000_000.0
        self.turn = EndOfTurn(self.clock, lambda: self.epoch + self.clock.seconds())
        self.sink = Sink()
        self.courier = Courier()
        self.events: list[Event] = []
        self.registry: Registry[Connection] = Registry()
        self.ids = ConnectionIds()
        self.sources: set[Source] = set()
        self.endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(self.clock)
        self.endpoints.startService()
        self.shared = SharedSettings(**{name: value for name, value in settings.items() if name in SHARED})
        self.services = DeviceServices(
            DeviceRuntime(self.clock, self.turn, self._emit, lambda: self.epoch + self.clock.seconds()),
            self.shared,
            Connections(self.ids, self.registry, self.endpoints),
            self.sink,
            self.courier,
            hangups,
        )
        own = {name: value for name, value in settings.items() if name not in SHARED}
        self.factory = self.door("default", framing=framing or LineFraming(), **own)
        self.totals = DeviceTotals(self.services)

    def door(self, name: str, **settings: Any) -> DeviceFactory:
        """Return the factory of a door."""
        return DeviceFactory(
            self.services,
            DeviceSettings(**settings),
            DeviceProtocol,
            identify=lambda wire: getattr(wire, "device_id", None),
            door=name,
        )

    def change(self, **settings: Any) -> None:
        """Change settings of all connections, or of those of the first door."""
        self.shared = replace(self.shared, **{name: value for name, value in settings.items() if name in SHARED})
        self.services.configure(self.shared)
        own = {name: value for name, value in settings.items() if name not in SHARED}
        self.factory.configure(replace(self.factory.settings, **own))

    def _emit(self, event: Event) -> None:
        if not isinstance(event, DeviceConnected):
            self.events.append(event)

    def connect(
        self,
        room: float = float("inf"),
        device_id: str | None = None,
        peer: str = "192.0.2.1:1234",
        factory: DeviceFactory | None = None,
    ) -> tuple[DeviceProtocol, Wire]:
        """Connect a device whose handshake is complete; to the first door, unless `factory` is that of another one."""
        endpoint: DeviceProtocol = (factory or self.factory).buildProtocol(None)
        wire = Wire(room, device_id, peer)
        endpoint.makeConnection(wire)
        return endpoint, wire

    def end(self, endpoint: DeviceProtocol, reason: Failure = GONE) -> None:
        """End the connection."""
        wire = endpoint.transport
        endpoint.connectionLost(reason)
        wire.lost = True

    def turns(self) -> None:
        """Run to the end of this turn of the reactor, and of the turns that follow from it."""
        for _ in range(4):
            self.clock.advance(0)

    def later(self, seconds: float) -> None:
        """Advance the clock, with housekeeping ten times a second."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.services.housekeeping.tick()
        self.turns()

    def of_type(self, kind: type[EventType]) -> list[EventType]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def held(self) -> int:
        """Number of messages that are counted as held for a missing number."""
        return sum(map(self.factory.reordering.held, self.sources))

    @property
    def waiting(self) -> int:
        """Number of messages that are counted as waiting for a socket."""
        return sum(map(self.factory.slow.queued, self.sources))

    # -- messages to a device ------------------------------------------------------------------------------------------

    def send(self, endpoint: DeviceProtocol, source: Source, body: bytes, seq: int | None = None) -> None:
        """Deliver a plain message."""
        self.sources.add(source)
        endpoint.send(source, source.next(), b"header", body, endpoint.connection_id, seq)

    def post(
        self,
        endpoint: DeviceProtocol,
        source: Source,
        body: bytes,
        seq: int | None = None,
        fault: str | None = None,
        **asks: Any,
    ) -> Letter:
        """Deliver a message with further properties."""
        self.sources.add(source)
        letter = Letter(source, source.next(), b"header", body, endpoint.connection_id, seq, **asks)
        letter.fault = fault
        endpoint.post(letter)
        return letter


def cpu(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start
