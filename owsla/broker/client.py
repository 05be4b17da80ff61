"""An AMQP connection to RabbitMQ: txAMQP for rare methods, a parser of its own for frequent frames.

Theory of operation. txAMQP negotiates the connection and calls methods on channels. Frequent frames bypass it: deliveries
(`basic.deliver`), confirms (`basic.ack`, `basic.nack`), and our own publishes and acknowledgements. `_read` parses them in the
input buffer and calls the `ChannelHandler` of their channel. Data to send is collected in `_out` and written to the socket once
per iteration of the reactor. A message whose three frames are in one buffer, as nearly all are, is passed on without an
intermediate object; otherwise a `_Content` collects its frames.

Of txAMQP this uses `AMQClient` and its channels. It replaces its wire layer, which lacks field tables of all types, `bytes`
bodies, bodies of several frames, client properties, heartbeats with one timer, and the methods that RabbitMQ adds to AMQP
0-9-1.

End of a connection: `_reason` keeps the first cause. `abort` drops the connection for an error; `shut` closes it with the
handshake of the protocol. In both cases each open channel's handler gets `closed`, and `lost` fires once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, inlineCallbacks
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import Closed, TwistedDelegate
from txamqp.connection import Body, Frame, Header, Method
from txamqp.message import Message
from txamqp.protocol import AMQChannel, AMQClient
from txamqp.queue import Closed as QueueClosed
from txamqp.spec import pythonize

from .. import __version__
from ..amqp import methods, wire
from ..amqp.wire import WireError
from ..interfaces import Clock, DelayedCall
from ..runtime.end_of_turn import EndOfTurn
from .socket_writer import NullWriter, Writable, descriptor, socket_writer

FRAME_MAX: Final = 131072
"""Limit on frames to negotiate, in bytes: the default of RabbitMQ."""
HEADER_MAX: Final = 1 << 20
"""Limit on content headers that are kept, in bytes.

