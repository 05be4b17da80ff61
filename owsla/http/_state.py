"""The state of a process in short, for the pages for people and health checks. Pure values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any, Final

from ..supervision import TreeNode, render
from ..tls.inventory import InventoryEntry
from ._readings import (
    CertificateReading,
    DoorReadings,
    NameReadings,
    ParentReadings,
    Readings,
    readiness,
    readiness_of_all,
)

MISSING: Final = {
    "broker_connected": "the broker is not connected",
    "listener_accepting": "no devices are accepted",
    "not_draining": "the process is shutting down",
    "worker_ready": "no worker is ready",
}
"""Descriptions of failed checks."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Totals of one or several processes."""

    open: int = 0
    max_connections: int = 0
    handshaking: int = 0
    paused: int = 0
    lines_in: int = 0
    lines_out: int = 0
    unconfirmed: int = 0
    window: int = 0
    undeliverable: int = 0

    def __add__(self, other: Numbers) -> Numbers:
        return Numbers(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True, slots=True)
class DoorNumbers:
    """Totals of a door in one or several processes."""

    processes: int = 0
    accepting: int = 0
    """Processes that would accept a new device now."""
    taking: int = 0
    """Processes that take lines of its devices."""
    connections: int = 0
    max_connections: int = 0
    lines_in: int = 0
    unconfirmed: int = 0
    window: int = 0

    def __add__(self, other: DoorNumbers) -> DoorNumbers:
        return DoorNumbers(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class NameNumbers:
    """Numbers about messages by name, and for many devices, of one or several processes."""

    identified: int = 0
    """Device ids with a connection."""
    remembered: int = 0
    """Devices of other nodes whose node is remembered."""
    answered: int = 0
    """Lookups of devices that were found."""
    unanswered: int = 0
    """Lookups of devices that no node had."""
    waiting: int = 0
    """Messages that wait until their device is found."""
    spreading: int = 0
    """Messages for many devices that are being handed over."""

    def __add__(self, other: NameNumbers) -> NameNumbers:
        return NameNumbers(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class BrokerConnectionState:
    """Status of a connection to the broker. Times are in seconds since the epoch."""

    role: str
    state: str
    since: float
    address: str | None = None
    fault: str | None = None
    fault_time: float | None = None
    certificate: InventoryEntry | None = None
    """Certificate that the broker showed last."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """State of a worker: as its parent sees it, and as it reports itself."""

    name: str
    process: str
    """State of the process, as the parent sees it."""
    says: State | None
    """State that the worker reports; `None` if it did not answer."""
    restarts: int = 0
    """Restarts by the parent."""


@dataclass(frozen=True, slots=True)
class State:
    """State of a process, or of a parent with its workers."""

    node: str
    """Name of the node; empty for a parent."""
    checks: Mapping[str, bool]
    """Readiness checks, and whether each passes."""
    numbers: Numbers
    tree: TreeNode
    workers: Sequence[WorkerState] | None = None
    """States of the workers of a parent; `None` for a process without workers."""
    doors: Mapping[str, DoorNumbers] = field(default_factory=dict)
    """Totals of the doors by name."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the doors by name."""
    names: NameNumbers = field(default_factory=NameNumbers)
    broadcast: Mapping[str, int] = field(default_factory=dict)
    """Number of processes by the state of the exchange that reaches all nodes."""
    broker_connections: Sequence[BrokerConnectionState] = ()
    """Connections to the broker; those of a parent are in `workers`."""
    certificates: Callable[[], Iterable[CertificateReading]] = tuple
    """Function that returns the certificates and lists in use: a health check does not need them, and a long list takes time.

    It returns nothing in the state that a worker sends, since its parent has them.
    """
    started: float = 0.0
    """Start of the process in seconds since the epoch; of the parent."""

    @property
    def ready(self) -> bool:
        return all(self.checks.values())

    @property
    def missing(self) -> list[str]:
        """Descriptions of the failed checks."""
        return [MISSING.get(name, name) for name, is_so in self.checks.items() if not is_so]


def state_of(readings: Readings) -> State:
    """Return the present state of a process."""
    admission, devices = readings.admission, readings.devices
    doors = {name: _door(door) for name, door in readings.doors.items()}
    return State(
        readings.node(),
        readiness(readings),
        Numbers(
            open=admission.open,
            max_connections=admission.max_connections,
            handshaking=admission.handshaking,
            paused=devices.paused_connections,
            lines_in=sum(door.lines_in for door in doors.values()),
            lines_out=devices.lines_out,
            unconfirmed=sum(door.unconfirmed for door in doors.values()),
            window=sum(door.window for door in doors.values()),
            undeliverable=sum(readings.courier.recorded.values()),
        ),
        readings.tree(),
        doors=doors,
        addresses={name: door.port.address for name, door in readings.doors.items()},
        names=_names(readings.names),
        broadcast={readings.names.broadcast.state: 1},
        broker_connections=[
            BrokerConnectionState(*(getattr(connection, one.name) for one in fields(BrokerConnectionState)))
            for connection in readings.broker_connections()
        ],
        certificates=readings.certificates,
        started=readings.started,
    )


def _names(names: NameReadings) -> NameNumbers:
    lookups = names.lookups
    return NameNumbers(
        identified=names.identified(),
        remembered=lookups.remembered,
        answered=lookups.answered,
        unanswered=lookups.unanswered,
        waiting=lookups.waiting,
        spreading=names.groups.spreading,
    )


def _door(door: DoorReadings) -> DoorNumbers:
    lines = door.lines
    return DoorNumbers(
        processes=1,
        accepting=int(door.port.accepting),
        taking=int(lines.accepting),
        connections=door.admission.connections,
        max_connections=door.admission.max_connections,
        lines_in=lines.window.entered,
        unconfirmed=lines.window.messages,
        window=lines.window.max_messages,
    )


def state_of_all(readings: ParentReadings, workers: Sequence[WorkerState]) -> State:
    """Return the state of a parent with its workers."""
    says = [worker.says for worker in workers if worker.says is not None]
    trees = {worker.name: worker.says.tree for worker in workers if worker.says is not None}
    tree = readings.tree()
    restarts = {child["id"]: child["restarts"] for child in tree.get("children", [])}
    broadcast = Counter[str]()
    for state in says:
        broadcast.update(state.broadcast)
    return State(
        node="",
        checks=readiness_of_all(readings, (state.ready for state in says)),
        numbers=sum((state.numbers for state in says), Numbers()),
        tree=_grafted(tree, trees),
        workers=[replace(worker, restarts=restarts.get(worker.name, 0)) for worker in workers],
        doors=_doors_of_all(says),
        addresses={name: address for state in says for name, address in state.addresses.items()},
        names=sum((state.names for state in says), NameNumbers()),
        broadcast=dict(broadcast),
        certificates=readings.certificates,
        started=readings.started,
    )


def _doors_of_all(states: Iterable[State]) -> dict[str, DoorNumbers]:
    """Return the totals of each door over several processes."""
    doors: dict[str, DoorNumbers] = {}
    for state in states:
        for name, door in state.doors.items():
            doors[name] = doors.get(name, DoorNumbers()) + door
    return doors


def _grafted(tree: TreeNode, trees: Mapping[str, TreeNode]) -> TreeNode:
    """Return a tree with the trees of other processes attached to the children that represent them."""
    children = [_grafted(child, trees) for child in tree.get("children", [])]
    if tree["id"] in trees:
        children.append(trees[tree["id"]])
    return {**tree, "children": children} if children else tree


def state_to_json(state: State) -> dict[str, Any]:
    """Convert the state of a process to JSON values for `state_from_json`."""
    return {
        "node": state.node,
        "checks": dict(state.checks),
        "numbers": asdict(state.numbers),
        "tree": state.tree,
        "doors": {name: asdict(door) for name, door in state.doors.items()},
        "addresses": dict(state.addresses),
        "names": asdict(state.names),
        "broadcast": dict(state.broadcast),
        "broker_connections": [asdict(connection) for connection in state.broker_connections],
        "started": state.started,
    }


def state_from_json(sent: Any) -> State:
    """Convert the state that another process sent. Missing totals are 0. `ValueError` if it is malformed."""
    try:
        node, checks, numbers, tree = sent["node"], sent["checks"], sent["numbers"], sent["tree"]
        render(tree)
        state = State(
            str(node),
            {str(name): bool(is_so) for name, is_so in checks.items()},
            Numbers(*(int(numbers.get(one.name, 0)) for one in fields(Numbers))),
            tree,
            doors={
                str(name): DoorNumbers(*(int(door.get(one.name, 0)) for one in fields(DoorNumbers)))
                for name, door in sent.get("doors", {}).items()
            },
            addresses={str(name): str(address) for name, address in sent.get("addresses", {}).items()},
            names=NameNumbers(*(int(sent.get("names", {}).get(one.name, 0)) for one in fields(NameNumbers))),
            broadcast={str(name): int(count) for name, count in sent.get("broadcast", {}).items()},
            broker_connections=[_broker_connection(each) for each in sent.get("broker_connections", [])],
            started=float(sent.get("started", 0.0)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"malformed state: {error!r}") from None
    if not state.checks:
        raise ValueError("malformed state: no checks")
    return state


def _broker_connection(sent: Mapping[str, Any]) -> BrokerConnectionState:
    address, fault, fault_time = sent["address"], sent["fault"], sent["fault_time"]
    return BrokerConnectionState(
        role=str(sent["role"]),
        state=str(sent["state"]),
        since=float(sent["since"]),
        address=None if address is None else str(address),
        fault=None if fault is None else str(fault),
        fault_time=None if fault_time is None else float(fault_time),
        certificate=_broker_certificate(sent.get("certificate")),
    )


def _broker_certificate(sent: Mapping[str, Any] | None) -> InventoryEntry | None:
    if sent is None:
        return None
    return InventoryEntry("broker", str(sent["file"]), str(sent["subject"]), float(sent["not_after"]))
