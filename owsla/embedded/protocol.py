"""The server's side of a client's connection: bytes to commands and back, and what keeps one client from hurting the others.

    client                          server
    AMQP 0 0 9 1              →
                              ←     connection.start        (STARTING)
    connection.start-ok       →
                              ←     connection.tune         (TUNING)
    connection.tune-ok, open  →
                              ←     connection.open-ok      (RUNNING)
    …
    connection.close          →
                              ←     connection.close-ok     (CLOSED)

A refusal is sent as connection.close, and everything but its close-ok is ignored from then on (CLOSING).

A closed connection is read, and what it sends is discarded, until the client closes its side or `LINGER` is over. Closing a
socket with unread bytes in it sends a reset: a client that was still writing would fail instead of reading its close-ok.

Memory. While messages take more than the limit (the broker's alarm), a connection that publishes is told (connection.blocked)
and read up to its next publish only: acknowledgements free memory, so they are read for as long as possible. A publish of a
connection that consumes is still carried out, since the acknowledgement of what it answers comes behind it, up to
`broker.EXHAUSTED_AT` times the limit. A client that only publishes has nothing behind its publish that could free memory.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, Final

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from owsla.amqp import methods, wire
from owsla.runtime.end_of_turn import Turn

from .broker import Broker
from .channel import Channel
from .errors import AMQPError
from .login import CHANNEL_MAX, HEARTBEAT, PROTOCOL_HEADERS, authenticate, check_tune, server_properties
from .queues import FRAME_MAX

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds to get from connecting to connection.open: RabbitMQ's `handshake_timeout`."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds to wait for a close-ok, or for the last bytes to be written, before the connection is aborted."""

LINGER: Final = 30.0
"""Seconds to read and discard what a client sends after its connection is closed: RabbitMQ's `CLOSING_TIMEOUT`."""

WRITE_AT: Final = 65536
"""Bytes that are written before the turn is over: what Twisted's transports hold before they ask to pause."""

OVERRUN: Final = 1 << 20
"""Bytes of answers to a client that doesn't read them, past which it is not read either."""

QUEUE_DECLARE: Final = (50, 10)

_FRAME = struct.Struct(">BHI")
_ACK = struct.Struct(">QB")
_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28"
_BASIC_ACK: Final = b"\x00\x3c\x00\x50"


class State(enum.Enum):
    """Where a connection is."""

    HEADER = enum.auto()
    STARTING = enum.auto()
    TUNING = enum.auto()
    OPENING = enum.auto()
    RUNNING = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


