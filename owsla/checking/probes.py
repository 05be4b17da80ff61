"""Requests to a broker that change nothing, and whose answers show permissions and the arguments of queues.

AMQP has no query for permissions, nor for the arguments of a queue. So a probe is a request that the broker must refuse: it has
an argument that is never valid. RabbitMQ checks the permission first, and refuses with 403 (ACCESS_REFUSED) if that is missing;
otherwise with 406 (PRECONDITION_FAILED) or 404 (NOT_FOUND). Nothing is declared, consumed or routed either way. The order of
these checks was tried with RabbitMQ 3.10.8 and 4.0.5:

queue.declare
    with the arguments of Owsla and one that no queue of that type can have. RabbitMQ reports an argument of Owsla that it
    does not accept before that one. Where the queue exists, RabbitMQ compares only arguments that queues of its type can have,
    and so accepts the declaration if it is equivalent. The queue may be deleted or declared by others at any moment: no order
    of events makes the probe declare it.
basic.consume
    with a priority that is not a number. No message is delivered, and none is marked as redelivered.
exchange.declare
    with an alternate exchange whose name is a number.
queue.bind
    of a queue that does not exist: 404 with the permissions to write to the queue and to read the exchange.
basic.publish
    with an expiration that is not a number: the message is never routed.

Each probe has a channel of its own, since a refusal closes the channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import methods, wire
from ..broker import queues as topology
from ..broker.arguments import never_valid
from ..broker.client import BaseHandler, BrokerClient, BrokerError, channel_refusal
from ..broker.queue_state import QueueState

_CHANNEL: Final = 1


class Probes:
    """Probes on one connection, one at a time. Each returns the refusal of the broker, or `None`."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = client

    async def inspect(self, queue: str) -> QueueState | BrokerError:
        """Return the state of a queue, or the refusal: 404 if it does not exist."""
        try:
            channel = await self._client.open_channel(_CHANNEL, BaseHandler())
            declared = await channel.queue_declare(queue=queue, passive=True)
        except Closed as closed:
            return channel_refusal(closed)
        await self._client.end_channel(_CHANNEL)
        return QueueState(declared.message_count, declared.consumer_count)

    async def find_exchange(self, exchange: str) -> BrokerError | None:
        """Return `None` if an exchange exists."""
        try:
            await topology.find_exchange(self._client, _CHANNEL, topology.Exchange(exchange))
        except BrokerError as error:
            return error
        return None

    def arguments(self, queue: topology.Queue) -> Mapping[str, Any]:
        """Return the arguments with which Owsla declares a queue on this broker."""
        return topology.declared_arguments(self._client, queue)

    async def declare(self, queue: str, arguments: Mapping[str, Any]) -> BrokerError | None:
        """Declare a queue with an invalid argument. Return `None` if it exists with these arguments."""
        try:
            channel = await self._client.open_channel(_CHANNEL, BaseHandler())
            await channel.queue_declare(queue=queue, durable=True, arguments=never_valid(arguments))
        except Closed as closed:
            return channel_refusal(closed)
        await self._client.end_channel(_CHANNEL)
        return None

    async def consume(self, queue: str) -> BrokerError | None:
        """Consume a queue with an invalid argument: 403 without permission to read."""
        return await topology.probe_consumer(self._client, _CHANNEL, queue)

    async def declare_fanout(self, exchange: str) -> BrokerError | None:
        """Declare a fanout exchange with an invalid argument: 403 without permission to configure."""
        try:
            channel = await self._client.open_channel(_CHANNEL, BaseHandler())
            await channel.exchange_declare(exchange=exchange, type="fanout", durable=True, arguments={"alternate-exchange": 1})
        except Closed as closed:
            return channel_refusal(closed)
        await self._client.end_channel(_CHANNEL)
        return None

    async def bind(self, missing: str, exchange: str) -> BrokerError | None:
        """Bind a queue that does not exist: 403 without permission to write to it, or to read the exchange."""
        try:
            channel = await self._client.open_channel(_CHANNEL, BaseHandler())
            await channel.queue_bind(queue=missing, exchange=exchange)
        except Closed as closed:
            return channel_refusal(closed)
        await self._client.end_channel(_CHANNEL)
        return None

    async def publish(self, exchange: str, routing_key: bytes) -> BrokerError | None:
        """Publish a message with an invalid property: 403 without permission to write."""
        answer = _Answer()
        try:
            channel = await self._client.open_channel(_CHANNEL, answer)
            await channel.confirm_select()
        except Closed as closed:
            return channel_refusal(closed)
        method = methods.encode_method("basic.publish", exchange=exchange, routing_key=routing_key.decode())
        header = wire.header_payload(0, wire.encode_properties({"expiration": "never"}))
        self._client.write(wire.frame(wire.FRAME_METHOD, _CHANNEL, method) + wire.frame(wire.FRAME_HEADER, _CHANNEL, header))
        try:
            await answer.answered
        except Closed as closed:
            return channel_refusal(closed)
        except BrokerError as error:
            if error.scope != "channel":
                raise
            return error
        await self._client.end_channel(_CHANNEL)
        return None


class _Answer(BaseHandler):
    """Handler of a channel with one message: `answered` fires with a confirm, and fails with the end of the channel."""

    __slots__ = ("answered",)

    def __init__(self) -> None:
        self.answered: Deferred[None] = Deferred()

    def confirmed(self, tag: int, multiple: bool) -> None:
        self.answered.callback(None)

    def refused(self, tag: int, multiple: bool) -> None:
        self.answered.callback(None)

    def closed(self, reason: Failure) -> None:
        self.answered.errback(reason)
