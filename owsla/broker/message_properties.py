"""Properties of relayed messages: records on the undeliverable queue, and forwards to other nodes. Pure.

Body and properties stay as they are, byte for byte, except for properties and headers that RabbitMQ acts on, which are renamed:
a `user_id` other than the one of the login closes the channel (406), an `expiration` would make the record expire, and `CC`
would deliver the copies a second time.

RabbitMQ delivers content headers that are larger than the frames that it takes (`client.HEADER_MAX`). Of such a message only
the properties and the headers that Owsla reads are relayed, and the header `owsla_note` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final

from .. import trace_context
from ..amqp import wire
from ..amqp.wire import WireError
from ..letter import Trace
from ..trace_context import TRACEPARENT, TRACESTATE

EXPIRATION_HEADER: Final = "owsla_expiration"
"""Header that replaces the property `expiration`."""

_MOVED_PROPERTIES: Final[Mapping[str, bytes]] = {"user_id": b"owsla_user_id", "expiration": EXPIRATION_HEADER.encode()}
_MOVED_HEADERS: Final = {b"CC": b"owsla_cc", b"BCC": b"owsla_bcc"}

REDELIVERED_HEADER: Final = "owsla_redelivered"
"""Header of a forward whose message was delivered before, and may have been forwarded or handed over then."""

ASKER_HEADER: Final = "owsla_from_node"
"""Header of a forward of a message to a device: the node that asked for the device."""

RETURNS_HEADER: Final = "owsla_returns"
"""Header of such a forward: the number of times that the message was returned."""

RETURNED_BY_HEADER: Final = "owsla_returned_by"
"""Header of such a message on its way back: the node that returned it."""

GROUP_HEADER: Final = "owsla_group"
"""Header of a message for many devices between nodes: its number, the same each time that it is published."""

NOTE_HEADER: Final = "owsla_note"
"""Header that says what part of a message was not relayed."""

BETWEEN_NODES: Final = (ASKER_HEADER, RETURNS_HEADER, RETURNED_BY_HEADER, GROUP_HEADER)
"""Headers that nodes add to messages for each other. They are never in records."""

NOT_RELAYED_HEADERS: Final = frozenset({*_MOVED_HEADERS, *(name.encode() for name in BETWEEN_NODES)})
"""Headers that relayed messages never have as they are."""

_KEPT: Final[Mapping[bytes, int]] = (
    dict.fromkeys((b"connection_id", b"device_id", b"owsla_to", b"owsla_reason", b"owsla_node"), 255)
    | dict.fromkeys((header.encode() for header in (*BETWEEN_NODES, REDELIVERED_HEADER)), 40)
    | dict.fromkeys((b"to_device_seq", b"expires_at", b"owsla_close"), 40)
    | {b"owsla_user_id": 255, EXPIRATION_HEADER.encode(): 40, TRACEPARENT.encode(): 64, TRACESTATE.encode(): 128}
)
"""Headers that are relayed of a message with too many headers, and the limit of the bytes of each. All of them, with the
properties, fit into the smallest frame of AMQP (4096 bytes).
"""

_WHOLE: Final = frozenset({TRACEPARENT.encode(), TRACESTATE.encode(), b"owsla_to"})
"""Those that are left out if they are longer: a part of them could mean something else."""

_NONE: Final[Mapping[str, str | int]] = MappingProxyType({})

_LONGEST: Final = 255
"""Limit of the bytes of an id in an answer, or in a record that cannot be relayed."""

_CHANGED: Final = frozenset({
    *_MOVED_PROPERTIES.values(), *_MOVED_HEADERS, *_MOVED_HEADERS.values(), REDELIVERED_HEADER.encode(),
    *(name.encode() for name in BETWEEN_NODES),
})  # fmt: skip
"""Headers by which copies of one message may differ, besides those of the broker (`x-death`, `x-delivery-count`)."""


def identity(header: bytes, body: bytes) -> bytes:
    """Return a digest that is the same for all copies of a message: redelivered, or forwarded.

    `header` is the payload of the content header frame.
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


