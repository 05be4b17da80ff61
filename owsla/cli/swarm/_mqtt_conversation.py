"""The lines of devices that speak MQTT 3.1.1. No sockets: the caller moves the bytes."""

from __future__ import annotations

from . import _mqtt
from ._conversation import Conversation
from ._device import Device
from ._errors import SwarmError
from ._measurements import Measurements
from ._plan import Plan


class MQTTConversation(Conversation):
    """Conversation in which the packets of MQTT take the place of frames. A PUBACK acknowledges a line."""

    def __init__(self, plan: Plan, measured: Measurements) -> None:
        super().__init__(plan, measured)
        self._client = _mqtt.client_prefix()
        self._listens = plan.mode in ("echo", "hold")
        self._replies: list[bytes] = []

    def greeting(self, device: Device) -> bytes:
        """Return CONNECT, and SUBSCRIBE for a device that can be sent answers."""
        connect = _mqtt.connect(f"{self._client}{device.index}")
        return connect + _mqtt.subscribe(device.index) if self._listens else connect

    def greeted(self, device: Device, data: bytes) -> bool:
        """Take bytes with CONNACK and SUBACK, and return whether both have come. Raise `SwarmError` for a refusal."""
        data = device.rest + data
        expected = (_mqtt.CONNACK, _mqtt.SUBACK) if self._listens else (_mqtt.CONNACK,)
        try:
            packets, rest = _mqtt.split(data)
            for packet, kind in zip(packets, expected, strict=False):
                problem = _mqtt.refusal(packet, kind)
                if problem is not None:
                    raise SwarmError(problem)
            if len(packets) < len(expected):
                device.rest = data
                return False
            device.rest = rest
            self._take(device, packets[len(expected) :])
        except _mqtt.MalformedPacket as error:
            raise SwarmError(_malformed(error)) from None
        return True

    def farewell(self) -> bytes:
        """Return DISCONNECT."""
        return _mqtt.DISCONNECT

    def _framed(self, device: int, numbers: range, milliseconds: int) -> bytes:
        line, publish = self._line, _mqtt.publish
        return b"".join([publish(device, number, line(number, device, milliseconds)) for number in numbers])

    def received(self, device: Device, data: bytes) -> str | None:
        """Take bytes from the broker. Return why they cannot be read, or `None`."""
        try:
            packets, device.rest = _mqtt.split(device.rest + data)
            self._take(device, packets)
        except _mqtt.MalformedPacket as error:
            return _malformed(error)
        return None

    def replies(self, device: Device) -> bytes:
        """Return, once, the PUBACK packets for the messages received last."""
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def _take(self, device: Device, packets: list[_mqtt.Packet]) -> None:
        self._replies.clear()  # those of a device whose packets were malformed
        lines = []
        acked = device.acked
        for packet in packets:
            if packet.kind == _mqtt.PUBACK and len(packet.body) == 2:
                acked += 1
            elif packet.kind == _mqtt.PUBLISH:
                identifier, line = _mqtt.published(packet)
                lines.append(line)
                if identifier:
                    self._replies.append(_mqtt.puback(identifier))
            else:
                raise _mqtt.MalformedPacket(f"a packet of type {packet.kind}")
        if acked > device.acked:
            self.acknowledge(device, acked)
        if lines:
            self.take_lines(device, lines)


def _malformed(error: _mqtt.MalformedPacket) -> str:
    return f"MQTT: malformed packets in what it sends: {error}"
