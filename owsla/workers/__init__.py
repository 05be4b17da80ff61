"""Several processes on one port (`--workers`): a parent without device traffic, and workers that serve the devices.

    parent                 binds the port, runs the embedded broker, serves HTTP for all, writes event files and databases
    ├── worker-1           a node, as one process without a parent is (`owsla.wiring.node.make_node`)
    └── worker-2

The parent is the supervisor of the workers, in OTP's terms. One socket pair connects it with each worker, and both send lines
of JSON on it (`_channel`). A worker whose channel closes has lost its parent, and stops in order.
"""

from ._channel import Channel, read_first
from ._loads import Loads
from ._parent import NodeEvents, ParentService
from ._pool import WorkerPool
from ._process import WorkerStart
from ._worker import (
    CHANNEL_FD,
    FIRST_DOOR_FD,
    LOADS_FD,
    EventsToParent,
    Inherited,
    LogToParent,
    NodeInterface,
    ParentLink,
)

__all__ = [
    "CHANNEL_FD",
    "FIRST_DOOR_FD",
    "LOADS_FD",
    "Channel",
    "EventsToParent",
    "Inherited",
    "Loads",
    "LogToParent",
    "NodeEvents",
    "NodeInterface",
    "ParentLink",
    "ParentService",
    "WorkerPool",
    "WorkerStart",
    "read_first",
]
