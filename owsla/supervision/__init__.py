"""Supervision as in Erlang/OTP, on Twisted's services: who restarts what, and when it is too much.

A `Supervisor` is a `MultiService` of children that `ChildSpec`s describe. A `Worker` says when it ends, and why; a
`DynamicSupervisor` keeps those that come and go by the thousand. `docs/supervision.md` explains, in OTP's terms:
https://www.erlang.org/doc/system/sup_princ
"""

from ._decisions import Backoff, Intensity, Restart, RestartPlan, RestartWindow, Strategy, plan_restart, to_be_restarted
from ._dynamic import DynamicSupervisor, NotRunning
from ._interfaces import AnyService, Clock, DelayedCall, Report, Supervised, TemporaryChild
from ._reports import EXIT_STATUS, ChildRestarted, GaveUp, SupervisorGaveUp, Untraced, explain
from ._spec import KILL, ChildSpec, Type
from ._supervisor import ChildCounts, ChildExists, ChildInfo, ChildNotStopped, NoSuchChild, Supervisor
from ._tree import Limit, Node, State, render
from ._worker import Worker, guarded

__all__ = [
    "EXIT_STATUS",
    "KILL",
    "AnyService",
    "Backoff",
    "ChildCounts",
    "ChildExists",
    "ChildInfo",
    "ChildNotStopped",
    "ChildRestarted",
    "ChildSpec",
    "Clock",
    "DelayedCall",
    "DynamicSupervisor",
    "GaveUp",
    "Intensity",
    "Limit",
    "NoSuchChild",
    "Node",
    "NotRunning",
    "Report",
    "Restart",
    "RestartPlan",
    "RestartWindow",
    "State",
    "Strategy",
    "Supervised",
    "Supervisor",
    "SupervisorGaveUp",
    "TemporaryChild",
    "Type",
    "Untraced",
    "Worker",
    "explain",
    "guarded",
    "plan_restart",
    "render",
    "to_be_restarted",
]
