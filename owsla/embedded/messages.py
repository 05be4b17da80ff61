"""Messages as the broker stores them: encoded, since deliveries repeat the bytes unchanged."""

from __future__ import annotations

from typing import Any, Final

from owsla.amqp import wire

NO_HEADERS: Final = wire.encode_table({})
"""Empty field table, encoded."""

FRAME_MAX: Final = 131072
"""Largest frame in bytes that the broker proposes to its clients, as RabbitMQ does."""

OVERHEAD: Final = 512
"""Bytes that a waiting message costs beyond its body and header: its objects, by `sys.getsizeof` and the allocator."""

_PRIORITY: Final = wire.PROPERTIES["priority"][0]
_HEADERS: Final = wire.PROPERTIES["headers"][0]
_DELIVERY_COUNT: Final = b"x-delivery-count"


def fits_frame(header: bytes) -> bool:
    """Return whether a content header fits a frame. Unlike a body it cannot be split."""
    return len(header) <= FRAME_MAX - wire.FRAME_OVERHEAD


class Message:
    """Published message: the encoded address, header and body."""

    __slots__ = ("address", "body", "exchange", "header", "references", "routing_key", "size")

    def __init__(self, exchange: str, routing_key: str, address: bytes, header: bytes, body: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.address = address
        """Exchange and routing key as two short strings: basic.publish, deliver, get-ok and return share this encoding."""
        self.header = header
        """Payload of the content header: class, weight, body size, property flags and values."""
        self.body = body
        self.references = 0
        """Number of queues and unacknowledged deliveries that hold the message."""
        self.size = len(header) + len(body) + OVERHEAD

    def priority(self) -> int:
        """Return the property `priority`, or 0 without one."""
        if not int.from_bytes(self.header[12:14]) & _PRIORITY:
            return 0
        return wire.split_properties(self.header, 12)["priority"][0]

    def headers(self) -> dict[str, Any]:
        """Decode the property `headers`; empty without one."""
        if not int.from_bytes(self.header[12:14]) & _HEADERS:
            return {}
        return wire.decode_table(wire.split_properties(self.header, 12)["headers"])[0]

    def with_delivery_count(self, count: int) -> Message:
        """Return a copy with the header `x-delivery-count`, or the message itself if that would not fit a frame."""
        values = wire.split_properties(self.header, 12)
        entries = wire.split_table(values.get("headers", NO_HEADERS))
        entries = [entry for entry in entries if entry[0] != _DELIVERY_COUNT]
        entries.append((_DELIVERY_COUNT, wire.encode_value(count)))
        header = self.header[:12] + wire.join_properties({**values, "headers": wire.join_table(entries)})
        if not fits_frame(header):
            return self
        return Message(self.exchange, self.routing_key, self.address, header, self.body)
