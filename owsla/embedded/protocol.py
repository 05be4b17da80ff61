"""Server side of a client connection: its states, its frames, and the protection of the broker from one client.

Theory of operation
-------------------
The states follow the handshake of AMQP (specification, 2.2.4):

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

A refusal sends connection.close, and everything but its close-ok is ignored from then on (CLOSING).

A closed connection is read, and its input discarded, until the client closes its side or `LINGER` has passed. Closing a socket
with unread bytes in it sends a TCP reset: a client that was still writing would fail instead of reading its close-ok.

Memory. While the memory alarm is on, a connection that publishes is *blocked*: the client is notified (connection.blocked), and
the connection is read up to its next publish only. It is read up to there because acknowledgements free memory. A publish of a
connection that also consumes is executed up to `memory.EXHAUSTED_AT` times the limit: a back end that answers and then
acknowledges has its acknowledgement behind its publish. A client that only publishes has nothing there that could free memory.

Reading. The transport is paused (`_reading_paused`) in two cases: a publish that has to wait for memory is at the front of
`_buffer` (`_publish_waits`), or the client does not read its answers and `MAX_UNREAD` bytes of them wait. The input that was
received already stays in `_buffer`, and is processed when reading resumes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from owsla.amqp import methods, wire
from owsla.runtime.end_of_turn import EndOfTurn

from .broker import Broker
from .channels import BASIC_PUBLISH, ConnectionChannels, decode_command
from .errors import AMQPError
from .frames import read_frame
from .handshake import CHANNEL_MAX, HEARTBEAT, PROTOCOL_HEADERS, ClientSession, server_properties
from .heartbeat import HeartbeatMonitor
from .messages import FRAME_MAX
from .writer import ConnectionWriter

HANDSHAKE_TIMEOUT: Final = 10.0
"""Time in seconds from the connection to connection.open: the default `handshake_timeout` of RabbitMQ 3.10."""

CLOSE_TIMEOUT: Final = 5.0
"""Time in seconds to wait for a close-ok, or for the last bytes to be written, before the connection is aborted."""

LINGER: Final = 30.0
"""Time in seconds to read and discard input after the connection is closed: `CLOSING_TIMEOUT` of RabbitMQ 3.10."""

MAX_UNREAD: Final = 1 << 20
"""Bytes of answers that a client may leave unread. Past it the client is not read either, or its requests would fill memory."""

_CONNECTION_CLOSE: Final = methods.BY_NAME["connection.close"].prefix
_CONNECTION_CLOSE_OK: Final = methods.BY_NAME["connection.close-ok"].prefix


class ConnectionState(enum.Enum):
    """States of a connection."""

    HEADER = enum.auto()
    STARTING = enum.auto()
    TUNING = enum.auto()
    OPENING = enum.auto()
    RUNNING = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


@implementer(IPushProducer)
class ServerProtocol(Protocol):
    """Server side of an AMQP 0-9-1 connection. `lost(protocol)` is called when the connection is gone."""

    log = Logger()

    def __init__(
        self,
        broker: Broker,
        clock: Any,
        turn: EndOfTurn,
        credentials: tuple[str, str],
        lost: Callable[[ServerProtocol], None] = lambda protocol: None,
    ) -> None:
        self.broker = broker
        self.session = ClientSession()
        self.channels = ConnectionChannels(self)
        self.paused = False
        """True while the transport asks to pause deliveries: the client does not read."""
        self.peer = ""
        self._clock = clock
        self._credentials = credentials
        self._lost = lost
        self._state = ConnectionState.HEADER
        self._writer = ConnectionWriter(turn, self._transport_write)
        # Called for each message: the methods of the writer themselves, without a wrapper.
        self.write = self._writer.write
        self.confirm_later = self._writer.confirm_later
        self._heartbeat = HeartbeatMonitor(clock, self._send_heartbeat, self._heartbeats_missed, self._is_reading)
        self._buffer = b""
        self._unread = 0
        """Bytes that were written since the transport asked to pause."""
        self._blocked = False
        """True from a publish during the memory alarm to the end of the alarm."""
        self._publish_waits = False
        """True while a publish that has to wait for memory is at the front of the buffer."""
        self._reading_paused = False
        self._timeout: DelayedCall | None = None

    # -- the transport -----------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        transport = self._tcp()
        peer = transport.getPeer()
        self.peer = f"{peer.host}:{peer.port}" if hasattr(peer, "port") else str(peer)
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._timeout = self._clock.callLater(HANDSHAKE_TIMEOUT, self._handshake_timed_out)

    def _tcp(self) -> Any:
        return self.transport

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        running = self._state is ConnectionState.RUNNING
        self._state = ConnectionState.CLOSED
        self._stop_timeout()
        self._heartbeat.stop()
        self._writer.clear()
        self._buffer = b""
        self.paused = True
        try:
            self._release()
        finally:
            self._lost(self)  # a stop waits for it
        if running:
            self.log.info("AMQP client {peer} disconnected without closing its connection", peer=self.peer)

    def _release(self) -> None:
        """Return to the broker what this connection holds."""
        try:
            self.channels.end()
        finally:
            self.broker.memory.stop_waiting(self)
            self.broker.connection_lost(self)

    def pauseProducing(self) -> None:
        self.paused = True
        self._unread = 0

    def resumeProducing(self) -> None:
        self.paused = False
        self._update_reading()
        self.channels.serve()

    def stopProducing(self) -> None:
        self.paused = True

    # -- writing -----------------------------------------------------------------------------------------------------------

    def send(self, channel: int, name: str, **fields: Any) -> None:
        """Queue a method frame."""
        self.write(wire.frame(wire.FRAME_METHOD, channel, methods.encode_method(name, **fields)))

    def _transport_write(self, data: bytes) -> None:
        self._heartbeat.sent()
        if self._is_closed():
            return
        if self.paused:
            self._unread += len(data)
        self._tcp().write(data)
        if self.paused:
            self._update_reading()

    def _update_reading(self) -> None:
        """Pause reading if a publish waits for memory or the client does not read its answers; resume otherwise."""
        stop = self._state is ConnectionState.RUNNING and (self._publish_waits or (self.paused and self._unread > MAX_UNREAD))
        if stop != self._reading_paused:
            self._reading_paused = stop
            if stop:
                self._tcp().pauseProducing()
            else:
                self._tcp().resumeProducing()
                if self._buffer:
                    # Later, since this runs inside a delivery or an acknowledgement of another connection.
                    self._clock.callLater(0, self.dataReceived, b"")

    def _is_reading(self) -> bool:
        return not self._reading_paused

    def _is_closed(self) -> bool:
        return self._state is ConnectionState.CLOSED

    # -- reading -----------------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self._is_closed():
            return
        self._heartbeat.received()
        if self._reading_paused:
            self._buffer += data
            return
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        try:
            used = self._process(data)
        except AMQPError as error:
            self._refuse(error)
        except wire.WireError as error:
            self._refuse(AMQPError(502, str(error)))
        except Exception:
            self.log.failure(
                "Internal error of the embedded broker: the connection of AMQP client {peer} is closed", peer=self.peer
            )
            self._refuse(AMQPError(541, "see the broker's log"))
        else:
            if used < len(data) and not self._is_closed():
                self._buffer = data[used:] if used else data

    def _process(self, data: bytes) -> int:
        """Process the complete frames of `data` and return their length."""
        at = 0
        if self._state is ConnectionState.HEADER:
            if not any(header.startswith(data[:8]) for header in PROTOCOL_HEADERS):
                self._refuse_protocol(data[:8])
                return len(data)
            if len(data) < 8:
                return 0
            at = 8
            self._start()
        while (frame := read_frame(data, at, self.session.frame_max)) is not None:
            kind, number, payload, end = frame
            if self._state is ConnectionState.RUNNING and number and kind != wire.FRAME_HEARTBEAT:
                if self._blocked and self._must_wait(kind, number, payload):
                    self._publish_waits = True
                    self._update_reading()
                    return at
                at = end
                published = self.channels.frame_arrived(kind, number, payload)
                if published and self.broker.memory.alarm and not self._blocked:
                    self._block()
                if self._reading_paused:
                    break
            else:
                at = end
                self._connection_frame(kind, number, payload)
                if self._is_closed():
                    return len(data)
        return at

    def _must_wait(self, kind: int, number: int, payload: bytes) -> bool:
        """Return whether a frame of a blocked connection is a publish that has to wait for memory."""
        return (
            kind == wire.FRAME_METHOD
            and payload[:4] == BASIC_PUBLISH
            and self.channels.is_open(number)
            and not self._may_publish()
        )

    # -- commands of the connection ----------------------------------------------------------------------------------------

    def _connection_frame(self, kind: int, number: int, payload: bytes) -> None:
        if self._state is ConnectionState.CLOSING:
            if kind == wire.FRAME_METHOD and number == 0:
                if payload[:4] == _CONNECTION_CLOSE_OK:
                    self._hang_up()
                elif payload[:4] == _CONNECTION_CLOSE:
                    self.send(0, "connection.close-ok")
                    self._finish()
            return
        if kind == wire.FRAME_HEARTBEAT:
            if number or payload:
                raise AMQPError(501, "a heartbeat frame must be empty and on channel 0")
            return
        if kind != wire.FRAME_METHOD or number:
            raise AMQPError(503 if number == 0 else 504, "unexpected frame")
        name, fields = decode_command(payload)
        if name == "connection.close" and self._state is ConnectionState.RUNNING:
            self.channels.send_confirms()
            self._release()
            self.send(0, "connection.close-ok")
            self._finish()
        elif name == "connection.start-ok" and self._state is ConnectionState.STARTING:
            self._log_in(fields)
        elif name == "connection.tune-ok" and self._state is ConnectionState.TUNING:
            self.session.tune(fields)
            if self.session.heartbeat:
                self._heartbeat.start(self.session.heartbeat)
            self._state = ConnectionState.OPENING
        elif name == "connection.open" and self._state is ConnectionState.OPENING:
            if fields["virtual_host"] != "/":
                raise AMQPError(530, f"vhost {fields['virtual_host']} not found")
            self._state = ConnectionState.RUNNING
            self._stop_timeout()
            self.send(0, "connection.open-ok")
        elif name == "connection.update-secret" and self._state is ConnectionState.RUNNING:
            self.send(0, "connection.update-secret-ok")
        else:
            raise AMQPError(503, f"unexpected {name}")

    def _start(self) -> None:
        self._state = ConnectionState.STARTING
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
        if not self.session.log_in(fields, self._credentials):
            mechanism = fields["mechanism"]
            text = f"Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
            if self.session.has_capability("authentication_failure_close"):
                raise AMQPError(403, text, hard=True)
            self.log.warn("AMQP client {peer} refused: {text}", peer=self.peer, text=AMQPError(403, text).text)
            self._hang_up()
            return
        self._state = ConnectionState.TUNING
        self.send(0, "connection.tune", channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT)

    def _send_heartbeat(self) -> None:
        self.write(wire.HEARTBEAT_FRAME)
        self._writer.flush()

    def _heartbeats_missed(self) -> None:
        self.log.warn(
            "AMQP client {peer} missed its heartbeats (interval {seconds} seconds): its connection is aborted",
            peer=self.peer,
            seconds=self.session.heartbeat,
        )
        self.abort()

    # -- memory ------------------------------------------------------------------------------------------------------------

    def _block(self) -> None:
        """Block the connection, which published during the memory alarm."""
        self._blocked = True
        self.broker.memory.wait(self)
        if self.session.has_capability("connection.blocked"):
            self.send(0, "connection.blocked", reason="low on memory")
        self.log.warn(
            "AMQP client {peer} is blocked: messages take more memory than --embedded-memory allows. "
            "It continues when consumers have taken messages",
            peer=self.peer,
        )

    def _may_publish(self) -> bool:
        """Return whether a blocked connection may publish: acknowledgements that free memory may follow its publish."""
        return not self.broker.memory.exhausted and self.channels.may_acknowledge()

    def alarm_ended(self) -> None:
        """Unblock the connection and resume reading."""
        self._blocked = self._publish_waits = False
        if self.session.has_capability("connection.blocked"):
            self.send(0, "connection.unblocked")
        self._update_reading()

    def exhaustion_ended(self) -> None:
        """Resume reading, to check again whether the waiting publish may be executed."""
        self._publish_waits = False
        self._update_reading()

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _refuse_protocol(self, start: bytes) -> None:
        """Answer another protocol with the header of the supported one (specification, 4.2.2), and hang up."""
        self.log.warn("Peer {peer} does not speak AMQP 0-9-1: {start}", peer=self.peer, start=start)
        self.write(wire.PROTOCOL_HEADER)
        self._hang_up()

    def _refuse(self, error: AMQPError) -> None:
        """Close the connection because of an error; further input is ignored."""
        if self._state is ConnectionState.CLOSING:
            # The client is refused already, and its input is not even a sequence of frames.
            self._hang_up()
            return
        if self._is_closed():
            return
        self.log.warn("AMQP client {peer} closed: {text}", peer=self.peer, text=error.text)
        self.close(error)

    def close(self, error: AMQPError) -> None:
        """Send connection.close and wait `CLOSE_TIMEOUT` for the answer."""
        if self._state in (ConnectionState.CLOSING, ConnectionState.CLOSED):
            return
        if self._state is ConnectionState.HEADER:
            self._hang_up()
            return
        # Confirms first: `_release` ends the channels, and a publish without a confirm would be repeated by the client.
        self.channels.send_confirms()
        self._state = ConnectionState.CLOSING
        self._release()
        self.send(0, "connection.close", **error.close_fields())
        self._writer.flush()
        self._update_reading()
        self._stop_timeout()
        self._timeout = self._clock.callLater(CLOSE_TIMEOUT, self.abort)

    def _finish(self) -> None:
        """End the protocol: wait for the client to close the socket, and discard its input."""
        # Before the state changes: nothing is written in the state CLOSED.
        self._writer.flush()
        self._state = ConnectionState.CLOSED
        self._buffer = b""
        self._update_reading()
        self._stop_timeout()
        self._heartbeat.stop()
        # A Twisted transport does not close before its producer is unregistered.
        self._tcp().unregisterProducer()
        self._timeout = self._clock.callLater(LINGER, self._disconnect)

    def _hang_up(self) -> None:
        """End the protocol, and show it to the client by closing our side of the connection."""
        self._finish()
        self._tcp().loseWriteConnection()

    def _disconnect(self) -> None:
        self._tcp().loseConnection()
        self._timeout = self._clock.callLater(CLOSE_TIMEOUT, self.abort)

    def _stop_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _handshake_timed_out(self) -> None:
        self.log.warn("AMQP client {peer} did not open its connection in time: it is aborted", peer=self.peer)
        self.abort()

    def abort(self) -> None:
        """Reset the connection."""
        self._state = ConnectionState.CLOSED
        self._tcp().abortConnection()
