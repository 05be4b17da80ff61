"""Refusals of the embedded broker, with the codes and the texts of RabbitMQ 3.10.8, so that back ends see no difference."""

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
"""Names of the reply codes (specification, 1.2), with which RabbitMQ begins its reply texts."""

_CHANNEL_ERRORS: Final = frozenset({403, 404, 405, 406})
"""Codes that close the channel only. The specification calls them soft, and the others, which close the connection, hard."""


class AMQPError(Exception):
    """Refusal that closes the channel, or the connection if `hard`."""

    def __init__(self, code: int, detail: str, *, hard: bool | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.text = _printable(f"{NAMES[code]} - {detail}")
        """Text for the client and the log: one printable line that fits a short string, whatever names the client sent."""
        self.hard = code not in _CHANNEL_ERRORS if hard is None else hard
        self.method = (0, 0)
        """Class and method number of the refused method; zeros if the refusal is about something else."""

    def close_fields(self) -> dict[str, object]:
        """Return the fields of channel.close or connection.close."""
        class_id, method_id = self.method
        return {"reply_code": self.code, "reply_text": self.text, "class_id": class_id, "method_id": method_id}

    def about(self, class_id: int, method_id: int) -> AMQPError:
        """Set the method that the refusal is about, and return the error."""
        self.method = (class_id, method_id)
        return self


def _printable(text: str) -> str:
    # Names come from the client: line ends would forge log lines, and escape sequences would reach the terminal. The second cut
    # is for the short string on the wire, which holds 255 bytes; it must not split a character.
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:255])
    return escaped.encode()[:255].decode("utf-8", "ignore")


def no_queue(name: str) -> AMQPError:
    """Return 404 for a queue that does not exist."""
    return AMQPError(404, f"no queue '{name}' in vhost '/'")


def no_exchange(name: str) -> AMQPError:
    """Return 404 for an exchange that does not exist."""
    return AMQPError(404, f"no exchange '{name}' in vhost '/'")


def queue_locked(name: str) -> AMQPError:
    """Return 405 for an exclusive queue of another connection, or one that was declared with another `exclusive`."""
    return AMQPError(
        405,
        f"cannot obtain exclusive access to locked queue '{name}' in vhost '/'. It could be originally declared on another "
        "connection or the exclusive property value does not match that of the original declaration.",
    )


def inequivalent(arg: str, what: str, name: str, received: object, current: object) -> AMQPError:
    """Return 406 for a declaration that differs from the first one."""
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
    """Return the name that RabbitMQ gives to the type of a field table value.

    A decoded integer has lost its width: the narrowest type is named.
    """
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
