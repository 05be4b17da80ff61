"""Events: one small frozen class for each thing that may happen.

`str(event)` is one line for a person. It holds no line of a device's and no message's body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    name: ClassVar[str] = "event"
    """The event's name for machines, in lower case with dashes."""
    warning: ClassVar[bool] = False
    """Whether somebody should have a look."""


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The device port is open."""

    name: ClassVar[str] = "listening"
    address: str
    port: int

    def __str__(self) -> str:
        return f"Listening for devices on port {self.port} (TLS, {self.address})"


@dataclass(frozen=True, slots=True)
class DeviceConnected(Event):
    """A device has completed its TLS handshake."""

    name: ClassVar[str] = "device-connected"
    connection_id: str
    device_id: str | None
    peer: str
    tls: str

    def __str__(self) -> str:
        device = f" (device {self.device_id})" if self.device_id is not None else ""
        return f"Device connected: {self.connection_id}{device} from {self.peer}, {self.tls}"


@dataclass(frozen=True, slots=True)
class DeviceDisconnected(Event):
    """A device's connection is gone."""

    name: ClassVar[str] = "device-disconnected"
    connection_id: str
    device_id: str | None
    reason: str
    lines_in: int
    lines_out: int
    seconds: float
    unterminated: int
    """Bytes of a line that was never finished; they were not published."""

    def __str__(self) -> str:
        device = f" (device {self.device_id})" if self.device_id is not None else ""
        rest = f", {self.unterminated} bytes of an unterminated line dropped" if self.unterminated else ""
        return (
            f"Device disconnected: {self.connection_id}{device}, {self.reason}; "
            f"{self.lines_in} lines in, {self.lines_out} out, {self.seconds:.1f} s{rest}"
        )


@dataclass(frozen=True, slots=True)
class HandshakeFailed(Event):
    """A connection was closed before its TLS handshake was complete."""

    name: ClassVar[str] = "handshake-failed"
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"Handshake failed: {self.peer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LineTooLong(Event):
    """A device sent a line longer than allowed; its connection is closed, and nothing of the line is published."""

    name: ClassVar[str] = "line-too-long"
    warning: ClassVar[bool] = True
    connection_id: str
    limit: int

    def __str__(self) -> str:
        return f"Line too long: {self.connection_id} sent more than {self.limit} bytes without a delimiter; closed"


@dataclass(frozen=True, slots=True)
class GapSkipped(Event):
    """Numbered messages to a device did not come in time, and it goes on without them."""

    name: ClassVar[str] = "gap-skipped"
    warning: ClassVar[bool] = True
    connection_id: str
    first: int
    last: int

    def __str__(self) -> str:
        numbers = f"number {self.first}" if self.first == self.last else f"numbers {self.first} to {self.last}"
        return f"Gap skipped: {self.connection_id} goes on without {numbers}"


@dataclass(frozen=True, slots=True)
class SlowDevice(Event):
    """A device does not take what is written to it, and its connection is closed."""

    name: ClassVar[str] = "slow-device"
    warning: ClassVar[bool] = True
    connection_id: str
    why: str

    def __str__(self) -> str:
        return f"Slow device: {self.connection_id}: {self.why}; closed"


@dataclass(frozen=True, slots=True)
class Full(Event):
    """As many devices as may be are connected; more wait in the system's queue."""

    name: ClassVar[str] = "full"
    warning: ClassVar[bool] = True
    connections: int
    what: str

    def __str__(self) -> str:
        return f"Not accepting for now: {self.what} ({self.connections}); further devices wait to be accepted"


@dataclass(frozen=True, slots=True)
class Undeliverable(Event):
    """A message of a back end's could not be delivered, and is on record in the undeliverable queue."""

    name: ClassVar[str] = "undeliverable"
    reason: str
    connection_id: str | None

    def __str__(self) -> str:
        return f"Undeliverable: {self.reason}" + (f", {self.connection_id}" if self.connection_id else "")


@dataclass(frozen=True, slots=True)
class UndeliverableLost(Event):
    """A message could not be delivered, nor recorded: the undeliverable queue refuses more."""

    name: ClassVar[str] = "undeliverable-lost"
    warning: ClassVar[bool] = True
    reason: str
    connection_id: str | None
    why: str

    def __str__(self) -> str:
        return f"Undeliverable and not recorded ({self.why}): {self.reason}" + (
            f", {self.connection_id}" if self.connection_id else ""
        )


@dataclass(frozen=True, slots=True)
class BrokerConnected(Event):
    """All connections to the broker are up, and the queues are there."""

    name: ClassVar[str] = "broker-connected"
    broker: str

    def __str__(self) -> str:
        return f"Broker connected: {self.broker}"


@dataclass(frozen=True, slots=True)
class BrokerLost(Event):
    """A connection to the broker ended."""

    name: ClassVar[str] = "broker-lost"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker lost: {self.broker}: {self.reason}; devices stay connected, trying again"


@dataclass(frozen=True, slots=True)
class BrokerUnavailable(Event):
    """An attempt to connect to the broker, or to set things up on it, failed."""

    name: ClassVar[str] = "broker-unavailable"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker unavailable: {self.broker}: {self.reason}; trying again"


@dataclass(frozen=True, slots=True)
class BrokerBlocked(Event):
    """The broker has run out of memory or disk, and takes nothing."""

    name: ClassVar[str] = "broker-blocked"
    warning: ClassVar[bool] = True
    reason: str

    def __str__(self) -> str:
        return f"Broker blocked: {self.reason}; devices wait"


@dataclass(frozen=True, slots=True)
class BrokerUnblocked(Event):
    """The broker takes messages again."""

    name: ClassVar[str] = "broker-unblocked"

    def __str__(self) -> str:
        return "Broker unblocked"


@dataclass(frozen=True, slots=True)
class BrokerWarning(Event):
    """Something about the broker's side that works, but not as expected."""

    name: ClassVar[str] = "broker-warning"
    warning: ClassVar[bool] = True
    text: str

    def __str__(self) -> str:
        return f"Broker: {self.text}"


@dataclass(frozen=True, slots=True)
class LinesRefused(Event):
    """The broker refused or returned lines of devices; they are published again until it takes them."""

    name: ClassVar[str] = "lines-refused"
    warning: ClassVar[bool] = True
    lines: int
    reason: str

    def __str__(self) -> str:
        return f"Broker refused {self.lines} lines: {self.reason}; devices wait, publishing again"
