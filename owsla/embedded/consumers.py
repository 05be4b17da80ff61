"""Consuming on a channel: consumers, prefetch limits, unacknowledged deliveries, and direct replies.

Theory of operation
-------------------
Each delivery gets a tag, and stays in `unacked` until the client settles it: ack (released), reject (dropped or dead-lettered)
or requeue (back to its position in the queue). In a transaction, settlements are collected, and take effect at tx.commit.

Two limits pause deliveries, and both are RabbitMQ 3.10's reading of basic.qos, which differs from the specification: without
`global` the limit is for each consumer that is added later, with `global` it is shared by all consumers of the channel.
Deliveries of basic.get count towards neither. A settlement that makes room dispatches the queues that were stalled.

The shared limit is also shared fairly: a consumer that got a message moves to the end of `_consumers`, so that a queue with
many messages does not take all the room that its channel gets.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from owsla.amqp import methods, wire

from .broker import unique_name
from .channel_output import ChannelOutput
from .declarations import Declarations, encode_name
from .errors import AMQPError, type_name
from .messages import Message
from .queues import QueueConsumer, QueuedMessage, ServerQueue
from .replies import REPLY_TO, ReplyConsumer, reply_name
from .transactions import Settlement, Settlements, Transaction, UnackedDelivery

_TAG_AND_BIT = struct.Struct(">QB")
_DELIVER: Final = methods.BY_NAME["basic.deliver"].prefix
_GET_OK: Final = methods.BY_NAME["basic.get-ok"].prefix


class ChannelConsumer(QueueConsumer):
    """Consumer of a client, on a channel."""

    __slots__ = ("_channel", "_prefetch", "_prefix", "_unacked_count")

    def __init__(
        self,
        tag: str,
        queue: ServerQueue,
        channel: ChannelConsumers,
        *,
        prefetch: int,
        no_ack: bool,
        exclusive: bool,
        priority: int,
    ) -> None:
        super().__init__(tag, queue, no_ack=no_ack, exclusive=exclusive, priority=priority)
        self._channel = channel
        self._prefetch = prefetch
        self._unacked_count = 0
        self._prefix = _DELIVER + wire.short_string(encode_name(tag))

    def can_take(self) -> bool:
        if not self._channel.can_deliver():
            return False
        if self.no_ack:
            return True
        return (not self._prefetch or self._unacked_count < self._prefetch) and self._channel.has_room()

    def deliver(self, queued: QueuedMessage) -> None:
        if not self.no_ack:
            self._unacked_count += 1
        self._channel.deliver(self, self._prefix, queued)

    def settled(self) -> None:
        """Count a delivery as settled."""
        self._unacked_count -= 1

    def cancelled(self) -> None:
        self._channel.consumer_cancelled(self)


class ChannelConsumers:
    """Consuming side of a channel."""

    __slots__ = (
        "_broker",
        "_consumer_prefetch",
        "_consumers",
        "_declarations",
        "_delivery_tag",
        "_output",
        "_prefetch",
        "_replies",
        "_transaction",
        "_unacked_count",
        "unacked",
    )

    def __init__(self, output: ChannelOutput, declarations: Declarations, transaction: Transaction) -> None:
        self._output = output
        self._declarations = declarations
        self._transaction = transaction
        self._broker = output.connection.broker
        self._prefetch = 0
        """Limit of the unacknowledged deliveries to all consumers of the channel together; 0 means no limit, here and below."""
        self._consumer_prefetch = 0
        """Limit of the unacknowledged deliveries to each consumer that is added later."""
        self._unacked_count = 0
        """Number of unacknowledged deliveries to consumers, without those of basic.get."""
        self.unacked: OrderedDict[int, UnackedDelivery] = OrderedDict()
        """Unacknowledged deliveries by tag, in the order of the tags."""
        self._consumers: dict[str, ChannelConsumer] = {}
        self._replies: ReplyConsumer | None = None
        self._delivery_tag = 0

    # -- deliveries --------------------------------------------------------------------------------------------------------

    def can_deliver(self) -> bool:
        """Return whether the client reads and the channel is open."""
        return not (self._output.connection.paused or self._output.closing)

    def has_room(self) -> bool:
        """Return whether the shared prefetch limit of the channel allows another delivery."""
        return not self._prefetch or self._unacked_count < self._prefetch

    def deliver(self, consumer: ChannelConsumer, prefix: bytes, queued: QueuedMessage) -> None:
        """Deliver a message to a consumer; `prefix` is the encoded basic.deliver up to the delivery tag."""
        self._delivery_tag = tag = self._delivery_tag + 1
        if not consumer.no_ack:
            self.unacked[tag] = UnackedDelivery(tag, queued, consumer.queue, consumer)
            self._unacked_count += 1
        message = consumer.queue.message_to_deliver(queued)
        self._output.write_content(prefix + _TAG_AND_BIT.pack(tag, queued.redelivered) + message.address, message)

    def serve(self) -> None:
        """Dispatch the stalled queues of all consumers, since the channel has room again."""
        if self._replies is not None:
            self._replies.serve()
        # A copy, since a delivery can end in a cancellation, and the fair order changes the dictionary.
        for tag, consumer in list(self._consumers.items()):
            if consumer.queue.is_stalled():
                before = self._delivery_tag
                consumer.queue.dispatch()
                if self._prefetch and self._delivery_tag > before and self._consumers.pop(tag, None) is consumer:
                    self._consumers[tag] = consumer

    def may_acknowledge(self) -> bool:
        """Return whether the client has, or can get, deliveries whose acknowledgement would free memory."""
        return bool(self._consumers or self.unacked or self._transaction.settlements)

    def consumer_cancelled(self, consumer: ChannelConsumer) -> None:
        """Forget a consumer whose queue was deleted, and notify the client if it understands that."""
        self._consumers.pop(consumer.tag, None)
        if self._output.connection.session.has_capability("consumer_cancel_notify") and not self._output.closing:
            self._output.reply("basic.cancel", consumer_tag=encode_name(consumer.tag), nowait=True)

    def end(self) -> None:
        """Requeue the unacknowledged deliveries, and remove the consumers."""
        self._remove_reply_consumer()
        # Requeue first: the next consumer, which a queue serves when this one is removed, then begins with these messages.
        self._requeue_all()
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers.values():
            consumer.queue.remove(consumer)
        # Auto-delete queues last: a queue may have several consumers of this channel.
        for consumer in consumers.values():
            self._broker.consumer_removed(consumer.queue)

    # -- settlement --------------------------------------------------------------------------------------------------------

    def ack_arrived(self, tag: int, multiple: bool) -> None:
        """Acknowledge deliveries, for basic.ack."""
        self._settle(Settlement.ACK, self._take(tag, multiple))

    def commit(self, settlements: Settlements) -> None:
        """Apply the settlements of a transaction."""
        for settlement, taken in settlements:
            self._apply(settlement, taken)

    def roll_back(self, settlements: Settlements) -> None:
        """Make the deliveries of a transaction unacknowledged again."""
        back = [delivery for _, taken in settlements for delivery in taken]
        if back:
            # `_take` with `multiple` relies on the order of the tags.
            back = sorted([*back, *self.unacked.values()], key=lambda delivery: delivery.tag)
            self.unacked = OrderedDict((delivery.tag, delivery) for delivery in back)

    def _settle(self, settlement: Settlement, taken: list[UnackedDelivery]) -> None:
        if self._transaction.selected:
            self._transaction.settlements.append((settlement, taken))
        else:
            self._apply(settlement, taken)

    def _apply(self, settlement: Settlement, taken: list[UnackedDelivery]) -> None:
        if settlement is Settlement.ACK:
            self._remove(taken, lambda delivery: self._broker.memory.release(delivery.queued.message))
        elif settlement is Settlement.REJECT:
            self._remove(taken, lambda delivery: delivery.queue.reject(delivery.queued))
        else:
            self._requeue(taken, rejected=True)

    def _take(self, tag: int, multiple: bool) -> list[UnackedDelivery]:
        """Remove and return the delivery of a tag; with `multiple`, all up to the tag, or all for tag 0."""
        unacked = self.unacked
        if not multiple:
            delivery = unacked.pop(tag, None)
            if delivery is None:
                raise AMQPError(406, f"unknown delivery tag {tag}")
            return [delivery]
        # RabbitMQ refuses a multiple ack of an unknown tag as well, except 0, which means all.
        if tag and tag not in unacked:
            raise AMQPError(406, f"unknown delivery tag {tag}")
        taken: list[UnackedDelivery] = []
        while unacked and (not tag or next(iter(unacked)) <= tag):
            taken.append(unacked.popitem(last=False)[1])
        return taken

    def _remove(self, taken: Iterable[UnackedDelivery], finish: Callable[[UnackedDelivery], None]) -> None:
        """Finish deliveries, and dispatch the queues that were stalled for them."""
        stalled: dict[ServerQueue, None] = {}
        was_full = bool(self._prefetch) and self._unacked_count >= self._prefetch
        for delivery in taken:
            if self._count_settled(delivery):
                stalled[delivery.queue] = None
            finish(delivery)
        if was_full and self._unacked_count < self._prefetch:
            self.serve()
        for queue in stalled:
            if queue.is_stalled():
                queue.dispatch()

    def _requeue(self, taken: list[UnackedDelivery], *, rejected: bool = False) -> None:
        # One call per queue: the queue sorts the returned messages in once, before it delivers any of them.
        by_queue: dict[ServerQueue, list[QueuedMessage]] = {}
        for delivery in taken:
            self._count_settled(delivery)
            by_queue.setdefault(delivery.queue, []).append(delivery.queued)
        for queue, returned in by_queue.items():
            queue.requeue(returned, rejected=rejected)
        if self._prefetch:
            self.serve()

    def _requeue_all(self) -> None:
        taken = list(self.unacked.values())
        self.unacked.clear()
        self._requeue(taken)

    def _count_settled(self, delivery: UnackedDelivery) -> bool:
        """Count a delivery as settled. Return whether it was made to a consumer."""
        if not isinstance(delivery.consumer, ChannelConsumer):
            return False
        delivery.consumer.settled()
        self._unacked_count -= 1
        return True

    # -- direct replies ----------------------------------------------------------------------------------------------------

    @property
    def reply_name(self) -> str | None:
        """Routing key of direct replies to this channel, if it consumes them."""
        return None if self._replies is None else self._replies.name

    def can_take_reply(self) -> bool:
        """Return whether the client reads."""
        return not self._output.connection.paused

    def deliver_reply(self, tag: str, message: Message) -> None:
        """Deliver a direct reply. It cannot be acknowledged, and does not use up its delivery tag."""
        method = _DELIVER + wire.short_string(encode_name(tag)) + _TAG_AND_BIT.pack(self._delivery_tag + 1, False)
        self._output.write_content(method + message.address, message)

    def _consume_replies(self, fields: dict[str, Any], tag: str) -> None:
        if self._replies is not None:
            raise AMQPError(406, "reply consumer already set")
        if not fields["no_ack"]:
            raise AMQPError(406, "reply consumer cannot acknowledge")
        if tag in self._consumers:
            raise AMQPError(530, f"attempt to reuse consumer tag '{tag}'")
        self._replies = ReplyConsumer(reply_name(), tag, self, self._broker.memory)
        self._broker.add_reply_consumer(self._replies)
        self._output.reply_unless_nowait(fields, "basic.consume-ok", consumer_tag=encode_name(tag))

    def _remove_reply_consumer(self) -> None:
        consumer, self._replies = self._replies, None
        if consumer is not None:
            self._broker.remove_reply_consumer(consumer)
            consumer.end()

    # -- commands ----------------------------------------------------------------------------------------------------------

    def basic_qos(self, fields: dict[str, Any]) -> None:
        if fields["prefetch_size"]:
            raise AMQPError(540, f"prefetch_size!=0 ({fields['prefetch_size']})")
        if fields["global"]:
            self._prefetch = fields["prefetch_count"]
        else:
            self._consumer_prefetch = fields["prefetch_count"]
        self._output.reply("basic.qos-ok")
        if fields["global"]:
            self.serve()

    def basic_consume(self, fields: dict[str, Any]) -> None:
        tag = fields["consumer_tag"] or unique_name("amq.ctag-")
        if fields["queue"] == REPLY_TO:
            self._consume_replies(fields, tag)
            return
        queue = self._declarations.queue(fields)
        if tag in self._consumers or (self._replies is not None and tag == self._replies.tag):
            raise AMQPError(530, f"attempt to reuse consumer tag '{tag}'")
        priority = fields["arguments"].get("x-priority", 0)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise AMQPError(
                406,
                f"invalid arg 'x-priority' for queue '{queue.name}' in vhost '/': "
                f'"expected integer, got {type_name(priority)}"',
            )
        consumer = ChannelConsumer(
            tag,
            queue,
            self,
            prefetch=self._consumer_prefetch,
            no_ack=fields["no_ack"],
            exclusive=fields["exclusive"],
            priority=priority,
        )
        queue.add(consumer)
        self._consumers[tag] = consumer
        # The answer precedes the first delivery: clients do not know the consumer before.
        self._output.reply_unless_nowait(fields, "basic.consume-ok", consumer_tag=encode_name(tag))
        queue.dispatch()

    def basic_cancel(self, fields: dict[str, Any]) -> None:
        tag = fields["consumer_tag"]
        if self._replies is not None and tag == self._replies.tag:
            self._remove_reply_consumer()
        consumer = self._consumers.pop(tag, None)
        if consumer is not None:
            consumer.queue.remove(consumer)
        self._output.reply_unless_nowait(fields, "basic.cancel-ok", consumer_tag=encode_name(tag))
        if consumer is not None:
            self._broker.consumer_removed(consumer.queue)

    def basic_get(self, fields: dict[str, Any]) -> None:
        queue = self._declarations.queue(fields)
        queued = queue.get()
        if queued is None:
            self._output.reply("basic.get-empty")
            return
        message = queue.message_to_deliver(queued)
        self._delivery_tag = tag = self._delivery_tag + 1
        method = _GET_OK + _TAG_AND_BIT.pack(tag, queued.redelivered) + message.address + len(queue.ready).to_bytes(4)
        self._output.send_confirms()
        self._output.write_content(method, message)
        if fields["no_ack"]:
            self._broker.memory.release(queued.message)
        else:
            self.unacked[tag] = UnackedDelivery(tag, queued, queue, None)

    def basic_reject(self, fields: dict[str, Any]) -> None:
        taken = self._take(fields["delivery_tag"], fields.get("multiple", False))
        self._settle(Settlement.REQUEUE if fields["requeue"] else Settlement.REJECT, taken)

    def basic_recover(self, fields: dict[str, Any]) -> None:
        self.basic_recover_async(fields)
        self._output.reply("basic.recover-ok")

    def basic_recover_async(self, fields: dict[str, Any]) -> None:
        if not fields["requeue"]:
            raise AMQPError(540, "requeue=false")
        self._requeue_all()


CONSUMING: Final[Mapping[str, Callable[[ChannelConsumers, dict[str, Any]], None]]] = {
    "basic.qos": ChannelConsumers.basic_qos,
    "basic.consume": ChannelConsumers.basic_consume,
    "basic.cancel": ChannelConsumers.basic_cancel,
    "basic.cancel-ok": lambda consumers, fields: None,
    "basic.get": ChannelConsumers.basic_get,
    "basic.reject": ChannelConsumers.basic_reject,
    "basic.nack": ChannelConsumers.basic_reject,
    "basic.recover": ChannelConsumers.basic_recover,
    "basic.recover-async": ChannelConsumers.basic_recover_async,
}
"""Commands about consuming, by the names of their methods. basic.ack has a way of its own: `ack_arrived`."""
