"""Samples for charts: the difference of two snapshots of each process. Pure.

A sample is an object of JSON values:

    time                the present, in ms since the epoch
    devices             connections with a completed handshake
    connects            accepted connections per second
    handshakes          completed handshakes per second; without TLS, opened connections
    failed_handshakes   per second
    lines_in            lines from devices per second
    lines_out           lines to devices per second
    p50, p99            time from publishing a line to its confirm, in ms
    unconfirmed         published lines without a confirm
    lateness            worst lateness of the reactor since the sample before, in ms
    cpu                 CPU time as a share of one core
    workers             the same without `time` for each worker, by name; null without workers
    parent              {lateness, cpu} of the parent process; null without workers
    missing             names of the workers that did not answer in time

Times and rates have one decimal. A value is null if it is not known: rates and times in the first sample of a process, p50 and
p99 if no line was confirmed. A worker that did not answer is null. When it answers again, its rates are those since its last
answer. A worker that was replaced by a new process begins again. The values beside `workers` are of all workers that answered:
sums, quantiles of all confirms, and the worst lateness. Lateness and CPU time include the parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ._histogram import quantile
from ._snapshot import Snapshot, Snapshots

Sample = dict[str, Any]
"""A sample, as described above."""

LEVELS: Final = ("devices", "unconfirmed")
"""Values at the moment of the sample."""

RATES: Final = ("connects", "handshakes", "failed_handshakes", "lines_in", "lines_out")
"""Values per second."""


@dataclass(slots=True)
class _Process:
    """A process between two samples."""

    last: Snapshot | None = None
    """Snapshot at its last sample."""
    seen: Snapshot | None = None
    """Last snapshot whose lateness was noted."""
    worst: float | None = None
    """Worst lateness since the last sample, in seconds."""

    def note(self, snapshot: Snapshot) -> None:
        """Note the lateness in a snapshot."""
        seen = self.seen if self.seen is not None and self.seen.process == snapshot.process else None
        new = snapshot.late_count - (seen.late_count if seen is not None else 0)
        worst = max(snapshot.late[-new:], default=None) if new > 0 else None
        if worst is not None:
            self.worst = worst if self.worst is None else max(self.worst, worst)
        self.seen = snapshot

    def take(self, snapshot: Snapshot) -> _Difference:
        """Return the difference to the last sample."""
        last, worst = self.last, self.worst
        self.last, self.worst = snapshot, None
        if last is None or last.process != snapshot.process or snapshot.clock <= last.clock:
            return _Difference(snapshot, None, None, worst)
        seconds = snapshot.clock - last.clock
        rates = {name: max(0, getattr(snapshot, name) - getattr(last, name)) / seconds for name in RATES}
        latency = [now - before for now, before in zip(snapshot.latency, last.latency, strict=True)]
        return _Difference(snapshot, rates, (snapshot.cpu - last.cpu) / seconds, worst, latency)


@dataclass(frozen=True, slots=True)
class _Difference:
    """Difference of two snapshots of a process."""

    snapshot: Snapshot
    rates: Mapping[str, float] | None
    cpu: float | None
    lateness: float | None
    latency: Sequence[int] = field(default_factory=tuple)


class Sampler:
    """The maker of samples from snapshots. It remembers the last snapshot of each process."""

    def __init__(self) -> None:
        self._processes: dict[str, _Process] = {}

    def note(self, snapshots: Snapshots) -> None:
        """Note the lateness in snapshots between two samples."""
        for name, snapshot in _named(snapshots):
            if snapshot is not None:
                self._process(name).note(snapshot)

    def sample(self, time: int, snapshots: Snapshots) -> Sample:
        """Return the sample of these snapshots. `time` is in ms since the epoch."""
        self.note(snapshots)
        present = {name for name, _ in _named(snapshots)}
        self._processes = {name: process for name, process in self._processes.items() if name in present}
        own = self._process(_OWN).take(snapshots.own)
        if snapshots.workers is None:
            return {"time": time, **_values([own], [own]), "workers": None, "parent": None, "missing": []}
        workers = {
            name: None if snapshot is None else self._process(name).take(snapshot)
            for name, snapshot in snapshots.workers.items()
        }
        answered = [worker for worker in workers.values() if worker is not None]
        return {
            "time": time,
            **_values(answered, [own, *answered]),
            "workers": {name: None if one is None else _values([one], [one]) for name, one in workers.items()},
            "parent": _values_of_process([own]),
            "missing": [name for name, one in workers.items() if one is None],
        }

    def _process(self, name: str) -> _Process:
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Process()
        return process


_OWN: Final = ""
"""Name of the process that takes the samples, beside those of its workers."""


def _named(snapshots: Snapshots) -> list[tuple[str, Snapshot | None]]:
    return [(_OWN, snapshots.own), *(snapshots.workers or {}).items()]


def _values(differences: Sequence[_Difference], processes: Sequence[_Difference]) -> dict[str, Any]:
    """Return the values of a sample over some processes with devices. Lateness and CPU time are those of `processes`."""
    rates = [one.rates for one in differences if one.rates is not None]
    latency = [sum(counts) for counts in zip(*(one.latency for one in differences if one.latency), strict=True)]
    return {
        **{name: sum(getattr(one.snapshot, name) for one in differences) if differences else None for name in LEVELS},
        **{name: _rounded(sum(each[name] for each in rates)) if rates else None for name in RATES},
        "p50": _milliseconds(quantile(0.5, latency)),
        "p99": _milliseconds(quantile(0.99, latency)),
        **_values_of_process(processes),
    }


def _values_of_process(processes: Sequence[_Difference]) -> dict[str, Any]:
    """Return the values of a sample that any process has."""
    cpu = [one.cpu for one in processes if one.cpu is not None]
    return {
        "lateness": _milliseconds(_worst(one.lateness for one in processes)),
        "cpu": round(sum(cpu), 3) if cpu else None,
    }


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(seconds * 1000)


def _rounded(value: float) -> float:
    """Return a value with one decimal, and without one if that is 0: it takes less room as JSON."""
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded
