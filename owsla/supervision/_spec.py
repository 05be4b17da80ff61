"""Child specifications."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from ._decisions import RestartType
from ._interfaces import AnyService

ChildType: TypeAlias = Literal["worker", "supervisor"]

WORKER_SHUTDOWN: Final = 5.0
"""Seconds for a worker to stop, unless its spec says otherwise: OTP's default."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Specification of a child: how to start, restart and stop it.

    https://www.erlang.org/doc/system/sup_princ#child-specification
    """

    id: str
    """Id, unique among the siblings. It is one element of a path such as `owsla/broker/lines`."""
    start: Callable[[], AnyService]
    """Factory of the service, called for each start. It may return the same service each time.

    Make what must outlive a restart outside the factory, and pass it to each service. The factory of a supervisor must have
    no side effects: `Supervisor.tree` calls it to show what is planned.
    """
    restart: RestartType = "permanent"
    shutdown: float | None = None
    """Seconds to wait for the Deferred of `stopService` before cancelling it. 0: do not wait (OTP's `brutal_kill`);
    `math.inf`: no limit.

    `None` is OTP's default: 5 seconds for a worker, no limit for a supervisor, whose children have limits of their own.
    """
    type: ChildType = "worker"

    def __post_init__(self) -> None:
        if not self.id or "/" in self.id:
            raise ValueError(f"invalid id of a child: {self.id!r}")
        if self.restart not in get_args(RestartType):
            raise ValueError(f"{self.id}: unknown restart type: {self.restart!r}")
        if self.type not in get_args(ChildType):
            raise ValueError(f"{self.id}: unknown child type: {self.type!r}")
        if self.shutdown is not None and not self.shutdown >= 0:
            raise ValueError(f"{self.id}: invalid shutdown time: {self.shutdown!r}")

    @property
    def stop_timeout(self) -> float:
        """Seconds that the child may take to stop."""
        if self.shutdown is not None:
            return self.shutdown
        return WORKER_SHUTDOWN if self.type == "worker" else math.inf
