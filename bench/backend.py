"""Back end in a process of its own: consumes all lines, counts them, and answers them on request.

It uses the AMQP client of Owsla, so that it costs little CPU besides the measured gateway. Commands and answers are lines of
JSON.

Lines are counted by the contract: a line is identified by (connection_id, from_device_seq). Duplicates are recognized by the
next expected number of each connection and the set of numbers above it. The body of a line from the swarm contains its number
as well, and has to agree.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pika
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from owsla.amqp import wire
from owsla.amqp.methods import encode_method
from owsla.batch_format import HEADER, decode
from owsla.broker.client import BaseHandler, BrokerClient
from owsla.broker.connection import BrokerConnection, ConnectionSettings
from owsla.broker.logins import BrokerLogins
from owsla.config.addresses import BrokerAddress
from owsla.runtime.end_of_turn import EndOfTurn

from .child import Child

CONSUME: Final = 1
PUBLISH: Final = 2
PREFETCH: Final = 5000

_I64 = struct.Struct(">q")
_ID = b"connection_idS\x00\x00\x00\x24"
_SEQ = b"from_device_seql"
_BATCH = HEADER.encode()


class BackEnd(Child):
    """Back end in a child process."""

    def __init__(self, broker: str, from_device: str, to_device: str) -> None:
        # Through its input, since arguments would show the password of the URL in the process list.
        super().__init__("bench.backend")
        self.call("begin", broker=broker, from_device=from_device, to_device=to_device)

    def wait_for(self, lines: int, patience: float) -> dict[str, Any]:
        """Wait until `lines` lines have arrived since `begin`, for at most `patience` seconds, and return the counts."""
        end = time.monotonic() + patience
        while True:
            stats = self.call("stats")
            if stats["lines"] >= lines or time.monotonic() > end:
                return stats
            time.sleep(0.02)


class DeviceConnection:
    """Connection of a device, as the back end knows it."""

    __slots__ = ("answered", "later", "next_seq", "publish_frame")

    def __init__(self) -> None:
        self.publish_frame = b""
        """Encoded basic.publish frame of the answers, once there is one."""
        self.next_seq = 0
        """Lowest number that has not arrived."""
        self.later: set[int] = set()
        """Higher numbers that have arrived."""
        self.answered = 0

    def missing(self) -> int:
        """Return the number of lines that have not arrived, although later ones have."""
        return max(self.later) - self.next_seq + 1 - len(self.later) if self.later else 0


class LineCounter(BaseHandler):
    """Consumer that counts and answers lines."""

    name = "bench"

    def __init__(self, turn: EndOfTurn, from_device: str, to_device: str, ready: Callable[[], None]) -> None:
        self._turn = turn
        self._queue = from_device
        self._to_device = to_device
        self._ready = ready
        self._client: Any = None
        self._tag = 0
        self._flushing = False
        self._devices: dict[bytes, DeviceConnection] = {}
        self.answers = ""
        """Destination of the answers: `""` for none, `reply_to`, or `to_device`."""
        self.numbered = False
        self.messages = self.lines = self.duplicates = self.wrong = self.others = 0

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        await client.open_channel(PUBLISH, BaseHandler())
        channel = await client.open_channel(CONSUME, self)
        await channel.basic_qos(prefetch_count=PREFETCH)
        await channel.basic_consume(queue=self._queue, consumer_tag="bench")
        self._ready()

    def down(self) -> None:
        self._client = None

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._tag = tag
        if not self._flushing:
            self._flushing = True
            self._turn.call_last(self._flush)
        self.messages += 1
        # Owsla writes these headers, so they are found by their bytes, without decoding the whole table.
        if _BATCH in header:
            for one in decode(body):
                self._count(one.connection_id, one.seq, header, one.line)
            return
        at = header.index(_ID) + len(_ID)
        seq = _I64.unpack_from(header, header.index(_SEQ) + len(_SEQ))[0]
        self._count(header[at : at + 36], seq, header, body)

    def _count(self, connection_id: bytes, seq: int, header: bytes, line: bytes) -> None:
        """Count a line, and answer it if answers are wanted. `header` is the content header of its message."""
        device = self._devices.get(connection_id)
        if device is None:
            device = self._devices[connection_id] = DeviceConnection()
        if line.startswith(b"storm"):
            self.others += 1
            return
        if seq < device.next_seq or seq in device.later:
            self.duplicates += 1
            return
        if seq == device.next_seq:
            device.next_seq += 1
            while device.next_seq in device.later:
                device.later.remove(device.next_seq)
                device.next_seq += 1
        else:
            device.later.add(seq)
        self.lines += 1
        if int(line.split(b" ", 2)[1]) != seq:
            self.wrong += 1
        if self.answers:
            self._answer(device, connection_id, header, line)

    def _answer(self, device: DeviceConnection, connection_id: bytes, header: bytes, body: bytes) -> None:
        if not device.publish_frame:
            queue = self._to_device.encode()
            if self.answers == "reply_to":
                queue = wire.split_properties(header, 12)["reply_to"][1:]
            publish = encode_method("basic.publish", exchange="", routing_key=queue)
            device.publish_frame = wire.frame(wire.FRAME_METHOD, PUBLISH, publish)
        table = wire.short_string("connection_id") + b"S" + wire.long_string(connection_id)
        if self.numbered:
            table += wire.short_string("to_device_seq") + b"l" + _I64.pack(device.answered)
        device.answered += 1
        properties = struct.pack(">HI", wire.PROPERTIES["headers"][0], len(table)) + table
        self._client.write(
            device.publish_frame
            + wire.frame(wire.FRAME_HEADER, PUBLISH, wire.header_payload(len(body), properties))
            + wire.frame(wire.FRAME_BODY, PUBLISH, body)
        )

    def _flush(self) -> None:
        self._flushing = False
        if self._client is not None:
            self._client.ack(CONSUME, self._tag, True)

    def closed(self, reason: Failure) -> None:
        if self._client is not None and not self._client.closed:
            print(f"back end: the channel was closed: {reason.value}", file=sys.stderr)

    def begin(self, answers: str, numbered: bool) -> dict[str, Any]:
        """Reset the counts, and set the destination of the answers and whether they are numbered."""
        self.answers = answers
        self.numbered = numbered
        for device in self._devices.values():
            device.publish_frame = b""
        self.messages = self.lines = self.duplicates = self.wrong = self.others = 0
        return {}

    def stats(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {
            "messages": self.messages,
            "lines": self.lines,
            "duplicates": self.duplicates,
            "missing": sum(device.missing() for device in self._devices.values()),
            "wrong": self.wrong,
            "others": self.others,
            "gaps": sum(len(device.later) > 0 for device in self._devices.values()),
            "contiguous": sum(device.next_seq for device in self._devices.values()),
            "cpu": time.process_time(),
        }


class _ErrorReporter:
    """Reporter of the connection to the broker that prints failures only."""

    def up(self, role: str, address: BrokerAddress) -> None: ...

    def down(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        print(f"back end: broker unavailable: {reason}", file=sys.stderr)

    def blocked(self, role: str, reason: str) -> None: ...

    def unblocked(self, role: str) -> None: ...


class Commands(LineReceiver):
    """Receiver of the commands of the measuring process."""

    delimiter = b"\n"

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._counter: LineCounter | None = None

    def lineReceived(self, line: bytes) -> None:
        arguments = json.loads(line)
        do = arguments.pop("do")
        if do == "begin" and self._counter is None:
            self._open(**arguments)
        elif self._counter is not None:
            self._reply(getattr(self._counter, do)(**arguments))

    def _open(self, broker: str, from_device: str, to_device: str) -> None:
        turn = EndOfTurn(self._reactor)
        parameters = pika.URLParameters(broker)
        address = BrokerAddress(
            parameters.host,
            parameters.port,
            parameters.credentials.username,
            parameters.credentials.password,
            parameters.virtual_host,
        )
        self._counter = LineCounter(turn, from_device, to_device, lambda: self._reply({}))
        BrokerConnection(
            self._reactor,
            turn,
            BrokerLogins(self._reactor, [address]),
            self._counter,
            _ErrorReporter(),
            ConnectionSettings(30, lambda: "owsla bench"),
        ).startService()

    def _reply(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Execute commands until the input ends."""
    from twisted.internet import reactor

    StandardIO(Commands(reactor))
    reactor.run()  # type: ignore[misc]


if __name__ == "__main__":
    main()
