"""What a queue's arguments ask for, which of them RabbitMQ would refuse, and which a second declaration must repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .errors import AMQPError, inequivalent, type_name

MAX_EXPIRY: Final = 315_360_000_000
"""Milliseconds in ten years: RabbitMQ's limit for the lifetime of messages and queues."""

MOST_PRIORITY: Final = 255
"""RabbitMQ's limit for x-max-priority; a message's priority is an octet."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What a queue's arguments ask for. Times in milliseconds. Arguments not named here are accepted and have no effect."""

    max_length: int | None = None
    max_bytes: int | None = None
    reject: bool = False
    reject_to_dead_letters: bool = False
    """Whether a message that a full queue refuses is dead-lettered as well."""
    expires: int | None = None
    ttl: int | None = None
    single_active: bool = False
    dead_exchange: str | None = None
    dead_key: str | None = None
    max_priority: int | None = None
    quorum: bool = False
    """Whether returns are counted (x-delivery-count), and rejected messages go behind the others."""
    delivery_limit: int | None = None
    """Returns after which a message is given up."""


COMPARED: Final = (
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-single-active-consumer",
    "x-queue-type",
    "x-delivery-limit",
)
"""The arguments that a second declaration must repeat; RabbitMQ ignores differences in the others."""

NOT_FOR: Final = {
    "classic": (
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-max-age",
        "x-max-in-memory-bytes",
        "x-max-in-memory-length",
        "x-quorum-initial-group-size",
    ),
    "quorum": ("x-max-age", "x-max-priority", "x-queue-mode"),
}
"""The arguments that RabbitMQ refuses for a type of queue, since they are for another one."""

Invalid = Callable[[str, str], AMQPError]


def read_policy(name: str, arguments: dict[str, Any]) -> QueuePolicy:
    """Read a queue's arguments; 406 for one that RabbitMQ would refuse, 540 for what only RabbitMQ has."""

    def invalid(arg: str, why: str) -> AMQPError:
        return AMQPError(406, f"invalid arg '{arg}' for queue '{name}' in vhost '/': {why}")

    def number(arg: str, least: int = 0) -> int | None:
        value = arguments.get(arg)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(arg, f'"expected integer, got {type_name(value)}"')
        if value < 0:
            raise invalid(arg, f"{{value_negative,{value}}}")
        if value < least:
            raise invalid(arg, f"{{value_zero,{value}}}")
        if arg in ("x-expires", "x-message-ttl") and value > MAX_EXPIRY:
            raise invalid(arg, f"{{value_too_large,{value}}}")
        return value

    def text(arg: str) -> str | None:
        value = arguments.get(arg)
        if value is not None and not isinstance(value, str):
            raise AMQPError(406, f"invalid type '{type_name(value)}' for arg '{arg}' in queue '{name}' in vhost '/'")
        return value

    kind = _kind(name, arguments, invalid)
    overflow = _choice(arguments, "x-overflow", "drop-head", invalid)
    if overflow not in ("drop-head", "reject-publish", "reject-publish-dlx"):
        raise invalid("x-overflow", "invalid_overflow")
    mode = _choice(arguments, "x-queue-mode", "default", invalid)
    if mode not in ("default", "lazy"):
        raise invalid("x-queue-mode", f"\"unsupported queue mode '{mode}'\"")
    number("x-queue-version")
    single = arguments.get("x-single-active-consumer", False)
    if not isinstance(single, bool):
        raise invalid("x-single-active-consumer", f"{{unacceptable_type,{type_name(single)}}}")
    priorities = number("x-max-priority")
    if priorities is not None and priorities > MOST_PRIORITY:
        raise invalid("x-max-priority", f"{{max_value_exceeded,{priorities}}}")
    dead_exchange, dead_key = text("x-dead-letter-exchange"), text("x-dead-letter-routing-key")
    if dead_key is not None and dead_exchange is None:
        raise invalid("x-dead-letter-routing-key", "routing_key_but_no_dlx_defined")
    quorum = kind == "quorum"
    return QueuePolicy(
        max_length=number("x-max-length"),
        max_bytes=number("x-max-length-bytes"),
        # RabbitMQ 3.10 takes reject-publish-dlx for a quorum queue, and then drops the head.
        reject=overflow == "reject-publish" or (overflow == "reject-publish-dlx" and not quorum),
        reject_to_dead_letters=overflow == "reject-publish-dlx",
        expires=number("x-expires", 1),
        ttl=number("x-message-ttl"),
        single_active=single,
        dead_exchange=dead_exchange,
        dead_key=dead_key,
        max_priority=priorities,
        quorum=quorum,
        delivery_limit=_delivery_limit(arguments.get("x-delivery-limit")),
    )


def _kind(name: str, arguments: dict[str, Any], invalid: Invalid) -> str:
    kind = _choice(arguments, "x-queue-type", "classic", invalid)
    if kind == "stream":
        raise AMQPError(540, "x-queue-type=stream", hard=True)
    if kind not in ("classic", "quorum"):
        raise invalid("x-queue-type", f"\"unsupported queue type '{kind}'\"")
    for arg in NOT_FOR[kind]:
        if arg in arguments:
            raise AMQPError(406, f"invalid arg '{arg}' for queue '{name}' in vhost '/' of queue type rabbit_{kind}_queue")
    return kind


def _choice(arguments: dict[str, Any], arg: str, default: str, invalid: Invalid) -> str:
    value = arguments.get(arg, default)
    if not isinstance(value, str):
        raise invalid(arg, f"{{unacceptable_type,{type_name(value)}}}")
    return value


def _delivery_limit(value: object) -> int | None:
    """The limit, or none: RabbitMQ accepts values that are no limit."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def check_properties(name: str, arguments: dict[str, Any], *, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    """406 where a quorum queue is to be what none can be."""
    if arguments.get("x-queue-type") != "quorum":
        return
    for wrong, what in ((auto_delete, "auto-delete"), (exclusive, "exclusive-owner"), (not durable, "non-durable")):
        if wrong:
            raise AMQPError(406, f"invalid property '{what}' for queue '{name}' in vhost '/'")


def check_equivalent(name: str, received: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise 406 where the arguments of a second declaration differ from the first one's."""
    for arg in COMPARED:
        new, old = received.get(arg), current.get(arg)
        if arg == "x-queue-type" and {new, old} <= {None, "classic"}:
            continue
        if new != old or isinstance(new, bool) != isinstance(old, bool):
            raise inequivalent(arg, "queue", name, new, old)
