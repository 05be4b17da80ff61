"""The arguments of an existing queue, as far as AMQP shows them.

AMQP has no query for them. RabbitMQ compares a declaration with the queue, and names the first argument that differs in the
text of its refusal. So a declaration is repeated with the value from that text until RabbitMQ accepts it. Each has one more
argument, which is never valid: a queue that is deleted meanwhile is not declared by this.

Policies do not show here (`management`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from txamqp.client import Closed

from .client import BaseHandler, BrokerClient, BrokerError, channel_refusal
from .queues import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED

MOST_DIFFERENCES: Final = 20
"""Differences between the arguments of a queue and those expected that are looked for."""

NEVER_VALID: Final[Mapping[str, Any]] = {"x-max-age": 1}
"""Argument that no queue can have: only streams have a maximum age, and it is a text."""

NEVER_VALID_FOR_STREAMS: Final[Mapping[str, Any]] = {"x-max-priority": "none"}
"""Argument that no stream can have. A stream compares `NEVER_VALID` with its own maximum age."""

DIFFERENCE: Final = re.compile(
    r"inequivalent arg '(?P<name>[^']*)' for queue '.*' in vhost '.*'"
    r": received .* but current is (?:none|(?:the value )?'(?P<current>.*?)'(?: of type .*)?)$",
    re.DOTALL,
)
"""Text of a refusal that names an argument, and its value in the queue (RabbitMQ 3.8 to 4.0)."""


def never_valid(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a declaration with one more that is never valid."""
    return {**arguments, **(NEVER_VALID_FOR_STREAMS if arguments.get("x-queue-type") == "stream" else NEVER_VALID)}


def without_difference(arguments: Mapping[str, Any], refusal: BrokerError) -> dict[str, Any] | None:
    """Return arguments in which the one that a broker found different is as it is there, to find the next difference.

    Return `None` if the refusal does not name such an argument.
    """
    difference = DIFFERENCE.search(refusal.text)
    if refusal.code != PRECONDITION_FAILED or difference is None or not difference["name"].startswith("x-"):
        return None
    name, current = difference["name"], difference["current"]
    adopted = {key: value for key, value in arguments.items() if key != name}
    if current is not None:
        adopted[name] = _value(current)
    return adopted if adopted != arguments else None


def _value(text: str) -> str | int | bool:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


async def read_arguments(
    client: BrokerClient, channel: int, queue: str, expected: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Return the arguments of a queue, the type included, on temporary channels of this number.

    `expected` are those that it probably has. Return `None` if the queue does not exist, or the broker does not tell. Raise
    `Closed` if the connection ends.
    """
    # With the type, since a virtual host may have another default.
    arguments = {"x-queue-type": "classic", **expected}
    for _ in range(MOST_DIFFERENCES):
        refusal = await _compare(client, channel, queue, arguments)
        if refusal is None:
            return arguments
        if refusal.code in (ACCESS_REFUSED, NOT_FOUND):
            return None
        adopted = without_difference(arguments, refusal)
        if adopted is None:
            return None
        arguments = adopted
    return None


async def _compare(client: BrokerClient, number: int, queue: str, arguments: Mapping[str, Any]) -> BrokerError | None:
    try:
        channel = await client.open_channel(number, BaseHandler())
        await channel.queue_declare(queue=queue, durable=True, arguments=never_valid(arguments))
    except Closed as closed:
        return channel_refusal(closed)
    await client.end_channel(number)
    return None


async def counts_returns(client: BrokerClient, channel: int, queue: str) -> bool:
    """Return whether an existing queue may be a quorum queue with a delivery limit.

    The limit of a policy does not show here. In RabbitMQ 4 a queue that was declared without a limit (-1) has none. In earlier
    versions a policy may have set one, so the answer is true; and 3.10 treats -1 as a limit that the first return exceeds.
    """
    if await _find_type(client, channel, queue) not in (None, "quorum"):
        return False
    if client.rabbitmq < (4, 0):
        return True
    arguments = await read_arguments(client, channel, queue, {"x-queue-type": "quorum"})
    return arguments is None or arguments.get("x-delivery-limit") != -1


async def _find_type(client: BrokerClient, channel: int, queue: str) -> str | None:
    """Return the type of an existing queue, or `None` for a user who may not configure it.

    RabbitMQ compares some arguments before the type. A queue that differs in anything else than its arguments, as one that is
    not durable, is a classic one.
    """
    arguments: dict[str, Any] = {"x-queue-type": "classic"}
    for _ in range(MOST_DIFFERENCES):
        refusal = await _compare(client, channel, queue, arguments)
        if refusal is not None and refusal.code == ACCESS_REFUSED:
            return None
        adopted = None if refusal is None else without_difference(arguments, refusal)
        if adopted is None:
            break
        arguments = adopted
        if arguments.get("x-queue-type") != "classic":
            break
    return str(arguments.get("x-queue-type", "classic"))
