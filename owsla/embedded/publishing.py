"""Parts of a publish: the frames of an incoming message, and the properties that the broker acts on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from owsla.amqp import wire

from .errors import AMQPError, type_name
from .messages import Message
from .policy import MAX_EXPIRY
from .queues import ServerQueue
from .replies import REPLY_TO

MAX_MESSAGE: Final = 128 << 20
"""Largest body in bytes: the default `max_message_size` of RabbitMQ 3.10."""

_DELIVERY_MODE: Final = wire.PROPERTIES["delivery_mode"][0]
_EXPIRATION: Final = wire.PROPERTIES["expiration"][0]
_HEADERS: Final = wire.PROPERTIES["headers"][0]
_REPLY_TO: Final = wire.PROPERTIES["reply_to"][0]
_USER_ID: Final = wire.PROPERTIES["user_id"][0]
_REPLIES = REPLY_TO.encode()
_DELIVERY_MODES: Final = (b"\x01", b"\x02")


class IncomingMessage:
    """Message of a basic.publish whose header or body has not arrived completely."""

    __slots__ = ("address", "exchange", "header", "mandatory", "missing", "parts", "routing_key", "size")

    def __init__(self, exchange: str, routing_key: str, address: bytes, mandatory: bool) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.address = address
        self.mandatory = mandatory
        self.header: bytes | None = None
        self.size = 0
        self.missing = 0
        self.parts: list[bytes] = []

    def header_arrived(self, payload: bytes) -> None:
        """Store the content header."""
        class_id, size = wire.read_header_payload(payload)
        if class_id != wire.BASIC:
            raise AMQPError(505, f"expected content header for class 60, got one for class {class_id} instead")
        if size > MAX_MESSAGE:
            raise AMQPError(406, f"message size {size} is larger than configured max size {MAX_MESSAGE}")
        self.header = payload
        self.size = self.missing = size

    def body_arrived(self, payload: bytes) -> None:
        """Store a part of the body."""
        if len(payload) > self.missing:
            raise AMQPError(505, f"the body is longer than the {self.size} bytes that the content header announced")
        self.missing -= len(payload)
        self.parts.append(payload)


class PendingPublish(NamedTuple):
    """Message of a transaction with the queues that it reaches at tx.commit."""

    message: Message
    queues: list[ServerQueue]
    ttl: int | None
    mandatory: bool


class ContentHeader(NamedTuple):
    """Content header of a message, with the properties that the broker acts on."""

    header: bytes
    """Header for deliveries."""
    ttl: int | None = None
    """Time to live in milliseconds."""
    copies: tuple[str, ...] = ()
    """Further routing keys, from the headers CC and BCC."""


def read_content_header(header: bytes, user: str, reply_name: str | None) -> ContentHeader:
    """Read a content header. Raise 406 as RabbitMQ does. `reply_name` replaces the `reply_to` `amq.rabbitmq.reply-to`."""
    flags = int.from_bytes(header[12:14])
    if not flags:
        if len(header) != 14:
            raise wire.WireError("unexpected bytes after the property flags")
        return ContentHeader(header)
    values = wire.split_properties(header, 12)
    if flags & _DELIVERY_MODE and values["delivery_mode"] not in _DELIVERY_MODES:
        raise AMQPError(406, f"invalid message: {{delivery_mode_unknown,{values['delivery_mode'][0]}}}")
    # Most messages have none of these properties, and are not split any further.
    if not flags & (_EXPIRATION | _HEADERS | _REPLY_TO | _USER_ID):
        return ContentHeader(header)
    ttl: int | None = None
    copies: list[str] = []
    changed: dict[str, bytes] = {}
    if flags & _HEADERS:
        for name, value in wire.split_table(values["headers"]):
            # Nested values are decoded here only to check them: a malformed one must fail now, not in a headers exchange.
            if value[0] in b"FA" or name in (b"CC", b"BCC"):
                copies = _copies(values, changed)
                break
    if flags & _EXPIRATION:
        ttl = _expiration(values["expiration"][1:].decode("utf-8", "replace"))
    if flags & _USER_ID and values["user_id"][1:].decode("utf-8", "replace") != user:
        given = values["user_id"][1:].decode("utf-8", "replace")
        raise AMQPError(406, f"user_id property set to '{given}' but authenticated user was '{user}'")
    if flags & _REPLY_TO and values["reply_to"][1:] == _REPLIES:
        if reply_name is None:
            raise AMQPError(406, "fast reply consumer does not exist")
        changed["reply_to"] = wire.short_string(reply_name)
    if changed:
        header = header[:12] + wire.join_properties({**values, **changed})
    return ContentHeader(header, ttl, tuple(copies))


def _copies(values: Mapping[str, bytes], changed: dict[str, bytes]) -> list[str]:
    """Return the routing keys of the headers CC and BCC, and remove BCC. All headers are decoded."""
    headers = wire.decode_table(values["headers"])[0]
    keys: list[str] = []
    for name in ("CC", "BCC"):
        if name in headers:
            if not isinstance(headers[name], list):
                raise AMQPError(406, f'invalid message: {{unacceptable_type_in_header,"{name}",{type_name(headers[name])}}}')
            keys.extend(key for key in headers[name] if isinstance(key, str))
    if "BCC" in headers:
        changed["headers"] = wire.join_table(e for e in wire.split_table(values["headers"]) if e[0] != b"BCC")
    return keys


def _expiration(text: str) -> int:
    """Return the expiration of a message in milliseconds, or raise 406 with the text of RabbitMQ."""
    # RabbitMQ parses the text with Erlang's `string:to_integer`: a sign is accepted, a rest is not.
    number = re.match(r"[+-]?[0-9]+", text)
    if number is None:
        raise AMQPError(406, f"invalid expiration '{text}': no_integer")
    if number.end() != len(text):
        raise AMQPError(406, f"invalid expiration '{text}': {{leftover_string,\"{text[number.end() :]}\"}}")
    value = int(text)
    if value < 0:
        raise AMQPError(406, f"invalid expiration '{text}': {{value_negative,{value}}}")
    if value > MAX_EXPIRY:
        raise AMQPError(406, f"invalid expiration '{text}': {{value_too_large,{value}}}")
    return value
