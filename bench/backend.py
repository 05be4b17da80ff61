"""A back end in a process of its own: takes all lines, keeps books of them, and answers them if told to.

It is made of Owsla's own AMQP client, so that it costs little beside what is measured. Commands and answers are lines of JSON.

The books go by the contract: a line is (connection_id, from_device_seq), and what comes twice is known by a contiguous mark and
a set of the numbers above it. The body of a line of the swarm's says its number as well, and has to agree.
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
from owsla.broker.client import BaseHandler, BrokerProtocol
from owsla.broker.connection import BrokerConnection
from owsla.config.addresses import BrokerAddress
from owsla.runtime.end_of_turn import Turn

from .child import Child

CONSUME: Final = 1
PUBLISH: Final = 2
PREFETCH: Final = 5000

_I64 = struct.Struct(">q")
_ID = b"connection_idS\x00\x00\x00\x24"
_SEQ = b"from_device_seql"


class BackEnd(Child):
    """The back end in a child process."""

    def __init__(self, broker: str, from_device: str, to_device: str) -> None:
        # Through its input rather than its arguments: there is a password in it.
        super().__init__("bench.backend")
        self.call("begin", broker=broker, from_device=from_device, to_device=to_device)

    def wait_for(self, lines: int, patience: float) -> dict[str, Any]:
        """Wait until so many lines have arrived since `begin`, so many seconds at most; the books then."""
        end = time.monotonic() + patience
        while True:
            stats = self.call("stats")
            if stats["lines"] >= lines or time.monotonic() > end:
                return stats
            time.sleep(0.02)


class Peer:
    """One device's connection, as the back end knows it."""

    __slots__ = ("above", "answered", "header", "mark")

    def __init__(self, header: bytes) -> None:
        self.header = header
        """What precedes the number in an answer, from the method frame on, the two sizes left out."""
        self.mark = 0
        """The lowest number that has not come."""
        self.above: set[int] = set()
        """Numbers beyond it that have."""
        self.answered = 0


class Books(BaseHandler):
    """Consumes, counts, and answers."""

    name = "bench"

    def __init__(self, turn: Turn, from_device: str, to_device: str, ready: Callable[[], None]) -> None:
        self._turn = turn
        self._queue = from_device
        self._to_device = to_device
        self._ready = ready
        self._client: Any = None
        self._tag = 0
        self._flushing = False
        self._peers: dict[bytes, Peer] = {}
        self.answers = ""
        """Where answers go: `""` nowhere, `reply_to`, or `to_device`."""
        self.numbered = False
        self.messages = self.lines = self.duplicates = self.wrong = self.others = 0

    async def up(self, client: BrokerProtocol) -> None:
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
            self._turn.broker(self._flush)
        self.messages += 1
        # These headers are Owsla's own, so where they stand is known without reading the whole table.
        at = header.index(_ID) + len(_ID)
        connection_id = header[at : at + 36]
        seq = _I64.unpack_from(header, header.index(_SEQ) + len(_SEQ))[0]
        peer = self._peers.get(connection_id)
        if peer is None:
            peer = self._peers[connection_id] = Peer(b"")
        if body.startswith(b"storm"):
            self.others += 1
            return
        if seq < peer.mark or seq in peer.above:
            self.duplicates += 1
            return
        if seq == peer.mark:
            peer.mark += 1
            while peer.mark in peer.above:
                peer.above.remove(peer.mark)
                peer.mark += 1
        else:
            peer.above.add(seq)
        self.lines += 1
        if int(body.split(b" ", 2)[1]) != seq:
            self.wrong += 1
        if self.answers:
            self._answer(peer, connection_id, header, body)

    def _answer(self, peer: Peer, connection_id: bytes, header: bytes, body: bytes) -> None:
        if not peer.header:
            queue = self._to_device.encode()
            if self.answers == "reply_to":
                queue = wire.split_properties(header, 12)["reply_to"][1:]
            peer.header = wire.frame(wire.FRAME_METHOD, PUBLISH, encode_method("basic.publish", exchange="", routing_key=queue))
        table = wire.short_string("connection_id") + b"S" + wire.long_string(connection_id)
        if self.numbered:
            table += wire.short_string("to_device_seq") + b"l" + _I64.pack(peer.answered)
        peer.answered += 1
        properties = struct.pack(">HI", wire.PROPERTIES["headers"][0], len(table)) + table
        self._client.write(
            peer.header
            + wire.frame(wire.FRAME_HEADER, PUBLISH, wire.header_payload(len(body), properties))
            + wire.frame(wire.FRAME_BODY, PUBLISH, body)
        )

    def _flush(self) -> None:
        self._flushing = False
        if self._client is not None:
            self._client.ack(CONSUME, self._tag, True)

    def closed(self, reason: Failure) -> None:
        if self._client is not None and not self._client.closed:
            print(f"back end: its channel was closed: {reason.value}", file=sys.stderr)

    def begin(self, answers: str, numbered: bool) -> dict[str, Any]:
        """Start new books, and answer so from now on. What was counted before is forgotten."""
        self.answers = answers
        self.numbered = numbered
        for peer in self._peers.values():
            peer.header = b""
        self.messages = self.lines = self.duplicates = self.wrong = self.others = 0
        return {}

    def stats(self) -> dict[str, Any]:
        """The books so far."""
        return {
            "messages": self.messages,
            "lines": self.lines,
            "duplicates": self.duplicates,
            "wrong": self.wrong,
            "others": self.others,
            "holes": sum(len(peer.above) > 0 for peer in self._peers.values()),
            "marks": sum(peer.mark for peer in self._peers.values()),
            "cpu": time.process_time(),
        }


class _Silent:
    """Says what goes wrong, and nothing else."""

    def up(self, role: str, address: BrokerAddress) -> None: ...

    def down(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        print(f"back end: broker unavailable: {reason}", file=sys.stderr)

    def blocked(self, role: str, reason: str) -> None: ...

    def unblocked(self, role: str) -> None: ...


class Commands(LineReceiver):
    """The measurement's side."""

    delimiter = b"\n"

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._books: Books | None = None

    def lineReceived(self, line: bytes) -> None:
        arguments = json.loads(line)
        do = arguments.pop("do")
        if do == "begin" and self._books is None:
            self._open(**arguments)
        elif self._books is not None:
            self._reply(getattr(self._books, do)(**arguments))

    def _open(self, broker: str, from_device: str, to_device: str) -> None:
        turn = Turn(self._reactor)
        parameters = pika.URLParameters(broker)
        self._books = Books(turn, from_device, to_device, lambda: self._reply({}))
        BrokerConnection(
            self._reactor,
            turn,
            [
                BrokerAddress(
                    parameters.host,
                    parameters.port,
                    parameters.credentials.username,
                    parameters.credentials.password,
                    parameters.virtual_host,
                )
            ],
            self._books,
            _Silent(),
            heartbeat=30,
            connection_name="owsla bench",
        ).startService()

    def _reply(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Serve until the input ends."""
    from twisted.internet import reactor

    StandardIO(Commands(reactor))
    reactor.run()  # type: ignore[misc]


if __name__ == "__main__":
    main()
