"""Handlers and writers for the tests, and events to give them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import TestCase

from twisted.python.failure import Failure

from owsla.events import (
    BrokerConnected,
    DeviceConnected,
    DeviceDisconnected,
    DeviceIdentified,
    Event,
    EventManager,
    NodeLost,
    NodeStarted,
    NodeStopped,
    Record,
    Trouble,
)


def connected(key: str, device_id: str | None = None) -> DeviceConnected:
    return DeviceConnected(key, device_id, "192.0.2.1:1234", "TLSv1.3")


def disconnected(key: str, device_id: str | None = None) -> DeviceDisconnected:
    return DeviceDisconnected(key, device_id, "192.0.2.1:1234", "closed by the device", 3, 4, 5.0, 0)


def who_is_connected() -> str:
    """The query of docs/events.md."""
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    (query,) = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(query)


def nodes_that_end() -> list[Record]:
    """Nodes that end in every way there is, each with a device that nobody saw leave: those of who is connected have a `+`."""
    records: list[Record] = []

    def happens(node: str, *events: Event) -> None:
        for event in events:
            number = sum(record.node == node for record in records) + 1
            records.append(Record(node, number, NOW + len(records), event))

    def start(worker: int = 0, host: str = "a", port: int = 8883) -> NodeStarted:
        return NodeStarted(host, "all interfaces", port, worker, 1)

    happens("stopped", start(host="s"), connected("1"), NodeStopped(1))
    happens("killed", start(), connected("2"))
    happens("cut-off", start(host="c"), connected("3+", "d3"))
    happens("dead", start(host="d"), connected("4"))
    happens("watcher", start(host="w"), NodeLost("cut-off", 0), NodeLost("dead", 0))
    happens("cut-off", BrokerConnected("amqp://b"))
    happens("again", start(), connected("5+"), connected("6"), disconnected("6"))
    happens("again", connected("7+"), DeviceIdentified("7+", "early"), DeviceIdentified("7+", "d7"))
    happens("worker-1", start(1, "x"), connected("8+"))
    happens("worker-2", start(2, "x"), connected("9+"))
    happens("elsewhere", start(port=8884), connected("A+"))
    return records


NODE = "0123abcd"
"""The node of the tests."""

NOW = 1000.25
"""When everything happens in them, unless said otherwise: in seconds since the epoch."""


def manager() -> EventManager:
    """One of that node, at that time."""
    return EventManager(lambda: NODE, now=lambda: NOW)


class Recorder:
    """Keeps what it is told; raises `error`, if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.seen: list[Event] = []
        self.origins: list[tuple[str, float]] = []
        self.error = error

    def handle(self, event: Event, node: str, when: float) -> None:
        if self.error is not None:
            raise self.error
        self.seen.append(event)
        self.origins.append((node, when))


class Picky(Recorder):
    wants = (DeviceConnected,)


class Alive(Recorder):
    """One with a life, and a file."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.fail: Callable[[Failure], None] | None = None

    def start(self, fail: Callable[[Failure], None]) -> None:
        self.calls.append("start")
        self.fail = fail

    def stop(self) -> None:
        self.calls.append("stop")

    def reopen(self) -> None:
        self.calls.append("reopen")


class MemoryWriter:
    """Keeps records, unless it is in trouble."""

    def __init__(self) -> None:
        self.written: list[Record] = []
        self.batches: list[int] = []
        self.trouble: str | None = None
        self.error: Exception | None = None
        self.unfit = 0
        self.closed = 0
        self.reopened = 0

    def write(self, batch: Sequence[Record]) -> int:
        if self.error is not None:
            raise self.error
        if self.trouble is not None:
            raise Trouble(self.trouble)
        self.written += batch
        self.batches.append(len(batch))
        return self.unfit

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed += 1


class Supervised:
    """What a supervisor hears."""

    def __init__(self) -> None:
        self.reports: list[Any] = []

    def __call__(self, reason: Failure | None) -> None:
        self.reports.append(None if reason is None else reason.value)


def free_path(case: TestCase) -> Path:
    """A path where nothing is yet, in a folder that goes with the test. (`mktemp` is in the current folder, under pytest.)"""
    folder = tempfile.TemporaryDirectory()
    case.addCleanup(folder.cleanup)
    return Path(folder.name) / "it"
