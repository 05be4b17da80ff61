"""Output of a channel: methods, message content, and the confirms that precede them.

RabbitMQ confirms publishes in the order of their arrival, and may confirm several with one `basic.ack` (`multiple`). So
accepted publishes are only counted here, and one ack for all of them is sent at the end of the reactor turn, or before any
answer on the channel: a client that gets the answer to a later command has the confirms of its earlier publishes.

    confirmed <= accepted <= published

`confirmed` is the last publish that the client knows about, `accepted` the last one that all its queues took. A refused publish
(`basic.nack`) is sent at once, after the acks before it, so that both numbers move past it.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Protocol

from owsla.amqp import methods, wire

from .broker import Broker
from .handshake import ClientSession
from .messages import Message

_FRAME = struct.Struct(">BHI")
_CONFIRM = struct.Struct(">BHIHHQBB")
"""Frame of a basic.ack or basic.nack: type, channel, size, class, method, delivery tag, bits, frame end."""
_RETURN: Final = methods.BY_NAME["basic.return"].prefix + (312).to_bytes(2) + wire.short_string("NO_ROUTE")


class ServerConnection(Protocol):
    """Interface of the connection that a channel belongs to."""

    broker: Broker
    session: ClientSession
    peer: str
    paused: bool
    """True while the transport asks the broker to pause deliveries: the client does not read."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the client."""

    def send(self, channel: int, name: str, **fields: Any) -> None:
        """Queue a method frame for the client."""

    def confirm_later(self, output: ChannelOutput) -> None:
        """Call `send_confirms` of a channel before the end of this reactor turn."""


class ChannelOutput:
    """Sender of methods, content and confirms on one channel."""

    __slots__ = ("_accepted", "_confirmed", "_published", "closing", "connection", "number")

    def __init__(self, number: int, connection: ServerConnection) -> None:
        self.number = number
        self.connection = connection
        self.closing = False
        """True once the broker or the client closes the channel: nothing but channel.close or its answer follows."""
        self._published = 0
        self._accepted = 0
        self._confirmed = 0

    def close(self) -> None:
        """Deliver and confirm nothing more."""
        self.closing = True

    def write_content(self, method: bytes, message: Message) -> None:
        """Send a method with the content of a message, in frames of the size that this client accepts."""
        number = self.number
        header, body = message.header, message.body
        size = len(body)
        frame_max = self.connection.session.frame_max
        if not 0 < size <= frame_max - wire.FRAME_OVERHEAD:
            content = wire.content_frames(number, header, body, frame_max)
            self.connection.write(b"".join((_FRAME.pack(1, number, len(method)), method, b"\xce", content)))
            return
        # The common case, a body in one frame, without the copies that building three frames separately takes.
        self.connection.write(
            b"".join(
                (
                    _FRAME.pack(1, number, len(method)),
                    method,
                    b"\xce",
                    _FRAME.pack(2, number, len(header)),
                    header,
                    b"\xce",
                    _FRAME.pack(3, number, size),
                    body,
                    b"\xce",
                )
            )
        )

    def reply(self, name: str, **fields: Any) -> None:
        """Send a method, after the confirms of earlier publishes."""
        self.send_confirms()
        self.connection.send(self.number, name, **fields)

    def reply_unless_nowait(self, command: dict[str, Any], name: str, **fields: Any) -> None:
        """Send the answer to a command, unless the command has its `nowait` bit set."""
        if not command.get("nowait"):
            self.reply(name, **fields)

    def return_message(self, message: Message) -> None:
        """Send an unroutable message back (basic.return 312)."""
        self.write_content(_RETURN + message.address, message)

    # -- confirms ----------------------------------------------------------------------------------------------------------

    def confirm(self, accepted: bool) -> None:
        """Confirm the next publish: accepted at the end of the turn, refused at once."""
        self._published += 1
        if accepted:
            self._accepted = self._published
            self.connection.confirm_later(self)
        else:
            self.send_confirms()
            self._accepted = self._confirmed = self._published
            self.connection.write(_CONFIRM.pack(1, self.number, 13, 60, 120, self._published, 0, 0xCE))

    def send_confirms(self) -> None:
        """Send one ack for all publishes that were accepted since the last one."""
        if self._accepted > self._confirmed:
            multiple = self._accepted > self._confirmed + 1
            self._confirmed = self._accepted
            self.connection.write(_CONFIRM.pack(1, self.number, 13, 60, 80, self._accepted, multiple, 0xCE))
