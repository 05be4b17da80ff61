"""How a message looks that we pass on: on the undeliverable queue, or on another node's. Pure.

Body and properties stay as they are, byte for byte, but for what RabbitMQ acts on, which moves to headers: a `user_id` other
than our login's closes the channel (406), an `expiration` makes the record expire, and `CC` would deliver its copies again.

RabbitMQ delivers content headers that are larger than the frames that it takes (`protocol.HEADER_MAX`). Of those only the
properties and the headers that Owsla reads are passed on, and `owsla_note` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from ..amqp import wire
from ..amqp.wire import WireError

EXPIRATION_HEADER: Final = "owsla_expiration"
"""The header of what was the property `expiration`."""

_MOVED_PROPERTIES: Final[Mapping[str, bytes]] = {"user_id": b"owsla_user_id", "expiration": EXPIRATION_HEADER.encode()}
_MOVED_HEADERS: Final = {b"CC": b"owsla_cc", b"BCC": b"owsla_bcc"}

REDELIVERED_HEADER: Final = "owsla_redelivered"
"""The header of a forward whose message was delivered before: it may have been forwarded, or handed over, then."""

NOTE_HEADER: Final = "owsla_note"
"""The header that says what of a message was not passed on."""

_KEPT: Final = frozenset(
    {b"connection_id", b"to_device_seq", b"expires_at", b"owsla_close", b"owsla_reason", b"owsla_node"}
    | {*_MOVED_PROPERTIES.values(), REDELIVERED_HEADER.encode()}
)
"""The headers that are passed on of a message that has too many."""

_LONGEST: Final = 255
"""Bytes of a value of these. All together, with the properties, they fit into AMQP's smallest frame (4096 bytes)."""

_CHANGED: Final = frozenset({
    *_MOVED_PROPERTIES.values(), *_MOVED_HEADERS, *_MOVED_HEADERS.values(), REDELIVERED_HEADER.encode()
})  # fmt: skip
"""Headers by which copies of one message may differ, beside the broker's own (`x-death`, `x-delivery-count`)."""


def identity(header: bytes, body: bytes) -> bytes:
    """Return a digest that is the same for all copies of a message: delivered again, or forwarded.

    `header` is the payload of its content header frame.
    """
    try:
        values = wire.split_properties(header, 12)
        headers = wire.split_table(values["headers"]) if "headers" in values else []
    except WireError:
        values, headers = {}, [(b"", header)]
    kept = [(key, value) for key, value in headers if key not in _CHANGED and not key.startswith(b"x-")]
    values["headers"] = wire.join_table(kept)
    for name in _MOVED_PROPERTIES:
        values.pop(name, None)
    digest = blake2b(wire.join_properties(values), digest_size=16)
    digest.update(body)
    return digest.digest()


def relayed(properties: bytes, extra: Mapping[str, str | bool]) -> bytes:
    """Properties (from the flags on) as they are to be sent on, with `extra` headers in place of any of the same names.

    `WireError` where they cannot be read.
    """
    values = wire.split_properties(properties)
    headers = wire.split_table(values["headers"]) if "headers" in values else []
    names = {name.encode() for name in extra}
    kept = [(_MOVED_HEADERS.get(key, key), value) for key, value in headers if key not in names]
    for name, header in _MOVED_PROPERTIES.items():
        raw = values.pop(name, None)
        if raw is not None and header not in names:
            kept = [entry for entry in kept if entry[0] != header]
            kept.append((header, b"S" + wire.long_string(raw[1:])))
    kept.extend((name.encode(), wire.encode_value(value)) for name, value in extra.items())
    values["headers"] = wire.join_table(kept)
    return wire.join_properties(values)


def reduced(properties: bytes) -> bytes:
    """Properties (from the flags on) with those headers alone that Owsla reads, none of them longer than 255 bytes.

    `WireError` where they cannot be read.
    """
    values = wire.split_properties(properties)
    headers = dict(wire.split_table(values["headers"])) if "headers" in values else {}
    kept = [(key, cut) for key, value in headers.items() if key in _KEPT and (cut := _cut(value)) is not None]
    note = f"headers of {len(values.get('headers', b''))} bytes do not fit into a frame: others than Owsla's own are left out"
    kept.append((NOTE_HEADER.encode(), wire.encode_value(note)))
    values["headers"] = wire.join_table(kept)
    return wire.join_properties(values)


def _cut(value: bytes) -> bytes | None:
    """A header's value, a longer string or byte array cut off. `None`: another type that is as long."""
    if len(value) <= 5 + _LONGEST:
        return value
    return value[:1] + wire.long_string(value[5 : 5 + _LONGEST]) if value[:1] in (b"S", b"x") else None


def minimal(connection_id: bytes | None, extra: Mapping[str, str]) -> bytes:
    """The least that a record needs, for a message whose own properties cannot be passed on."""
    headers: dict[str, str | bytes] = {}
    if connection_id is not None:
        # It may be anything, of any length.
        headers["connection_id"] = connection_id[:_LONGEST].decode("utf-8", "backslashreplace")
    headers.update(extra)
    return wire.encode_properties({"headers": headers, "delivery_mode": 2})


def report(connection_id: bytes | None, correlation_id: bytes | None, outcome: str, app_id: str) -> bytes:
    """A delivery report's properties. `correlation_id` is the property as it stood on the wire, or `None`."""
    text = (connection_id or b"")[:255].decode("utf-8", "backslashreplace")
    headers = {"connection_id": text, "owsla_report": outcome}
    values = wire.split_properties(wire.encode_properties({"headers": headers, "delivery_mode": 2, "app_id": app_id}))
    if correlation_id is not None:
        values["correlation_id"] = correlation_id
    return wire.join_properties(values)
