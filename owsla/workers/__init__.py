"""Several processes on one port: a parent that keeps no device traffic, and the workers that do (`--workers`).

    parent                 binds the port, runs the embedded broker, serves HTTP for all, owns event files and databases
    ├── worker-1           a node: all that one process is without a parent (`owsla.tap.gateway`)
    └── worker-2

The parent is the workers' supervisor, in OTP's terms. Between it and each worker is one socket pair, on which both speak lines
of JSON (`_channel`). A worker that loses it has lost its parent, and stops in order.
"""

from ._loads import Loads
from ._parent import OfNode, Parent, Reports
from ._process import Start, WorkerProcess
from ._worker import EventsToParent, Inherited, ParentLink

__all__ = ["EventsToParent", "Inherited", "Loads", "OfNode", "Parent", "ParentLink", "Reports", "Start", "WorkerProcess"]
