"""One AMQP connection to RabbitMQ: txAMQP for what is rare, bytes by hand for what is not.

txAMQP negotiates the connection and calls methods on channels by their specification. Three kinds of frames come by the
thousand, and never see it: messages to us (`basic.deliver`), confirms of what we published (`basic.ack`, `basic.nack`), and our
own publishes and acknowledgements. Those are read straight from the input buffer and handed to the channel's `Handler`; and
whatever is to be sent is written to the socket once a reactor turn.

Of txAMQP this uses `AMQClient` and its channels, and replaces what its wire layer does: field tables of all types, `bytes` for
bodies, bodies of several frames, client properties, heartbeats, and the methods that RabbitMQ adds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, inlineCallbacks
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import ChannelClosed, Closed, ConnectionClosed, TwistedDelegate
from txamqp.connection import Body, Frame, Header, Method
from txamqp.content import Content
from txamqp.message import Message
from txamqp.protocol import AMQChannel, AMQClient
from txamqp.queue import Closed as QueueClosed
from txamqp.spec import pythonize

from .. import __version__
from ..amqp import methods, wire
from ..amqp.wire import WireError
from ..interfaces import Clock, DelayedCall
from ..runtime.end_of_turn import Turn
from .socket_writer import NullWriter, Writable, socket_writer

FRAME_MAX: Final = 131072
"""The largest frame we ask for, in bytes: RabbitMQ's own default."""
HEADER_MAX: Final = 1 << 20
"""The largest content header that is kept, in bytes.

RabbitMQ limits the header frames that a publisher sends to frame_max, and not those that it sends itself: dead-lettering adds
`x-death`, the management API takes any size, and another client may have agreed on larger frames. Of a larger header only the
body's size is kept: reading its properties is a `WireError`, as for a header that is no AMQP.
"""
CHANNEL_MAX: Final = 2047
"""The most channels we ask for: RabbitMQ's own default."""

CAPABILITIES: Final[Mapping[str, bool]] = {
    "publisher_confirms": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "basic.nack": True,
    "authentication_failure_close": True,
    "exchange_exchange_bindings": True,
}
"""What RabbitMQ tells only those who say that they understand it (https://www.rabbitmq.com/docs/connections#capabilities)."""

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
    """The broker ended something, or refused it, and said why."""

    def __init__(self, code: int, text: str, *, scope: str) -> None:
        text = "".join(char if char.isprintable() else "?" for char in text)  # it goes to a log, and to a terminal
        super().__init__(text if not code or text.startswith(str(code)) else f"{text} ({code})")
        self.code = code
        """AMQP's reply code: https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants."""
        self.text = text
        self.scope = scope
        """`connection` or `channel`: what it ended."""


class Handler(Protocol):
    """Who takes the frequent frames of one channel."""

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """A message came. `header` is its content header's payload: properties begin at offset 12. Where they
        exceed `HEADER_MAX` it ends there, and reading them is a `WireError`.
        """

    def confirmed(self, tag: int, multiple: bool) -> None:
        """The broker has this publish (all up to it, if multiple)."""

    def refused(self, tag: int, multiple: bool) -> None:
        """The broker does not take this publish (nor those up to it, if multiple)."""

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        """The broker had nowhere to put a mandatory message; its confirm follows."""

    def cancelled(self, consumer_tag: str) -> None:
        """The broker cancelled a consumer: its queue was deleted, or moved."""

    def closed(self, reason: Failure) -> None:
        """The channel is gone, alone (`BrokerError`) or with its connection."""


class BaseHandler:
    """A `Handler` to whom nothing happens."""

    __slots__ = ()

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None: ...

    def confirmed(self, tag: int, multiple: bool) -> None: ...

    def refused(self, tag: int, multiple: bool) -> None: ...

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None: ...

    def cancelled(self, consumer_tag: str) -> None: ...

    def closed(self, reason: Failure) -> None: ...


