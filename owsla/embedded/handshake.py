"""Connection handshake: server properties, login, and negotiation of limits."""

from __future__ import annotations

import hmac
from typing import Any, Final

from owsla import __version__
from owsla.amqp import wire

from .errors import AMQPError
from .messages import FRAME_MAX

CHANNEL_MAX: Final = 2047
"""Number of channels that the broker proposes, as RabbitMQ does."""

HEARTBEAT: Final = 60
"""Heartbeat interval in seconds that the broker proposes, as RabbitMQ does."""

PROTOCOL_HEADERS: Final = (wire.PROTOCOL_HEADER, b"AMQP\x01\x01\x00\x09")
"""Protocol headers that a client may begin with: that of 0-9-1, and that of 0-9, which RabbitMQ 3.10 accepts as well (it is the
default of txAMQP)."""

CAPABILITIES: Final = (
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
)


def server_properties() -> dict[str, Any]:
    """Return the server properties of connection.start."""
    return {
        # Clients choose features by product and version: kombu chooses the kind of basic.qos that it sends.
        "product": "RabbitMQ",
        "version": "3.10.8",
        "platform": f"Owsla {__version__}, embedded broker",
        "information": "Stands in for RabbitMQ: in memory, for trying out only",
        "cluster_name": "owsla-embedded",
        "capabilities": dict.fromkeys(CAPABILITIES, True),
    }


class ClientSession:
    """Negotiated properties of a connection: user, capabilities and limits."""

    __slots__ = ("_capabilities", "channel_max", "frame_max", "heartbeat", "user")

    def __init__(self) -> None:
        self.user = ""
        self.channel_max = CHANNEL_MAX
        self.frame_max = FRAME_MAX
        self.heartbeat = 0
        """Heartbeat interval in seconds; 0 means no heartbeats."""
        self._capabilities: dict[str, Any] = {}

    def has_capability(self, name: str) -> bool:
        """Return whether the client declared that it understands a protocol extension."""
        return self._capabilities.get(name) is True

    def log_in(self, fields: dict[str, Any], credentials: tuple[str, str]) -> bool:
        """Read connection.start-ok, and return whether user and password are right."""
        capabilities = fields["client_properties"].get("capabilities")
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}
        if not authenticate(fields["mechanism"], fields["response"], credentials):
            return False
        self.user = credentials[0]
        return True

    def tune(self, fields: dict[str, Any]) -> None:
        """Read connection.tune-ok. Raise 530 if the client asks for more than the broker offers, or too little."""
        for name, most, least in [("channel_max", CHANNEL_MAX, 1), ("frame_max", FRAME_MAX, wire.FRAME_MIN_SIZE)]:
            value = fields[name]
            if value and value < least:
                raise AMQPError(530, f"negotiated {name} = {value} is lower than the minimum allowed value ({least})")
            if not value or value > most:
                raise AMQPError(530, f"negotiated {name} = {value} is higher than the maximum allowed value ({most})")
        self.channel_max = fields["channel_max"]
        self.frame_max = fields["frame_max"]
        self.heartbeat = fields["heartbeat"]


def authenticate(mechanism: str, response: bytes, credentials: tuple[str, str]) -> bool:
    """Return whether user and password of a client are right. Raise 504 for a mechanism that was not offered."""
    user: Any = b""
    password: Any = b""
    if mechanism == "PLAIN":
        parts = response.split(b"\0")
        if len(parts) == 3:
            _, user, password = parts
    elif mechanism == "AMQPLAIN":
        table = wire.decode_table(len(response).to_bytes(4) + response)[0]
        user, password = table.get("LOGIN", ""), table.get("PASSWORD", "")
    else:
        raise AMQPError(504, f"unknown authentication mechanism '{mechanism}'")
    # Both comparisons are made, in constant time, so that the time of the answer tells nothing about either.
    right = [
        hmac.compare_digest(given if isinstance(given, bytes) else str(given).encode(), expected.encode())
        for given, expected in zip((user, password), credentials, strict=True)
    ]
    return all(right)
