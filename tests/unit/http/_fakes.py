"""The rest of Owsla, as far as it is read over HTTP: plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from owsla.desk import JSON, NO_ARGS, Args, UnknownQuestion
from owsla.http import (
    Actions,
    ApiParts,
    CertificateReading,
    DoorReadings,
    EventCounts,
    History,
    NameReadings,
    ParentReadings,
    Readings,
    Source,
    Tokens,
    answer,
)
from owsla.http._access import TokenAccess
from owsla.http._api import Api
from owsla.http._pages import make_pages
from owsla.http._site import QuietSite, make_site
from owsla.http._streams import Streams
from owsla.interfaces import FIRST_DOOR
from owsla.supervision import TreeNode
from owsla.tls.inventory import InventoryEntry

NOW = 1_700_000_000.0


@dataclass
class FakeAdmission:
    max_connections: int = 10_000
    open: int = 0
    handshaking: int = 0
    waiting: int = 0
    connections: int = 0


@dataclass
class FakeDoorAdmission:
    connections: int = 0
    max_connections: int = 10_000


@dataclass
class FakePort:
    accepted: int = 0
    address: str = "0.0.0.0:8883"
    handshakes: int = 0
    failed_handshakes: int = 0
    accepting: bool = True
    evicted: int = 0
    turned_away: int = 0
    untrusted: int = 0
    too_fast: int = 0
    denied: int = 0


@dataclass
class FakeDevices:
    paused_connections: int = 0
    denied: int = 0
    deny_entries: int = 0
    held_off: int = 0
    duplicates: int = 0
    skips: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    discarded_lines: int = 0
    discarded_bytes: int = 0
    skipped_lines: int = 0
    lines_out: int = 0


@dataclass
class FakeWindow:
    messages: int = 0
    size: int = 0
    max_messages: int = 10_000
    max_bytes: int = 1 << 24
    confirmed_lines: int = 0
    confirmed_messages: int = 0
    given_up_lines: int = 0

    @property
    def entered(self) -> int:
        return self.confirmed_lines + self.given_up_lines + self.messages


@dataclass
class FakeLines:
    window: FakeWindow = field(default_factory=FakeWindow)
    accepting: bool = True
    traced_lines: int = 0
    unconfirmed_since: float | None = None


@dataclass
class FakeBrokerConnection:
    role: str = "producer"
    state: str = "up"
    since: float = NOW
    address: str | None = "amqp://guest@rabbit:5672/%2F"
    fault: str | None = None
    fault_time: float | None = None
    certificate: InventoryEntry | None = None


@dataclass
class FakeCourier:
    recorded: dict[str, int] = field(default_factory=dict)
    reports_dropped: int = 0
    unconfirmed: int = 0


@dataclass
class FakeLookups:
    questions: int = 0
    answered: int = 0
    unanswered: int = 0
    returned_messages: int = 0
    remembered: int = 0
    waiting: int = 0


@dataclass
class FakeGroups:
    spreading: int = 0
    devices: int = 0
    missed: int = 0


@dataclass
class FakeBroadcast:
    state: str = "up"
    dropped: int = 0


@dataclass
class FakeHealth:
    ready: bool = True


def node(name: str, restarts: int = 0, *children: TreeNode, failure: str | None = None) -> TreeNode:
    """A running child; the root if it is not in another."""
    made: TreeNode = {
        "id": name,
        "type": "supervisor" if children else "worker",
        "restart": "permanent",
        "state": "running",
        "restarts": restarts,
        "uptime": 3661.0,
        "failure": failure,
    }
    if children:
        made["strategy"] = "one_for_one"
        made["children"] = list(children)
    return made


def tree() -> TreeNode:
    return node(
        "owsla",
        0,
        node("events"),
        node("broker", 1, node("producer", 3, failure="ValueError: <b>no</b>"), node("consumers")),
        node("listener"),
        node("http"),
    )


class World:
    """Everything that is read, to be changed by a test."""

    def __init__(self) -> None:
        self.node = "0badcafe"
        self.admission = FakeAdmission()
        self.port = FakePort()
        self.door_admission = FakeDoorAdmission()
        self.devices = FakeDevices()
        self.lines = FakeLines()
        self.window = self.lines.window
        self.doors = {FIRST_DOOR: DoorReadings(self.port, self.door_admission, self.lines)}
        self.courier = FakeCourier()
        self.identified = 0
        self.lookups = FakeLookups()
        self.groups = FakeGroups()
        self.broadcast = FakeBroadcast()
        self.health = FakeHealth()
        self.draining = False
        self.tree = tree()
        self.events = EventCounts()
        self.event_drops: dict[str, int] = {}
        self.certificate_expires: float | None = None
        self.broker_connections = [FakeBrokerConnection()]
        self.certificates: list[CertificateReading] = []
        self.readings = Readings(
            node=lambda: self.node,
            admission=self.admission,
            doors=self.doors,
            devices=self.devices,
            courier=self.courier,
            names=NameReadings(lambda: self.identified, self.lookups, self.groups, self.broadcast),
            health=self.health,
            draining=lambda: self.draining,
            tree=lambda: self.tree,
            events=self.events,
            event_drops=lambda: self.event_drops,
            certificate_expires=lambda: self.certificate_expires,
            broker_connections=lambda: self.broker_connections,
            certificates=lambda: self.certificates,
            started=NOW,
        )


def door(*, taking: bool = True, accepting: bool = True, connections: int = 0, unconfirmed: int = 0) -> DoorReadings:
    """A door, to be added to those of a world."""
    lines = FakeLines(FakeWindow(messages=unconfirmed, max_messages=20_000, confirmed_lines=7), accepting=taking)
    return DoorReadings(FakePort(accepting=accepting), FakeDoorAdmission(connections, 500), lines)


class FakeWorker:
    """A worker process that is a world of its own. It answers at once; or later, where a test has it `hang`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"worker-{number}"
        self.state = "ready"
        self.world = World()
        self.world.node = f"0000000{number}"
        self.hangs = False
        self.error: Exception | None = None
        self.says: Any = None
        """What it answers instead."""
        self.asked: list[tuple[str, Deferred[Any]]] = []
        self.cancelled = 0

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred(self._cancel)
        self.asked.append((what, asked))
        if self.error is not None:
            asked.errback(self.error)
        elif not self.hangs:
            self.answer()
        return asked

    def answer(self) -> None:
        """Answer the last question, as it comes through a pipe."""
        what, asked = self.asked[-1]
        asked.callback(json.loads(json.dumps(self.says if self.says is not None else answer(self.world.readings, what))))

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class Family:
    """A parent and its workers."""

    def __init__(self, count: int = 3) -> None:
        self.workers = [FakeWorker(number) for number in range(1, count + 1)]
        self.draining = False
        self.events = EventCounts(own=lambda: "parent")
        self.event_drops: dict[str, int] = {}
        self.certificates: list[CertificateReading] = []
        self.readings = ParentReadings(
            workers=lambda: list(self.workers),
            draining=lambda: self.draining,
            tree=self.tree,
            events=self.events,
            event_drops=lambda: self.event_drops,
            certificates=lambda: self.certificates,
            started=NOW,
        )

    def tree(self) -> TreeNode:
        return node(
            "owsla", 0, node("events"), node("http"), node("workers", 0, *(node(worker.name, 1) for worker in self.workers))
        )


