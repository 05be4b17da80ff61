"""What the broker says of itself, who may log in, and which limits it agrees to."""

from __future__ import annotations

import hmac
from typing import Any, Final

from owsla import __version__
from owsla.amqp import wire

from .errors import AMQPError
from .queues import FRAME_MAX

CHANNEL_MAX: Final = 2047
HEARTBEAT: Final = 60
"""What RabbitMQ proposes: channels, seconds. (And `queues.FRAME_MAX`.)"""

PROTOCOL_HEADERS: Final = (wire.PROTOCOL_HEADER, b"AMQP\x01\x01\x00\x09")
"""What a client may begin with: 0-9-1's header, and 0-9's, which RabbitMQ takes for the same (txAMQP's default)."""

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
    """The server properties of connection.start."""
    return {
        # Clients decide by product and version what they may do: kombu, by which basic.qos it sends.
        "product": "RabbitMQ",
        "version": "3.10.8",
        "platform": f"Owsla {__version__}, embedded broker",
        "information": "Stands in for RabbitMQ: in memory, for trying out only",
        "cluster_name": "owsla-embedded",
        "capabilities": dict.fromkeys(CAPABILITIES, True),
    }


def authenticate(mechanism: str, response: bytes, credentials: tuple[str, str]) -> bool:
    """Whether a client's user and password are the right ones; 504 for a mechanism that was not offered."""
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
    right = [
        hmac.compare_digest(given if isinstance(given, bytes) else str(given).encode(), expected.encode())
        for given, expected in zip((user, password), credentials, strict=True)
    ]
    return all(right)


def check_tune(fields: dict[str, Any]) -> None:
    """530 where a client wants less or more than there can be."""
    for name, most, least in [("channel_max", CHANNEL_MAX, 1), ("frame_max", FRAME_MAX, wire.FRAME_MIN_SIZE)]:
        value = fields[name]
        if value and value < least:
            raise AMQPError(530, f"negotiated {name} = {value} is lower than the minimum allowed value ({least})")
        if not value or value > most:
            raise AMQPError(530, f"negotiated {name} = {value} is higher than the maximum allowed value ({most})")
