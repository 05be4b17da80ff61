"""What the embedded broker refuses, in RabbitMQ's codes and words, so that a back end meets the same ones there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NAMES: Final[Mapping[int, str]] = {
    320: "CONNECTION_FORCED",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    506: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}
"""Reply codes (specification, 1.2), by the names that RabbitMQ begins its reply texts with."""

_SOFT: Final = frozenset({403, 404, 405, 406})


class AMQPError(Exception):
    """A refusal that closes the channel (soft) or the connection (hard)."""

    def __init__(self, code: int, detail: str, *, hard: bool | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.text = _printable(f"{NAMES[code]} - {detail}")
        """What the client and the log are told: one line that fits a short string, whatever names the client made up."""
        self.hard = code not in _SOFT if hard is None else hard
        self.method = (0, 0)
        """Class and method of what was refused; zeros where it was no method."""


def _printable(text: str) -> str:
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:255])
    return escaped.encode()[:255].decode("utf-8", "ignore")


def no_queue(name: str) -> AMQPError:
    """404: there is no such queue."""
    return AMQPError(404, f"no queue '{name}' in vhost '/'")


def no_exchange(name: str) -> AMQPError:
    """404: there is no such exchange."""
    return AMQPError(404, f"no exchange '{name}' in vhost '/'")


def locked(name: str) -> AMQPError:
    """405: the queue is another connection's own, or is not the exclusive queue it is declared as."""
    return AMQPError(
        405,
        f"cannot obtain exclusive access to locked queue '{name}' in vhost '/'. It could be originally declared on another "
        "connection or the exclusive property value does not match that of the original declaration.",
    )


def inequivalent(arg: str, what: str, name: str, received: object, current: object) -> AMQPError:
    """406: a declaration that differs from the first one."""
    if received is None or current is None:
        words = [_typed(received), _typed(current)]
    else:
        words = [f"'{_plain(received)}'", f"'{_plain(current)}'"]
    return AMQPError(
        406, f"inequivalent arg '{arg}' for {what} '{name}' in vhost '/': received {words[0]} but current is {words[1]}"
    )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_name(value: object) -> str:
    """RabbitMQ's name for a field table value's type. (A decoded integer has forgotten its width: the least one is named.)"""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "signedint" if -(1 << 31) <= value < 1 << 31 else "long"
    if isinstance(value, str):
        return "longstr"
    if isinstance(value, bytes):
        return "binary"
    if isinstance(value, list):
        return "array"
    if isinstance(value, dict):
        return "table"
    return "void" if value is None else "double"


def _typed(value: object) -> str:
    return "none" if value is None else f"the value '{_plain(value)}' of type '{type_name(value)}'"
