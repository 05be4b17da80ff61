"""Arguments of queues: their meaning, the checks of RabbitMQ 3.10.8, and the comparison with a second declaration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .errors import AMQPError, inequivalent, type_name

MAX_EXPIRY: Final = 315_360_000_000
"""Limit of RabbitMQ for the lifetime of messages and queues, in milliseconds: ten years."""

MAX_PRIORITY: Final = 255
"""Limit of RabbitMQ for x-max-priority: the priority of a message is an octet."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Settings of a queue from its arguments. Times are in milliseconds. Other arguments are accepted and have no effect."""

    max_length: int | None = None
    max_bytes: int | None = None
    reject_publish: bool = False
    """True if a full queue refuses messages; otherwise it drops its head."""
    dead_letter_refused: bool = False
    """True if a message that a full queue refuses is dead-lettered as well."""
    expires: int | None = None
    ttl: int | None = None
    single_active: bool = False
    dead_letter_exchange: str | None = None
    dead_letter_key: str | None = None
    max_priority: int | None = None
    quorum: bool = False
    """True for a quorum queue: it counts returns (x-delivery-count), and moves rejected messages behind the others."""
    delivery_limit: int | None = None
    """Number of returns after which a message is dropped or dead-lettered."""


COMPARED_ARGUMENTS: Final = (
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
"""Arguments that a second declaration must repeat. RabbitMQ ignores differences in the others."""

UNSUPPORTED_ARGUMENTS: Final = {
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
"""Arguments that RabbitMQ 3.10 refuses for a type of queue, because they are meant for another type."""

Invalid = Callable[[str, str], AMQPError]
"""Function that returns 406 for an argument (first parameter) and a reason (second parameter)."""


def read_policy(name: str, arguments: dict[str, Any]) -> QueuePolicy:
    """Read the arguments of a queue. Raise 406 as RabbitMQ does, and 540 for streams, which are not implemented."""

    def invalid(arg: str, why: str) -> AMQPError:
        return AMQPError(406, f"invalid arg '{arg}' for queue '{name}' in vhost '/': {why}")

    def number(arg: str, least: int = 0) -> int | None:
        value = arguments.get(arg)
        if value is None:
            return None
        # In Python a bool is an int; in AMQP it is another type.
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

    kind = _queue_type(name, arguments, invalid)
    overflow = _choice(arguments, "x-overflow", "drop-head", invalid)
    if overflow not in ("drop-head", "reject-publish", "reject-publish-dlx"):
        raise invalid("x-overflow", "invalid_overflow")
    mode = _choice(arguments, "x-queue-mode", "default", invalid)
    if mode not in ("default", "lazy"):
        raise invalid("x-queue-mode", f"\"unsupported queue mode '{mode}'\"")
    number("x-queue-version")  # checked only: the versions of classic queues differ in their files
    single = arguments.get("x-single-active-consumer", False)
    if not isinstance(single, bool):
        raise invalid("x-single-active-consumer", f"{{unacceptable_type,{type_name(single)}}}")
    priorities = number("x-max-priority")
    if priorities is not None and priorities > MAX_PRIORITY:
        raise invalid("x-max-priority", f"{{max_value_exceeded,{priorities}}}")
    dead_letter_exchange, dead_letter_key = text("x-dead-letter-exchange"), text("x-dead-letter-routing-key")
    if dead_letter_key is not None and dead_letter_exchange is None:
        raise invalid("x-dead-letter-routing-key", "routing_key_but_no_dlx_defined")
    quorum = kind == "quorum"
    return QueuePolicy(
        max_length=number("x-max-length"),
        max_bytes=number("x-max-length-bytes"),
        # RabbitMQ 3.10 accepts reject-publish-dlx for a quorum queue, but then drops the head.
        reject_publish=overflow == "reject-publish" or (overflow == "reject-publish-dlx" and not quorum),
        dead_letter_refused=overflow == "reject-publish-dlx",
        expires=number("x-expires", 1),
        ttl=number("x-message-ttl"),
        single_active=single,
        dead_letter_exchange=dead_letter_exchange,
        dead_letter_key=dead_letter_key,
        max_priority=priorities,
        quorum=quorum,
        delivery_limit=_delivery_limit(arguments.get("x-delivery-limit")),
    )


def _queue_type(name: str, arguments: dict[str, Any], invalid: Invalid) -> str:
    kind = _choice(arguments, "x-queue-type", "classic", invalid)
    if kind == "stream":
        raise AMQPError(540, "x-queue-type=stream", hard=True)
    if kind not in ("classic", "quorum"):
        raise invalid("x-queue-type", f"\"unsupported queue type '{kind}'\"")
    for arg in UNSUPPORTED_ARGUMENTS[kind]:
        if arg in arguments:
            raise AMQPError(406, f"invalid arg '{arg}' for queue '{name}' in vhost '/' of queue type rabbit_{kind}_queue")
    return kind


def _choice(arguments: dict[str, Any], arg: str, default: str, invalid: Invalid) -> str:
    value = arguments.get(arg, default)
    if not isinstance(value, str):
        raise invalid(arg, f"{{unacceptable_type,{type_name(value)}}}")
    return value


def _delivery_limit(value: object) -> int | None:
    # RabbitMQ 3.10 accepts any value of x-delivery-limit, and ignores one that is not a non-negative integer.
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def check_properties(name: str, arguments: dict[str, Any], *, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    """Raise 406 for a quorum queue that is exclusive, auto-delete or not durable."""
    if arguments.get("x-queue-type") != "quorum":
        return
    for wrong, what in ((auto_delete, "auto-delete"), (exclusive, "exclusive-owner"), (not durable, "non-durable")):
        if wrong:
            raise AMQPError(406, f"invalid property '{what}' for queue '{name}' in vhost '/'")


def check_equivalent(name: str, received: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise 406 if the arguments of a second declaration differ from those of the first."""
    for arg in COMPARED_ARGUMENTS:
        new, old = received.get(arg), current.get(arg)
        # A queue without x-queue-type is a classic queue, so naming the type is no difference.
        if arg == "x-queue-type" and {new, old} <= {None, "classic"}:
            continue
        if new != old or isinstance(new, bool) != isinstance(old, bool):
            raise inequivalent(arg, "queue", name, new, old)
