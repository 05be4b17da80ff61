"""What happens, as typed values, and who is told of it."""

from ._console import Console
from ._manager import EventManager, Handler
from ._types import (
    BrokerBlocked,
    BrokerConnected,
    BrokerLost,
    BrokerUnavailable,
    BrokerUnblocked,
    BrokerWarning,
    DeviceConnected,
    DeviceDisconnected,
    Event,
    Full,
    GapSkipped,
    HandshakeFailed,
    LinesRefused,
    LineTooLong,
    Listening,
    SlowDevice,
    Undeliverable,
    UndeliverableLost,
)

__all__ = [
    "BrokerBlocked",
    "BrokerConnected",
    "BrokerLost",
    "BrokerUnavailable",
    "BrokerUnblocked",
    "BrokerWarning",
    "Console",
    "DeviceConnected",
    "DeviceDisconnected",
    "Event",
    "EventManager",
    "Full",
    "GapSkipped",
    "Handler",
    "HandshakeFailed",
    "LineTooLong",
    "LinesRefused",
    "Listening",
    "SlowDevice",
    "Undeliverable",
    "UndeliverableLost",
]