RabbitMQ (3.10 to 4.0) limits header frames to frame_max when it receives them, but not when it sends them: dead-lettering adds
`x-death`, the management API accepts any size, and another client may have negotiated larger frames. Of a larger header only
the size of the body is kept, and reading its properties raises `WireError`, as for a malformed header.
"""
CHANNEL_MAX: Final = 2047
"""Limit on channels to negotiate: the default of RabbitMQ."""

CAPABILITIES: Final[Mapping[str, bool]] = {
    "publisher_confirms": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "basic.nack": True,
    "authentication_failure_close": True,
    "exchange_exchange_bindings": True,
}
"""Capabilities that enable extensions of RabbitMQ (https://www.rabbitmq.com/docs/connections#capabilities)."""

_ACTUAL_USER = re.compile(r"user_id property set to '(.*)' but authenticated user was '(.+)'$")
"""Text of a refusal (406) of a message with another user's name (RabbitMQ 3.10 to 4.0). RabbitMQ cuts a text of more than 255
bytes off, which then has no such end."""

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\b", re.ASCII)

_HEAD = struct.Struct(">BHI").unpack_from
_U64 = struct.Struct(">Q").unpack_from
_SIZE = struct.Struct(">Q").unpack_from

_DELIVER = methods.BY_NAME["basic.deliver"].prefix
_ACK = methods.BY_NAME["basic.ack"].prefix
_NACK = methods.BY_NAME["basic.nack"].prefix
_RETURN = methods.BY_NAME["basic.return"].prefix
_GET_OK = methods.BY_NAME["basic.get-ok"].prefix

_ACK_FRAME = struct.Struct(">BHI4sQBB").pack


class BrokerError(Exception):
    """An error with which the broker closed a channel or a connection."""

    def __init__(self, code: int, text: str, *, scope: str) -> None:
        text = "".join(char if char.isprintable() else "?" for char in text)  # it is written to logs and terminals
        super().__init__(text if not code or text.startswith(str(code)) else f"{text} ({code})")
        self.code = code
        """Reply code of AMQP: https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants."""
        self.text = text
        self.scope = scope
        """`connection` or `channel`: what the broker closed."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """User, password and virtual host of a connection."""

    username: str
    """Name to log in with. Empty: the broker takes it from the client certificate (SASL mechanism EXTERNAL)."""
    password: str = field(repr=False)
    vhost: str
    user_id: str = ""
    """Name by which the broker knows the user, as far as that is known, if it is not `username`."""

    def start_ok(self, offered: Sequence[str]) -> tuple[str, bytes]:
        """Return the SASL mechanism and the response for connection.start-ok.

        Raise `BrokerError` if the broker has not offered a mechanism for this login.
        """
        if not self.username:
            if "EXTERNAL" not in offered:
                raise BrokerError(
                    0,
                    "the broker does not offer the login by client certificate (EXTERNAL), "
                    f"only {' '.join(offered) or 'nothing'}: enable rabbitmq_auth_mechanism_ssl and add EXTERNAL to its "
                    "auth_mechanisms, or give a user in --broker",
                    scope="connection",
                )
            return "EXTERNAL", b""
        if "PLAIN" in offered:
            return "PLAIN", b"\0" + self.username.encode() + b"\0" + self.password.encode()  # RFC 4616
        if "AMQPLAIN" in offered:
            # A field table without its length, with long strings: https://www.rabbitmq.com/docs/access-control#mechanisms.
            return "AMQPLAIN", wire.encode_table({"LOGIN": self.username, "PASSWORD": self.password})[4:]
        raise BrokerError(
            0, f"the broker offers neither PLAIN nor AMQPLAIN, only {' '.join(offered) or 'nothing'}", scope="connection"
        )


class ChannelHandler(Protocol):
    """The interface of receivers of a channel's frequent frames."""

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Receive a message. `header` is the payload of its content header, with properties from offset 12. If they exceed
        `HEADER_MAX`, they are missing, and reading them raises `WireError`.
        """

    def confirmed(self, tag: int, multiple: bool) -> None:
        """Receive basic.ack: the broker confirmed this publish, or with `multiple` all up to it."""

    def refused(self, tag: int, multiple: bool) -> None:
        """Receive basic.nack: the broker refused this publish, or with `multiple` all up to it."""

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        """Receive basic.return: a mandatory message is unroutable. Its basic.ack follows."""

    def cancelled(self, consumer_tag: str) -> None:
        """Receive basic.cancel: the queue of a consumer was deleted or moved."""

    def closed(self, reason: Failure) -> None:
        """Handle the end of the channel, alone (`BrokerError`) or with its connection."""


class BaseHandler:
    """A `ChannelHandler` that ignores everything."""

    __slots__ = ()

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None: ...

    def confirmed(self, tag: int, multiple: bool) -> None: ...

    def refused(self, tag: int, multiple: bool) -> None: ...

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None: ...

    def cancelled(self, consumer_tag: str) -> None: ...

    def closed(self, reason: Failure) -> None: ...


class Getter(BaseHandler):
    """A `ChannelHandler` for a channel with basic.get (`BrokerClient.get`)."""

    __slots__ = ()

    def got(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Receive basic.get-ok with its message. `header`: see `ChannelHandler.deliver`."""

    def got_nothing(self) -> None:
        """Receive basic.get-empty."""


class Watcher(Protocol):
    """The interface of receivers of connection.blocked and connection.unblocked."""

    def blocked(self, reason: str) -> None:
        """Receive connection.blocked: the broker is short of memory or disk space and stops reading from publishers."""

    def unblocked(self) -> None:
        """Receive connection.unblocked."""


class BrokerChannel(AMQChannel):  # type: ignore[misc]
    """A channel of txAMQP that reports its end as `BrokerError`."""

    closed: bool

    @inlineCallbacks
    def invoke(self, method: Any, args: Any, content: Any = None) -> Any:
        try:
            result = yield super().invoke(method, args, content)
        except ValueError as error:
            # txAMQP raises ValueError for an answer to another method.
            raise WireError(f"the broker did not answer {method.klass.name}.{method.name}: {error}") from None
        return result

    def do_close(self, reason: Any) -> None:
        if not self.closed:
            self.closed = True
            self.reason = reason
            self.incoming.close()
            self.responses.close()
            self.client.channel_closed(self, as_failure(reason))


def as_failure(reason: Any) -> Failure:
    """Convert the reason for the end of a channel or connection, in any form of txAMQP, to a failure."""
    if isinstance(reason, Failure):
        return as_failure(reason.value) if isinstance(reason.value, Closed | QueueClosed) else reason
    if isinstance(reason, QueueClosed):
        # txAMQP raises this for a frame on a closed channel.
        return Failure(WireError("the broker sent a frame on a closed channel"))
    if isinstance(reason, Closed) and reason.args:
        return as_failure(reason.args[0])
    if isinstance(reason, Message):
        scope = "channel" if reason.method.klass.name == "channel" else "connection"
        return Failure(BrokerError(reason.reply_code, str(reason.reply_text), scope=scope))
    if isinstance(reason, BaseException):
        return Failure(reason)
    return Failure(ConnectionAborted(str(reason)))


def channel_refusal(closed: Closed) -> BrokerError:
    """Return the refusal with which the broker closed a channel. Raise `Closed` if the connection ended."""
    error = as_failure(closed).value
    if isinstance(error, BrokerError) and error.scope == "channel":
        return error
    raise closed


class Delegate(TwistedDelegate):  # type: ignore[misc]
    """Receiver of the rare methods of the broker."""

    client: Any

    def dispatch(self, channel: Any, message: Any) -> Any:
        klass, name = message.method.klass.name, message.method.name
        if not hasattr(self, f"{pythonize(klass)}_{pythonize(name)}"):
            raise WireError(f"the broker sent {klass}.{name}, which only clients may send")
        return super().dispatch(channel, message)

    def connection_start(self, ch: Any, msg: Any) -> None:
        self.client.introduced(msg.server_properties)
        offered = msg.mechanisms.decode("utf-8", "replace").split()
        mechanism, response = self.client.login.start_ok(offered)
        ch.connection_start_ok(
            client_properties=self.client.properties,
            mechanism=mechanism,
            response=response,
            locale="en_US",
        )

    def connection_tune(self, ch: Any, msg: Any) -> None:
        self.client.tuned(ch, msg.channel_max, msg.frame_max, msg.heartbeat)

    def connection_blocked(self, ch: Any, msg: Any) -> None:
        if self.client.watcher is not None:
            self.client.watcher.blocked(str(msg.reason))

    def connection_unblocked(self, ch: Any, msg: Any) -> None:
        if self.client.watcher is not None:
            self.client.watcher.unblocked()

    def basic_cancel(self, ch: Any, msg: Any) -> None:
        handler = self.client.handlers.get(ch.id)
        if handler is not None:
            handler.cancelled(str(msg.consumer_tag))

    def close(self, reason: Any) -> None:
        self.client.closed = True
        self.client.started.fail_if_not_fired(Closed(reason))
        self.client.flush()
        if self.client.transport is not None:
            self.client.transport.loseConnection()


class BrokerClient(AMQClient):  # type: ignore[misc]
    """An AMQP 0-9-1 client connection.

    `ready` fires with the client after the login, and fails with a `BrokerError` or another reason if the connection ends
    first. `lost` fires once, with the exception that ended the connection.
    """

    channelClass = BrokerChannel
    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        turn: EndOfTurn,
        *,
        login: Credentials,
        heartbeat: int,
        name: str,
        watcher: Watcher | None = None,
        user_learned: Callable[[str], None] = lambda user: None,
    ) -> None:
        """`heartbeat`: proposal in seconds; the lower of ours and the broker's is used. `name`: connection name that RabbitMQ
        shows. `user_learned` is called by `learn_user`."""
        # heartbeat=0: txAMQP restarts two timers for every frame. `_beat` is one timer that checks flags.
        super().__init__(Delegate(), login.vhost, methods.SPEC, heartbeat=0, clock=clock)
        self.login = login
        self.username = login.user_id or login.username
        """Name of the user, for the property `user_id` of messages. It may be a guess: see `learn_user`."""
        self._user_learned = user_learned
        self.properties = {
            "product": "Owsla",
            "version": __version__,
            "platform": "Python/Twisted",
            "connection_name": name,
            "capabilities": dict(CAPABILITIES),
        }
        self.watcher = watcher
        self.handlers: dict[int, ChannelHandler] = {}
        self.ready: Deferred[BrokerClient] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        """Highest channel number. RabbitMQ closes the connection for a higher one (530, NOT_ALLOWED)."""
        self.rabbitmq = (0, 0)
        """Version of RabbitMQ, major and minor; zeros before the login, and for other brokers."""
        self.heartbeat = heartbeat
        self._turn = turn
        self._out: list[bytes] = []
        self._writer: Writable = NullWriter()
        self._descriptor: int | None = None
        self._gone = False
        self._flushing = False
        self._rest: list[bytes] = []  # pieces of an incomplete frame
        self._needed = 0  # bytes that it needs at least
        self._skipping = 0  # bytes left of a header frame that is skipped
        self._content: dict[int, _Content] = {}
        self._received = self._sent = True
        self._silent_checks = 0
        self._beating: DelayedCall | None = None
        self._reason: Failure | None = None

    # -- opening ---------------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        try:
            self._begin()
        except Exception as error:
            # The endpoint that has connected would not tell, and its caller would wait for ever.
            self.abort(error)

    def _begin(self) -> None:
        """Prepare the socket, and start the login."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._writer = socket_writer(self.transport)
        self._descriptor = descriptor(self.transport)
        if self._descriptor is not None:
            self._turn.watch(self._descriptor)
        # The header of txAMQP is that of AMQP 0-9.
        self.write(wire.PROTOCOL_HEADER)
        ensureDeferred(self._open()).addErrback(self._refused)

    async def _open(self) -> None:
        await self.started.wait()
        channel = await self.channel(0)
        await channel.connection_open(self.vhost)
        ready, self.ready = self.ready, Deferred()
        ready.callback(self)

    def _refused(self, failure: Failure) -> None:
        if self._reason is None:
            self._reason = as_failure(failure)
        if self.transport is not None:
            self.transport.loseConnection()

    def introduced(self, properties: Mapping[str, Any]) -> None:
        """Note product and version of the broker, from connection.start."""
        version = _VERSION.match(str(properties.get("version")))
        if properties.get("product") == "RabbitMQ" and version is not None:
            self.rabbitmq = int(version[1]), int(version[2])

    def tuned(self, channel: Any, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """Answer connection.tune with the lower limits of both sides; 0 means no limit."""
        if 0 < frame_max < wire.FRAME_MIN_SIZE or self._beating is not None:
            raise WireError(f"the broker proposes frames of {frame_max} bytes, or sent connection.tune twice")
        self.frame_max = min(frame_max or FRAME_MAX, FRAME_MAX)
        self.channel_max = min(channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self.heartbeat = min(heartbeat or self.heartbeat, self.heartbeat)
        channel.connection_tune_ok(channel_max=self.channel_max, frame_max=self.frame_max, heartbeat=self.heartbeat)
        self._beating = self.clock.callLater(self.heartbeat / 2, self._beat)
        self.started.fire()

    async def open_channel(self, number: int, handler: ChannelHandler) -> Any:
        """Open the channel of this number, with a handler for its frequent frames. Return the channel of txAMQP.

        Raise `txamqp.client.Closed` if the channel or the connection ends first; `as_failure` has the reason.
        """
        if self.closed:
            raise Closed(self._reason)
        self.channels.pop(number, None)
        self._content.pop(number, None)
        channel = await self.channel(number)
        await channel.channel_open()
        self.handlers[number] = handler
        return channel

    async def end_channel(self, number: int) -> None:
        """Close a channel, if it is open, without a call of its handler."""
        handler = self.handlers.pop(number, None)
        channel = self.channels.get(number)
        if channel is not None and not channel.closed:
            if isinstance(handler, Getter):
                # Answers to basic.get may arrive before channel.close-ok. Without a `Getter`, txAMQP would take the first of
                # them for the answer to channel.close.
                self.handlers[number] = Getter()
            await channel.channel_close(reply_code=200, reply_text="done")
            channel.close(ConnectionDone())

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on this connection. If it fails, the connection is aborted with its exception."""
        ensureDeferred(coroutine).addErrback(lambda failure: self.abort(as_failure(failure).value or ConnectionDone()))

    def learn_user(self, reason: BaseException | None) -> bool:
        """Learn the name by which the broker knows our user from the refusal of a message with a wrong `user_id`.

        Return whether `reason` was such a refusal, and told another name than that of the message.

        After a login with a certificate (EXTERNAL) or a token (OAuth 2) the broker chooses the name, by its own settings, and
        tells it nowhere else.
        """
        found = _ACTUAL_USER.search(reason.text) if isinstance(reason, BrokerError) and reason.code == 406 else None
        if found is None or found[1] == found[2]:
            return False
        if found[2] != self.username:  # otherwise another connection has learned it while the message was on its way
            self.username = found[2]
            self._user_learned(self.username)
        return True

    def known_as(self, user: str) -> None:
        """Note the name by which the broker knows our user: another connection has learned it."""
        self.username = user

    async def update_secret(self, secret: str) -> None:
        """Replace the password or the token of this connection (connection.update-secret, an extension of RabbitMQ 3.8).

        Raise `txamqp.client.Closed` if the broker refuses it, or the connection ends otherwise: a refusal closes it.
        """
        channel = await self.channel(0)
        try:
            await channel.connection_update_secret(new_secret=secret.encode(), reason="the password has changed")
        except Closed:
            reason = self._reason.value if self._reason is not None else None
            if isinstance(reason, BrokerError):
                # RabbitMQ 3.10 closes the connection with INTERNAL_ERROR (541) for a token with a wrong signature.
                text = f"the broker did not accept the new password: {reason.text}"
                self._reason = Failure(BrokerError(reason.code, text, scope=reason.scope))
            raise

    # -- closing ---------------------------------------------------------------------------------------------------------

    def channel_closed(self, channel: Any, reason: Failure) -> None:
        """Handle the end of a channel: discard its incomplete message, and call its handler."""
        self._content.pop(channel.id, None)
        handler = self.handlers.pop(channel.id, None)
        if handler is not None:
            handler.closed(reason)

    def channel_failed(self, channel: Any, reason: Any) -> None:
        """Do nothing: txAMQP calls this, and `channel_closed` handles the end of channels."""

    def do_close(self, reason: Any) -> None:
        if self._reason is None:
            self._reason = as_failure(reason)
        self.closed = True  # before its channels, so that their handlers can tell that the connection has ended
        for channel in list(self.channels.values()):
            try:
                channel.close(reason)
            except Exception:
                # An error in a handler must not keep the end of the connection from the other handlers and from `lost`.
                self._reason = Failure()
        self.delegate.close(reason)

    async def shut(self, within: float) -> None:
        """Close the connection with connection.close, or abort it after `within` seconds without an answer."""
        if self.closed or self.transport is None:
            return
        agreed = (await self.channel(0)).connection_close(reply_code=200, reply_text="goodbye")
        patience = self.clock.callLater(within, agreed.cancel)
        try:
            await agreed
        except (CancelledError, Closed):
            pass  # no connection.close-ok in time, or the connection ended first
        finally:
            if patience.active():
                patience.cancel()
        if not self.closed:
            self.do_close(ConnectionDone("closed by us"))

    def abort(self, reason: BaseException) -> None:
        """Abort the connection: the peer violates AMQP, does not answer, or closed one of our channels."""
        if isinstance(reason, BrokerError):
            reason = BrokerError(reason.code, reason.text, scope="connection")
        if self._reason is None:
            self._reason = Failure(reason)
        if self.transport is not None and not self._gone:
            self._writer = NullWriter()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        if self._beating is not None and self._beating.active():
            self._beating.cancel()
        if self._descriptor is not None:
            self._turn.unwatch(self._descriptor)
        if self._reason is None:
            self._reason = reason
        self._gone = True
        self._out.clear()
        self._writer = NullWriter()
        if not self.closed:
            self.do_close(self._reason)
        reason = self._reason  # that of `do_close`, if there was an error in a handler
        self.disconnected.fire()
        self.ready.errback(reason)
        self.ready.addErrback(lambda _: None)
        self.lost.callback(reason.value or ConnectionDone())

    # -- heartbeats ------------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        try:
            self._check_heartbeat()
        except Exception as error:
            self.abort(error)

    def _check_heartbeat(self) -> None:
        """Send a heartbeat if nothing was sent; abort if nothing was received in two checks. Runs every half interval.

        https://www.rabbitmq.com/docs/heartbeats: each side sends a heartbeat every half of the negotiated interval.
        """
        if self._received:
            self._received = False
            self._silent_checks = 0
        else:
            self._silent_checks += 1
            if self._silent_checks >= 2:
                self.abort(TimeoutError(f"nothing received from the broker for {self.heartbeat} s (the heartbeat interval)"))
                return
        if not self._sent:
            self.write(wire.HEARTBEAT_FRAME)
            self.flush()
        self._sent = False
        self._beating = self.clock.callLater(self.heartbeat / 2, self._beat)

    # -- sending ---------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames. All frames of an iteration of the reactor are written to the socket together."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._turn.call_last(self.flush)

    def flush(self) -> None:
        """Write the collected frames to the socket."""
        self._flushing = False
        if self._out and self.transport is not None:
            self._sent = True
            data = b"".join(self._out)
            self._out.clear()
            try:
                self._writer.write(data)
            except Exception as error:
                self.abort(error)

    def ack(self, channel: int, tag: int, multiple: bool) -> None:
        """Send basic.ack for a delivery, or with `multiple` for all up to it."""
        self.write(_ACK_FRAME(wire.FRAME_METHOD, channel, 13, _ACK, tag, multiple, wire.FRAME_END))

    def get(self, channel: int, queue: str) -> None:
        """Send basic.get on a channel with a `Getter`, which receives the answer. Several may be pending."""
        payload = methods.encode_method("basic.get", queue=queue)
        self.write(wire.frame(wire.FRAME_METHOD, channel, payload))

    def send_frame(self, frame: Any) -> None:
        """Encode a frame of txAMQP with our codec, and send it."""
        payload = frame.payload
        if isinstance(payload, Method):
            method = methods.METHODS[payload.method.klass.id, payload.method.id]
            raw = wire.frame(wire.FRAME_METHOD, frame.channel, method.prefix + methods.encode_arguments(method, payload.args))
        elif isinstance(payload, Header):
            properties = {name.replace(" ", "_").replace("-", "_"): value for name, value in payload.properties.items()}
            raw = wire.frame(
                wire.FRAME_HEADER, frame.channel, wire.header_payload(payload.size, wire.encode_properties(properties))
            )
        elif isinstance(payload, Body):
            raw = wire.frame(wire.FRAME_BODY, frame.channel, payload.content)
        else:
            raw = wire.HEARTBEAT_FRAME
        self.write(raw)

    # -- receiving -------------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self._received = True
        if self._rest:
            self._rest.append(data)
            self._needed -= len(data)
            if self._needed > 0:
                return  # joining the pieces of a large frame for each of them would take quadratic time
            data = b"".join(self._rest)
            self._rest.clear()
        try:
            offset = self._read(data)
        except Exception as error:
            # Not AMQP, or an error in a handler. Both end this connection.
            self.abort(error)
            return
        if offset < len(data):
            rest = data[offset:]
            self._rest.append(rest)
            self._needed = _needed_bytes(rest) - len(rest)

    def _read(self, data: bytes) -> int:
        """Process all complete frames. Return the offset of the first incomplete one."""
        offset = self._skip(data, 0, self._skipping) if self._skipping else 0
        end = len(data)
        handlers = self.handlers
        limit = self.frame_max
        while end - offset >= 8:
            kind, channel, size = _HEAD(data, offset)
            if size > limit or kind > 8:
                if kind != 2:
                    raise WireError(_describe(data[offset : offset + 8]))
                if size > HEADER_MAX:
                    if end - offset < _HEADER_START:
                        break
                    offset = self._skip_header(data, offset)
                    continue
            start = offset + 7
            stop = start + size
            if stop >= end:
                break
            if data[stop] != 0xCE:
                raise WireError("a frame lacks its end octet")
            offset = stop + 1
            if kind == 1:
                method = data[start : start + 4]
                if method == _DELIVER:
                    # Fast path: header and body frame are nearly always in the same buffer. Then no `_Content` is needed.
                    tag_at = start + 5 + data[start + 4]
                    if tag_at + 9 > stop:
                        raise WireError("basic.deliver is cut off")
                    if end - offset >= 22:
                        kind, same, size = _HEAD(data, offset)
                        header = data[offset + 7 : offset + 7 + size]
                        body_at = offset + 8 + size
                        if (
                            kind == 2
                            and same == channel
                            and 14 <= size <= HEADER_MAX
                            and end - body_at >= 8
                            and data[body_at - 1] == 0xCE
                        ):
                            kind, same, length = _HEAD(data, body_at)
                            if kind == 3 and same == channel and length == _SIZE(header, 4)[0]:
                                after = body_at + 7 + length
                                if after < end and data[after] == 0xCE:
                                    handler = handlers.get(channel)
                                    if handler is not None:
                                        handler.deliver(
                                            _U64(data, tag_at)[0], data[tag_at + 8] != 0, header, data[body_at + 7 : after]
                                        )
                                    offset = after + 1
                                    continue
                    self._content[channel] = _Content(data[start:stop])
                elif method in (_ACK, _NACK):
                    if stop - start != 13:
                        raise WireError("a confirm has a wrong size")
                    handler = handlers.get(channel)
                    if handler is not None:
                        (handler.confirmed if method == _ACK else handler.refused)(
                            _U64(data, start + 4)[0], data[start + 12] & 1 != 0
                        )
                else:
                    self._rare(channel, data[start:stop])
            elif kind == 2:
                self._header(channel, data[start:stop])
            elif kind == 3:
                self._body(channel, data[start:stop])
            elif kind != 8:
                raise WireError(f"unknown frame type {kind}")
        return offset

    def _skip_header(self, data: bytes, offset: int) -> int:
        """Process the start of a header frame that is too large to keep. Return the offset behind what is there of it."""
        _, channel, size = _HEAD(data, offset)
        self._header(channel, data[offset + 7 : offset + _HEADER_START], kept=False)
        return self._skip(data, offset, size + 8)

    def _skip(self, data: bytes, offset: int, size: int) -> int:
        """Skip `size` bytes of a frame. Return the offset of the next frame, or the end of the data."""
        stop = min(offset + size, len(data))
        self._skipping = size - (stop - offset)
        if not self._skipping and data[stop - 1] != 0xCE:
            raise WireError("a frame lacks its end octet")
        return stop

    def _rare(self, channel: int, payload: bytes) -> None:
        if payload.startswith(_RETURN):
            self._content[channel] = _Content(payload)
            return
        method, fields = methods.decode_method(payload)
        spec = methods.SPEC.classes.byid[method.class_id].methods.byid[method.method_id]
        handler = self.handlers.get(channel)
        if isinstance(handler, Getter) and method.name == "basic.get-ok":
            self._content[channel] = _Content(payload)
        elif isinstance(handler, Getter) and method.name == "basic.get-empty":
            handler.got_nothing()
        elif method.has_content:
            self._content[channel] = _Content(payload, Message(spec, list(fields.values())))
        else:
            self._dispatch(channel, Method(spec, *fields.values()))

    def _dispatch(self, channel: int, payload: Any) -> None:
        # process_frame acquires a lock, which is free here, so the frame is processed before this returns.
        if channel and channel not in self.channels:
            raise WireError(f"the broker sent a frame on channel {channel}, which is not open")
        self.process_frame(Frame(channel, payload))

    def _header(self, channel: int, payload: bytes, *, kept: bool = True) -> None:
        """Process a content header. Without `kept`, `payload` has only its first bytes."""
        content = self._content.get(channel)
        if content is None or content.header:
            raise WireError("a content header without its method")
        content.missing = wire.read_header_payload(payload)[1]
        content.header = payload if kept else payload[: wire.BARE_HEADER]
        if content.missing == 0:
            self._complete(channel, content)

    def _body(self, channel: int, payload: bytes) -> None:
        content = self._content.get(channel)
        if content is None or not content.header or len(payload) > content.missing:
            raise WireError("a body frame without its header")
        content.parts.append(payload)
        content.missing -= len(payload)
        if content.missing == 0:
            self._complete(channel, content)

    def _complete(self, channel: int, content: _Content) -> None:
        del self._content[channel]
        body = b"".join(content.parts)
        handler = self.handlers.get(channel)
        method = content.method[:4]
        if content.message is not None:
            # The answer to a call (basic.get): txAMQP expects method and content in the same queue.
            spec = content.message.method
            self._dispatch(channel, Method(spec, *content.message.fields))
            properties = {name.replace("_", " "): value for name, value in wire.decode_properties(content.header, 12).items()}
            self._dispatch(channel, Header(spec.klass, 0, len(body), **properties))
            if body:
                self._dispatch(channel, Body(body))
        elif handler is None:
            pass
        elif isinstance(handler, Getter) and method == _GET_OK:
            handler.got(_U64(content.method, 4)[0], content.method[12] != 0, content.header, body)
        elif method == _DELIVER:
            tag_at = 5 + content.method[4]
            handler.deliver(_U64(content.method, tag_at)[0], content.method[tag_at + 8] != 0, content.header, body)
        else:
            fields = methods.decode_method(content.method)[1]
            handler.returned(fields["reply_text"], fields["routing_key"], content.header, body)


class _Content:
    """An incomplete message: some of its frames are still missing."""

    __slots__ = ("header", "message", "method", "missing", "parts")

    def __init__(self, method: bytes, message: Any = None) -> None:
        self.method = method
        self.message = message
        self.header = b""
        self.missing = 0
        self.parts: list[bytes] = []


_HEADER_START: Final = 7 + 14
"""Bytes of a header frame up to the properties: frame header, then class, weight, body size and flags."""


def _needed_bytes(rest: bytes) -> int:
    """Return the number of bytes needed to process the frame that starts with `rest`."""
    if len(rest) < 8:
        return 8
    size: int = _HEAD(rest)[2]
    return 8 + size if size <= HEADER_MAX else _HEADER_START


def _describe(head: bytes) -> str:
    if head.startswith(b"AMQP"):
        return f"the broker speaks AMQP {'-'.join(str(byte) for byte in head[5:8])}, not 0-9-1"
    return f"the peer does not speak AMQP: {head!r}"
