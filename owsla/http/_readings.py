"""The interface between the HTTP pages and the rest of Owsla: types, and the readiness checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..desk import WorkerHandle
from ..supervision import TreeNode
from ..tls.inventory import InventoryEntry
from ._counts import EventCounts
from ._histogram import Histogram
from ._lateness import Lateness


class AdmissionReadings(Protocol):
    """Numbers of connections by state."""

    max_connections: int

    @property
    def open(self) -> int:
        """Connections with a completed handshake."""

    @property
    def connections(self) -> int:
        """All connections."""

    @property
    def handshaking(self) -> int: ...

    @property
    def waiting(self) -> int:
        """Connections that wait to start their handshake."""


class PortReadings(Protocol):
    """Counters of the port of a door, and its address."""

    accepted: int
    """Accepted connections. Those that were closed at once, because of their address, do not count."""
    handshakes: int
    """Completed handshakes."""
    failed_handshakes: int

    @property
    def evicted(self) -> int:
        """Silent connections that were closed to make room."""

    @property
    def turned_away(self) -> int:
        """Connections refused because of `--max-per-address`."""

    @property
    def too_fast(self) -> int:
        """Connections refused because of `--max-connect-rate`."""

    @property
    def denied(self) -> int:
        """Connections refused because their address is in the list of `--deny`."""

    @property
    def untrusted(self) -> int:
        """Connections refused because their peer may not send a PROXY protocol header (`--proxy-protocol`)."""

    @property
    def address(self) -> str:
        """Address and port that devices connect to, or `unix:PATH`."""

    @property
    def accepting(self) -> bool:
        """True if a new device would be accepted now."""


class DoorAdmissionReadings(Protocol):
    """Numbers of connections of a door."""

    connections: int
    """All connections."""
    max_connections: int


class DeviceReadings(Protocol):
    """Counters over all device connections."""

    @property
    def paused_connections(self) -> int:
        """Number of connections whose reading is paused."""

    @property
    def denied(self) -> int:
        """Connections refused after their device was identified, because of the list of `--deny`."""

    @property
    def deny_entries(self) -> int:
        """Entries in force of the list of `--deny`."""

    @property
    def held_off(self) -> int:
        """Connections closed after their device was identified, because of `--max-flaps`."""

    @property
    def duplicates(self) -> int:
        """Number of messages whose sequence number was used before."""

    @property
    def skips(self) -> int:
        """Number of sequence numbers that never arrived and were skipped."""

    @property
    def bytes_in(self) -> int:
        """Number of bytes read from devices, with delimiters."""

    @property
    def bytes_out(self) -> int:
        """Number of bytes sent to devices, without delimiters."""

    @property
    def discarded_lines(self) -> int:
        """Number of lines discarded because their device had disconnected and the window had no room."""

    @property
    def skipped_lines(self) -> int:
        """Number of lines skipped because they were longer than `--max-line`."""

    @property
    def discarded_bytes(self) -> int:
        """Number of unread bytes of such devices, including TLS overhead."""

    @property
    def lines_out(self) -> int:
        """Number of lines sent to devices."""


class WindowReadings(Protocol):
    """Published, unconfirmed lines, and counters of those that were."""

    messages: int
    size: int
    max_messages: int
    max_bytes: int
    confirmed_lines: int
    confirmed_messages: int
    """Messages with lines that the broker has confirmed: with `--batch` fewer than lines."""

    @property
    def entered(self) -> int:
        """Number of lines so far: confirmed, unconfirmed, or given up because the broker would never accept them."""


class LineReadings(Protocol):
    """Counters of the published lines of a door."""

    accepting: bool

    @property
    def traced_lines(self) -> int:
        """Number of lines that began a trace."""

    @property
    def window(self) -> WindowReadings: ...

    @property
    def unconfirmed_since(self) -> float | None:
        """Time of publication of the line whose confirm is being measured, in seconds since the epoch."""


class CourierReadings(Protocol):
    """Counters of records, forwards and reports."""

    recorded: dict[str, int]
    """Undeliverable messages by reason."""
    reports_dropped: int

    @property
    def unconfirmed(self) -> int: ...


class LookupReadings(Protocol):
    """Counters of messages by name, to devices that are not connected to this node."""

    questions: int
    """Device ids in questions to all nodes, repeated ones included."""
    answered: int
    """Devices that were found."""
    unanswered: int
    """Devices that no node had."""
    returned_messages: int
    """Messages that another node returned, since their device had left it."""

    @property
    def remembered(self) -> int:
        """Number of devices whose node is remembered."""

    @property
    def waiting(self) -> int:
        """Number of messages that wait for an answer."""


class GroupReadings(Protocol):
    """Counters of messages for many devices, on this node."""

    @property
    def spreading(self) -> int:
        """Messages that have not been handed over to all their devices."""

    @property
    def devices(self) -> int:
        """Connections that such a message was handed over to."""

    @property
    def missed(self) -> int:
        """Connections that it was not handed over to."""


class BroadcastReadings(Protocol):
    """State of the exchange that reaches all nodes."""

    dropped: int
    """Questions, answers and claims that could not be published."""

    @property
    def state(self) -> str:
        """State of the exchange: one of `BROADCAST_STATES`."""


BROADCAST_STATES: Final = ("up", "away", "blocked", "refused")
"""States of the exchange that reaches all nodes, as seen by this one."""


class BrokerReadings(Protocol):
    """State of the connections to the broker."""

    ready: bool


class BrokerConnectionReadings(Protocol):
    """Status of a connection to the broker. Times are in seconds since the epoch."""

    @property
    def role(self) -> str: ...

    @property
    def state(self) -> str:
        """State: `waiting`, `connecting`, `up`, `blocked` or `stopped`."""

    @property
    def since(self) -> float:
        """Time since which the connection is in this state."""

    @property
    def address(self) -> str | None:
        """Address of the last attempt; `None` before the first one."""

    @property
    def certificate(self) -> InventoryEntry | None:
        """Certificate that the broker showed last; `None` without TLS."""

    @property
    def fault(self) -> str | None:
        """Description of the last fault."""

    @property
    def fault_time(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class CertificateReading:
    """A certificate, authority, revocation list or OCSP response in use."""

    door: str | None
    """Name of the door; `None`: for connections to the broker."""
    entry: InventoryEntry


class ReloadReadings(Protocol):
    """Result of the last reload of the configuration."""

    @property
    def successful(self) -> bool:
        """True unless the last reload failed."""

    @property
    def success_time(self) -> float:
        """Time of the last successful reload, or of the start, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class DoorReadings:
    """Sources of the values of a door."""

    port: PortReadings
    admission: DoorAdmissionReadings
    lines: LineReadings
    latency: Histogram = field(default_factory=Histogram)
    """Time from publishing a line to its confirm."""


