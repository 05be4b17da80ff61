"""A look at a queue: whether it is there, what is in it, and whether anybody consumes it."""

from __future__ import annotations

from typing import NamedTuple

from txamqp.client import Closed

from . import queues as topology
from .client import BaseHandler, BrokerClient, BrokerError, as_failure

HOME_NODE_DOWN = "home node"
"""What RabbitMQ says (in a 404) of a classic queue that is there, on a node of the cluster that is down."""


class QueueState(NamedTuple):
    """A queue that is there."""

    messages: int
    """Those that are ready: no consumer has them."""
    consumers: int


async def inspect_queue(client: BrokerClient, number: int, queue: str) -> QueueState | None:
    """Look at a queue, on a channel of this number, which stays open for the next time. `None`: there is no such queue.

    Raises `BrokerError` where the broker will not say, and `Closed` when the connection ends.
    """
    channel = client.channels.get(number)
    if channel is None or channel.closed:
        channel = await client.open_channel(number, BaseHandler())
    try:
        declared = await channel.queue_declare(queue=queue, passive=True)
    except Closed as closed:
        error = as_failure(closed).value
        if not isinstance(error, BrokerError) or error.scope != "channel":
            raise
        if error.code == topology.NOT_FOUND and HOME_NODE_DOWN not in error.text:
            return None
        raise error from None
    return QueueState(declared.message_count, declared.consumer_count)