def relayed(properties: bytes, extra: Mapping[str, str | bool | int]) -> bytes:
    """Return the properties (from the flags on) of a relayed message. `extra` headers replace those of the same names, and
    those of nodes that are not in `extra` are left out.

    Raises `WireError` for properties that cannot be read.
    """
    values = wire.split_properties(properties)
    headers = wire.split_table(values["headers"]) if "headers" in values else []
    names = {name.encode() for name in (*extra, *BETWEEN_NODES)}
    kept = [(_MOVED_HEADERS.get(key, key), value) for key, value in headers if key not in names]
    if any(key == GROUP_HEADER.encode() for key, _ in headers):
        values.pop("user_id", None)  # that of the node: the header has the one of the back end
    for name, header in _MOVED_PROPERTIES.items():
        raw = values.pop(name, None)
        if raw is not None and header not in names:
            kept = [entry for entry in kept if entry[0] != header]
            kept.append((header, b"S" + wire.long_string(raw[1:])))
    kept.extend((name.encode(), wire.encode_value(value)) for name, value in extra.items())
    values["headers"] = wire.join_table(kept)
    return wire.join_properties(values)


def reduced(properties: bytes) -> bytes:
    """Return properties (from the flags on) with only the headers that Owsla reads, each cut to 255 bytes or less.

    Raises `WireError` for properties that cannot be read.
    """
    values = wire.split_properties(properties)
    headers = dict(wire.split_table(values["headers"])) if "headers" in values else {}
    kept = [
        (key, cut) for key, value in headers.items() if key in _KEPT and (cut := _cut(key, value, _KEPT[key])) is not None
    ]
    note = f"headers of {len(values.get('headers', b''))} bytes do not fit into a frame: others than Owsla's own are left out"
    kept.append((NOTE_HEADER.encode(), wire.encode_value(note)))
    values["headers"] = wire.join_table(kept)
    return wire.join_properties(values)


def _cut(key: bytes, value: bytes, longest: int) -> bytes | None:
    """Return the value of a header, with a long string or byte array cut off, or `None` for another long value."""
    if len(value) <= 5 + longest:
        return value
    if key in _WHOLE or value[:1] not in (b"S", b"x"):
        return None
    return value[:1] + wire.long_string(value[5 : 5 + longest])


def minimal(
    connection_id: bytes | None, extra: Mapping[str, str | int], device_id: str | None = None, trace: Trace | None = None
) -> bytes:
    """Return the properties of a record of a message whose own properties cannot be relayed. `device_id` is that of a message
    to a device, or `None`.
    """
    headers: dict[str, str | int] = {}
    if connection_id is not None:
        # A back end may send any bytes, of any length.
        headers["connection_id"] = _id_text(connection_id)
    if device_id:
        headers["device_id"] = _id_text(device_id.encode("utf-8", "surrogateescape"))
    headers.update(trace_context.headers(trace))
    headers.update(extra)
    return wire.encode_properties({"headers": headers, "delivery_mode": 2})


def _id_text(found: bytes) -> str:
    return found[:_LONGEST].decode("utf-8", "backslashreplace")


def report(
    connection_id: bytes | None,
    correlation_id: bytes | None,
    outcome: str,
    app_id: str,
    device_id: str | None = None,
    trace: Trace | None = None,
    extra: Mapping[str, str | int] = _NONE,
) -> bytes:
    """Return the properties of a delivery report, with some `extra` headers. `device_id` is that of a message to a device, or
    `None`. `correlation_id` is the property in its encoding on the wire, or `None`.
    """
    headers = {"connection_id": _id_text(connection_id or b""), "owsla_report": outcome, **extra}
    headers.update(trace_context.headers(trace))
    if device_id:
        headers["device_id"] = _id_text(device_id.encode("utf-8", "surrogateescape"))
    return answer({"headers": headers, "delivery_mode": 2, "app_id": app_id}, correlation_id)


def answer(properties: Mapping[str, Any], correlation_id: bytes | None) -> bytes:
    """Return the properties of an answer to a message with this `correlation_id`, in its encoding on the wire, or `None`."""
    encoded = wire.encode_properties(dict(properties))
    if correlation_id is None:
        return encoded
    return wire.join_properties({**wire.split_properties(encoded), "correlation_id": correlation_id})
