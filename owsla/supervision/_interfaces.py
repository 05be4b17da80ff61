"""Interfaces between supervisors and their children. Types only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from twisted.python.failure import Failure

EndCallback: TypeAlias = Callable[[Failure | None], None]
"""Callback that a child calls when it ends: with a `Failure`, or with `None` for a normal end."""


class AnyService(Protocol):
    """Part of `twisted.application.service.IService` that a supervisor uses.

    The supervisor waits for a Deferred or a coroutine that one of the last three methods returns.
    """

    def setName(self, name: str) -> Any: ...

    def setServiceParent(self, parent: Any) -> Any: ...

    def disownServiceParent(self) -> Any: ...

    def privilegedStartService(self) -> Any: ...

    def startService(self) -> Any: ...

    def stopService(self) -> Any: ...


@runtime_checkable
class Supervised(Protocol):
    """Service that reports its end, such as `Worker` and `Supervisor`. A plain service never ends by itself."""

    def supervise(self, on_end: EndCallback) -> None:
        """Accept the callback for the next end. Called before each start; only the first call of `on_end` counts."""


class TemporaryChild(Protocol):
    """Child of a `DynamicSupervisor`: any hashable object with a `stop` method. It need not be a service."""

    def stop(self) -> None:
        """Begin to end. The child calls `DynamicSupervisor.ended` when it has ended, within this call or later."""
