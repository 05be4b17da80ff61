"""The desk of a node: what it answers about its devices. The desk of a parent."""

from __future__ import annotations

from typing import Any

from ..desk import NodeDesk, ParentDesk, RecentEvents
from ..workers import WorkerPool
from .base import Base
from .devices import Devices


def make_desk(base: Base, devices: Devices) -> NodeDesk:
    """Make the desk of a node."""
    return NodeDesk({
        "events": base.recent_events.answer,
    })  # fmt: skip


def make_parent_desk(reactor: Any, pool: WorkerPool, recent: RecentEvents) -> ParentDesk:
    """Make the desk of a parent for all its workers. `recent` has the events of the parent itself."""
    return ParentDesk(reactor, lambda: pool.processes, NodeDesk({"events": recent.answer}))
