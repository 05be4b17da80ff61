"""AMQP at byte level: details that a client library hides, such as the type of a header or an invalid frame."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

from pamqp import commands, frame
from pamqp import header as pamqp_header
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from .waiting import PATIENCE, Inbox, current_reactor, until, within

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

#: Sizes in bytes of the field values of fixed size in RabbitMQ's grammar.
_SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"f": 4, b"d": 8, b"D": 5, b"T": 8}
_SIZES[b"V"] = 0


def raw_frame(kind: int, channel: int, payload: bytes, end: bytes = END) -> bytes:
    """Pack a frame, valid or not."""
    return struct.pack(">BHL", kind, channel, len(payload)) + payload + end


def method(command: Any, channel: int = 1) -> bytes:
    """Return the frame of a method."""
    packed: bytes = frame.marshal(command, channel)
    return packed


def short_string(value: str) -> bytes:
    """Pack a short string."""
    data = value.encode()
    return bytes([len(data)]) + data


def long_string(value: bytes) -> bytes:
    """Pack a long string, without its field type."""
    return struct.pack(">L", len(value)) + value


def field_table(fields: Mapping[str, tuple[bytes, bytes]]) -> bytes:
    """Pack a table from packed values: name → (field type, bytes)."""
    packed = b"".join(short_string(name) + kind + value for name, (kind, value) in fields.items())
    return struct.pack(">L", len(packed)) + packed


def read_table(data: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Unpack a table: name → (field type, bytes of the value)."""
    (length,) = struct.unpack_from(">L", data)
    fields: dict[str, tuple[bytes, bytes]] = {}
    place, end = 4, 4 + length
    while place < end:
        size = data[place]
        name = data[place + 1 : place + 1 + size].decode()
        place += 1 + size
        kind = data[place : place + 1]
        place += 1
        if kind in _SIZES:
            width = _SIZES[kind]
        else:  # S x A F: preceded by a length
            (width,) = struct.unpack_from(">L", data, place)
            width += 4
        fields[name] = (kind, data[place : place + width])
        place += width
    return fields


#: Properties of a content header in the order of their flags, from the highest bit down.
PROPERTIES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip


def read_content_header(payload: bytes) -> dict[str, bytes]:
    """Unpack a content header: each present property as the bytes of its value."""
    class_id, weight, _size, flags = struct.unpack_from(">HHQH", payload)
    assert (class_id, weight) == (60, 0), (class_id, weight)
    place = 14
    found: dict[str, bytes] = {}
    for bit, name in enumerate(PROPERTIES):
        if not flags & (0x8000 >> bit):
            continue
        if name == "headers":
            width = 4 + int(struct.unpack_from(">L", payload, place)[0])
        elif name in ("delivery_mode", "priority"):
            width = 1
        elif name == "timestamp":
            width = 8
        else:
            width = 1 + payload[place]
        found[name] = payload[place : place + width]
        place += width
    assert place == len(payload), "bytes left over in a content header"
    return found


def content_header(size: int, properties: Mapping[str, bytes]) -> bytes:
    """Pack a content header from packed values."""
    flags, values = 0, b""
    for bit, name in enumerate(PROPERTIES):
        if name in properties:
            flags |= 0x8000 >> bit
            values += properties[name]
    return struct.pack(">HHQH", 60, 0, size, flags) + values