@implementer(IPushProducer)
class BrokerProtocol(Protocol):
    """A client's connection."""

    log = Logger()

    def __init__(self, broker: Broker, clock: Any, turn: Turn, credentials: tuple[str, str]) -> None:
        self.broker = broker
        self.clock = clock
        self._turn = turn
        self._credentials = credentials
        self.state = State.HEADER
        self.user = ""
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        self.paused = False
        self.channels: dict[int, Channel] = {}
        self._capabilities: dict[str, Any] = {}
        self._buffer = b""
        self._out: list[bytes] = []
        self._size = 0
        self._dirty = False
        self._confirming: list[Channel] = []
        self._overrun = 0
        self._blocked = False
        """Whether it published during the alarm, which goes on."""
        self._at_publish = False
        """Whether a publish that cannot be taken now is the first thing in the buffer."""
        self._held_back = False
        """Whether the transport has been told to stop reading."""
        self._heartbeat = 0
        self._beating: DelayedCall | None = None
        self._received = self._sent = False
        self._silent = 0
        self._timeout: DelayedCall | None = None
        self.peer = ""

    # -- the transport -----------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        transport = self._tcp()
        peer = transport.getPeer()
        self.peer = f"{peer.host}:{peer.port}" if hasattr(peer, "port") else str(peer)
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._timeout = self.clock.callLater(HANDSHAKE_TIMEOUT, self._too_slow)

    def _tcp(self) -> Any:
        return self.transport

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        expected = self.state in (State.CLOSED, State.CLOSING)
        running = self.state is State.RUNNING
        self.state = State.CLOSED
        for call in (self._timeout, self._beating):
            if call is not None and call.active():
                call.cancel()
        self._out.clear()
        self._buffer = b""
        self.paused = True
        self._leave()
        if running and not expected:
            self.log.info("AMQP client {peer} left without closing its connection", peer=self.peer)

    def _leave(self) -> None:
        """Give back what this connection holds: it takes nothing more."""
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.closing = True
        for channel in channels.values():
            channel.end()
        self.broker.stop_waiting(self)
        self.broker.connection_lost(self)

    def pauseProducing(self) -> None:
        self.paused = True
        self._overrun = 0

    def resumeProducing(self) -> None:
        self.paused = False
        self._read_or_not()
        for channel in list(self.channels.values()):
            channel.serve()

    def stopProducing(self) -> None:
        self.paused = True

    # -- writing -----------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue bytes for the end of this turn, or sooner if there are many."""
        self._out.append(data)
        self._size += len(data)
        if self._size >= WRITE_AT:
            self.flush()
        elif not self._dirty:
            self._dirty = True
            self._turn.broker(self.flush)

    def send(self, channel: int, name: str, **fields: Any) -> None:
        """Queue a method frame."""
        self.write(wire.frame(wire.FRAME_METHOD, channel, methods.encode_method(name, **fields)))

    def confirm_later(self, channel: Channel) -> None:
        """The channel has confirms to send before this turn is over."""
        self._confirming.append(channel)
        if not self._dirty:
            self._dirty = True
            self._turn.broker(self.flush)

    def flush(self) -> None:
        """Write what there is."""
        if self._confirming:
            confirming, self._confirming = self._confirming, []
            for channel in dict.fromkeys(confirming):
                if not channel.closing:
                    channel.send_confirms()
        self._dirty = False
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._size = 0
        self._sent = True
        if self.state is State.CLOSED:
            return
        if self.paused:
            self._overrun += len(data)
        self._tcp().write(data)
        if self.paused:
            self._read_or_not()

    def _read_or_not(self) -> None:
        """Stop reading a client that has to wait with its publish or does not read our answers; else go on."""
        stop = self.state is State.RUNNING and (self._at_publish or (self.paused and self._overrun > OVERRUN))
        if stop != self._held_back:
            self._held_back = stop
            if stop:
                self._tcp().pauseProducing()
            else:
                self._tcp().resumeProducing()
                if self._buffer:
                    self.clock.callLater(0, self.dataReceived, b"")

    def _closed(self) -> bool:
        return self.state is State.CLOSED

    def has_capability(self, name: str) -> bool:
        """Whether the client said that it understands this extension."""
        return self._capabilities.get(name) is True

    # -- reading -----------------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self.state is State.CLOSED:
            return
        self._received = True
        if self._held_back:
            self._buffer += data
            return
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        try:
            used = self._parse(data)
        except AMQPError as error:
            self._refuse(error)
        except wire.WireError as error:
            self._refuse(AMQPError(502, str(error)))
        except Exception:
            self.log.failure(
                "An error of the embedded broker itself; closing the connection of AMQP client {peer}", peer=self.peer
            )
            self._refuse(AMQPError(541, "see the broker's log"))
        else:
            if used < len(data) and not self._closed():
                self._buffer = data[used:] if used else data

    def _parse(self, data: bytes) -> int:
        """Carry out the complete frames of `data`; returns how much of it they are."""
        at = 0
        if self.state is State.HEADER:
            if not any(header.startswith(data[:8]) for header in PROTOCOL_HEADERS):
                self._not_amqp(data[:8])
                return len(data)
            if len(data) < 8:
                return 0
            at = 8
            self._start()
        unpack = _FRAME.unpack_from
        end = len(data)
        channels = self.channels
        while end - at >= 7:
            kind, number, size = unpack(data, at)
            # Some clients take the limit for the payload's: RabbitMQ lets them (FRAME_SIZE_FUDGE). A header has to fit.
            if size > self.frame_max - (0 if kind == wire.FRAME_BODY else wire.FRAME_OVERHEAD):
                raise AMQPError(
                    501, f"a frame of {size + wire.FRAME_OVERHEAD} bytes, where at most {self.frame_max} are agreed on"
                )
            if kind not in (1, 2, 3, 8):
                raise AMQPError(501, f"unknown frame type {kind}")
            start = at + 7
            stop = start + size
            if stop >= end:
                break
            if data[stop] != wire.FRAME_END:
                raise AMQPError(501, f"a frame ends in {data[stop]:#04x}")
            payload = data[start:stop]
            at = stop + 1
            if self.state is State.RUNNING and number and kind != 8:
                channel = channels.get(number)
                if channel is None or channel.closing:
                    self._off_channel(kind, number, channel, payload)
                    continue
                if self._blocked and kind == wire.FRAME_METHOD and payload[:4] == _BASIC_PUBLISH and not self._may_publish():
                    self._at_publish = True
                    self._read_or_not()
                    return start - 7
                try:
                    self._on_channel(channel, kind, payload)
                except AMQPError as error:
                    if error.hard:
                        raise
                    self._refuse_channel(channel, error)
                if self._held_back:
                    break
            else:
                self._connection_frame(kind, number, payload)
                if self._closed():
                    return end
        return at

    def _on_channel(self, channel: Channel, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_METHOD:
            if channel.incoming is not None:
                raise AMQPError(505, "expected content header for class 60, got non content header frame instead")
            prefix = payload[:4]
            if prefix == _BASIC_PUBLISH:
                channel.publish_arrived(payload)
            elif prefix == _BASIC_ACK and len(payload) == 13:
                tag, bits = _ACK.unpack_from(payload, 4)
                try:
                    channel.ack_arrived(tag, bool(bits & 1))
                except AMQPError as error:
                    error.method = _numbers(payload)
                    raise
            else:
                self._command(channel, payload)
            return
        if kind == wire.FRAME_HEADER:
            complete = channel.header_arrived(payload)
        else:
            complete = channel.body_arrived(payload)
        if complete:
            try:
                channel.publish()
            except AMQPError as error:
                error.method = _numbers(_BASIC_PUBLISH)
                raise
            if self.broker.alarm and not self._blocked:
                self._block()

    def _command(self, channel: Channel, payload: bytes) -> None:
        name, fields = self._decode(payload)
        if name == "channel.open":
            raise AMQPError(504, "second 'channel.open' seen")
        if name == "channel.close":
            channel.send_confirms()
            del self.channels[channel.number]
            channel.end()
            self.send(channel.number, "channel.close-ok")
        else:
            try:
                channel.command(name, fields)
            except AMQPError as error:
                error.method = (fields["class_id"], fields["method_id"]) if "class_id" in fields else _numbers(payload)
                raise

    def _off_channel(self, kind: int, number: int, channel: Channel | None, payload: bytes) -> None:
        """A frame for a channel that is not open: closing, or never opened."""
        if kind != wire.FRAME_METHOD:
            if channel is None:
                raise AMQPError(504, "expected 'channel.open'")
            return
        if channel is None:
            name, _ = self._decode(payload)
            if name == "channel.close-ok":
                return
            if name != "channel.open":
                raise AMQPError(504, "expected 'channel.open'")
            if len(self.channels) >= self.channel_max or number > self.channel_max:
                raise AMQPError(
                    530,
                    f"number of channels opened ({len(self.channels)}) has reached the negotiated channel_max "
                    f"({self.channel_max})",
                )
            self.channels[number] = Channel(number, self)
            self.send(number, "channel.open-ok")
        elif payload[:4] == b"\x00\x14\x00\x29":
            del self.channels[number]
        elif payload[:4] == b"\x00\x14\x00\x28":
            self.send(number, "channel.close-ok")

    def _decode(self, payload: bytes) -> tuple[str, dict[str, Any]]:
        if len(payload) >= 4 and _numbers(payload) not in methods.METHODS:
            raise AMQPError(540, "unknown method {}.{}".format(*_numbers(payload)))
        method, fields = methods.decode_method(payload)
        return method.name, fields

    # -- the connection's own commands -------------------------------------------------------------------------------------

    def _connection_frame(self, kind: int, number: int, payload: bytes) -> None:
        if self.state is State.CLOSING:
            if kind == wire.FRAME_METHOD and number == 0:
                if payload[:4] == b"\x00\x0a\x00\x33":
                    self._hang_up()
                elif payload[:4] == b"\x00\x0a\x00\x32":
                    self.send(0, "connection.close-ok")
                    self._finish()
            return
        if kind == wire.FRAME_HEARTBEAT:
            if number or payload:
                raise AMQPError(501, "a heartbeat belongs to channel 0 and is empty")
            return
        if kind != wire.FRAME_METHOD or number:
            raise AMQPError(503 if number == 0 else 504, "that frame does not belong here")
        name, fields = self._decode(payload)
        if name == "connection.close" and self.state is State.RUNNING:
            for channel in self.channels.values():
                if not channel.closing:
                    channel.send_confirms()
            self._leave()
            self.send(0, "connection.close-ok")
            self._finish()
        elif name == "connection.start-ok" and self.state is State.STARTING:
            self._log_in(fields)
        elif name == "connection.tune-ok" and self.state is State.TUNING:
            self._tune(fields)
        elif name == "connection.open" and self.state is State.OPENING:
            if fields["virtual_host"] != "/":
                raise AMQPError(530, f"vhost {fields['virtual_host']} not found")
            self.state = State.RUNNING
            self._stop_timeout()
            self.send(0, "connection.open-ok")
        elif name == "connection.update-secret" and self.state is State.RUNNING:
            self.send(0, "connection.update-secret-ok")
        else:
            raise AMQPError(503, f"{name} is out of order")

    def _start(self) -> None:
        self.state = State.STARTING
        self.send(
            0,
            "connection.start",
            version_major=0,
            version_minor=9,
            server_properties=server_properties(),
            mechanisms=b"PLAIN AMQPLAIN",
            locales=b"en_US",
        )

    def _log_in(self, fields: dict[str, Any]) -> None:
        capabilities = fields["client_properties"].get("capabilities")
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}
        mechanism = fields["mechanism"]
        if not authenticate(mechanism, fields["response"], self._credentials):
            text = f"Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
            if self.has_capability("authentication_failure_close"):
                raise AMQPError(403, text, hard=True)
            self._warn("AMQP client {peer} refused: {text}", text=AMQPError(403, text).text)
            self._hang_up()
            return
        self.user = self._credentials[0]
        self.state = State.TUNING
        self.send(0, "connection.tune", channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT)

    def _tune(self, fields: dict[str, Any]) -> None:
        check_tune(fields)
        self.channel_max = fields["channel_max"]
        self.frame_max = fields["frame_max"]
        self._heartbeat = fields["heartbeat"]
        if self._heartbeat:
            self._beating = self.clock.callLater(self._heartbeat / 2, self._beat)
        self.state = State.OPENING

    def _beat(self) -> None:
        """Twice a heartbeat interval: speak if we were silent, hang up if the client was for two intervals."""
        self._beating = self.clock.callLater(self._heartbeat / 2, self._beat)
        # Who is not read cannot be heard.
        self._silent = 0 if self._received or self._held_back else self._silent + 1
        self._received = False
        if self._silent >= 4:
            self._warn("AMQP client {peer} missed its heartbeats ({seconds} s)", seconds=self._heartbeat)
            self.abort()
            return
        if not self._sent:
            self.write(wire.HEARTBEAT_FRAME)
            self.flush()
        self._sent = False

    # -- memory ------------------------------------------------------------------------------------------------------------

    def _block(self) -> None:
        """This client publishes while memory is short: tell it, and read it up to its next publish."""
        self._blocked = True
        self.broker.wait(self)
        if self.has_capability("connection.blocked"):
            self.send(0, "connection.blocked", reason="low on memory")
        self._warn("AMQP client {peer} is blocked: messages take more memory than allowed")

    def _may_publish(self) -> bool:
        """Whether a blocked connection's publish is carried out: behind it can come the acknowledgement that frees memory."""
        return not self.broker.exhausted and any(channel.consumes() for channel in self.channels.values())

    def unblocked(self) -> None:
        """The alarm is over: read on."""
        self._blocked = self._at_publish = False
        if self.has_capability("connection.blocked"):
            self.send(0, "connection.unblocked")
        self._read_or_not()

    def relieved(self) -> None:
        """There is room for connections that also consume: look at the publish again."""
        self._at_publish = False
        self._read_or_not()

    def _warn(self, form: str, /, **fields: object) -> None:
        self.log.emit(LogLevel.warn, form, peer=self.peer, **fields)

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _not_amqp(self, start: bytes) -> None:
        """Whatever this is, answer with the protocol that is spoken here (specification, 4.2.2) and hang up."""
        self._warn("Peer {peer} does not speak AMQP 0-9-1: {start}", start=start)
        self.write(wire.PROTOCOL_HEADER)
        self._hang_up()

    def _refuse_channel(self, channel: Channel, error: AMQPError) -> None:
        # That a queue is not there is an answer to a passive declaration, and nobody's mistake.
        if error.code != 404 or error.method != QUEUE_DECLARE:
            self._warn(
                "Channel {channel} of AMQP client {peer} closed: {text}",
                channel=channel.number,
                text=error.text,
            )
        channel.send_confirms()
        channel.end()
        self._send_close(channel.number, "channel.close", error)

    def _send_close(self, channel: int, name: str, error: AMQPError) -> None:
        class_id, method_id = error.method
        self.send(channel, name, reply_code=error.code, reply_text=error.text, class_id=class_id, method_id=method_id)

    def _refuse(self, error: AMQPError) -> None:
        """Close the connection for a reason; what still comes is ignored."""
        if self.state is State.CLOSING:
            # It is being refused already, and what it sends is not even frames.
            self._hang_up()
            return
        if self.state is State.CLOSED:
            return
        self._warn("AMQP client {peer} closed: {text}", text=error.text)
        self.close(error)

    def close(self, error: AMQPError) -> None:
        """Send connection.close and wait a little for its answer."""
        if self.state in (State.CLOSING, State.CLOSED):
            return
        if self.state is State.HEADER:
            self._hang_up()
            return
        for channel in self.channels.values():
            if not channel.closing:
                channel.send_confirms()
        self.state = State.CLOSING
        self._leave()
        self._send_close(0, "connection.close", error)
        self.flush()
        self._read_or_not()
        self._stop_timeout()
        self._timeout = self.clock.callLater(CLOSE_TIMEOUT, self.abort)

    def _finish(self) -> None:
        """The protocol is over: wait for the client to close the socket, and discard what it still sends."""
        self.flush()
        self.state = State.CLOSED
        self._buffer = b""
        self._read_or_not()
        self._stop_timeout()
        if self._beating is not None and self._beating.active():
            self._beating.cancel()
        # A transport waits for its producer before it closes.
        self._tcp().unregisterProducer()
        self._timeout = self.clock.callLater(LINGER, self._disconnect)

    def _hang_up(self) -> None:
        """The same, where the client learns from the end of our side that it is over."""
        self._finish()
        self._tcp().loseWriteConnection()

    def _disconnect(self) -> None:
        self._tcp().loseConnection()
        self._timeout = self.clock.callLater(CLOSE_TIMEOUT, self.abort)

    def _stop_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _too_slow(self) -> None:
        self._warn("AMQP client {peer} took too long to open its connection")
        self.abort()

    def abort(self) -> None:
        """Reset the connection."""
        self.state = State.CLOSED
        self._tcp().abortConnection()


def _numbers(payload: bytes) -> tuple[int, int]:
    return int.from_bytes(payload[:2]), int.from_bytes(payload[2:4])
