"""The rest of Owsla, as far as it is read over HTTP: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from owsla.http import EventCounts, Readings
from owsla.supervision import Node

NOW = 1_700_000_000.0


@dataclass
class FakeAdmission:
    max_connections: int = 10_000
    open: int = 0
    handshaking: int = 0
    connections: int = 0


@dataclass
class FakeListener:
    handshakes: int = 0
    failed_handshakes: int = 0
    accepting: bool = True


@dataclass
class FakeHub:
    paused_connections: int = 0
    duplicates: int = 0
    skips: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    lines_out: int = 0


@dataclass
class FakeProducer:
    accepting: bool = True
    confirmed_lines: int = 0
    unconfirmed_since: float | None = None


@dataclass
class FakeWindow:
    messages: int = 0
    size: int = 0
    max_messages: int = 10_000
    max_bytes: int = 1 << 24


@dataclass
class FakeCourier:
    recorded: dict[str, int] = field(default_factory=dict)
    reports_dropped: int = 0
    unconfirmed: int = 0


@dataclass
class FakeHealth:
    ready: bool = True


def node(name: str, restarts: int = 0, *children: Node, failure: str | None = None) -> Node:
    """A running child; the root if it is not in another."""
    made: Node = {
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


def tree() -> Node:
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
        self.admission = FakeAdmission()
        self.listener = FakeListener()
        self.hub = FakeHub()
        self.producer = FakeProducer()
        self.window = FakeWindow()
        self.courier = FakeCourier()
        self.health = FakeHealth()
        self.draining = False
        self.tree = tree()
        self.events = EventCounts()
        self.event_drops: dict[str, int] = {}
        self.certificate_expires: float | None = None
        self.readings = Readings(
            node="0badcafe",
            admission=self.admission,
            listener=self.listener,
            hub=self.hub,
            producer=self.producer,
            window=self.window,
            courier=self.courier,
            health=self.health,
            draining=lambda: self.draining,
            tree=lambda: self.tree,
            events=self.events,
            event_drops=lambda: self.event_drops,
            certificate_expires=lambda: self.certificate_expires,
        )
