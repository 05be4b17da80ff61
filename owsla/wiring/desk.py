"""The desk of a node: what it answers about its devices. The desk of a parent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..desk import (
    CloseConnections,
    DeviceDetails,
    DeviceList,
    EndSearch,
    Lookup,
    NodeDesk,
    NodeTraces,
    ParentDesk,
    PastEvent,
    RecentEvents,
    Remembered,
    Rows,
    Slices,
    TopDevices,
    Traces,
    node_traces,
    parent_traces,
)
from ..events import Event
from ..workers import WorkerPool
from .base import Base
from .devices import Devices


def make_desk(base: Base, devices: Devices) -> NodeDesk:
    """Make the desk of a node."""
    services, traces = devices.services, _make_traces(base, devices)
    slices = Slices(base.reactor)
    rows = Rows(base.reactor, time.time, services.slow)
    lookup = Lookup(base.registry, services.devices, slices)
    ends = EndSearch(base.ends, slices, lambda: _refused(base, devices))
    return NodeDesk({
        "close": CloseConnections(lookup, rows, slices, base.emit).answer,
        "device": DeviceDetails(base.reactor, time.time, lookup, rows, services, ends.of).answer,
        "devices": DeviceList(base.registry, rows, slices).answer,
        "end-trace": traces.end,
        "ends": ends.answer,
        "events": base.recent_events.answer,
        "top": TopDevices(base.reactor, base.registry, services.slow, services.reordering, rows, slices).answer,
        "trace": traces.poll,
        "traces": traces.running,
    })  # fmt: skip


def _refused(base: Base, devices: Devices) -> Iterator[Remembered]:
    """Yield the addresses of which connections were refused last, as events."""
    node, offset = base.node_name(), time.time() - base.reactor.seconds()
    for port in devices.ports:
        for event, count, first, last in port.refused_addresses():
            yield Remembered(PastEvent(event, node, offset + last), count, offset + first)


def _make_traces(base: Base, devices: Devices) -> Traces:
    """Make the traces of a node. Those of a worker are reported by its parent."""
    reactor, identified = base.reactor, devices.services.devices
    recorded = NodeTraces(reactor, time.time, base.registry, identified, base.events, os.urandom(4).hex())
    return node_traces(reactor, time.time, recorded.begin, base.emit if base.inherited is None else None)


def make_parent_desk(
    reactor: Any, pool: WorkerPool, recent: RecentEvents, emit: Callable[[Event], None]
) -> ParentDesk:
    """Make the desk of a parent for all its workers.

    `recent` has the events of the parent itself. `emit` reports what operators do.
    """
    traces = parent_traces(reactor, time.time, emit)
    own = NodeDesk({
        "end-trace": traces.end,
        "events": recent.answer,
        "trace": traces.poll,
        "traces": traces.running,
    })  # fmt: skip
    return ParentDesk(reactor, lambda: pool.processes, own)
