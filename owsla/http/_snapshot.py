"""The values of the counters of a process at one moment, from which samples are made. Pure, but for `snapshot_of`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ._histogram import SECONDS
from ._lateness import Lateness
from ._readings import ParentReadings, Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counters of a process at one moment. They start at 0 with each process."""

    process: str
    """Identity of the process. Counters of different processes cannot be compared."""
    clock: float
    """Time by the monotonic clock, in seconds. It is the same clock for all processes of a machine."""
    cpu: float
    """Seconds of CPU time, of user and system."""
    late_count: int
    """Number of measurements of the lateness of the reactor."""
    late: tuple[float, ...]
    """Last ones of these measurements in seconds, the newest last."""
    devices: int = 0
    """Connections with a completed handshake, at this moment."""
    unconfirmed: int = 0
    """Published lines without a confirm, at this moment."""
    connects: int = 0
    """Accepted connections."""
    handshakes: int = 0
    """Completed handshakes; without TLS, connections that were opened."""
    failed_handshakes: int = 0
    lines_in: int = 0
    """Lines from devices."""
    lines_out: int = 0
    """Lines to devices."""
    latency: tuple[int, ...] = ()
    """Confirms by their time since the publication, over all doors: a number for each bucket of `Histogram`."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Snapshots of all processes of a gateway at one moment."""

    own: Snapshot
    """Snapshot of the process that was asked. That of a parent of workers has CPU time and lateness only."""
    workers: Mapping[str, Snapshot | None] | None = None
    """Snapshot of each worker by name, `None` for one that did not answer in time; `None` for a process without workers."""


def snapshot_of(readings: Readings) -> Snapshot:
    """Return the counters of a process. The cost does not depend on the number of connections."""
    doors = readings.doors.values()
    lines = [door.lines for door in doors]
    return Snapshot(
        devices=readings.admission.open,
        unconfirmed=sum(each.window.messages for each in lines),
        connects=sum(door.port.accepted for door in doors),
        handshakes=sum(door.port.handshakes for door in doors),
        failed_handshakes=sum(door.port.failed_handshakes for door in doors),
        lines_in=sum(each.window.entered for each in lines),
        lines_out=readings.devices.lines_out,
        latency=tuple(map(sum, zip(*(door.latency.counts for door in doors), strict=True))),
        **_of_process(readings.started, readings.lateness),
    )


def snapshot_of_parent(readings: ParentReadings) -> Snapshot:
    """Return the counters of the process of a parent, which has no devices."""
    return Snapshot(**_of_process(readings.started, readings.lateness))


def _of_process(started: float, lateness: Lateness) -> dict[str, Any]:
    return {
        "process": f"{os.getpid()}-{started}",
        "clock": time.monotonic(),
        "cpu": time.process_time(),
        "late_count": lateness.count,
        "late": lateness.recent,
    }


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Convert a snapshot to JSON values for `snapshot_from_json`."""
    return asdict(snapshot)


def snapshot_from_json(sent: Any) -> Snapshot:
    """Convert the snapshot that another process sent. `ValueError` if it is malformed, or of another version."""
    try:
        snapshot = Snapshot(
            process=str(sent["process"]),
            clock=float(sent["clock"]),
            cpu=float(sent["cpu"]),
            late=tuple(map(float, sent["late"])),
            latency=tuple(map(int, sent["latency"])),
            **{name: int(sent[name]) for name in _INTEGERS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"malformed snapshot: {error!r}") from None
    if len(snapshot.latency) != len(SECONDS) + 1:
        raise ValueError("malformed snapshot: another version has other buckets")
    return snapshot


_INTEGERS = ("late_count", "devices", "unconfirmed", "connects", "handshakes", "failed_handshakes", "lines_in", "lines_out")
