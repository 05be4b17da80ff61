"""A channel of a client's connection: its consumers, what they hold, its confirms, and the commands that arrive on it."""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from owsla.amqp import wire

from .broker import Broker, unique_name
from .errors import AMQPError, type_name
from .queues import Consumer, Entry, Message, Queue

REPLY_TO: Final = "amq.rabbitmq.reply-to"
"""RabbitMQ's name for replies straight to the asking connection, which are not offered."""

MAX_MESSAGE: Final = 128 << 20
"""Bytes in one body at most: RabbitMQ 3.10's `max_message_size`."""

_FRAME = struct.Struct(">BHI")
_TAG_AND_BIT = struct.Struct(">QB")
_ACK = struct.Struct(">BHIHHQBB")

_EXPIRATION: Final = wire.PROPERTIES["expiration"][0]
_HEADERS: Final = wire.PROPERTIES["headers"][0]
_REPLY_TO: Final = wire.PROPERTIES["reply_to"][0]
_REPLIES = REPLY_TO.encode()
_USER_ID: Final = wire.PROPERTIES["user_id"][0]


class Connection(Protocol):
    """What a channel needs of its connection."""

    broker: Broker
    paused: bool
    """The transport asked us to stop delivering."""
    frame_max: int
    user: str

    def write(self, data: bytes) -> None:
        """Queue bytes for the wire."""

    def send(self, channel: int, name: str, **fields: Any) -> None:
        """Queue a method frame."""

    def confirm_later(self, channel: Channel) -> None:
        """The channel has confirms to send before this turn is over."""

    def has_capability(self, name: str) -> bool:
        """Whether the client said that it understands this extension."""


class Incoming:
    """A publish whose header or body has not all arrived."""

    __slots__ = ("address", "exchange", "header", "mandatory", "missing", "parts", "routing_key", "size")

    def __init__(self, exchange: str, routing_key: str, address: bytes, mandatory: bool) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.address = address
        self.mandatory = mandatory
        self.header: bytes | None = None
        self.size = 0
        self.missing = 0
        self.parts: list[bytes] = []


class Held(NamedTuple):
    """A message that a client has and has not acknowledged."""

    entry: Entry
    queue: Queue
    consumer: Subscriber | None


class Subscriber(Consumer):
    """A consumer on a channel."""

    __slots__ = ("channel", "holding", "prefetch", "prefix")

    def __init__(
        self, tag: str, queue: Queue, channel: Channel, *, prefetch: int, no_ack: bool, exclusive: bool, priority: int
    ) -> None:
        super().__init__(tag, queue, no_ack=no_ack, exclusive=exclusive, priority=priority)
        self.channel = channel
        self.prefetch = prefetch
        self.holding = 0
        self.prefix = b"\x00\x3c\x00\x3c" + wire.short_string(tag.encode("utf-8", "surrogateescape"))

    def can_take(self) -> bool:
        channel = self.channel
        if channel.connection.paused or channel.closing:
            return False
        if self.no_ack:
            return True
        return (not self.prefetch or self.holding < self.prefetch) and (
            not channel.prefetch or channel.holding < channel.prefetch
        )

    def deliver(self, entry: Entry) -> None:
        channel = self.channel
        tag = channel.next_tag()
        if not self.no_ack:
            channel.held[tag] = Held(entry, self.queue, self)
            self.holding += 1
            channel.holding += 1
        channel.write_content(self.prefix + _TAG_AND_BIT.pack(tag, entry.redelivered) + entry.message.address, entry.message)

    def cancelled(self) -> None:
        self.channel.consumer_cancelled(self)


class Channel:
    """One channel, from open to close."""

    __slots__ = (
        "_acked",
        "_confirmed",
        "_delivery_tag",
        "_last_payload",
        "_last_publish",
        "_published",
        "broker",
        "closing",
        "confirming",
        "connection",
        "consumer_prefetch",
        "consumers",
        "held",
        "holding",
        "incoming",
        "last_queue",
        "number",
        "prefetch",
    )

    def __init__(self, number: int, connection: Connection) -> None:
        self.number = number
        self.connection = connection
        self.broker = connection.broker
        self.closing = False
        """We sent channel.close: whatever comes before its close-ok is ignored."""
        self.prefetch = 0
        """basic.qos with global: what all consumers of the channel hold together. 0 is no limit, here and below."""
        self.consumer_prefetch = 0
        """basic.qos without global: what each later consumer holds."""
        self.holding = 0
        """Unacknowledged deliveries to consumers. (What basic.get handed out counts towards no limit.)"""
        self.held: OrderedDict[int, Held] = OrderedDict()
        self.consumers: dict[str, Subscriber] = {}
        self.incoming: Incoming | None = None
        self.confirming = False
        self.last_queue: str | None = None
        self._delivery_tag = 0
        self._published = 0
        self._acked = 0
        """The last publish that is settled well; from `_confirmed` to here an ack is still to be sent."""
        self._confirmed = 0
        self._last_payload = b""
        self._last_publish: tuple[str, str, bytes, bool] = ("", "", b"", False)

    # -- the wire ----------------------------------------------------------------------------------------------------------

    def next_tag(self) -> int:
        """Number the next delivery."""
        self._delivery_tag += 1
        return self._delivery_tag

    def write_content(self, method: bytes, message: Message) -> None:
        """Write a method and a message's content as it came, in frames of the size that this client takes."""
        number = self.number
        header, body = message.header, message.body
        size = len(body)
        if not 0 < size <= self.connection.frame_max - wire.FRAME_OVERHEAD:
            content = wire.content_frames(number, header, body, self.connection.frame_max)
            self.connection.write(b"".join((_FRAME.pack(1, number, len(method)), method, b"\xce", content)))
            return
        self.connection.write(
            b"".join(
                (
                    _FRAME.pack(1, number, len(method)),
                    method,
                    b"\xce",
                    _FRAME.pack(2, number, len(header)),
                    header,
                    b"\xce",
                    _FRAME.pack(3, number, size),
                    body,
                    b"\xce",
                )
            )
        )

    def reply(self, name: str, **fields: Any) -> None:
        """Answer with a method, after the confirms of what was published before."""
        if self._acked > self._confirmed:
            self.send_confirms()
        self.connection.send(self.number, name, **fields)

    # -- publishing --------------------------------------------------------------------------------------------------------

    def publish_arrived(self, payload: bytes) -> None:
        """A basic.publish: its content is to follow. A payload like the one before is not read again."""
        if payload != self._last_payload:
            exchange, offset = wire.read_short_string(payload, 6)
            key, offset = wire.read_short_string(payload, offset)
            if offset + 1 != len(payload):
                raise wire.WireError("basic.publish has a wrong length")
            if payload[offset] & 2:
                raise AMQPError(540, "immediate=true")
            self._last_publish = (
                exchange.decode("utf-8", "surrogateescape"),
                key.decode("utf-8", "surrogateescape"),
                payload[6:offset],
                bool(payload[offset] & 1),
            )
            self._last_payload = payload
        self.incoming = Incoming(*self._last_publish)

    def header_arrived(self, payload: bytes) -> bool:
        """The content header. Returns whether the message is complete (it has no body)."""
        incoming = self.incoming
        if incoming is None or incoming.header is not None:
            raise AMQPError(505, "expected method frame, got content header frame instead")
        class_id, size = wire.read_header_payload(payload)
        if class_id != wire.BASIC:
            raise AMQPError(505, f"expected content header for class 60, got one for class {class_id} instead")
        if size > MAX_MESSAGE:
            raise AMQPError(406, f"message size {size} is larger than configured max size {MAX_MESSAGE}")
        incoming.header = payload
        incoming.size = incoming.missing = size
        return not size

    def body_arrived(self, payload: bytes) -> bool:
        """A body frame. Returns whether the message is complete."""
        incoming = self.incoming
        if incoming is None or incoming.header is None:
            raise AMQPError(505, "expected method or content header frame, got content body frame instead")
        if len(payload) > incoming.missing:
            raise AMQPError(505, f"the body is longer than the {incoming.size} bytes that its header announced")
        incoming.missing -= len(payload)
        incoming.parts.append(payload)
        if not incoming.missing:
            if len(incoming.parts) > 1:
                self.broker.account(-(incoming.size - len(payload)))
            return True
        self.broker.account(len(payload))
        if self.broker.memory > 2 * self.broker.memory_limit + MAX_MESSAGE:
            raise AMQPError(506, "too much memory is taken by messages that have not all arrived")
        return False

    def drop_incoming(self) -> None:
        """The rest of a publish will not come."""
        incoming, self.incoming = self.incoming, None
        if incoming is not None and incoming.missing:
            self.broker.account(-(incoming.size - incoming.missing))

    def publish(self) -> None:
        """The message is complete: route it, return it, confirm it."""
        incoming, self.incoming = self.incoming, None
        assert incoming is not None
        assert incoming.header is not None
        header = incoming.header
        parts = incoming.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        ttl: int | None = None
        copies: list[str] = []
        flags = int.from_bytes(header[12:14])
        if not flags and len(header) != 14:
            raise wire.WireError("something follows the property flags")
        values = wire.split_properties(header, 12) if flags else {}
        if flags & (_EXPIRATION | _HEADERS | _REPLY_TO | _USER_ID):
            if flags & _HEADERS:
                entries = wire.split_table(values["headers"])
                for name, value in entries:
                    if value[0] in b"FA" or name in (b"CC", b"BCC"):
                        header, copies = self._copies(header, values)
                        break
            if flags & _EXPIRATION:
                ttl = _expiration(values["expiration"][1:].decode("utf-8", "replace"))
            if flags & _USER_ID and values["user_id"][1:].decode("utf-8", "replace") != self.connection.user:
                user = values["user_id"][1:].decode("utf-8", "replace")
                raise AMQPError(406, f"user_id property set to '{user}' but authenticated user was '{self.connection.user}'")
            if flags & _REPLY_TO and values["reply_to"][1:] == _REPLIES:
                # As RabbitMQ answers to who has no consumer there, and here nobody can have one.
                raise AMQPError(406, "fast reply consumer does not exist")
        if incoming.exchange and self.broker.exchange(incoming.exchange).internal:
            raise AMQPError(403, f"cannot publish to internal exchange '{incoming.exchange}' in vhost '/'")
        message = Message(incoming.exchange, incoming.routing_key, incoming.address, header, body)
        routed, accepted = self.broker.publish(message, ttl, copies)
        if not routed and incoming.mandatory:
            self.write_content(b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE" + incoming.address, message)
        if self.confirming:
            self._published += 1
            if accepted:
                self._acked = self._published
                self.connection.confirm_later(self)
            else:
                self.send_confirms()
                self._acked = self._confirmed = self._published
                self.connection.write(_ACK.pack(1, self.number, 13, 60, 120, self._published, 0, 0xCE))

    def _copies(self, header: bytes, values: Mapping[str, bytes]) -> tuple[bytes, list[str]]:
        """The further routing keys of the headers CC and BCC, and the content header without BCC. Reads every header."""
        headers = wire.decode_table(values["headers"])[0]
        keys: list[str] = []
        for name in ("CC", "BCC"):
            if name in headers:
                if not isinstance(headers[name], list):
                    raise AMQPError(
                        406, f'invalid message: {{unacceptable_type_in_header,"{name}",{type_name(headers[name])}}}'
                    )
                keys.extend(key for key in headers[name] if isinstance(key, str))
        if "BCC" in headers:
            rest = wire.join_table(e for e in wire.split_table(values["headers"]) if e[0] != b"BCC")
            header = header[:12] + wire.join_properties({**values, "headers": rest})
        return header, keys

    def send_confirms(self) -> None:
        """Send one ack for all that has been settled well since the last."""
        if self._acked > self._confirmed:
            multiple = self._acked > self._confirmed + 1
            self._confirmed = self._acked
            self.connection.write(_ACK.pack(1, self.number, 13, 60, 80, self._acked, multiple, 0xCE))

    # -- settling ----------------------------------------------------------------------------------------------------------

    def ack_arrived(self, tag: int, multiple: bool) -> None:
        """A basic.ack."""
        self._settled(self._take(tag, multiple), lambda held: self.broker.release(held.entry.message))

    def _take(self, tag: int, multiple: bool) -> list[Held]:
        held = self.held
        if not multiple:
            one = held.pop(tag, None)
            if one is None:
                raise AMQPError(406, f"unknown delivery tag {tag}")
            return [one]
        if tag and tag not in held:
            raise AMQPError(406, f"unknown delivery tag {tag}")
        taken: list[Held] = []
        while held and (not tag or next(iter(held)) <= tag):
            taken.append(held.popitem(last=False)[1])
        return taken

    def _settled(self, taken: Iterable[Held], each: Callable[[Held], None]) -> None:
        """Let messages go, and serve those queues again that waited for it."""
        wanting: dict[Queue, None] = {}
        was_full = bool(self.prefetch) and self.holding >= self.prefetch
        for held in taken:
            if held.consumer is not None:
                held.consumer.holding -= 1
                self.holding -= 1
                wanting[held.queue] = None
            each(held)
        if was_full and self.holding < self.prefetch:
            self.serve()
        for queue in wanting:
            if queue.wants_dispatch():
                queue.dispatch()

    def _requeue(self, taken: list[Held]) -> None:
        by_queue: dict[Queue, list[Entry]] = {}
        for held in taken:
            if held.consumer is not None:
                held.consumer.holding -= 1
                self.holding -= 1
            by_queue.setdefault(held.queue, []).append(held.entry)
        for queue, entries in by_queue.items():
            queue.requeue(entries)
        if self.prefetch:
            self.serve()

    def serve(self) -> None:
        """There is room in this channel again: its consumers' queues go on."""
        for consumer in list(self.consumers.values()):
            if consumer.queue.wants_dispatch():
                consumer.queue.dispatch()

    def consumes(self) -> bool:
        """Whether it holds unacknowledged deliveries, or can get some."""
        return bool(self.consumers or self.held)

    def consumer_cancelled(self, consumer: Subscriber) -> None:
        """A consumer's queue has gone: tell the client, where it understands."""
        self.consumers.pop(consumer.tag, None)
        if self.connection.has_capability("consumer_cancel_notify") and not self.closing:
            self.reply("basic.cancel", consumer_tag=_raw(consumer.tag), nowait=True)

    def end(self) -> None:
        """The channel is over: consumers leave, what they hold goes back."""
        self.closing = True
        self.drop_incoming()
        # First back, then out: so that the next consumer begins with what this one had.
        taken = list(self.held.values())
        self.held.clear()
        self._requeue(taken)
        consumers, self.consumers = self.consumers, {}
        for consumer in consumers.values():
            consumer.queue.remove(consumer)
        for consumer in consumers.values():
            self.broker.consumer_removed(consumer.queue)

    # -- commands ----------------------------------------------------------------------------------------------------------

    def command(self, name: str, fields: dict[str, Any]) -> None:
        """Carry out a method that a client may send on an open channel; publish, ack and close come another way."""
        handler = COMMANDS.get(name)
        if handler is None:
            if name.startswith("tx.") and not name.endswith("-ok"):
                raise AMQPError(540, "transactions are not offered by the embedded broker")
            raise AMQPError(503, f"unimplemented method {name}")
        handler(self, fields)

    def _name(self, fields: dict[str, Any]) -> str:
        """The queue that a command means: without a name, the one that this channel declared last."""
        name: str = fields["queue"]
        if name:
            return name
        if self.last_queue is None:
            raise AMQPError(404, "no previously declared queue")
        return self.last_queue

    def _queue(self, fields: dict[str, Any]) -> Queue:
        return self.broker.queue(self._name(fields), self.connection)

    def flow(self, fields: dict[str, Any]) -> None:
        if not fields["active"]:
            raise AMQPError(540, "active=false")
        self.reply("channel.flow-ok", active=True)

    def exchange_declare(self, fields: dict[str, Any]) -> None:
        if fields["passive"]:
            self.broker.exchange(fields["exchange"])
        else:
            self.broker.declare_exchange(
                fields["exchange"],
                fields["type"],
                durable=fields["durable"],
                auto_delete=fields["auto_delete"],
                internal=fields["internal"],
                arguments=fields["arguments"],
            )
        self._ok(fields, "exchange.declare-ok")

    def exchange_delete(self, fields: dict[str, Any]) -> None:
        self.broker.delete_exchange(fields["exchange"], if_unused=fields["if_unused"])
        self._ok(fields, "exchange.delete-ok")

    def exchange_bind(self, fields: dict[str, Any]) -> None:
        destination = self.broker.exchange(fields["destination"])
        self.broker.bind(fields["source"], destination, fields["routing_key"], fields["arguments"])
        self._ok(fields, "exchange.bind-ok")

    def exchange_unbind(self, fields: dict[str, Any]) -> None:
        if not fields["destination"]:
            raise AMQPError(403, "operation not permitted on the default exchange")
        destination = self.broker.exchanges.get(fields["destination"])
        self.broker.unbind(fields["source"], destination, fields["routing_key"], fields["arguments"])
        self._ok(fields, "exchange.unbind-ok")

    def queue_declare(self, fields: dict[str, Any]) -> None:
        if fields["passive"]:
            queue = self._queue(fields)
            queue.touch()
        else:
            queue = self.broker.declare_queue(
                fields["queue"],
                self.connection,
                durable=fields["durable"],
                exclusive=fields["exclusive"],
                auto_delete=fields["auto_delete"],
                arguments=fields["arguments"],
            )
        queue.expire()
        self.last_queue = queue.name
        self._ok(
            fields,
            "queue.declare-ok",
            queue=_raw(queue.name),
            message_count=len(queue.ready),
            consumer_count=len(queue.consumers),
        )

    def queue_bind(self, fields: dict[str, Any]) -> None:
        queue = self._queue(fields)
        key = fields["routing_key"]
        if not fields["queue"] and not key:
            key = queue.name  # specification: both left out mean the queue that was declared last
        self.broker.bind(fields["exchange"], queue, key, fields["arguments"])
        self._ok(fields, "queue.bind-ok")

    def queue_unbind(self, fields: dict[str, Any]) -> None:
        name = self._name(fields)
        queue = self.broker.queue(name, self.connection) if name in self.broker.queues else None
        self.broker.unbind(fields["exchange"], queue, fields["routing_key"], fields["arguments"])
        self._ok(fields, "queue.unbind-ok")

    def queue_purge(self, fields: dict[str, Any]) -> None:
        self._ok(fields, "queue.purge-ok", message_count=self._queue(fields).purge())

    def queue_delete(self, fields: dict[str, Any]) -> None:
        count = self.broker.delete_queue(
            self._name(fields), self.connection, if_unused=fields["if_unused"], if_empty=fields["if_empty"]
        )
        self._ok(fields, "queue.delete-ok", message_count=count)

    def basic_qos(self, fields: dict[str, Any]) -> None:
        if fields["prefetch_size"]:
            raise AMQPError(540, f"prefetch_size!=0 ({fields['prefetch_size']})")
        # RabbitMQ's reading: global is the channel, not global is each consumer that comes after this.
        if fields["global"]:
            self.prefetch = fields["prefetch_count"]
        else:
            self.consumer_prefetch = fields["prefetch_count"]
        self.reply("basic.qos-ok")
        if fields["global"]:
            self.serve()

    def basic_consume(self, fields: dict[str, Any]) -> None:
        if fields["queue"] == REPLY_TO:
            raise AMQPError(540, f"direct reply-to ({REPLY_TO})")
        queue = self._queue(fields)
        tag = fields["consumer_tag"] or unique_name("amq.ctag-")
        if tag in self.consumers:
            raise AMQPError(530, f"attempt to reuse consumer tag '{tag}'")
        priority = fields["arguments"].get("x-priority", 0)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise AMQPError(
                406,
                f"invalid arg 'x-priority' for queue '{queue.name}' in vhost '/': "
                f'"expected integer, got {type_name(priority)}"',
            )
        consumer = Subscriber(
            tag,
            queue,
            self,
            prefetch=self.consumer_prefetch,
            no_ack=fields["no_ack"],
            exclusive=fields["exclusive"],
            priority=priority,
        )
        queue.add(consumer)
        self.consumers[tag] = consumer
        self._ok(fields, "basic.consume-ok", consumer_tag=_raw(tag))
        queue.dispatch()

    def basic_cancel(self, fields: dict[str, Any]) -> None:
        tag = fields["consumer_tag"]
        consumer = self.consumers.pop(tag, None)
        if consumer is not None:
            consumer.queue.remove(consumer)
        self._ok(fields, "basic.cancel-ok", consumer_tag=_raw(tag))
        if consumer is not None:
            self.broker.consumer_removed(consumer.queue)

    def basic_get(self, fields: dict[str, Any]) -> None:
        queue = self._queue(fields)
        entry = queue.get()
        if entry is None:
            self.reply("basic.get-empty")
            return
        message = entry.message
        tag = self.next_tag()
        method = b"".join(
            (
                b"\x00\x3c\x00\x47",
                _TAG_AND_BIT.pack(tag, entry.redelivered),
                message.address,
                len(queue.ready).to_bytes(4),
            )
        )
        if self._acked > self._confirmed:
            self.send_confirms()
        self.write_content(method, message)
        if fields["no_ack"]:
            self.broker.release(message)
        else:
            self.held[tag] = Held(entry, queue, None)

    def basic_reject(self, fields: dict[str, Any]) -> None:
        taken = self._take(fields["delivery_tag"], fields.get("multiple", False))
        if fields["requeue"]:
            self._requeue(taken)
        else:
            self._settled(taken, lambda held: held.queue.reject(held.entry))

    def basic_recover(self, fields: dict[str, Any]) -> None:
        if not fields["requeue"]:
            raise AMQPError(540, "requeue=false")
        taken = list(self.held.values())
        self.held.clear()
        self._requeue(taken)
        self.reply("basic.recover-ok")

    def basic_recover_async(self, fields: dict[str, Any]) -> None:
        if not fields["requeue"]:
            raise AMQPError(540, "requeue=false")
        taken = list(self.held.values())
        self.held.clear()
        self._requeue(taken)

    def confirm_select(self, fields: dict[str, Any]) -> None:
        self.confirming = True
        self._ok(fields, "confirm.select-ok")

    def _ok(self, fields: dict[str, Any], name: str, **answer: Any) -> None:
        if not fields.get("nowait"):
            self.reply(name, **answer)


COMMANDS: Final[Mapping[str, Callable[[Channel, dict[str, Any]], None]]] = {
    "channel.flow": Channel.flow,
    "channel.flow-ok": lambda channel, fields: None,
    "exchange.declare": Channel.exchange_declare,
    "exchange.delete": Channel.exchange_delete,
    "exchange.bind": Channel.exchange_bind,
    "exchange.unbind": Channel.exchange_unbind,
    "queue.declare": Channel.queue_declare,
    "queue.bind": Channel.queue_bind,
    "queue.unbind": Channel.queue_unbind,
    "queue.purge": Channel.queue_purge,
    "queue.delete": Channel.queue_delete,
    "basic.qos": Channel.basic_qos,
    "basic.consume": Channel.basic_consume,
    "basic.cancel": Channel.basic_cancel,
    "basic.cancel-ok": lambda channel, fields: None,
    "basic.get": Channel.basic_get,
    "basic.reject": Channel.basic_reject,
    "basic.nack": Channel.basic_reject,
    "basic.recover": Channel.basic_recover,
    "basic.recover-async": Channel.basic_recover_async,
    "confirm.select": Channel.confirm_select,
}


def _raw(name: str) -> bytes:
    """A short string as the client sent it, odd bytes included."""
    return name.encode("utf-8", "surrogateescape")


def _expiration(text: str) -> int:
    """A message's expiration in milliseconds, or 406 as RabbitMQ words it."""
    number = re.match(r"-?[0-9]+", text)
    if number is None:
        raise AMQPError(406, f"invalid expiration '{text}': no_integer")
    if number.end() != len(text):
        raise AMQPError(406, f"invalid expiration '{text}': {{leftover_string,\"{text[number.end() :]}\"}}")
    value = int(text)
    if value < 0:
        raise AMQPError(406, f"invalid expiration '{text}': {{value_negative,{value}}}")
    if value >= 1 << 32:
        raise AMQPError(406, f"invalid expiration '{text}': {{value_too_large,{value}}}")
    return value
