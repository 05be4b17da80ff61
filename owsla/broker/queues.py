"""The queues of Owsla, declared as the contract says, and used as they are where somebody else has declared them otherwise.

Arguments of queues (`x-queue-type` and the like) are the operator's: there are none but those that Owsla itself needs and those
that an option adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from txamqp.client import Closed

from .client import BaseHandler, BrokerError, BrokerProtocol, as_failure

NODE_QUEUE_EXPIRES: Final = 30 * 60 * 1000
"""Milliseconds after which RabbitMQ deletes the queue of a node that does not come back.

Well above the grace that a node has to return in, so that a confirmed forward waits for it through any restart of the broker.
"""

_QUORUM = re.compile(r"current is .*quorum")
"""In RabbitMQ's words on refusing a declaration: the type of the queue that is there."""

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
    """Whether nobody but Owsla declares it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange of somebody else's: it is never declared, only looked for."""

    name: str


def undeliverable_queue(to_device: str, limit: int, arguments: Mapping[str, Any] = _NONE) -> Queue:
    """Where messages go that no device can get: `<to-device>.undeliverable`, at most `limit` of them, refusing more."""
    return Queue(f"{to_device}.undeliverable", {"x-max-length": limit, "x-overflow": "reject-publish", **arguments})


def node_queue(to_device: str, node: bytes, arguments: Mapping[str, Any] = _NONE) -> Queue:
    """A node's own queue: `<to-device>.<node>`. It outlives a connection of the node's, and not the node for long."""
    return Queue(
        f"{to_device}.{node.decode()}",
        {"x-expires": NODE_QUEUE_EXPIRES, "x-single-active-consumer": True, **arguments},
        own=True,
    )


async def find_exchange(client: BrokerProtocol, channel: int, exchange: Exchange) -> None:
    """Make sure that an exchange is there, on a channel of this number that is opened and closed for it.

    Raises `BrokerError` where it is not, and `Closed` when the connection ends.
    """
    opened = await client.open_channel(channel, BaseHandler())
    try:
        await opened.exchange_declare(exchange=exchange.name, passive=True)
    except Closed as closed:
        error = as_failure(closed).value
        if isinstance(error, BrokerError) and error.scope == "channel":
            raise error from None
        raise
    await client.end_channel(channel)


async def declare(client: BrokerProtocol, channel: int, queue: Queue, warn: Callable[[str], None]) -> None:
    """Declare a queue, on a channel of this number that is opened and closed for it.

    A queue that exists with other arguments (406), or that we may not declare (403), is checked passively and used as it is;
    `warn` is told. Raises `BrokerError` where it is neither there nor ours to declare, and `Closed` when the connection ends.
    """
    try:
        await _declare(client, channel, queue, passive=False)
        return
    except Closed as closed:
        error = as_failure(closed).value
        if not isinstance(error, BrokerError) or error.scope != "channel":
            raise
        if error.code not in (ACCESS_REFUSED, PRECONDITION_FAILED):
            raise error from None
    try:
        await _declare(client, channel, queue, passive=True)
    except Closed as closed:
        passive = as_failure(closed).value
        if isinstance(passive, BrokerError) and passive.scope == "channel":
            raise error from None
        raise
    warn(f"the queue {queue.name} is used as it is: {error}")


async def _declare(client: BrokerProtocol, number: int, queue: Queue, *, passive: bool) -> None:
    channel = await client.open_channel(number, BaseHandler())
    arguments = dict(queue.arguments)
    if queue.own and arguments.get("x-queue-type") == "quorum" and client.rabbitmq >= (4, 0):
        # RabbitMQ 4 drops a message that came back 20 times: what a node holds comes back whenever its connection breaks.
        arguments.setdefault("x-delivery-limit", -1)
    await channel.queue_declare(queue=queue.name, durable=True, passive=passive, arguments=arguments)
    await client.end_channel(number)


async def counts_returns(client: BrokerProtocol, channel: int, queue: str) -> bool:
    """Whether a queue that is there may be a quorum queue with a delivery limit: also where the broker will not say.

    AMQP has no question for it. A declaration with another type than the queue's is refused, and says which that is. Only
    RabbitMQ 4 and later can be asked for the limit. Before, a policy may have set one, and 3.10 takes -1 for a limit that
    the first return exceeds.
    """
    different = await _refused(client, channel, Queue(queue, {"x-queue-type": "classic"}))
    if different is None or (different.code == PRECONDITION_FAILED and not _QUORUM.search(different.text)):
        return False
    if client.rabbitmq < (4, 0):
        return True
    return await _refused(client, channel, Queue(queue, {"x-queue-type": "quorum", "x-delivery-limit": -1})) is not None


async def _refused(client: BrokerProtocol, channel: int, queue: Queue) -> BrokerError | None:
    """Declare a queue as it may be: why the broker refuses that, if it does."""
    try:
        await _declare(client, channel, queue, passive=False)
    except Closed as closed:
        error = as_failure(closed).value
        if not isinstance(error, BrokerError) or error.scope != "channel":
            raise
        return error
    return None
