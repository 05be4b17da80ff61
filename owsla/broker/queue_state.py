"""Inspection of a queue: whether it exists, how many messages are in it, and how many consumers it has."""

from __future__ import annotations

from typing import Final, NamedTuple

from txamqp.client import Closed

from . import queues as topology
from .client import BaseHandler, BrokerClient, BrokerError, channel_refusal

_UNREACHABLE: Final = ("home node", "due to timeout")
"""Words of RabbitMQ in a 404 about a classic queue that exists, on a broker node of the cluster that is down. With Khepri
(RabbitMQ 4.0) the second ones come after more than a minute.
"""


class QueueState(NamedTuple):
    """The state of a queue that exists."""

    messages: int
    """Number of messages that are ready: no consumer holds them."""
    consumers: int


async def inspect_queue(client: BrokerClient, number: int, queue: str) -> QueueState | None:
    """Return the state of a queue, or `None` if it does not exist.

    The channel of this number is opened where it is not open, and stays open for the next inspection. Raises `BrokerError`
    if the broker refuses to answer, and `Closed` when the connection ends.
    """
    channel = client.channels.get(number)
    if channel is None or channel.closed:
        channel = await client.open_channel(number, BaseHandler())
    try:
        declared = await channel.queue_declare(queue=queue, passive=True)
    except Closed as closed:
        error = channel_refusal(closed)
        if is_missing(error):
            return None
        raise error from None
    return QueueState(declared.message_count, declared.consumer_count)


def is_missing(error: BrokerError) -> bool:
    """Return whether a refusal says that a queue does not exist, and not that the broker cannot reach it."""
    return error.code == topology.NOT_FOUND and not any(words in error.text for words in _UNREACHABLE)