class Getter(BaseHandler):
    """A `Handler` on whose channel messages are asked for one by one (`BrokerProtocol.get`)."""

    __slots__ = ()

    def got(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """A message that was asked for. `header` is as in `Handler.deliver`."""

    def got_nothing(self) -> None:
        """The queue was empty when a message was asked for."""


class Watcher(Protocol):
    """Who wants to know about the connection as a whole."""

    def blocked(self, reason: str) -> None:
        """The broker has run out of memory or disk: it reads nothing from connections that publish."""

    def unblocked(self) -> None:
        """The broker has recovered."""


class Channel(AMQChannel):  # type: ignore[misc]
    """A channel of txAMQP's whose end is told as a `BrokerError`."""

    closed: bool

    @inlineCallbacks
    def invoke(self, method: Any, args: Any, content: Any = None) -> Any:
        try:
            result = yield super().invoke(method, args, content)
        except ValueError as error:
            # What came is the answer to some other method.
            raise WireError(f"the broker gave no answer to {method.klass.name}.{method.name}, but {error}") from None
        return result

    def do_close(self, reason: Any) -> None:
        if not self.closed:
            self.closed = True
            self.reason = reason
            self.incoming.close()
            self.responses.close()
            self.client.channel_closed(self, as_failure(reason))


def as_failure(reason: Any) -> Failure:
    """What ended a channel or a connection, whichever way txAMQP says it, as a failure."""
    if isinstance(reason, Failure):
        return as_failure(reason.value) if isinstance(reason.value, Closed | QueueClosed) else reason
    if isinstance(reason, QueueClosed):
        # txAMQP's word for a frame on a channel that is closed already.
        return Failure(WireError("the broker speaks on a channel that is closed"))
    if isinstance(reason, Closed) and reason.args:
        return as_failure(reason.args[0])
    if isinstance(reason, Message):
        scope = "channel" if reason.method.klass.name == "channel" else "connection"
        return Failure(BrokerError(reason.reply_code, str(reason.reply_text), scope=scope))
    if isinstance(reason, BaseException):
        return Failure(reason)
    return Failure(ConnectionAborted(str(reason)))


class Delegate(TwistedDelegate):  # type: ignore[misc]
    """The methods that the broker calls and that are rare."""

    client: Any

    def dispatch(self, channel: Any, message: Any) -> Any:
        klass, name = message.method.klass.name, message.method.name
        if not hasattr(self, f"{pythonize(klass)}_{pythonize(name)}"):
            raise WireError(f"the broker sent {klass}.{name}, which is not for a broker to send")
        return super().dispatch(channel, message)

    def connection_start(self, ch: Any, msg: Any) -> None:
        self.client.introduced(msg.server_properties)
        mechanisms = msg.mechanisms.split()
        if b"PLAIN" not in mechanisms:
            raise WireError(f"the broker offers no PLAIN login, but {msg.mechanisms!r}")
        ch.connection_start_ok(
            client_properties=self.client.properties,
            mechanism="PLAIN",
            response=self.client.response,
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


class BrokerProtocol(AMQClient):  # type: ignore[misc]
    """An AMQP 0-9-1 client connection.

    `ready` fires with the protocol when the broker has let us in, and fails with a `BrokerError`, or with what ended the
    connection before. `lost` fires, once, with the exception that says why it ended.
    """

    channelClass = Channel
    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        *,
        username: str,
        password: str,
        vhost: str,
        heartbeat: int,
        name: str,
        watcher: Watcher | None = None,
    ) -> None:
        """`heartbeat` in seconds: what we ask for; the lower of ours and the broker's counts. `name` is what RabbitMQ shows."""
        # txAMQP restarts two timers for every frame that it sends or gets; ours is one, and looks at a flag (`_beat`).
        super().__init__(Delegate(), vhost, methods.SPEC, heartbeat=0, clock=clock)
        self.mechanism = "PLAIN"
        self.username = username
        self.response = b"\0" + username.encode() + b"\0" + password.encode()
        self.properties = {
            "product": "Owsla",
            "version": __version__,
            "platform": "Python/Twisted",
            "connection_name": name,
            "capabilities": dict(CAPABILITIES),
        }
        self.watcher = watcher
        self.handlers: dict[int, Handler] = {}
        self.ready: Deferred[BrokerProtocol] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        """The highest channel number. RabbitMQ closes the connection (530) over a higher one."""
        self.rabbitmq = (0, 0)
        """RabbitMQ's version, major and minor; zeros before the broker has said it, and for another broker."""
        self.heartbeat = heartbeat
        self._turn = turn
        self._out: list[bytes] = []
        self._writer: Writable = NullWriter()
        self._gone = False
        self._flushing = False
        self._rest: list[bytes] = []  # the pieces of a frame that is not complete
        self._missing = 0  # how many bytes it needs at least
        self._dropping = 0  # how many bytes are left of a header frame that is not kept
        self._content: dict[int, _Content] = {}
        self._heard = self._spoke = True
        self._silent = 0
        self._beating: DelayedCall | None = None
        self._reason: Failure | None = None

    # -- opening ---------------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._writer = socket_writer(self.transport)
        # txAMQP's own is that of AMQP 0-9.
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
        """The broker said what it is."""
        version = _VERSION.match(str(properties.get("version")))
        if properties.get("product") == "RabbitMQ" and version is not None:
            self.rabbitmq = int(version[1]), int(version[2])

    def tuned(self, channel: Any, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """The broker proposed its limits: take the lower of both sides', where 0 means none."""
        if 0 < frame_max < wire.FRAME_MIN_SIZE or self._beating is not None:
            raise WireError(f"the broker proposes frames of {frame_max} bytes, or tunes twice")
        self.frame_max = min(frame_max or FRAME_MAX, FRAME_MAX)
        self.channel_max = min(channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self.heartbeat = min(heartbeat or self.heartbeat, self.heartbeat)
        channel.connection_tune_ok(channel_max=self.channel_max, frame_max=self.frame_max, heartbeat=self.heartbeat)
        self._beating = self.clock.callLater(self.heartbeat / 2, self._beat)
        self.started.fire()

    async def open_channel(self, number: int, handler: Handler) -> Any:
        """Open a channel of this number; its frequent frames go to `handler`. The result is a channel of txAMQP's.

        Fails with `txamqp.client.Closed` when the channel or the connection ends first; `as_failure` says why.
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
        """Close a channel at our own wish, if it is open; its handler is not told."""
        handler = self.handlers.pop(number, None)
        channel = self.channels.get(number)
        if channel is not None and not channel.closed:
            if isinstance(handler, Getter):
                # Answers to basic.get may come before the broker has read channel.close. Without a `Getter` txAMQP would take
                # the first of them for the answer to channel.close.
                self.handlers[number] = Getter()
            await channel.channel_close(reply_code=200, reply_text="done")
            channel.close(ConnectionDone())

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do something on this connection that takes several calls. Should it fail, so does the connection, with its reason."""
        ensureDeferred(coroutine).addErrback(lambda failure: self.abort(as_failure(failure).value or ConnectionDone()))

    # -- closing ---------------------------------------------------------------------------------------------------------

    def channel_closed(self, channel: Any, reason: Failure) -> None:
        """A channel ended: tell its handler, and forget what was half read of it."""
        self._content.pop(channel.id, None)
        handler = self.handlers.pop(channel.id, None)
        if handler is not None:
            handler.closed(reason)

    def channel_failed(self, channel: Any, reason: Any) -> None:
        """txAMQP's word for it; `channel_closed` is ours."""

    def do_close(self, reason: Any) -> None:
        if self._reason is None:
            self._reason = as_failure(reason)
        self.closed = True  # before its channels are, so that whoever hears of those can tell
        for channel in list(self.channels.values()):
            channel.close(reason)
        self.delegate.close(reason)

    async def shut(self, within: float) -> None:
        """Close the connection as the protocol wants it, or at once if that takes more than so many seconds."""
        if self.closed or self.transport is None:
            return
        agreed = (await self.channel(0)).connection_close(reply_code=200, reply_text="goodbye")
        patience = self.clock.callLater(within, agreed.cancel)
        try:
            await agreed
        except (CancelledError, Closed):
            pass  # it did not agree in time, or was gone first
        finally:
            if patience.active():
                patience.cancel()
        if not self.closed:
            self.do_close(ConnectionDone("closed by us"))

    def abort(self, reason: BaseException) -> None:
        """Drop the connection at once: the other side does not speak AMQP, or does not speak, or closed a channel on us."""
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
        if self._reason is None:
            self._reason = reason
        reason = self._reason
        self._gone = True
        self._out.clear()
        self._writer = NullWriter()
        if not self.closed:
            self.do_close(reason)
        self.disconnected.fire()
        self.ready.errback(reason)
        self.ready.addErrback(lambda _: None)
        self.lost.callback(reason.value or ConnectionDone())

    # -- heartbeats ------------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        try:
            self._listen_and_speak()
        except Exception as error:
            self.abort(error)

    def _listen_and_speak(self) -> None:
        """Twice in the negotiated time: speak if nothing was said; give up on a peer that missed speaking twice.

        https://www.rabbitmq.com/docs/heartbeats: each side speaks every half of it.
        """
        if self._heard:
            self._heard = False
            self._silent = 0
        else:
            self._silent += 1
            if self._silent >= 2:
                self.abort(TimeoutError(f"nothing heard from the broker for {self.heartbeat} s (the heartbeat's bound)"))
                return
        if not self._spoke:
            self.write(wire.HEARTBEAT_FRAME)
            self.flush()
        self._spoke = False
        self._beating = self.clock.callLater(self.heartbeat / 2, self._beat)

    # -- sending ---------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames; all of a reactor turn's go to the socket together."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._turn.broker(self.flush)

    def flush(self) -> None:
        """Give to the socket what was written meanwhile."""
        self._flushing = False
        if self._out and self.transport is not None:
            self._spoke = True
            data = b"".join(self._out)
            self._out.clear()
            try:
                self._writer.write(data)
            except Exception as error:
                self.abort(error)

    def ack(self, channel: int, tag: int, multiple: bool) -> None:
        """Acknowledge a delivery, or all up to it."""
        self.write(_ACK_FRAME(wire.FRAME_METHOD, channel, 13, _ACK, tag, multiple, wire.FRAME_END))

    def get(self, channel: int, queue: str) -> None:
        """Ask for a message of a queue, on a channel with a `Getter`, which is told the answer; several may be asked for."""
        payload = methods.encode_method("basic.get", queue=queue)
        self.write(wire.frame(wire.FRAME_METHOD, channel, payload))

    def send_frame(self, frame: Any) -> None:
        """What txAMQP has to send, packed by our own codec."""
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
        self._heard = True
        if self._rest:
            self._rest.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return  # joining the pieces of a large frame for each of them takes quadratic time
            data = b"".join(self._rest)
            self._rest.clear()
        try:
            offset = self._read(data)
        except Exception as error:
            # Not AMQP; or an error of ours in a handler, which ends this connection with its reason.
            self.abort(error)
            return
        if offset < len(data):
            rest = data[offset:]
            self._rest.append(rest)
            self._missing = _least(rest) - len(rest)

    def _read(self, data: bytes) -> int:
        """Read whole frames; where the first incomplete one begins."""
        offset = self._drop(data, 0, self._dropping) if self._dropping else 0
        end = len(data)
        handlers = self.handlers
        limit = self.frame_max
        while end - offset >= 8:
            kind, channel, size = _HEAD(data, offset)
            if size > limit or kind > 8:
                if kind != 2:
                    raise WireError(_describe(data[offset : offset + 8]))
                if size > HEADER_MAX:
                    if end - offset < _HEADER_LEAST:
                        break
                    self._header(channel, data[offset + 7 : offset + _HEADER_LEAST], kept=False)
                    offset = self._drop(data, offset, size + 8)
                    continue
            start = offset + 7
            stop = start + size
            if stop >= end:
                break
            if data[stop] != 0xCE:
                raise WireError("a frame does not end where it says")
            offset = stop + 1
            if kind == 1:
                method = data[start : start + 4]
                if method == _DELIVER:
                    # The other two frames are nearly always there as well: then the message needs no keeping.
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
                        raise WireError("a confirm has the wrong size")
                    handler = handlers.get(channel)
                    if handler is not None:
                        (handler.confirmed if method == _ACK else handler.refused)(
                            _U64(data, start + 4)[0], data[start + 12] & 1 != 0
                        )
                elif method == _RETURN:
                    self._content[channel] = _Content(data[start:stop])
                else:
                    self._rare(channel, data[start:stop])
            elif kind == 2:
                self._header(channel, data[start:stop])
            elif kind == 3:
                self._body(channel, data[start:stop])
            elif kind != 8:
                raise WireError(f"there is no frame of type {kind}")
        return offset

    def _drop(self, data: bytes, offset: int, size: int) -> int:
        """Pass over a frame, or the rest of one, of `size` bytes; where the next one begins, or the data ends."""
        stop = min(offset + size, len(data))
        self._dropping = size - (stop - offset)
        if not self._dropping and data[stop - 1] != 0xCE:
            raise WireError("a frame does not end where it says")
        return stop

    def _rare(self, channel: int, payload: bytes) -> None:
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
        # txAMQP looks the channel up behind a lock; it answers at once, and so a frame is dealt with before the next is read.
        if channel and channel not in self.channels:
            raise WireError(f"the broker speaks on channel {channel}, which is not open")
        self.process_frame(Frame(channel, payload))

    def _header(self, channel: int, payload: bytes, *, kept: bool = True) -> None:
        """Take a content header. `kept`: `payload` is all of it, and not only its first bytes."""
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
            raise WireError("a body frame that belongs to nothing")
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
            # A message that answers a call (basic.get): txAMQP reads it from the same queue as its method.
            spec = content.message.method
            self._dispatch(channel, Method(spec, *content.message.fields))
            properties = {
                name.replace("_", " "): value for name, value in wire.decode_properties(content.header, 12).items()
            }
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
    """A message of which not all frames are there yet."""

    __slots__ = ("header", "message", "method", "missing", "parts")

    def __init__(self, method: bytes, message: Any = None) -> None:
        self.method = method
        self.message = message
        self.header = b""
        self.missing = 0
        self.parts: list[bytes] = []


_HEADER_LEAST: Final = 7 + 14
"""The first bytes of a header frame: the frame's own, then all before the properties."""


def _least(rest: bytes) -> int:
    """How many bytes are needed to go on with the frame that begins so."""
    if len(rest) < 8:
        return 8
    size: int = _HEAD(rest)[2]
    return 8 + size if size <= HEADER_MAX else _HEADER_LEAST


def _describe(head: bytes) -> str:
    if head.startswith(b"AMQP"):
        return f"the broker speaks AMQP {'-'.join(str(byte) for byte in head[5:8])}, not 0-9-1"
    return f"the other side does not speak AMQP: {head!r}"


__all__ = [
    "BaseHandler",
    "BrokerError",
    "BrokerProtocol",
    "ChannelClosed",
    "Closed",
    "ConnectionClosed",
    "Content",
    "Getter",
    "Handler",
    "Watcher",
    "as_failure",
]
