"""Arguments and policies of queues that break a promise of docs/guarantees.md, and what to do about each. Pure.

RabbitMQ drops messages of a queue by its own rules: a time to live, a length, an expiry of the queue, a limit of returns. A
rule comes from an argument of the queue, or from a policy, which may be meant for all queues of a virtual host. A rule that
drops messages breaks a promise, unless the queue has dead letters: then the operator has said where such messages go, which
may be the queue of undeliverable messages (docs/rabbitmq.md).

A stream has none of these rules, and ignores policies with them. It keeps messages that were read, and drops the oldest beyond
an age or a size, whether they were read or not. That is what a stream is for, so no promise is broken (`retention`).

Of an argument and a policy for the same thing, the lower number is in force, and the text of the argument. A policy and an
operator policy are merged by RabbitMQ, which does not tell which of them has set what.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .queues import NODE_QUEUE_EXPIRES, Queue

DEFAULT_DELIVERY_LIMIT: Final = 20
"""Returns after which a quorum queue drops a message, by default since RabbitMQ 4.0."""

SHORTEST_CONSUMER_TIMEOUT: Final = 5 * 60 * 1000
"""Milliseconds. Owsla holds messages for slow devices, for missing numbers and for absent nodes, each for a minute or less by
default. RabbitMQ's documentation advises against less than 5 minutes (https://www.rabbitmq.com/docs/consumers)."""


class Use(enum.Enum):
    """The uses that Owsla has for queues."""

    LINES = enum.auto()
    """Lines from devices."""
    MESSAGES = enum.auto()
    """Messages to devices, which all nodes consume."""
    NODE = enum.auto()
    """The queue of a node."""
    REGISTER = enum.auto()
    """The register of nodes."""
    RECORDS = enum.auto()
    """Undeliverable messages."""
    PRESENCE = enum.auto()
    """Devices that connect and disconnect."""


@dataclass(frozen=True, slots=True)
class GatewayQueue:
    """A queue of a gateway, and its use."""

    use: Use
    queue: Queue


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy and the operator policy of a queue."""

    definition: Mapping[str, Any] = field(default_factory=dict)
    """Keys that they set, as RabbitMQ has merged them."""
    name: str | None = None
    operator: str | None = None

    def __str__(self) -> str:
        names = [f"policy '{self.name}'"] if self.name else []
        names += [f"operator policy '{self.operator}'"] if self.operator else []
        return " or ".join(names) or "a policy"


@dataclass(frozen=True, slots=True)
class QueueRules:
    """Rules of a queue that exists."""

    name: str
    use: Use
    arguments: Mapping[str, Any]
    """Its arguments, `x-queue-type` included."""
    policy: Policy | None = None
    """Its policies; `None` where they cannot be seen."""

    @property
    def is_stream(self) -> bool:
        """True if the queue is a stream."""
        return self.arguments.get("x-queue-type") == "stream"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule in force."""

    value: Any
    source: str
    """Argument or policy that sets it, with the value."""
    by_policy: bool = False


_LOST: Final = {
    Use.LINES: "an acknowledged line",
    Use.MESSAGES: "a message for a device, which is then neither delivered nor recorded",
    Use.NODE: "a message for a device of this node, which is then neither delivered nor recorded",
    Use.REGISTER: "the notice of a node, whose death may then go unnoticed",
    Use.RECORDS: "the record of an undeliverable message",
    Use.PRESENCE: "the news that a device connected or disconnected",
}


def broken_promises(rules: QueueRules, rabbitmq: tuple[int, int]) -> Iterator[str]:
    """Yield a line for each rule of a queue that breaks a promise, with the remedy. `rabbitmq` is the version of the broker."""
    if rules.is_stream:
        return
    ttl = _number(rules, "message-ttl")
    if ttl is not None and not _keeps_dead_letters(rules):
        yield _line(rules, ttl, f"after that time RabbitMQ drops {_LOST[rules.use]}")
    overflow = _text(rules, "overflow")
    if (overflow is None or overflow.value == "drop-head") and not _keeps_dead_letters(rules):
        for key in ("max-length", "max-length-bytes"):
            length = _number(rules, key)
            if length is not None:
                because = "" if overflow is None else f" ({overflow.source})"
                remedy = f', or {"" if length.by_policy else "a policy "}with "overflow": "reject-publish"'
                yield _line(rules, length, f"when the queue is full, RabbitMQ drops{because} {_LOST[rules.use]}", remedy)
    expires = _number(rules, "expires")
    if expires is not None and (rules.use is not Use.NODE or expires.value < NODE_QUEUE_EXPIRES):
        yield _line(
            rules, expires, f"RabbitMQ deletes the queue when it was not used for that time, and with it {_LOST[rules.use]}"
        )
    yield from _delivery_limit(rules, rabbitmq)
    timeout = _number(rules, "consumer-timeout")
    consumed = rules.use in (Use.MESSAGES, Use.NODE, Use.REGISTER)
    if timeout is not None and consumed and timeout.value < SHORTEST_CONSUMER_TIMEOUT:
        yield _line(
            rules,
            timeout,
            "RabbitMQ takes back what Owsla holds for longer, as for slow devices, and closes the channel; messages without "
            f"a number are then delivered twice; give it {SHORTEST_CONSUMER_TIMEOUT} at least",
        )


