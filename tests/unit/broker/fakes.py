"""Server end of a `BrokerClient`, in memory: it answers as RabbitMQ does, and sends frames for a test."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.trial.util import suppress

from owsla.amqp import wire
from owsla.amqp.methods import decode_method, encode_method
from owsla.broker.client import BrokerClient, Credentials
from owsla.letter import Letter
from owsla.runtime.end_of_turn import EndOfTurn


class BrokerTestCase(SynchronousTestCase):
    """Base of tests that run txAMQP, which calls deprecated functions of Twisted."""

    suppress = [suppress(category=DeprecationWarning, message=".*returnValue was deprecated")]


class Transport(StringTransport):
    """Transport that counts writes, and ends as a real one does: one turn after the request."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.clock = clock
        self.protocol: Any = None
        self.writes = 0
        self.ended = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)

    def end(self, reason: BaseException) -> None:
        if not self.ended:
            self.ended = True
            self.clock.callLater(0, self.protocol.connectionLost, Failure(reason))

    def loseConnection(self) -> None:
        self.end(ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self.end(ConnectionAborted())


class Publish(NamedTuple):
    """Message that the client published."""

    channel: int
    tag: int
    method: dict[str, Any]
    header: bytes
    body: bytes

    @property
    def queue(self) -> str:
        key: str = self.method["routing_key"]
        return key

    @property
    def properties(self) -> dict[str, Any]:
        return wire.decode_properties(self.header, 12)

    @property
    def headers(self) -> dict[str, Any]:
        headers: dict[str, Any] = self.properties["headers"]
        return headers


START: dict[str, Any] = {
    "version_major": 0,
    "version_minor": 9,
    "server_properties": {"product": "RabbitMQ", "capabilities": {"basic.nack": True}},
    "mechanisms": b"AMQPLAIN PLAIN",
    "locales": b"en_US",
}

ANSWERS = {
    "connection.open": "connection.open-ok",
    "connection.close": "connection.close-ok",
    "connection.update-secret": "connection.update-secret-ok",
    "channel.open": "channel.open-ok",
    "channel.close": "channel.close-ok",
    "confirm.select": "confirm.select-ok",
    "exchange.declare": "exchange.declare-ok",
    "queue.declare": "queue.declare-ok",
    "queue.bind": "queue.bind-ok",
    "queue.unbind": "queue.unbind-ok",
    "queue.delete": "queue.delete-ok",
    "basic.qos": "basic.qos-ok",
    "basic.consume": "basic.consume-ok",
}


class Server:
    """Server that reads the data of the client, and answers its calls.

    Methods in `silent` are not answered, and those in `refusals` are answered by closing the channel.
    """

    def __init__(self, clock: Any = None, *, heartbeat: int = 20, tune: tuple[int, int, int] = (0, 0, 0), **more: Any) -> None:
        self.clock = cast("Any", clock or Clock())
        self.turn = EndOfTurn(self.clock)
        self.tune = tune
        self.frame_max = tune[1] or 131072
        self.transport = Transport(self.clock)
        self.client = BrokerClient(
            self.clock,
            self.turn,
            login=more.pop("login", None) or Credentials("me", "secret", "/there"),
            heartbeat=heartbeat,
            name="owsla test",
            **more,
        )
        self.transport.protocol = self.client
        self.lost: list[BaseException] = []
        self.client.lost.addCallback(self.lost.append)
        self.calls: list[tuple[int, str, dict[str, Any]]] = []
        self.published: list[Publish] = []
        self.silent: set[str] = set()
        self.refusals: dict[tuple[str, bool], tuple[int, str]] = {}
        """(queue or exchange, passive) → (code, text) that answers its declaration; ("bind " and queue, False) the binding,
        ("delete " and queue, False) the deletion, and ("consume " and queue, False) a consumer."""
        self.found: dict[str, tuple[int, int]] = {}
        """Queue → (messages, consumers) that answers its declaration; none and none by default."""
        self.heartbeats = 0
        self.greeted = b""
        self._rest = b""
        self._content: dict[int, list[Any]] = {}
        self._tags: dict[int, int] = {}
        self._opened: set[int] = set()

    # -- towards the client ----------------------------------------------------------------------------------------------

    def connect(self) -> Server:
        """Connect, and stop before the first bytes."""
        self.client.makeConnection(self.transport)
        self.settle()
        return self

    def ready(self) -> Server:
        """Connect, and complete the login."""
        self.connect()
        self.send(0, "connection.start", **START)
        assert self.client.started._result is not None
        return self

    def send(self, channel: int, name: str, **fields: Any) -> None:
        self.raw(wire.frame(wire.FRAME_METHOD, channel, encode_method(name, **fields)))

    def raw(self, data: bytes) -> None:
        self.client.dataReceived(data)
        self.settle()

    def ack(self, channel: int, tag: int, multiple: bool = False) -> None:
        self.send(channel, "basic.ack", delivery_tag=tag, multiple=multiple)

    def nack(self, channel: int, tag: int, multiple: bool = False) -> None:
        self.send(channel, "basic.nack", delivery_tag=tag, multiple=multiple)

    def give_back(self, publish: Publish, *, ack: bool = True) -> None:
        """Return a mandatory message, and acknowledge it."""
        data = wire.frame(
            wire.FRAME_METHOD,
            publish.channel,
            encode_method("basic.return", reply_code=312, reply_text="NO_ROUTE", routing_key=publish.queue),
        ) + wire.content_frames(publish.channel, publish.header, publish.body, self.frame_max)
        self.raw(data)
        if ack:
            self.ack(publish.channel, publish.tag)

    def close_channel(self, channel: int, code: int = 406, text: str = "PRECONDITION_FAILED - no") -> None:
        self.send(channel, "channel.close", reply_code=code, reply_text=text)

    def drop(self) -> None:
        """Drop the connection without connection.close."""
        self.transport.end(ConnectionDone())
        self.settle()

    # -- from the client -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Run turns until both sides are quiet."""
        while True:
            self.clock.advance(0)
            data = self.transport.value()
            if not data:
                return
            self.transport.clear()
            self._read(data)

    def _read(self, data: bytes) -> None:
        if not self.greeted:
            self.greeted, data = data[:8], data[8:]
        while data:
            kind, channel, size = data[0], int.from_bytes(data[1:3]), int.from_bytes(data[3:7])
            assert len(data) >= 8 + size
            assert data[7 + size] == 0xCE
            payload, data = data[7 : 7 + size], data[8 + size :]
            if kind == wire.FRAME_HEARTBEAT:
                self.heartbeats += 1
            elif kind == wire.FRAME_METHOD:
                self._method(channel, payload)
            elif kind == wire.FRAME_HEADER:
                self._content[channel][1] = payload
            else:
                self._content[channel][2] += payload
            self._complete(channel)

    def _method(self, channel: int, payload: bytes) -> None:
        method, fields = decode_method(payload)
        if method.name == "basic.publish":
            self._content[channel] = [fields, b"", b""]
            return
        self.calls.append((channel, method.name, fields))
        if method.name == "channel.open":
            if channel in self._opened:
                self.send(0, "connection.close", reply_code=504, reply_text="CHANNEL_ERROR - second 'channel.open' seen")
                return
            self._opened.add(channel)
        elif method.name in ("channel.close", "channel.close-ok"):
            self._opened.discard(channel)
        if method.name in self.silent:
            return
        if method.name == "connection.start-ok":
            self.send(0, "connection.tune", channel_max=self.tune[0], frame_max=self.tune[1], heartbeat=self.tune[2])
        elif method.name == "queue.declare" and (fields["queue"], fields["passive"]) in self.refusals:
            code, text = self.refusals[fields["queue"], fields["passive"]]
            self.close_channel(channel, code, text)
        elif method.name == "exchange.declare" and (fields["exchange"], fields["passive"]) in self.refusals:
            code, text = self.refusals[fields["exchange"], fields["passive"]]
            self.close_channel(channel, code, text)
        elif method.name == "queue.bind" and (f"bind {fields['queue']}", False) in self.refusals:
            code, text = self.refusals[f"bind {fields['queue']}", False]
            self.close_channel(channel, code, text)
        elif method.name == "queue.delete" and (f"delete {fields['queue']}", False) in self.refusals:
            code, text = self.refusals[f"delete {fields['queue']}", False]
            self.close_channel(channel, code, text)
        elif method.name == "queue.declare":
            messages, consumers = self.found.get(fields["queue"], (0, 0))
            self.send(
                channel, "queue.declare-ok", queue=fields["queue"], message_count=messages, consumer_count=consumers
            )
        elif method.name == "basic.consume" and (f"consume {fields['queue']}", False) in self.refusals:
            code, text = self.refusals[f"consume {fields['queue']}", False]
            self.close_channel(channel, code, text)
        elif method.name == "basic.consume":
            self.send(channel, "basic.consume-ok", consumer_tag=fields["consumer_tag"])
        elif method.name == "basic.cancel":
            self.send(channel, "basic.cancel-ok", consumer_tag=fields["consumer_tag"])
        elif method.name in ANSWERS:
            if method.name == "channel.open":
                self._tags[channel] = 0
            self.send(channel, ANSWERS[method.name])

    def _complete(self, channel: int) -> None:
        fields, header, body = self._content.get(channel, [None, b"", b""])
        if header and wire.read_header_payload(header)[1] == len(body):
            del self._content[channel]
            self._tags[channel] = self._tags.get(channel, 0) + 1
            self.published.append(Publish(channel, self._tags[channel], fields, header, body))

    def called(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of each call of this method so far."""
        return [fields for _, called, fields in self.calls if called == name]

    def take(self) -> list[Publish]:
        """Return the messages published since the last call."""
        self.settle()
        published, self.published = self.published, []
        return published


class ComparingServer(Server):
    """A server with queues whose arguments it compares with those of each declaration, as RabbitMQ 4.0 does."""

    def __init__(self, queues: dict[str, dict[str, Any]], version: str = "4.0.5", default_type: str = "classic") -> None:
        super().__init__()
        self.queues = queues
        """Queue → its arguments, with the type."""
        self.default_type = default_type
        self.connect()
        self.send(0, "connection.start", **{**START, "server_properties": {"product": "RabbitMQ", "version": version}})

    def _method(self, channel: int, payload: bytes) -> None:
        method, fields = decode_method(payload)
        if method.name == "queue.declare":
            name = fields["queue"]
            self.refusals.pop((name, fields["passive"]), None)
            refusal = self._declare(name, fields["arguments"], passive=fields["passive"])
            if refusal is not None:
                self.refusals[name, fields["passive"]] = refusal
        super()._method(channel, payload)

    def _declare(self, name: str, arguments: dict[str, Any], *, passive: bool) -> tuple[int, str] | None:
        present = self.queues.get(name)
        if passive:
            return None if present is not None else (404, f"NOT_FOUND - no queue '{name}' in vhost '/'")
        arguments = {"x-queue-type": self.default_type, **arguments}
        if present is None:
            invalid = {"x-max-age"} | ({"x-delivery-limit"} if arguments["x-queue-type"] == "classic" else set())
            for argument in sorted(invalid & arguments.keys()):
                return 406, f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{name}' in vhost '/' of queue type x"
            self.queues[name] = arguments
            return None
        ignored = {"x-max-age"} | ({"x-delivery-limit"} if present["x-queue-type"] == "classic" else set())
        for argument in sorted((present.keys() | arguments.keys()) - ignored):
            received, current = arguments.get(argument), present.get(argument)
            if received != current:
                return 406, (
                    f"PRECONDITION_FAILED - inequivalent arg '{argument}' for queue '{name}' in vhost '/': "
                    f"received {_value(received)} but current is {_value(current)}"
                )
        return None


def _value(value: object) -> str:
    if value is None:
        return "none"
    kind = {bool: "bool", int: "signedint"}.get(type(value), "longstr")
    return f"the value '{str(value).lower() if isinstance(value, bool) else value}' of type '{kind}'"


def deliver(channel: int, tag: int, header: bytes, body: bytes, *, redelivered: bool = False, room: int = 131072) -> bytes:
    """Return the frames of a delivery."""
    size = wire.read_header_payload(header)[1]
    assert size == len(body)
    return wire.frame(
        wire.FRAME_METHOD,
        channel,
        encode_method(
            "basic.deliver",
            consumer_tag="owsla",
            delivery_tag=tag,
            redelivered=redelivered,
            exchange="",
            routing_key="to_device",
        ),
    ) + wire.content_frames(channel, header, body, room)


def message(body: bytes = b"", headers: dict[str, Any] | None = None, **properties: Any) -> bytes:
    """Return the payload of a content header."""
    if headers is not None:
        properties["headers"] = headers
    return wire.header_payload(len(body), wire.encode_properties(properties))


class Source:
    """Consumer that records the settled deliveries."""

    def __init__(self) -> None:
        self.open = True
        self.prefetch = 100
        self.own = False
        self.finished: list[int] = []

    def done(self, tag: int) -> None:
        self.finished.append(tag)

    def written(self, header: bytes, body: bytes) -> None:
        raise AssertionError("nothing is handed over here")

    def letter(self, tag: int, connection_id: bytes | None = b"some-id", body: bytes = b"body", **more: Any) -> Letter:
        """Return a letter of this consumer. Keywords of a letter are passed on; properties go to its header."""
        asked = {name: more.pop(name) for name in ("reply_to", "correlation_id", "seq", "selector") if name in more}
        headers = more.pop("headers", {"n": tag})
        header = more.pop("header", None) or message(body, headers, **more)
        return Letter(self, tag, header, body, connection_id, asked.pop("seq", None), **asked)


class Result:
    """Result of a coroutine or a Deferred."""

    def __init__(self, what: Any) -> None:
        self.value: Any = None
        self.failure: Failure | None = None
        self.done = False
        deferred: Deferred[Any] = what if isinstance(what, Deferred) else ensureDeferred(what)
        deferred.addCallbacks(self._succeeded, self._failed)

    def _succeeded(self, value: Any) -> None:
        self.value, self.done = value, True

    def _failed(self, failure: Failure) -> None:
        self.failure, self.done = failure, True

    @property
    def error(self) -> Any:
        """Return the exception of a failure."""
        return None if self.failure is None else self.failure.value
