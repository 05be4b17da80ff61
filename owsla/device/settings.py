"""Settings of device connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .framing import Framing, LineFraming


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """Limits that the connections of all doors share. Times are in seconds; each default is that of its option."""

    gap_timeout: float = 2.0
    """Time for which a message waits for a missing sequence number before it."""
    reorder_limit: int = 64
    """Messages that one connection may hold for a missing sequence number."""
    write_timeout: float = 30.0
    """Time after which a device that takes nothing is closed."""
    replace: bool = False
    """True if a new connection of a device replaces its previous one (`--on-duplicate replace`)."""
    max_flaps: int | None = None
    """Connections of one identified device within a minute, or `None` for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Limits and formats of the connections of a door. Times are in seconds, sizes in bytes; each default is that of its
    option.
    """

    framing: Framing = field(default_factory=LineFraming)
    write_buffer: int = 65536
    """Size of the messages that may wait for one slow device."""
    idle_timeout: float = 0.0
    """Time without a line in either direction after which a connection is closed; 0 disables the check."""
    skip_long: bool = False
    """True if lines that are too long are skipped (`--on-long skip`); otherwise their connection is closed."""
    max_rate: float | None = None
    """Lines a second that one device may send, or `None` for no limit."""
    proxy_identity: bool = False
    """True if without TLS the PROXY protocol header identifies the device (`--proxy-identity`)."""
    device_ack: Callable[[int], bytes] | None = None
    """Function that returns the acknowledgement of all lines up to a number, or `None` if devices get none."""
