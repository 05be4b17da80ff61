"""A message of a back end on its way to a device."""

from __future__ import annotations

from typing import Final, Protocol

BAD: Final = -1
"""A `to_device_seq` that is not a number: not 0, 1, 2 …"""


class DeliverySource(Protocol):
    """The consumer that a message came from."""

    open: bool
    """Whether its channel is: if not, what it brought and is not acknowledged comes again."""
    prefetch: int
    """How many messages of it may be unacknowledged at once."""
    own: bool
    """Whether it consumes a node's own queue: where the messages come to that were sent straight to a node, or sent on."""

    def done(self, tag: int) -> None:
        """The message with this delivery tag was handed over, or its fate is on record: acknowledge it."""

    def written(self, header: bytes, body: bytes) -> None:
        """Note a message without a number that was handed over: its acknowledgement may be lost, and then it comes again."""


class Letter:
    """A message of a back end's that could not be handed over the moment it came, or that asks for more than that."""

    __slots__ = (
        "body",
        "close",
        "connection_id",
        "correlation_id",
        "deadline",
        "device_id",
        "expires_at",
        "fault",
        "handed_over",
        "header",
        "identity",
        "reply_to",
        "seq",
        "settled",
        "source",
        "tag",
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
    ) -> None:
        self.source = source
        self.tag = tag
        """Its delivery tag, by which `source` acknowledges it."""
        self.header = header
        """The payload of its content header frame."""
        self.body = body
        self.connection_id = connection_id
        self.seq = seq
        """Its `to_device_seq`, if it has one."""
        self.close = close
        """Whether to close the connection after it."""
        self.expires_at = expires_at
        """When it is no longer to be sent, in seconds since the epoch; `BAD`: that cannot be read."""
        self.deadline = deadline
        """The same in seconds of the reactor's clock, which nobody sets: for a time that is counted from its arrival."""
        self.reply_to = reply_to
        """The queue that wants a delivery report."""
        self.correlation_id = correlation_id
        """The property as it stands on the wire."""
        self.device_id: str | None = None
        """The device of its connection, where the courier knew it when the message's fate was decided."""
        self.fault: str | None = None
        """Why it is not to be sent, known before it is its turn."""
        self.identity: bytes | None = None
        """What identifies it among messages without a number, where it may have been delivered before."""
        self.handed_over = False
        """Whether it is known to have been handed over when it was delivered before."""
        self.settled = False
        """Whether its number is used up: a copy that comes after its consumer's death is dropped as a duplicate of it."""
