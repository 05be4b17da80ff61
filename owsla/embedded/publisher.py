"""Publishing on a channel: from the frames of a message to its queues.

A message arrives as basic.publish, a content header and body frames. `incoming` is the message whose frames have not all
arrived; while there is one, no other method may arrive on the channel. Its parts count as memory as they arrive.
"""

from __future__ import annotations

from typing import Any

from owsla.amqp import wire

from .channel_output import ChannelOutput
from .consumers import ChannelConsumers
from .errors import AMQPError
from .memory import EXHAUSTED_AT
from .messages import Message
from .publishing import MAX_MESSAGE, IncomingMessage, PendingPublish, read_content_header
from .transactions import Transaction


class ChannelPublisher:
    """Publishing side of a channel."""

    __slots__ = (
        "_broker",
        "_confirming",
        "_consumers",
        "_last_address",
        "_last_payload",
        "_output",
        "_transaction",
        "incoming",
    )

    def __init__(self, output: ChannelOutput, consumers: ChannelConsumers, transaction: Transaction) -> None:
        self._output = output
        self._consumers = consumers
        self._transaction = transaction
        self._broker = output.connection.broker
        self._confirming = False
        self.incoming: IncomingMessage | None = None
        self._last_payload = b""
        self._last_address: tuple[str, str, bytes, bool] = ("", "", b"", False)

    def method_arrived(self, payload: bytes) -> None:
        """Begin a message with the payload of its basic.publish.

        The payload is class (2 bytes), method (2), reserved (2), exchange, routing key, and a byte of flags: bit 0 is
        `mandatory`, bit 1 `immediate`.
        """
        # A payload identical to the last one is not parsed again: clients publish many messages in a row to one queue.
        if payload != self._last_payload:
            exchange, offset = wire.read_short_string(payload, 6)
            key, offset = wire.read_short_string(payload, offset)
            if offset + 1 != len(payload):
                raise wire.WireError("basic.publish has a wrong length")
            if payload[offset] & 2:
                # RabbitMQ removed the flag `immediate` in 3.0.
                raise AMQPError(540, "immediate=true")
            self._last_address = (
                exchange.decode("utf-8", "surrogateescape"),
                key.decode("utf-8", "surrogateescape"),
                payload[6:offset],
                bool(payload[offset] & 1),
            )
            self._last_payload = payload
        self.incoming = IncomingMessage(*self._last_address)

    def header_arrived(self, payload: bytes) -> bool:
        """Add the content header. Return whether the message is complete, that is, has no body."""
        incoming = self.incoming
        if incoming is None or incoming.header is not None:
            raise AMQPError(505, "expected method frame, got content header frame instead")
        incoming.header_arrived(payload)
        return not incoming.size

    def body_arrived(self, payload: bytes) -> bool:
        """Add a body frame. Return whether the message is complete."""
        incoming = self.incoming
        if incoming is None or incoming.header is None:
            raise AMQPError(505, "expected method or content header frame, got content body frame instead")
        incoming.body_arrived(payload)
        memory = self._broker.memory
        if not incoming.missing:
            # The earlier parts were counted as they arrived. From here on the whole message is counted where it is retained.
            if len(incoming.parts) > 1:
                memory.add(-(incoming.size - len(payload)))
            return True
        memory.add(len(payload))
        # The alarm does not stop a message that has begun, so incomplete messages need a limit of their own. Beyond the
        # exhaustion it leaves room for one message of the largest size.
        if memory.used > EXHAUSTED_AT * memory.limit + MAX_MESSAGE:
            raise AMQPError(506, "incomplete messages take too much memory")
        return False

    def drop_incoming(self) -> None:
        """Drop the incomplete message, if there is one, and release its memory."""
        incoming, self.incoming = self.incoming, None
        if incoming is not None and incoming.missing:
            self._broker.memory.add(-(incoming.size - incoming.missing))

    def publish(self) -> None:
        """Publish the complete message: route it, return it if it is unroutable and mandatory, and confirm it."""
        incoming, self.incoming = self.incoming, None
        assert incoming is not None
        assert incoming.header is not None
        parts = incoming.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        user = self._output.connection.session.user
        header, ttl, copies = read_content_header(incoming.header, user, self._consumers.reply_name)
        if incoming.exchange and self._broker.exchange(incoming.exchange).internal:
            raise AMQPError(403, f"cannot publish to internal exchange '{incoming.exchange}' in vhost '/'")
        message = Message(incoming.exchange, incoming.routing_key, incoming.address, header, body)
        # Routed now, enqueued at tx.commit: RabbitMQ decides about the queues when a publish arrives.
        if self._transaction.selected:
            queues = self._broker.route(message.exchange, [message.routing_key, *copies], message)
            self._broker.memory.retain(message)
            self._transaction.publishes.append(PendingPublish(message, queues, ttl, incoming.mandatory))
            return
        routed, accepted = self._broker.publish(message, ttl, copies)
        # The return precedes the confirm: a client that has the confirm knows that no return follows.
        if not routed and incoming.mandatory:
            self._output.return_message(message)
        if self._confirming:
            self._output.confirm(accepted)

    def commit(self, publishes: list[PendingPublish]) -> bool:
        """Publish the messages of a transaction. Return whether all queues accepted them."""
        complete = True
        for message, queues, ttl, mandatory in publishes:
            existing = [queue for queue in queues if not queue.deleted]
            complete = self._broker.enqueue(existing, message, ttl) and complete
            self._broker.memory.release(message)
            if mandatory and not existing:
                self._output.return_message(message)
        return complete

    def roll_back(self, publishes: list[PendingPublish]) -> None:
        """Drop the messages of a transaction."""
        for publish in publishes:
            self._broker.memory.release(publish.message)

    # -- handlers of methods -------------------------------------------------------------------------------------------------

    def tx_select(self, fields: dict[str, Any]) -> None:
        if self._confirming:
            raise AMQPError(406, "cannot switch from confirm to tx mode")
        self._transaction.select()
        self._output.reply("tx.select-ok")

    def confirm_select(self, fields: dict[str, Any]) -> None:
        if self._transaction.selected:
            raise AMQPError(406, "cannot switch from tx to confirm mode")
        self._confirming = True
        self._output.reply_unless_nowait(fields, "confirm.select-ok")
