"""Channels of a connection: they are opened and closed here, and their frames are dispatched.

A channel number is free, open or closing. It is closing from a refusal (channel.close of the broker) to the close-ok of the
client; until then everything else that arrives on it is ignored, since the client sent it before it knew.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from twisted.logger import Logger

from owsla.amqp import methods, wire

from .channel import ServerChannel
from .channel_output import ServerConnection
from .errors import AMQPError

BASIC_PUBLISH: Final = methods.BY_NAME["basic.publish"].prefix

_ACK = struct.Struct(">QB")
_BASIC_ACK: Final = methods.BY_NAME["basic.ack"].prefix
_CHANNEL_CLOSE: Final = methods.BY_NAME["channel.close"].prefix
_CHANNEL_CLOSE_OK: Final = methods.BY_NAME["channel.close-ok"].prefix
_QUEUE_DECLARE: Final = (50, 10)


def decode_command(payload: bytes) -> tuple[str, dict[str, Any]]:
    """Decode a method payload into the name of the method and its fields. Raise 540 for an unknown method."""
    if len(payload) >= 4 and method_numbers(payload) not in methods.METHODS:
        raise AMQPError(540, "unknown method {}.{}".format(*method_numbers(payload)))
    method, fields = methods.decode_method(payload)
    return method.name, fields


def method_numbers(payload: bytes) -> tuple[int, int]:
    """Return the class and the method number of a method payload."""
    return int.from_bytes(payload[:2]), int.from_bytes(payload[2:4])


class ConnectionChannels:
    """Channels of a connection by their numbers."""

    log = Logger()

    __slots__ = ("_connection", "by_number")

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.by_number: dict[int, ServerChannel] = {}

    def is_open(self, number: int) -> bool:
        """Return whether a channel is open and not closing."""
        channel = self.by_number.get(number)
        return channel is not None and not channel.output.closing

    def may_acknowledge(self) -> bool:
        """Return whether an acknowledgement of the client may free memory."""
        return any(channel.consumers.may_acknowledge() for channel in self.by_number.values())

    def serve(self) -> None:
        """Dispatch the stalled queues of all consumers, since the client reads again."""
        for channel in list(self.by_number.values()):
            channel.consumers.serve()

    def send_confirms(self) -> None:
        """Send the confirms of all open channels."""
        for channel in self.by_number.values():
            if not channel.output.closing:
                channel.output.send_confirms()

    def end(self) -> None:
        """Close all channels."""
        channels, self.by_number = self.by_number, {}
        # Stop all deliveries first: otherwise a message that one channel requeues would go to another that ends next.
        for channel in channels.values():
            channel.output.close()
        for channel in channels.values():
            channel.end()

    # -- frames ------------------------------------------------------------------------------------------------------------

    def frame_arrived(self, kind: int, number: int, payload: bytes) -> bool:
        """Process a frame of a channel. Return whether it completed a publish."""
        channel = self.by_number.get(number)
        if channel is None:
            self._open(kind, number, payload)
            return False
        if channel.output.closing:
            self._ignore(kind, number, payload)
            return False
        publisher = channel.publisher
        try:
            if kind == wire.FRAME_METHOD:
                self._method_arrived(channel, payload)
                return False
            if not (publisher.header_arrived(payload) if kind == wire.FRAME_HEADER else publisher.body_arrived(payload)):
                return False
            try:
                publisher.publish()
            except AMQPError as error:
                raise error.about(*method_numbers(BASIC_PUBLISH)) from None
        except AMQPError as error:
            if error.hard:
                raise
            self._refuse(channel, error)
            return False
        return True

    def _method_arrived(self, channel: ServerChannel, payload: bytes) -> None:
        if channel.publisher.incoming is not None:
            raise AMQPError(505, "expected content header for class 60, got non content header frame instead")
        prefix = payload[:4]
        if prefix == BASIC_PUBLISH:
            channel.publisher.method_arrived(payload)
        elif prefix == _BASIC_ACK and len(payload) == 13:
            # Decoded here, without the general decoder, which is slow: one of these can arrive for each message.
            tag, bits = _ACK.unpack_from(payload, 4)
            try:
                channel.consumers.ack_arrived(tag, bool(bits & 1))
            except AMQPError as error:
                raise error.about(*method_numbers(payload)) from None
        else:
            self._command(channel, payload)

    def _command(self, channel: ServerChannel, payload: bytes) -> None:
        name, fields = decode_command(payload)
        if name == "channel.open":
            raise AMQPError(504, "second 'channel.open' seen")
        if name == "channel.close":
            channel.output.send_confirms()
            del self.by_number[channel.number]
            channel.end()
            self._connection.send(channel.number, "channel.close-ok")
            return
        try:
            channel.command(name, fields)
        except AMQPError as error:
            # A close on a channel, in the place of a command, names the method that it is about.
            numbers = (fields["class_id"], fields["method_id"]) if "class_id" in fields else method_numbers(payload)
            raise error.about(*numbers) from None

    def _open(self, kind: int, number: int, payload: bytes) -> None:
        """Process a frame on a free channel number: only channel.open is allowed, and a late close-ok is ignored."""
        if kind != wire.FRAME_METHOD:
            raise AMQPError(504, "expected 'channel.open'")
        name, _ = decode_command(payload)
        if name == "channel.close-ok":
            return
        if name != "channel.open":
            raise AMQPError(504, "expected 'channel.open'")
        channel_max = self._connection.session.channel_max
        if len(self.by_number) >= channel_max or number > channel_max:
            raise AMQPError(
                530,
                f"number of channels opened ({len(self.by_number)}) has reached the negotiated channel_max ({channel_max})",
            )
        self.by_number[number] = ServerChannel(number, self._connection)
        self._connection.send(number, "channel.open-ok")

    def _ignore(self, kind: int, number: int, payload: bytes) -> None:
        """Process a frame on a closing channel: only the close-ok, or a close that crossed with ours, has an effect."""
        if kind != wire.FRAME_METHOD:
            return
        if payload[:4] == _CHANNEL_CLOSE_OK:
            del self.by_number[number]
        elif payload[:4] == _CHANNEL_CLOSE:
            self._connection.send(number, "channel.close-ok")

    def _refuse(self, channel: ServerChannel, error: AMQPError) -> None:
        """Close a channel because of an error."""
        # 404 for queue.declare is the normal answer to a passive declaration, with which clients look for a queue.
        if error.code != 404 or error.method != _QUEUE_DECLARE:
            self.log.warn(
                "Channel {channel} of AMQP client {peer} closed: {text}",
                channel=channel.number,
                peer=self._connection.peer,
                text=error.text,
            )
        channel.output.send_confirms()
        channel.end()
        self._connection.send(channel.number, "channel.close", **error.close_fields())
