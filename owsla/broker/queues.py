"""Declaration of the queues and the exchange of Owsla (docs/contract.md). What exists with other arguments is used as it is.

Queue arguments such as `x-queue-type` belong to the operator. Owsla sets only those that it needs, and those of the options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from txamqp.client import Closed

from .client import BaseHandler, BrokerClient, BrokerError, channel_refusal

NODE_QUEUE_EXPIRES: Final = 30 * 60 * 1000
"""Milliseconds after which RabbitMQ deletes the unused queue of a node.

Much longer than --node-grace, so that confirmed forwards wait for the node during any restart of the broker.
"""

_STREAM_CONSUMED = re.compile(r"of queue type rabbit_stream_queue\b")
"""Stream in the text of PRECONDITION_FAILED, for a consumer with an argument that streams lack (RabbitMQ 3.10 to 4.0)."""

NO_STREAM: Final[Mapping[str, Any]] = MappingProxyType({"x-priority": 0})
"""Argument of a consumer that RabbitMQ refuses for a stream. For other queues it is the default."""

_NO_CONSUMER: Final[Mapping[str, Any]] = MappingProxyType({"x-priority": "none"})
"""Argument of a consumer that RabbitMQ refuses for any queue, since a priority is an integer."""

_OTHER_TYPE = re.compile(r"inequivalent arg 'type'")
"""Difference of an existing exchange in the text of PRECONDITION_FAILED (RabbitMQ 3.10 to 4.0)."""

_LIMIT_REFUSED = re.compile(r"(invalid|inequivalent) arg 'x-delivery-limit'")
"""Refusal of a delivery limit in the text of PRECONDITION_FAILED (RabbitMQ 3.10 to 4.0): for a classic queue, or an existing
one that has another limit.
"""

UNLIMITED: Final[Mapping[str, Any]] = MappingProxyType({"x-delivery-limit": -1})
"""Argument of a quorum queue without a delivery limit, in RabbitMQ 4."""

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})

ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    """True if only Owsla declares the queue."""
    consumed: bool = False
    """True if Owsla consumes the queue: it cannot be a stream."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange of the operator, which Owsla checks and never declares."""

    name: str


def undeliverable_queue(to_device: str, limit: int, arguments: Mapping[str, Any] = _NONE) -> Queue:
    """Return the queue of undeliverable messages, `<to-device>.undeliverable`, which refuses messages beyond `limit`."""
    limits = {"x-max-length": limit, "x-overflow": "reject-publish"}
    return Queue(f"{to_device}.undeliverable", {**limits, **arguments}, own=True)


def node_queue(to_device: str, node: bytes, arguments: Mapping[str, Any] = _NONE) -> Queue:
    """Return the queue of a node, `<to-device>.<node>`. It survives lost connections, and expires after the end of the node."""
    return Queue(
        f"{to_device}.{node.decode()}",
        {"x-expires": NODE_QUEUE_EXPIRES, "x-single-active-consumer": True, **arguments},
        own=True,
        consumed=True,
    )


def broadcast_exchange(to_device: str) -> str:
    """Return the name of the exchange to which the queues of all nodes are bound, `<to-device>.all`."""
    return f"{to_device}.all"


async def find_exchange(client: BrokerClient, channel: int, exchange: Exchange) -> None:
    """Check that an exchange exists, on a temporary channel of this number.

    Raise `BrokerError` if it does not, and `Closed` if the connection ends.
    """
    opened = await client.open_channel(channel, BaseHandler())
    try:
        await opened.exchange_declare(exchange=exchange.name, passive=True)
    except Closed as closed:
        raise channel_refusal(closed) from None
    await client.end_channel(channel)


async def declare_fanout(client: BrokerClient, channel: int, exchange: str, warn: Callable[[str], None]) -> None:
    """Declare a durable fanout exchange, on a temporary channel of this number.

    A fanout exchange with other arguments (406), or an exchange that we have no permission to declare (403), is used as it is,
    with a call of `warn`. Raise `BrokerError` if there is no exchange, or one of another type, and `Closed` if the connection
    ends.
    """
    opened = await client.open_channel(channel, BaseHandler())
    try:
        await opened.exchange_declare(exchange=exchange, type="fanout", durable=True)
    except Closed as closed:
        error = channel_refusal(closed)
        if error.code not in (ACCESS_REFUSED, PRECONDITION_FAILED) or _OTHER_TYPE.search(error.text):
            raise error from None
        try:
            await find_exchange(client, channel, Exchange(exchange))
        except BrokerError:
            raise error from None
        warn(f"the exchange {exchange} is used as it is: {error}")
        return
    await client.end_channel(channel)


