"""Several processes on one port: a parent that keeps no device traffic, and the workers that do (`--workers`).

    parent                 binds the port, runs the embedded broker, serves HTTP for all, owns event files and databases
    ├── worker-1           a node: all that one process is without a parent (`owsla.tap.gateway`)
    └── worker-2

The parent is the workers' supervisor, in OTP's terms. Between it and each worker is one socket pair, on which both speak lines
of JSON (`_channel`). A worker that loses it has lost its parent, and stops in order.
"""

from ._channel import read_first
from ._loads import Loads
from ._parent import NodeEvents, ParentService
from ._pool import WorkerPool
from ._process import WorkerStart
from ._worker import (
    CHANNEL_FD,
    LOADS_FD,
    PORT_FD,
    EventsToParent,
    Inherited,
    LogToParent,
    ParentLink,
)

__all__ = [
    "CHANNEL_FD",
    "LOADS_FD",
    "PORT_FD",
    "EventsToParent",
    "Inherited",
    "Loads",
    "LogToParent",
    "NodeEvents",
    "ParentLink",
    "ParentService",
    "WorkerPool",
    "WorkerStart",
    "read_first",
]
