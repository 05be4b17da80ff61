"""What supervisors, their children and a clock know of each other. Types only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from twisted.python.failure import Failure

Report: TypeAlias = Callable[[Failure | None], None]
"""Says that a child ended: with a `Failure`, or with `None` for a normal end."""


class DelayedCall(Protocol):
    """A call that the clock is to make."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The time, and calls to be made later: a reactor, or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any) -> Any:
        """The result is a `DelayedCall`. Twisted's interface of that, not being a protocol, cannot be told so."""


class AnyService(Protocol):
    """`twisted.application.service.IService`, as far as a supervisor uses it.

    What `privilegedStartService`, `startService` and `stopService` return may be a Deferred or a coroutine; it is waited for.
    """

    def setName(self, name: str) -> Any: ...

    def setServiceParent(self, parent: Any) -> Any: ...

    def disownServiceParent(self) -> Any: ...

    def privilegedStartService(self) -> Any: ...

    def startService(self) -> Any: ...

    def stopService(self) -> Any: ...


@runtime_checkable
class Supervised(Protocol):
    """A service that can say that it ended. `Worker` and `Supervisor` are such; a plain service never ends by itself."""

    def supervise(self, report: Report) -> None:
        """Called before each start, with whom to tell. Only the first report after a start counts."""


class TemporaryChild(Protocol):
    """A child of a `DynamicSupervisor`: anything that can be told to go. It must be hashable, and need not be a service."""

    def stop(self) -> None:
        """Begin to end. `DynamicSupervisor.ended` is told when it did, from inside this call or later."""
