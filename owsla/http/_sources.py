"""The sources of the pages: a single process, or a parent that queries its workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from twisted.internet.defer import Deferred, succeed

from ..desk import Answers, WorkerQueries
from ..interfaces import Clock
from ._collector import collector_for, parent_families, worker_is_ready
from ._families import LABEL, families_from_json, families_to_json, merge
from ._lateness import Lateness
from ._readings import ParentReadings, Readings, readiness_of_all
from ._snapshot import Snapshot, Snapshots, snapshot_from_json, snapshot_of, snapshot_of_parent, snapshot_to_json
from ._state import State, WorkerState, state_from_json, state_of, state_of_all, state_to_json

PARENT: Final = "parent"
"""Label value of the parent's own metrics."""

QUESTIONS: Final = frozenset({"metrics", "snapshot", "state"})
"""Queries of a parent that `answer` answers."""


class Source(Protocol):
    """A source of metrics and state, read for each page, and of snapshots, from which samples are made."""

    @property
    def lateness(self) -> Lateness:
        """Lateness of this process's reactor."""

    def metrics(self) -> Deferred[Iterable[Metric]]: ...

    def state(self) -> Deferred[State]: ...

    def snapshots(self) -> Deferred[Snapshots]: ...


class ProcessSource:
    """The source of a process without parent and workers."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    @property
    def lateness(self) -> Lateness:
        return self._readings.lateness

    def metrics(self) -> Deferred[Iterable[Metric]]:
        return succeed(list(collector_for(self._readings).collect()))

    def state(self) -> Deferred[State]:
        return succeed(state_of(self._readings))

    def snapshots(self) -> Deferred[Snapshots]:
        return succeed(Snapshots(snapshot_of(self._readings)))


class ParentSource:
    """The source of a parent and its workers. Workers that do not answer in time are left out."""

    def __init__(self, clock: Clock, readings: ParentReadings) -> None:
        self._readings = readings
        self._questions = WorkerQueries(clock, readings.workers)

    @property
    def lateness(self) -> Lateness:
        return self._readings.lateness

    def metrics(self) -> Deferred[Iterable[Metric]]:
        return self._questions.ask("metrics").addCallback(self._merged)

    def _merged(self, answers: Answers) -> Iterable[Metric]:
        up = GaugeMetricFamily("owsla_worker_up", "Whether a worker answers: its metrics are among these.", labels=[LABEL])
        parts: list[tuple[str, Iterable[Metric]]] = []
        seen = set()
        for worker, sent in answers:
            label = str(worker.number)
            if label in seen:
                continue
            seen.add(label)
            families = _families(sent)
            up.add_metric([label], 0 if families is None else 1)
            if families is not None:
                parts.append((label, families))
        checks = readiness_of_all(self._readings, (worker_is_ready(families) for _, families in parts))
        return [up, *merge([(PARENT, parent_families(self._readings, checks)), *parts])]

    def state(self) -> Deferred[State]:
        return self._questions.ask("state").addCallback(self._pictured)

    def _pictured(self, answers: Answers) -> State:
        return state_of_all(self._readings, [WorkerState(worker.name, worker.state, _state(sent)) for worker, sent in answers])

    def snapshots(self) -> Deferred[Snapshots]:
        return self._questions.ask("snapshot").addCallback(self._taken)

    def _taken(self, answers: Answers) -> Snapshots:
        return Snapshots(snapshot_of_parent(self._readings), {worker.name: _snapshot(sent) for worker, sent in answers})


# During a rolling restart a worker of another version may send an answer that this version cannot read.


def _families(sent: Any) -> list[Metric] | None:
    try:
        return None if sent is None else families_from_json(sent)
    except ValueError:
        return None


def _state(sent: Any) -> State | None:
    try:
        return None if sent is None else state_from_json(sent)
    except ValueError:
        return None


def _snapshot(sent: Any) -> Snapshot | None:
    try:
        return None if sent is None else snapshot_from_json(sent)
    except ValueError:
        return None


def answer(readings: Readings, what: str) -> Any:
    """Return a worker's answer to a query of its parent as JSON values; `None` for an unknown query."""
    if what == "metrics":
        return families_to_json(collector_for(readings).collect())
    if what == "state":
        return state_to_json(state_of(readings))
    if what == "snapshot":
        return snapshot_to_json(snapshot_of(readings))
    return None
