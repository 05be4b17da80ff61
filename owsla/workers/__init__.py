"""Several processes on one port: a parent that keeps no device traffic, and the workers that do (`--workers`).

    parent                 binds the port, runs the embedded broker, serves HTTP for all, owns event files and databases
    ├── worker-1           a node: all that one process is without a parent (`owsla.tap.gateway`)
    └── worker-2

The parent is the workers' supervisor, in OTP's terms. Between it and each worker is one socket pair, on which both speak lines
of JSON (`_channel`). A worker that loses it has lost its parent, and stops in order.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loads import Loads
    from ._parent import OfNode, Parent, Reports, shown_by
    from ._process import Start, WorkerProcess
    from ._worker import EventsToParent, Inherited, ParentLink

__all__ = [
    "EventsToParent",
    "Inherited",
    "Loads",
    "OfNode",
    "Parent",
    "ParentLink",
    "Reports",
    "Start",
    "WorkerProcess",
    "shown_by",
]

_WHERE = {
    "EventsToParent": "_worker",
    "Inherited": "_worker",
    "Loads": "_loads",
    "OfNode": "_parent",
    "Parent": "_parent",
    "ParentLink": "_worker",
    "Reports": "_parent",
    "Start": "_process",
    "WorkerProcess": "_process",
    "shown_by": "_parent",
}


def __getattr__(name: str) -> Any:
    # Python imports this package before `__main__`, which has to ignore signals before anything that takes time is imported.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