@dataclass(frozen=True, slots=True)
class NameReadings:
    """Sources of the values about messages by name, and for many devices."""

    identified: Callable[[], int]
    """Return the number of devices with an id that are connected to this node."""
    lookups: LookupReadings
    groups: GroupReadings
    broadcast: BroadcastReadings


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Sources of all values on the pages of a process."""

    node: Callable[[], str]
    """Name of the node."""
    admission: AdmissionReadings
    doors: Mapping[str, DoorReadings]
    """Doors by name."""
    devices: DeviceReadings
    courier: CourierReadings
    names: NameReadings
    health: BrokerReadings
    draining: Callable[[], bool]
    """Return whether the process is shutting down."""
    tree: Callable[[], TreeNode]
    """Return the supervision tree."""
    events: EventCounts
    event_drops: Callable[[], Mapping[str, int]] = dict
    """Events dropped because a handler was too slow, by handler."""
    log_lost: Callable[[], int] = int
    """Log lines that could not be written."""
    lateness: Lateness = field(default_factory=Lateness)
    """Lateness of timed calls of the reactor."""
    reloads: ReloadReadings | None = None
    """Reloads of the configuration; `None` in a worker, whose parent has them."""
    certificate_expires: Callable[[], float | None] = lambda: None
    """Expiry of the server certificate that expires first, in seconds since the epoch; `None` if unknown."""
    crl_expires: Callable[[], float | None] = lambda: None
    """Expiry of the revocation list that expires first; `None` without one."""
    ocsp_expires: Callable[[], float | None] = lambda: None
    """Expiry of the OCSP response that expires first; `None` without one."""
    broker_connections: Callable[[], Iterable[BrokerConnectionReadings]] = tuple
    """Status of each connection to the broker."""
    certificates: Callable[[], Iterable[CertificateReading]] = tuple
    """Certificates and lists in use."""
    started: float = field(default_factory=time.time)
    """Approximate start of the process in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentReadings:
    """Sources of all values on the pages of a parent."""

    workers: Callable[[], Sequence[WorkerHandle]]
    """Return the present workers."""
    draining: Callable[[], bool]
    """Return whether the parent is shutting down."""
    tree: Callable[[], TreeNode]
    """Return the supervision tree of the parent, with a child per worker."""
    events: EventCounts
    """Events of the parent itself."""
    event_drops: Callable[[], Mapping[str, int]] = dict
    """Events dropped because a handler in the parent was too slow, by handler."""
    log_lost: Callable[[], int] = int
    """Log lines that the parent could not write."""
    lateness: Lateness = field(default_factory=Lateness)
    """Lateness of timed calls of the reactor."""
    reloads: ReloadReadings | None = None
    """Reloads of the configuration."""
    certificates: Callable[[], Iterable[CertificateReading]] = tuple
    """Certificates and lists in use, which are the same for all workers."""
    started: float = field(default_factory=time.time)
    """Approximate start of the process in seconds since the epoch."""


def readiness(readings: Readings) -> dict[str, bool]:
    """Return the readiness checks of a process, and whether each passes."""
    return {
        "broker_connected": readings.health.ready,
        "listener_accepting": any(door.port.accepting for door in readings.doors.values()),
        "not_draining": not readings.draining(),
    }


def readiness_of_all(readings: ParentReadings, workers: Iterable[bool]) -> dict[str, bool]:
    """Return the readiness checks of a parent. One ready worker is enough; `workers` has the readiness of each."""
    return {"worker_ready": any(workers), "not_draining": not readings.draining()}
