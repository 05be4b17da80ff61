"""What is read of the rest of Owsla, and no more than that. Types, and one decision: whether it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from ..supervision import TreeNode
from ._counts import EventCounts
from ._histogram import Histogram


class Admission(Protocol):
    """The connections, by state."""

    max_connections: int
    open: int
    """Those whose handshake is complete."""

    @property
    def connections(self) -> int:
        """All of them."""

    @property
    def handshaking(self) -> int: ...

    @property
    def waiting(self) -> int:
        """Those that wait for a place to begin their handshake."""


class Listener(Protocol):
    """The device port."""

    handshakes: int
    """Completed so far."""
    failed_handshakes: int

    @property
    def evicted(self) -> int:
        """Silent connections closed so far since there were too many."""

    @property
    def turned_away(self) -> int:
        """Connections closed so far since there were too many from their address."""

    @property
    def accepting(self) -> bool:
        """Whether a device that comes now is let in."""


class Hub(Protocol):
    """What the connections have in common."""

    paused_connections: int
    duplicates: int
    skips: int
    """Numbers that were waited for in vain."""
    bytes_in: int
    """Read from devices so far, delimiters included."""
    bytes_out: int
    """Handed over to devices so far, without delimiters."""
    discarded_lines: int
    """Lines thrown away of devices that left while there was no room for them."""
    discarded_bytes: int
    """Bytes of such devices that were not read, those of TLS included."""

    @property
    def lines_out(self) -> int:
        """Lines handed over so far, to whichever device."""


class Producer(Protocol):
    """The way of lines to the broker."""

    accepting: bool
    confirmed_lines: int
    given_up_lines: int
    """Lines that the broker would never have taken."""

    @property
    def unconfirmed_since(self) -> float | None:
        """When the line was published whose confirm is waited for to measure it, in seconds since the epoch."""


class Window(Protocol):
    """What is published and unconfirmed."""

    messages: int
    size: int
    max_messages: int
    max_bytes: int


class Courier(Protocol):
    """Messages on their way to other queues."""

    recorded: dict[str, int]
    """Undeliverable messages so far, by reason."""
    reports_dropped: int

    @property
    def unconfirmed(self) -> int: ...


class Health(Protocol):
    """The connections to the broker as a whole."""

    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Where everything is read that is told over HTTP."""

    node: Callable[[], str]
    """The node's name."""
    admission: Admission
    listener: Listener
    hub: Hub
    producer: Producer
    window: Window
    courier: Courier
    health: Health
    draining: Callable[[], bool]
    """Whether it is stopping."""
    tree: Callable[[], TreeNode]
    """The supervision tree."""
    events: EventCounts
    event_drops: Callable[[], Mapping[str, int]] = dict
    """Events that a handler was too slow for, by its name."""
    log_lost: Callable[[], int] = int
    """Lines of the log that could not be written."""
    latency: Histogram = field(default_factory=Histogram)
    """From publishing a line to its confirm."""
    lateness: Histogram = field(default_factory=Histogram)
    """How late the reactor calls what is due."""
    certificate_expires: Callable[[], float | None] = lambda: None
    """When the certificate that devices are shown ends, in seconds since the epoch; `None` where that is not known."""
    started: float = field(default_factory=time.time)
    """When the process started, or nearly, in seconds since the epoch."""


Question: TypeAlias = Literal["metrics", "state"]
"""What a parent asks its workers: see `answer`."""


class WorkerProcess(Protocol):
    """A worker, as its parent sees it: the same object as long as it is the same process."""

    @property
    def number(self) -> int:
        """Counted from 1; of those that are there at a time each has its own."""

    @property
    def name(self) -> str:
        """What it is called in logs, and in the parent's tree."""

    @property
    def state(self) -> str:
        """How far it is, in a word for people: `starting`, `ready`, `draining`, `ended`."""

    def ask(self, what: Question) -> Deferred[Any]:
        """What its `answer` returns. It may fail, and at once where nobody is there to be asked; it may never fire, and then
        it is cancelled some time.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentReadings:
    """Where a parent reads what it tells over HTTP."""

    workers: Callable[[], Sequence[WorkerProcess]]
    """Those there are now."""
    draining: Callable[[], bool]
    """Whether all of it is stopping."""
    tree: Callable[[], TreeNode]
    """The parent's own supervision tree, with a child for each worker, by its name."""
    events: EventCounts
    """The parent's own."""
    event_drops: Callable[[], Mapping[str, int]] = dict
    """Events that a handler in the parent was too slow for, by its name."""
    log_lost: Callable[[], int] = int
    """Lines of the log that the parent could not write."""
    lateness: Histogram = field(default_factory=Histogram)
    """How late the reactor calls what is due."""
    started: float = field(default_factory=time.time)
    """When the process started, or nearly, in seconds since the epoch."""


def readiness(readings: Readings) -> dict[str, bool]:
    """Whether devices should be sent here: what that takes, and whether it is so."""
    return {
        "broker_connected": readings.health.ready,
        "listener_accepting": readings.listener.accepting,
        "not_draining": not readings.draining(),
    }


def readiness_of_all(readings: ParentReadings, workers: Iterable[bool]) -> dict[str, bool]:
    """The same for a parent: one worker that takes devices is enough. `workers` says of each whether it is ready."""
    return {"worker_ready": any(workers), "not_draining": not readings.draining()}