async def declare(client: BrokerClient, channel: int, queue: Queue, warn: Callable[[str], None]) -> None:
    """Declare a queue, on a temporary channel of this number.

    A queue that exists with other arguments (406), or that we have no permission to declare (403), is checked passively and
    used as it is, with a call of `warn`. Raise `BrokerError` if it does not exist either, or if it is a stream that Owsla would
    consume, and `Closed` if the connection ends.
    """
    try:
        await _declare(client, channel, queue, passive=False)
        return
    except Closed as closed:
        error = channel_refusal(closed)
        if error.code not in (ACCESS_REFUSED, PRECONDITION_FAILED):
            raise error from None
    if queue.consumed and await is_stream(client, channel, queue.name):
        raise consumed_stream(queue.name)
    try:
        await _declare(client, channel, queue, passive=True)
    except Closed as closed:
        channel_refusal(closed)
        raise error from None
    warn(f"the queue {queue.name} is used as it is: {error}")


async def has_arguments(client: BrokerClient, channel: int, queue: Queue) -> bool:
    """Return whether an existing queue has the arguments of `queue`, on a temporary channel of this number. False without
    permission to configure it.
    """
    try:
        await _declare(client, channel, queue, passive=False)
    except Closed as closed:
        channel_refusal(closed)
        return False
    return True


async def is_stream(client: BrokerClient, channel: int, queue: str) -> bool | None:
    """Return whether an existing queue is a stream, or `None` for a user who may not read it.

    The refusal of a consumer tells. That of a declaration does not: it names the first argument that differs, and RabbitMQ
    compares the size limit of a stream before its type.
    """
    refusal = await probe_consumer(client, channel, queue)
    if refusal is None:
        return False
    return None if refusal.code == ACCESS_REFUSED else is_stream_consumed(refusal)


async def probe_consumer(client: BrokerClient, channel: int, queue: str) -> BrokerError | None:
    """Consume a queue with an invalid argument, on a temporary channel of this number. Return the refusal, or `None` from a
    broker that does not look at the argument. It is 403 without permission to read.
    """
    try:
        opened = await client.open_channel(channel, BaseHandler())
        await opened.basic_consume(queue=queue, arguments=dict(_NO_CONSUMER))
    except Closed as closed:
        return channel_refusal(closed)
    await client.end_channel(channel)
    return None


def is_stream_consumed(refusal: BrokerError) -> bool:
    """Return whether the refusal of a consumer with an argument such as `NO_STREAM` says that the queue is a stream."""
    return refusal.code == PRECONDITION_FAILED and _STREAM_CONSUMED.search(refusal.text) is not None


def consumed_stream(queue: str) -> BrokerError:
    """Return the error of a stream that Owsla would consume.

    A stream gives each message to every consumer, and does not forget it when it is acknowledged: each of the consumers of a
    queue would deliver each message, and after a lost connection those that came meanwhile would be skipped.
    """
    return BrokerError(
        PRECONDITION_FAILED,
        f"the queue {queue} is a stream, which Owsla cannot consume: delete it and declare it with another type, "
        "or use another name",
        scope="channel",
    )


async def _declare(client: BrokerClient, number: int, queue: Queue, *, passive: bool) -> None:
    if not passive and _may_be_unlimited(client, queue):
        try:
            await _declare_with(client, number, queue, {**queue.arguments, **UNLIMITED})
            return
        except Closed as closed:
            if not _LIMIT_REFUSED.search(channel_refusal(closed).text):
                raise
    await _declare_with(client, number, queue, queue.arguments, passive=passive)


async def _declare_with(
    client: BrokerClient, number: int, queue: Queue, arguments: Mapping[str, Any], *, passive: bool = False
) -> None:
    channel = await client.open_channel(number, BaseHandler())
    await channel.queue_declare(queue=queue.name, durable=True, passive=passive, arguments=dict(arguments))
    await client.end_channel(number)


def _may_be_unlimited(client: BrokerClient, queue: Queue) -> bool:
    """Return whether to try to declare a queue as one without a delivery limit.

    RabbitMQ 4 drops messages of quorum queues after 20 returns. Messages that a node holds return each time it reconnects.
    Without a type, the queue becomes a quorum queue where that is the default of the virtual host, which AMQP does not tell.
    RabbitMQ refuses the argument for a new classic queue, and for an existing quorum queue with a limit.
    """
    kind = queue.arguments.get("x-queue-type", "quorum")
    return queue.own and kind == "quorum" and "x-delivery-limit" not in queue.arguments and client.rabbitmq >= (4, 0)


def declared_arguments(client: BrokerClient, queue: Queue) -> dict[str, Any]:
    """Return the arguments with which a queue is declared on this broker, where classic queues are the default."""
    unlimited = "x-queue-type" in queue.arguments and _may_be_unlimited(client, queue)
    return {**queue.arguments, **(UNLIMITED if unlimited else {})}
