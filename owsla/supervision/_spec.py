"""What a supervisor must know of a child."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from ._decisions import Restart
from ._interfaces import AnyService

Type: TypeAlias = Literal["worker", "supervisor"]

KILL: Final = 0.0
"""For `ChildSpec.shutdown`: stop the child and wait for nothing; OTP's `brutal_kill`."""

WORKER_SHUTDOWN: Final = 5.0
"""Seconds for a worker to stop, where its spec says nothing: OTP's default."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start, restart and stop one child: OTP's child specification.

    https://www.erlang.org/doc/system/sup_princ#child-specification
    """

    id: str
    """Unique among its siblings; its part of a path such as `owsla/broker/producer`."""
    start: Callable[[], AnyService]
    """Makes the service, anew for each start. What must outlive a restart is made outside, and given to each in turn.

    For a supervisor it does nothing else: `tree` calls it too, to show what is planned.
    """
    restart: Restart = "permanent"
    shutdown: float | None = None
    """Seconds to wait for the Deferred of its `stopService`, which is then cancelled; `KILL`; or `math.inf`.

    `None` is OTP's default: 5 s for a worker, without a bound for a supervisor, whose children have theirs.
    """
    type: Type = "worker"

    def __post_init__(self) -> None:
        if not self.id or "/" in self.id:
            raise ValueError(f"no id for a child: {self.id!r}")
        if self.restart not in get_args(Restart):
            raise ValueError(f"{self.id}: no such restart: {self.restart!r}")
        if self.type not in get_args(Type):
            raise ValueError(f"{self.id}: no such type: {self.type!r}")
        if self.shutdown is not None and not self.shutdown >= 0:
            raise ValueError(f"{self.id}: no such shutdown: {self.shutdown!r}")

    @property
    def patience(self) -> float:
        """Seconds that stopping it may take."""
        if self.shutdown is not None:
            return self.shutdown
        return WORKER_SHUTDOWN if self.type == "worker" else math.inf
