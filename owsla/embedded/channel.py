"""A channel of a client's connection: its consumers, what they hold, its confirms, and the commands that arrive on it."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from owsla.amqp import wire

from .broker import Broker, unique_name
from .declarations import DECLARATIONS, Declarations, raw
from .errors import AMQPError, type_name
from .publishing import MAX_MESSAGE, Incoming, Publish, read_content
from .queues import Consumer, Entry, Message, Queue
from .replies import REPLY_TO, ReplyConsumer
from .transactions import Held, Settle, Transaction

_FRAME = struct.Struct(">BHI")
_TAG_AND_BIT = struct.Struct(">QB")
_ACK = struct.Struct(">BHIHHQBB")
_DELIVER = b"\x00\x3c\x00\x3c"


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
        self.prefix = _DELIVER + wire.short_string(tag.encode("utf-8", "surrogateescape"))

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
            channel.held[tag] = Held(tag, entry, self.queue, self)
            self.holding += 1
            channel.holding += 1
        message = self.queue.outgoing(entry)
        channel.write_content(self.prefix + _TAG_AND_BIT.pack(tag, entry.redelivered) + message.address, message)

    def let_go(self) -> None:
        """A delivery is settled."""
        self.holding -= 1
        self.channel.holding -= 1

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
        "_reply_consumer",
        "_transaction",
        "broker",
        "closing",
        "confirming",
        "connection",
        "consumer_prefetch",
        "consumers",
        "declarations",
        "held",
        "holding",
        "incoming",
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
        self.declarations = Declarations(connection.broker, connection, self.reply)
        self._reply_consumer: ReplyConsumer | None = None
        self._transaction: Transaction | None = None
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
        incoming.header_arrived(payload)
        return not incoming.size

    def body_arrived(self, payload: bytes) -> bool:
        """A body frame. Returns whether the message is complete."""
        incoming = self.incoming
        if incoming is None or incoming.header is None:
            raise AMQPError(505, "expected method or content header frame, got content body frame instead")
        incoming.body_arrived(payload)
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
        parts = incoming.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        replies = self._reply_consumer
        header, ttl, copies = read_content(incoming.header, self.connection.user, None if replies is None else replies.name)
        if incoming.exchange and self.broker.exchange(incoming.exchange).internal:
            raise AMQPError(403, f"cannot publish to internal exchange '{incoming.exchange}' in vhost '/'")
        message = Message(incoming.exchange, incoming.routing_key, incoming.address, header, body)
        if self._transaction is not None:
            queues = self.broker.route(message.exchange, [message.routing_key, *copies], message)
            self.broker.retain(message)
            self._transaction.publishes.append(Publish(message, queues, ttl, incoming.mandatory))
            return
        routed, accepted = self.broker.publish(message, ttl, copies)
        if not routed and incoming.mandatory:
            self._return(message)
        if self.confirming:
            self._published += 1
            if accepted:
                self._acked = self._published
                self.connection.confirm_later(self)
            else:
                self.send_confirms()
                self._acked = self._confirmed = self._published
                self.connection.write(_ACK.pack(1, self.number, 13, 60, 120, self._published, 0, 0xCE))

    def _return(self, message: Message) -> None:
        self.write_content(b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE" + message.address, message)

    def send_confirms(self) -> None:
        """Send one ack for all that has been settled well since the last."""
        if self._acked > self._confirmed:
            multiple = self._acked > self._confirmed + 1
            self._confirmed = self._acked
            self.connection.write(_ACK.pack(1, self.number, 13, 60, 80, self._acked, multiple, 0xCE))

    # -- settling ----------------------------------------------------------------------------------------------------------

    def ack_arrived(self, tag: int, multiple: bool) -> None:
        """A basic.ack."""
        self._settle(Settle.ACK, self._take(tag, multiple))

    def _settle(self, how: Settle, taken: list[Held]) -> None:
        if self._transaction is not None:
            self._transaction.settled.append((how, taken))
        elif how is Settle.ACK:
            self._settled(taken, lambda held: self.broker.release(held.entry.message))
        elif how is Settle.REJECT:
            self._settled(taken, lambda held: held.queue.reject(held.entry))
        else:
            self._requeue(taken, rejected=True)

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
            if isinstance(held.consumer, Subscriber):
                held.consumer.let_go()
                wanting[held.queue] = None
            each(held)
        if was_full and self.holding < self.prefetch:
            self.serve()
        for queue in wanting:
            if queue.wants_dispatch():
                queue.dispatch()

    def _requeue(self, taken: list[Held], *, rejected: bool = False) -> None:
        by_queue: dict[Queue, list[Entry]] = {}
        for held in taken:
            if isinstance(held.consumer, Subscriber):
                held.consumer.let_go()
            by_queue.setdefault(held.queue, []).append(held.entry)
        for queue, entries in by_queue.items():
            queue.requeue(entries, rejected=rejected)
        if self.prefetch:
            self.serve()

    def serve(self) -> None:
        """There is room in this channel again: its consumers' queues go on."""
        if self._reply_consumer is not None:
            self._reply_consumer.serve()
        for tag, consumer in list(self.consumers.items()):
            if consumer.queue.wants_dispatch():
                before = self._delivery_tag
                consumer.queue.dispatch()
                if self.prefetch and self._delivery_tag > before and self.consumers.pop(tag, None) is consumer:
                    # The channel's limit is shared: a consumer that got something is the last one the next time.
                    self.consumers[tag] = consumer

    def consumes(self) -> bool:
        """Whether it holds unacknowledged deliveries, or can get some."""
        return bool(self.consumers or self.held or (self._transaction is not None and self._transaction.settled))

    def consumer_cancelled(self, consumer: Subscriber) -> None:
        """A consumer's queue has gone: tell the client, where it understands."""
        self.consumers.pop(consumer.tag, None)
        if self.connection.has_capability("consumer_cancel_notify") and not self.closing:
            self.reply("basic.cancel", consumer_tag=raw(consumer.tag), nowait=True)

    def end(self) -> None:
        """The channel is over: consumers leave, what they hold goes back."""
        self.closing = True
        self.drop_incoming()
        if self._transaction is not None:
            self._roll_back()
        self._forget_replies()
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
        if handler is not None:
            handler(self, fields)
            return
        declare = DECLARATIONS.get(name)
        if declare is None:
            raise AMQPError(503, f"unimplemented method {name}")
        declare(self.declarations, fields)

    def flow(self, fields: dict[str, Any]) -> None:
        if not fields["active"]:
            raise AMQPError(540, "active=false")
        self.reply("channel.flow-ok", active=True)

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
        tag = fields["consumer_tag"] or unique_name("amq.ctag-")
        replies = self._reply_consumer
        if fields["queue"] == REPLY_TO:
            self._consume_replies(fields, tag)
            return
        queue = self.declarations.queue(fields)
        if tag in self.consumers or (replies is not None and tag == replies.tag):
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
        self._ok(fields, "basic.consume-ok", consumer_tag=raw(tag))
        queue.dispatch()

    def _consume_replies(self, fields: dict[str, Any], tag: str) -> None:
        if self._reply_consumer is not None:
            raise AMQPError(406, "reply consumer already set")
        if not fields["no_ack"]:
            raise AMQPError(406, "reply consumer cannot acknowledge")
        if tag in self.consumers:
            raise AMQPError(530, f"attempt to reuse consumer tag '{tag}'")
        self._reply_consumer = ReplyConsumer(unique_name(f"{REPLY_TO}."), tag, self, self.broker)
        self.broker.add_reply_consumer(self._reply_consumer)
        self._ok(fields, "basic.consume-ok", consumer_tag=raw(tag))

    def can_take_reply(self) -> bool:
        """Whether the client reads."""
        return not self.connection.paused

    def deliver_reply(self, tag: str, message: Message) -> None:
        """Deliver a direct reply. It cannot be acknowledged, and its delivery tag counts for nothing."""
        method = _DELIVER + wire.short_string(raw(tag)) + _TAG_AND_BIT.pack(self._delivery_tag + 1, False)
        self.write_content(method + message.address, message)

    def _forget_replies(self) -> None:
        consumer, self._reply_consumer = self._reply_consumer, None
        if consumer is not None:
            self.broker.remove_reply_consumer(consumer)
            consumer.end()

    def basic_cancel(self, fields: dict[str, Any]) -> None:
        tag = fields["consumer_tag"]
        if self._reply_consumer is not None and tag == self._reply_consumer.tag:
            self._forget_replies()
        consumer = self.consumers.pop(tag, None)
        if consumer is not None:
            consumer.queue.remove(consumer)
        self._ok(fields, "basic.cancel-ok", consumer_tag=raw(tag))
        if consumer is not None:
            self.broker.consumer_removed(consumer.queue)

    def basic_get(self, fields: dict[str, Any]) -> None:
        queue = self.declarations.queue(fields)
        entry = queue.get()
        if entry is None:
            self.reply("basic.get-empty")
            return
        message = queue.outgoing(entry)
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
            self.broker.release(entry.message)
        else:
            self.held[tag] = Held(tag, entry, queue, None)

    def basic_reject(self, fields: dict[str, Any]) -> None:
        taken = self._take(fields["delivery_tag"], fields.get("multiple", False))
        self._settle(Settle.REQUEUE if fields["requeue"] else Settle.REJECT, taken)

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

    # -- transactions ------------------------------------------------------------------------------------------------------

    def tx_select(self, fields: dict[str, Any]) -> None:
        if self.confirming:
            raise AMQPError(406, "cannot switch from confirm to tx mode")
        if self._transaction is None:
            self._transaction = Transaction()
        self.reply("tx.select-ok")

    def _take_transaction(self) -> Transaction:
        transaction = self._transaction
        if transaction is None:
            raise AMQPError(406, "channel is not transactional")
        return transaction

    def tx_commit(self, fields: dict[str, Any]) -> None:
        transaction = self._take_transaction()
        self._transaction = None
        complete = True
        for message, queues, ttl, mandatory in transaction.publishes:
            there = [queue for queue in queues if not queue.deleted]
            complete = self.broker.enqueue(there, message, ttl) and complete
            self.broker.release(message)
            if mandatory and not there:
                self._return(message)
        for how, taken in transaction.settled:
            self._settle(how, taken)
        self._transaction = Transaction()
        if not complete:
            raise AMQPError(406, "partial tx completion")
        self.reply("tx.commit-ok")

    def tx_rollback(self, fields: dict[str, Any]) -> None:
        self._take_transaction()
        self._roll_back()
        self.reply("tx.rollback-ok")

    def _roll_back(self) -> None:
        """Drop the transaction's publishes; what it settled is unacknowledged again."""
        transaction = self._take_transaction()
        self._transaction = Transaction()
        for publish in transaction.publishes:
            self.broker.release(publish.message)
        back = transaction.deliveries()
        if back:
            back = sorted([*back, *self.held.values()], key=lambda held: held.tag)
            self.held = OrderedDict((held.tag, held) for held in back)

    def confirm_select(self, fields: dict[str, Any]) -> None:
        if self._transaction is not None:
            raise AMQPError(406, "cannot switch from tx to confirm mode")
        self.confirming = True
        self._ok(fields, "confirm.select-ok")

    def _ok(self, fields: dict[str, Any], name: str, **answer: Any) -> None:
        if not fields.get("nowait"):
            self.reply(name, **answer)


COMMANDS: Final[Mapping[str, Callable[[Channel, dict[str, Any]], None]]] = {
    "channel.flow": Channel.flow,
    "channel.flow-ok": lambda channel, fields: None,
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
    "tx.select": Channel.tx_select,
    "tx.commit": Channel.tx_commit,
    "tx.rollback": Channel.tx_rollback,
}
