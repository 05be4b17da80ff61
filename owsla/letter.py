"""Messages of back ends on their way to devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

BAD: Final = -1
"""Marker of a `to_device_seq`, or an expiry time, that cannot be read."""


class DeliverySource(Protocol):
    """Consumer that delivered a message."""

    open: bool
    """True while its channel is open. Afterwards RabbitMQ delivers again what is not acknowledged."""
    prefetch: int
    """Number of messages that may be unacknowledged at once."""
    own: bool
    """True if it consumes the node's own queue, which takes messages that were sent to this node or forwarded to it."""

    def done(self, tag: int) -> None:
        """Acknowledge the message with this delivery tag: it was handed over, forwarded or recorded."""

    def written(self, header: bytes, body: bytes) -> None:
        """Remember a message without a number that was handed over: if its acknowledgement is lost, it is delivered again."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Way of a message to a device between nodes, from the headers of its forward."""

    asker: bytes
    """Node that forwarded the message, and to which it is returned if the device is not connected here."""
    returns: int
    """Number of times that the message was returned so far."""
    returned_by: bytes | None = None
    """Node that returned the message; `None` for a forward."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Trace context of a message (https://www.w3.org/TR/trace-context/)."""

    traceparent: str
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """Connections of this node that a message for many devices was for."""

    devices: int
    """Number of those that it was handed over to."""
    missed: int
    """Number of the others."""


class Letter:
    """Message of a back end that was not handed over on arrival, or that has more properties than a plain message."""

    __slots__ = (
        "body",
        "close",
        "connection_id",
        "correlation_id",
        "deadline",
        "device_id",
        "expires_at",
        "fault",
        "group_id",
        "handed_over",
        "header",
        "hop",
        "identity",
        "reached",
        "reply_to",
        "selector",
        "seq",
        "settled",
        "source",
        "tag",
        "to_device_id",
        "trace",
    )

    def __init__(
        self,
        source: DeliverySource,
        tag: int,
        header: bytes,
        body: bytes,
        connection_id: bytes | None,
        seq: int | None,
        *,
        close: bool = False,
        expires_at: float | None = None,
        deadline: float | None = None,
        reply_to: bytes | None = None,
        correlation_id: bytes | None = None,
        to_device_id: str | None = None,
        selector: str | None = None,
        group_id: str | None = None,
        hop: Hop | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.source = source
        self.tag = tag
        """Delivery tag for `source.done`."""
        self.header = header
        """Payload of the content header frame."""
        self.body = body
        self.connection_id = connection_id
        """Connection that the message is for. Of a message to a device: the one that was found, or `None` so far."""
        self.seq = seq
        """Number of the message (`to_device_seq`), or `None`."""
        self.close = close
        """True if the connection is closed after this message (`owsla_close`)."""
        self.expires_at = expires_at
        """Time from which the message is too old to be sent, in seconds since the epoch; `BAD` if it cannot be read."""
        self.deadline = deadline
        """The same time in seconds of the reactor's clock, for an expiry that counts from the arrival: nobody sets that clock.
        """
        self.reply_to = reply_to
        """Queue for the delivery report, or `None`."""
        self.correlation_id = correlation_id
        """Property `correlation_id` as encoded in the content header."""
        self.to_device_id = to_device_id
        """Device that the message is addressed to (`device_id` without a `connection_id`); `None` for other messages. Empty if
        the header cannot be a device id. Bytes that are not UTF-8 are surrogate escapes."""
        self.selector = selector
        """Devices that the message is for (`owsla_to`, without the headers of one connection or device), or `None`."""
        self.group_id = group_id
        """Id that a node has given to a message for many devices, the same in all of its copies, or `None`."""
        self.reached: Reached | None = None
        """Connections of this node that a message for many devices was for, once that is known."""
        self.hop = hop
        """Way of a message to a device so far, or `None`."""
        self.trace = trace
        """Trace context of the message, or `None`."""
        self.device_id = to_device_id
        """Device id that the message is addressed to, or that of its connection if it was known when the message was
        recorded."""
        self.fault: str | None = None
        """Reason not to send the message, known before its turn has come."""
        self.identity: bytes | None = None
        """Identity of a message without a number that may have been delivered before."""
        self.handed_over = False
        """True if an earlier delivery of this message was handed over."""
        self.settled = False
        """True if its number is used: a copy that is delivered after its consumer ended is dropped as a duplicate."""


def unknown_reason(letter: Letter) -> str:
    """Return the reason for which a message is recorded whose connection or device is nowhere, or whose node is lost."""
    if letter.selector is not None:
        return "node-lost"  # it is for all nodes, and this is about one of them
    return "unknown-connection" if letter.to_device_id is None else "unknown-device"
