"""Supervision trees as in Erlang/OTP, built of Twisted services.

A `Supervisor` is a `MultiService` whose children are described by `ChildSpec`s. It restarts children that end, and gives up
when they fail too often. A `Worker` is a base class for children that report their end and its reason. A `DynamicSupervisor`
holds short-lived children by the thousand. `docs/supervision.md` describes the terms and the guarantees, which are OTP's:
https://www.erlang.org/doc/system/sup_princ
"""

from ..supervision_tree import TreeNode, render
from ._decisions import Intensity
from ._dynamic import DynamicSupervisor
from ._interfaces import AnyService, Supervised
from ._reports import EXIT_STATUS, GaveUp, RestartReport, Untraced, explain
from ._spec import ChildSpec
from ._supervisor import Supervisor
from ._worker import Worker

__all__ = [
    "EXIT_STATUS",
    "AnyService",
    "ChildSpec",
    "DynamicSupervisor",
    "GaveUp",
    "Intensity",
    "RestartReport",
    "Supervised",
    "Supervisor",
    "TreeNode",
    "Untraced",
    "Worker",
    "explain",
    "render",
]