@dataclass
class FakeDesk:
    """A desk with prepared answers. A question without one is unknown."""

    answers: dict[str, Any] = field(default_factory=dict)
    """Answer of each question, or a function of the arguments that returns it, raises, or returns a Deferred."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[JSON]:
        self.asked.append((what, dict(args)))
        if what not in self.answers:
            return fail(UnknownQuestion(what))
        answer = self.answers[what]
        return maybeDeferred(answer, args) if callable(answer) else succeed({"missing": [], **answer})


class FakeActions:
    """Actions that do nothing, and note who asked for them."""

    def __init__(self) -> None:
        self.reloads: list[tuple[str, Deferred[tuple[bool, str]]]] = []
        self.drains: list[str] = []

    @property
    def actions(self) -> Actions:
        return Actions(self.reload, self.drain)

    def reload(self, by: str) -> Deferred[tuple[bool, str]]:
        requested: Deferred[tuple[bool, str]] = Deferred()
        self.reloads.append((by, requested))
        return requested

    def drain(self, by: str) -> bool:
        self.drains.append(by)
        return len(self.drains) == 1


def api_parts(source: Source) -> ApiParts:
    """Parts of an API that knows no question."""
    return ApiParts(FakeDesk(), source, FakeActions().actions, History(), lambda: NOW)


def pages_site(source: Source, clock: Any) -> QuietSite:
    """The site of an address where nobody may use the API."""
    api = Api(clock, api_parts(source), TokenAccess(Tokens), Streams(clock, 0))
    return make_site(clock, make_pages(source), api)