def retention(rules: QueueRules) -> list[str]:
    """Return the limits beyond which a stream drops its oldest messages. Without one it grows until the disk is full."""
    return [rule.source for key in ("max-age", "max-length-bytes") for rule in _rules(rules, key)]


def _delivery_limit(rules: QueueRules, rabbitmq: tuple[int, int]) -> Iterator[str]:
    if rules.arguments.get("x-queue-type") != "quorum" or _keeps_dead_letters(rules):
        return
    limit = _number(rules, "delivery-limit", unlimited=rabbitmq >= (4, 0))
    unlimited = '"delivery-limit": -1'
    if limit is None:
        # Back ends decide how often they return a line or an event.
        if rabbitmq < (4, 0) or rules.use in (Use.LINES, Use.PRESENCE):
            return
        unseen = ", unless a policy says otherwise, which AMQP does not show (--broker-management)"
        yield (
            f"{rules.name}: quorum queues have a delivery-limit of {DEFAULT_DELIVERY_LIMIT} by default"
            f"{unseen if rules.policy is None else ''}: after that many returns, as when the connection breaks, RabbitMQ drops "
            f"{_LOST[rules.use]}; remedy: a policy with {unlimited}, or dead letters"
        )
    elif limit.value >= 0:
        # A policy cannot lift the limit of an argument.
        no_limit = f", or with {unlimited}" if limit.by_policy and rabbitmq >= (4, 0) else ""
        remedy = f"{no_limit}, or {'' if limit.by_policy else 'a policy '}with dead letters"
        returns = "after that many returns, as when the connection breaks, RabbitMQ drops"
        yield _line(rules, limit, f"{returns} {_LOST[rules.use]}", remedy)
    elif rabbitmq < (4, 0):
        yield _line(rules, limit, f"before 4.0 RabbitMQ drops at its first return {_LOST[rules.use]}")


def _line(rules: QueueRules, rule: _Rule, effect: str, remedy: str = "") -> str:
    if rule.by_policy:
        undo = f"remedy: a policy of higher priority for this queue without it{remedy}"
    else:
        undo = f"remedy: delete the queue when it is empty, and declare it without this argument{remedy}"
    return f"{rules.name}: {rule.source}: {effect}; {undo}"


def _number(rules: QueueRules, key: str, *, unlimited: bool = False) -> _Rule | None:
    """Return the rule of an argument and a policy that are numbers. With `unlimited`, a negative one means no limit."""
    found = [rule for rule in _rules(rules, key) if isinstance(rule.value, int) and not isinstance(rule.value, bool)]
    if not found:
        return None
    if unlimited and any(rule.value < 0 for rule in found):
        return max(found, key=lambda rule: rule.value)
    return min(found, key=lambda rule: rule.value)


def _text(rules: QueueRules, key: str) -> _Rule | None:
    return next((rule for rule in _rules(rules, key) if isinstance(rule.value, str)), None)


def _rules(rules: QueueRules, key: str) -> Iterator[_Rule]:
    argument = f"x-{key}"
    if argument in rules.arguments:
        yield _Rule(rules.arguments[argument], f"its argument {argument}={rules.arguments[argument]}")
    if rules.policy is not None and key in rules.policy.definition:
        value = rules.policy.definition[key]
        yield _Rule(value, f"{rules.policy} sets {key}={value}", by_policy=True)


def _keeps_dead_letters(rules: QueueRules) -> bool:
    """Return whether messages that RabbitMQ drops go elsewhere. A dead notice is no use in another queue.

    On the default exchange a message without another routing key comes back to its queue. RabbitMQ takes that for a cycle, and
    drops the message.
    """
    exchange = _text(rules, "dead-letter-exchange")
    if exchange is None or rules.use is Use.REGISTER:
        return False
    routing_key = _text(rules, "dead-letter-routing-key")
    return bool(exchange.value) or (routing_key is not None and routing_key.value != rules.name)
