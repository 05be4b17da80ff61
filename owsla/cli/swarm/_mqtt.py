"""MQTT 3.1.1 as devices speak it: each line is published with QoS 1, and answers come by subscription with QoS 1. Pure.

A device publishes to `lines/N` and subscribes to `answers/N`, where N is its number. Its packets are CONNECT with a clean
session and without keep-alive, SUBSCRIBE, PUBLISH, PUBACK and DISCONNECT: chapter 3 of the specification.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBACK: Final = 9

DISCONNECT: Final = b"\xe0\x00"

IN_FLIGHT: Final = 20
"""Default number of unacknowledged lines of a device in a flood: that of paho-mqtt."""

MOST_IN_FLIGHT: Final = 65535
"""Number of packet identifiers."""

_LENGTH_BYTES: Final = 4
"""Maximum number of bytes of a remaining length (section 2.2.3)."""

_SUBSCRIPTION: Final = 1
"""Packet identifier of the SUBSCRIBE packet."""


class Packet(NamedTuple):
    """A packet from the server."""

    kind: int
    flags: int
    body: bytes
    """Everything after the remaining length."""


class MalformedPacket(Exception):
    """Bytes that are not an MQTT packet, with the reason."""


def client_prefix() -> str:
    """Return the beginning of the client identifiers of a process, so that no other has them: the server would close these."""
    return f"swarm-{secrets.token_hex(4)}-"


def connect(client: str) -> bytes:
    """Return the CONNECT packet of a client."""
    return _packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + _string(client.encode()))


def subscribe(device: int) -> bytes:
    """Return the SUBSCRIBE packet of a device, for its answers with QoS 1."""
    return _packet(0x82, _SUBSCRIPTION.to_bytes(2) + _string(b"answers/%d" % device) + b"\x01")


def publish(device: int, number: int, line: bytes) -> bytes:
    """Return the PUBLISH packet with line `number` of a device and QoS 1."""
    return _packet(0x32, _string(b"lines/%d" % device) + (number % MOST_IN_FLIGHT + 1).to_bytes(2) + line)


def puback(identifier: bytes) -> bytes:
    """Return the PUBACK packet for a packet identifier."""
    return b"\x40\x02" + identifier


def published(packet: Packet) -> tuple[bytes, bytes]:
    """Return the packet identifier of a PUBLISH packet, or b"" with QoS 0, and its message. Raise `MalformedPacket`."""
    body = packet.body
    after = 2 + int.from_bytes(body[:2])
    size = 2 if packet.flags & 0x06 else 0
    if len(body) < after + size:
        raise MalformedPacket("PUBLISH is too short")
    return body[after : after + size], body[after + size :]


def refusal(packet: Packet, expected: int) -> str | None:
    """Return why the server refuses a CONNECT or SUBSCRIBE with this packet, or `None` if it accepts it.

    `expected` is `CONNACK` or `SUBACK`.
    """
    if packet.kind == expected == CONNACK and len(packet.body) == 2:
        return f"MQTT: connection refused with return code {packet.body[1]}" if packet.body[1] else None
    if packet.kind == expected == SUBACK and len(packet.body) == 3:
        return None if packet.body[2] == 1 else f"MQTT: subscription refused with return code {packet.body[2]}"
    return f"MQTT: a packet of type {packet.kind} before the connection was accepted"


def split(data: bytes) -> tuple[list[Packet], bytes]:
    """Return the complete packets in bytes from the server, and the rest. Raise `MalformedPacket`."""
    packets: list[Packet] = []
    at = 0
    while at + 2 <= len(data):
        length = 0
        for index in range(_LENGTH_BYTES):
            if at + 1 + index == len(data):
                return packets, data[at:]
            byte = data[at + 1 + index]
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                break
        else:
            raise MalformedPacket("a remaining length of more than four bytes")
        begin = at + 2 + index
        if begin + length > len(data):
            break
        packets.append(Packet(data[at] >> 4, data[at] & 0x0F, data[begin : begin + length]))
        at = begin + length
    return packets, data[at:]


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(2) + text


def _packet(head: int, body: bytes) -> bytes:
    length = len(body)
    if length < 0x80:
        return bytes((head, length)) + body
    parts = bytearray((head,))
    while length >= 0x80:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    parts.append(length)
    return bytes(parts) + body