class FrameReader:
    """Parser that splits a stream into frames: (kind, channel, payload)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        self._rest += data
        frames = []
        while len(self._rest) >= 7:
            kind, channel, size = struct.unpack_from(">BHL", self._rest)
            if len(self._rest) < size + 8:
                break
            assert self._rest[size + 7 : size + 8] == END, "a frame without its end"
            frames.append((kind, channel, self._rest[7 : size + 7]))
            self._rest = self._rest[size + 8 :]
        return frames


class _FrameProtocol(Protocol):
    def __init__(self, frames: Inbox[tuple[int, int, bytes]]) -> None:
        self.frames = frames
        self.reader = FrameReader()
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        for each in self.reader.feed(data):
            if each[0] != HEARTBEAT:
                self.frames.put(each)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = True
        self.frames.finish(ConnectionError("the broker closed the connection"))


class _Factory(Factory):
    noisy = False

    def __init__(self, build: Any) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Protocol:
        return cast(Protocol, self._build())


def _factory(build: Any) -> IProtocolFactory:
    return cast(IProtocolFactory, _Factory(build))


class WireClient:
    """Client with one channel that sends and returns raw bytes."""

    def __init__(self, port: int, host: str = "127.0.0.1", frame_max: int = 131072) -> None:
        self._host, self._port, self._frame_max = host, port, frame_max
        self._frames: Inbox[tuple[int, int, bytes]] = Inbox("frames")
        self._protocol = _FrameProtocol(self._frames)

    async def connect(self, header: bytes = PROTOCOL_HEADER) -> WireClient:
        """Connect, log in as guest and open channel 1 in confirm mode."""
        endpoint = TCP4ClientEndpoint(current_reactor(), self._host, self._port)
        await within(endpoint.connect(_factory(lambda: self._protocol)), what="a connection to the broker")
        self.send(header)
        await self.expect(commands.Connection.Start)
        self.send(
            method(
                commands.Connection.StartOk(
                    client_properties={"product": "tests"}, mechanism="PLAIN", response="\0guest\0guest", locale="en_US"
                ),
                0,
            )
        )
        await self.expect(commands.Connection.Tune)
        self.send(method(commands.Connection.TuneOk(channel_max=10, frame_max=self._frame_max, heartbeat=0), 0))
        self.send(method(commands.Connection.Open(virtual_host="/"), 0))
        await self.expect(commands.Connection.OpenOk)
        self.send(method(commands.Channel.Open()))
        await self.expect(commands.Channel.OpenOk)
        self.send(method(commands.Confirm.Select()))
        await self.expect(commands.Confirm.SelectOk)
        return self

    def send(self, data: bytes) -> None:
        """Send bytes."""
        transport: Any = self._protocol.transport
        transport.write(data)

    async def frame(self, kind: int, timeout: float = PATIENCE) -> bytes:
        """Take the next frame, which must be of this kind, and return its payload."""
        found, _channel, payload = await self._frames.get(timeout)
        assert found == kind, (found, payload)
        return payload

    async def expect(self, command: Any, timeout: float = PATIENCE) -> bytes:
        """Take the next frame, which must be this method, and return the bytes of its arguments."""
        payload = await self.frame(METHOD, timeout)
        assert payload[:4] == struct.pack(">L", command.index), (command.name, payload)
        return payload[4:]

    async def publish(self, queue: str, body: bytes, properties: Mapping[str, bytes]) -> None:
        """Publish to a queue with packed properties, and wait for the confirm."""
        self.send(
            method(commands.Basic.Publish(exchange="", routing_key=queue))
            + raw_frame(HEADER, 1, content_header(len(body), properties))
            + (raw_frame(BODY, 1, body) if body else b"")
        )
        await self.expect(commands.Basic.Ack)

    async def get(self, queue: str, timeout: float = PATIENCE) -> tuple[dict[str, bytes], bytes]:
        """Take one message, wait for it, and return its packed properties and its body."""
        self.send(method(commands.Basic.Consume(queue=queue, consumer_tag="wire", no_ack=True)))
        await self.expect(commands.Basic.ConsumeOk)
        await self.expect(commands.Basic.Deliver, timeout)
        payload = await self.frame(HEADER)
        (size,) = struct.unpack_from(">Q", payload, 4)
        body = b""
        while len(body) < size:
            body += await self.frame(BODY)
        self.send(method(commands.Basic.Cancel(consumer_tag="wire")))
        await self.expect(commands.Basic.CancelOk)
        return read_content_header(payload), body

    async def close(self) -> None:
        """Drop the connection."""
        transport = self._protocol.transport
        if transport is not None and not self._protocol.lost:
            cast(Any, transport).abortConnection()
            await until(lambda: self._protocol.lost, what="the end of a connection to the broker")


class _FakeBrokerProtocol(Protocol):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.reader = FrameReader()
        self.begun = False

    def connectionMade(self) -> None:
        self.broker.connections += 1
        self.broker.open.append(self)

    def dataReceived(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            self.broker.answer(self, "ProtocolHeader", 0)
            data = data[len(PROTOCOL_HEADER) :]
        for kind, channel, payload in self.reader.feed(data):
            if kind == METHOD:
                (index,) = struct.unpack_from(">L", payload)
                command: Any = commands.INDEX_MAPPING[index]
                self.broker.answer(self, command.name, channel)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.broker.open.remove(self)
        self.broker.closed += 1

    def send(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)


class FakeBroker:
    """Server that answers like a broker, except for the methods in `instead` (name of the method → bytes).

    `connections` and `closed` count connections and their ends.
    """

    def __init__(self, instead: Mapping[str, bytes] | None = None) -> None:
        self.instead = dict(instead or {})
        self.connections = 0
        self.closed = 0
        self.open: list[_FakeBrokerProtocol] = []
        self.port = 0
        self.asked: deque[str] = deque(maxlen=1000)
        self._listening: Any = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"

    async def start(self) -> FakeBroker:
        """Listen on a free port."""
        endpoint = TCP4ServerEndpoint(current_reactor(), 0, interface="127.0.0.1")
        self._listening = await endpoint.listen(_factory(lambda: _FakeBrokerProtocol(self)))
        self.port = self._listening.getHost().port
        return self

    def answer(self, connection: _FakeBrokerProtocol, name: str, channel: int) -> None:
        """Answer a method as a broker would, or as `instead` says."""
        self.asked.append(name)
        if name in self.instead:
            connection.send(self.instead[name])
            return
        usual: dict[str, Any] = {
            "ProtocolHeader": commands.Connection.Start(
                server_properties={"capabilities": {"publisher_confirms": True, "basic.nack": True}}
            ),
            "Connection.StartOk": commands.Connection.Tune(2047, 131072, 0),
            "Connection.Open": commands.Connection.OpenOk(),
            "Connection.Close": commands.Connection.CloseOk(),
            "Channel.Open": commands.Channel.OpenOk(),
            "Channel.Close": commands.Channel.CloseOk(),
            "Confirm.Select": commands.Confirm.SelectOk(),
            "Basic.Qos": commands.Basic.QosOk(),
            "Basic.Consume": commands.Basic.ConsumeOk("tag"),
            "Queue.Declare": commands.Queue.DeclareOk("queue", 0, 0),
        }
        if name in usual:
            connection.send(method(usual[name], channel))

    def send(self, data: bytes) -> None:
        """Send bytes on every connection."""
        for connection in list(self.open):
            connection.send(data)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._listening is not None:
            stopped = self._listening.stopListening()
            if stopped is not None:
                await stopped
        for connection in list(self.open):
            cast(Any, connection.transport).abortConnection()
        await until(lambda: not self.open, what="the end of the fake broker's connections")


def packed_properties(**properties: Any) -> dict[str, bytes]:
    """Pack properties as a careful library would (such as pamqp): for tests that change one of them."""
    marshalled = pamqp_header.ContentHeader(0, 0, commands.Basic.Properties(**properties)).marshal()
    return read_content_header(marshalled)


__all__ = [
    "BODY",
    "END",
    "HEADER",
    "HEARTBEAT",
    "METHOD",
    "FakeBroker",
    "FrameReader",
    "WireClient",
    "content_header",
    "field_table",
    "long_string",
    "method",
    "packed_properties",
    "raw_frame",
    "read_content_header",
    "read_table",
    "short_string",
]
