"""A publish: its frames as they arrive, and what its properties ask of the broker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from owsla.amqp import wire

from .errors import AMQPError, type_name
from .policy import MAX_EXPIRY
from .queues import Message, Queue
from .replies import REPLY_TO

MAX_MESSAGE: Final = 128 << 20
"""Bytes in one body at most: RabbitMQ 3.10's `max_message_size`."""

_DELIVERY_MODE: Final = wire.PROPERTIES["delivery_mode"][0]
_EXPIRATION: Final = wire.PROPERTIES["expiration"][0]
_HEADERS: Final = wire.PROPERTIES["headers"][0]
_REPLY_TO: Final = wire.PROPERTIES["reply_to"][0]
_USER_ID: Final = wire.PROPERTIES["user_id"][0]
_REPLIES = REPLY_TO.encode()
_DELIVERY_MODES: Final = (b"\x01", b"\x02")


class Incoming:
    """A publish whose header or body has not all arrived."""

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
        """Take the content header."""
        class_id, size = wire.read_header_payload(payload)
        if class_id != wire.BASIC:
            raise AMQPError(505, f"expected content header for class 60, got one for class {class_id} instead")
        if size > MAX_MESSAGE:
            raise AMQPError(406, f"message size {size} is larger than configured max size {MAX_MESSAGE}")
        self.header = payload
        self.size = self.missing = size

    def body_arrived(self, payload: bytes) -> None:
        """Take a part of the body."""
        if len(payload) > self.missing:
            raise AMQPError(505, f"the body is longer than the {self.size} bytes that its header announced")
        self.missing -= len(payload)
        self.parts.append(payload)


class Publish(NamedTuple):
    """A message on its way to its queues."""

    message: Message
    queues: list[Queue]
    ttl: int | None
    mandatory: bool


class Content(NamedTuple):
    """What a content header asks for."""

    header: bytes
    """The header as it is delivered."""
    ttl: int | None = None
    """Milliseconds to live."""
    copies: tuple[str, ...] = ()
    """Further routing keys."""


def read_content(header: bytes, user: str, reply_name: str | None) -> Content:
    """Read a content header; 406 for what RabbitMQ refuses. `reply_name` is what stands for `amq.rabbitmq.reply-to`."""
    flags = int.from_bytes(header[12:14])
    if not flags:
        if len(header) != 14:
            raise wire.WireError("something follows the property flags")
        return Content(header)
    values = wire.split_properties(header, 12)
    if flags & _DELIVERY_MODE and values["delivery_mode"] not in _DELIVERY_MODES:
        raise AMQPError(406, f"invalid message: {{delivery_mode_unknown,{values['delivery_mode'][0]}}}")
    if not flags & (_EXPIRATION | _HEADERS | _REPLY_TO | _USER_ID):
        return Content(header)
    ttl: int | None = None
    copies: list[str] = []
    changed: dict[str, bytes] = {}
    if flags & _HEADERS:
        for name, value in wire.split_table(values["headers"]):
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
    return Content(header, ttl, tuple(copies))


def _copies(values: Mapping[str, bytes], changed: dict[str, bytes]) -> list[str]:
    """The further routing keys of the headers CC and BCC; takes BCC out. Reads every header."""
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
    """A message's expiration in milliseconds, or 406 as RabbitMQ words it."""
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
