"""The desk of a node: what it answers about its devices. The desk of a parent."""

from __future__ import annotations

from typing import Any

from ..desk import NodeDesk, ParentDesk
from ..workers import WorkerPool
from .base import Base
from .devices import Devices


def make_desk(base: Base, devices: Devices) -> NodeDesk:
    """Make the desk of a node."""
    return NodeDesk({})


def make_parent_desk(reactor: Any, pool: WorkerPool) -> ParentDesk:
    """Make the desk of a parent for all its workers."""
    return ParentDesk(reactor, lambda: pool.processes, NodeDesk({}))
