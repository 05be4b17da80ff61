"""A child of a supervisor: making, starting and stopping its service, and taking the report of its end.

States, and what moves a child between them:

    planned ──► starting ── the start is complete ──► running
                 ▲    │                                  │
                 │    │ it fails, or the child ends      │ the child ends, or the supervisor stops
                 │    ▼                                  ▼
                 │   stopping ◄──────────────────────────┘
                 │    │
                 │    ▼
                 │   stopped
                 │    │ the supervisor decides to restart it
                 │    ▼
                 └── restarting

An *incarnation* is one service of a child, from its making to its stop; the service gets the incarnation's end callback.
Invariants:

- A child has at most one incarnation. `stop` ends it before anything else, so that the callback of an earlier one has no
  effect but a line in the log.
- Each incarnation has at most one end that counts: an end that is reported before the start is complete is the result of
  `start`; a later one goes to the supervisor.
- `start` and `stop` of one child never run at the same time: the supervisor's job queue sees to that. Only `interrupt_start`
  and the end callback come in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock
from ..supervision_tree import ChildState, HasTree, TreeNode
from ._interfaces import AnyService, Supervised
from ._reports import explain
from ._spec import ChildSpec
from ._waiting import Wait, as_deferred


class _Interrupted(Exception):
    """End of the wait for a child's start, because its supervisor stops."""


class _EndedEarly(Exception):
    """End of the wait for a child's start, because the child reported its end."""


class _TooSlow(Exception):
    """End of the wait for a child's stop, because the time of its spec is over."""


@dataclass(frozen=True, slots=True)
class End:
    """End of a child, with a failure or normally."""

    reason: Failure | None


class Incarnation:
    """Life of one service of a child, from its construction to its stop."""

    __slots__ = ("_child", "early_end")

    def __init__(self, child: Child) -> None:
        self._child = child
        self.early_end: End | None = None
        """End that was reported before the start was complete."""

    def end(self, reason: Failure | None) -> None:
        """Report the end. Passed to the service as its end callback."""
        self._child.take_end(self, reason)


class Parent(Protocol):
    """Supervisor, as its children see it. It is also the parent of their services."""

    services: list[Any]

    @property
    def path(self) -> str:
        """Path in the tree."""

    def child_ended(self, child: Child, incarnation: Incarnation, reason: Failure | None) -> None:
        """Take the end of a running child."""


class Child:
    """Child of a supervisor: its spec, its present service, and the record of its restarts."""

    _log = Logger(namespace="owsla.supervision")

    def __init__(self, spec: ChildSpec, clock: Clock, parent: Parent) -> None:
        self.spec = spec
        self.state: ChildState = "planned"
        self.service: AnyService | None = None
        self.started: float | None = None
        """Time of the last complete start; `None` while the child does not run."""
        self.restarts = 0
        """Number of restarts, for its own sake or a sibling's."""
        self.failure: str | None = None
        """Reason of the last failure."""
        self._clock = clock
        self._parent = parent
        self._incarnation: Incarnation | None = None
        self._privileged: Deferred[Any] | None = None
        """Result of `privilegedStartService`, until the start waits for it."""
        self._unprepared: Failure | None = None
        """Failure of `prepare`. The next start fails with it."""
        self._start_wait: Wait | None = None

    @property
    def path(self) -> str:
        """Path in the tree."""
        return f"{self._parent.path}/{self.spec.id}"

    def is_current(self, incarnation: Incarnation) -> bool:
        """Return whether the child has not been stopped since this incarnation was made."""
        return self._incarnation is incarnation

    def record_failure(self, reason: Failure | None) -> None:
        """Keep the reason of the last failure, for the tree."""
        self.failure = explain(reason)

    def await_restart(self) -> None:
        """Show the child as restarting until it is started again."""
        self.state = "restarting"

    def count_restart(self) -> None:
        """Count a restart."""
        self.restarts += 1

    # -- starting ------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the service and run its privileged phase. Keep a failure for the start, which can handle it."""
        if self.service is None:
            try:
                self._make()
            except Exception:
                self._unprepared = Failure()

    def _make(self) -> AnyService:
        service = self.spec.start()
        if isinstance(service, HasTree) or getattr(service, "name", None) is None:
            # The path of a supervisor is made of names, so its name must be the id in its spec.
            service.setName(self.spec.id)
        self.service = service  # first, for the supervisor accepts the services of its children only
        try:
            service.setServiceParent(self._parent)
        except Exception:
            self.service = None
            raise
        self._incarnation = Incarnation(self)
        if isinstance(service, Supervised):
            service.supervise(self._incarnation.end)
        self._privileged = as_deferred(service.privilegedStartService())
        return service

    async def start(self) -> End | None:
        """Start the child. Return its end if the start fails, or if the child ends before the start is complete.

        The caller then has to `stop` the child: a service that failed to start may have opened a port before.
        """
        self.state = "starting"
        try:
            unprepared, self._unprepared = self._unprepared, None
            if unprepared is not None:
                return End(unprepared)
            service = self.service or self._make()
            privileged, self._privileged = self._privileged, None
            await self._settle(privileged)
            if self._incarnation is not None and self._incarnation.early_end is None:
                await self._settle(as_deferred(service.startService()))
        except _EndedEarly:
            pass
        except _Interrupted:
            await self.stop()
            return None
        except Exception:
            if self._incarnation is None or self._incarnation.early_end is None:
                return End(Failure())
        if self._incarnation is not None and self._incarnation.early_end is not None:
            return self._incarnation.early_end
        self.state = "running"
        self.started = self._clock.seconds()
        return None

    async def _settle(self, result: Deferred[Any] | None) -> None:
        if result is None:
            return
        self._start_wait = Wait(result, self.log_late)
        try:
            await self._start_wait.done
        finally:
            self._start_wait = None

    def interrupt_start(self) -> None:
        """Stop waiting for the start, if the child is starting: its supervisor stops."""
        if self._start_wait is not None:
            self._start_wait.give_up(_Interrupted())

    # -- ending --------------------------------------------------------------------------------------------------------------

    def take_end(self, incarnation: Incarnation, reason: Failure | None) -> None:
        """Take the end of an incarnation, which may be an earlier one."""
        if not self.is_current(incarnation):
            self.log_late(reason)
        elif self.started is None and incarnation.early_end is None:
            incarnation.early_end = End(reason)
            if self._start_wait is not None:
                self._start_wait.give_up(_EndedEarly())
        else:
            self._parent.child_ended(self, incarnation, reason)

    def log_late(self, reason: Failure | None) -> None:
        """Log a failure to which there is no response: the child stops, or has stopped."""
        if reason is not None:
            self._log.failure("{path} failed while it stopped", reason, path=self.path)

    # -- stopping ------------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop the service, if there is one, within the time of the spec. Never fails."""
        service, self.service = self.service, None
        self._incarnation = None
        self._unprepared = None
        complete = self.started is not None
        self.started = None
        privileged, self._privileged = self._privileged, None
        if privileged is not None:
            privileged.addErrback(self.log_late)
        if service is not None:
            self.state = "stopping"
            try:
                await self._wait_for_stop(service)
            except _TooSlow:
                self._log.warn("{path} did not stop within {seconds:g} s", path=self.path, seconds=self.spec.stop_timeout)
            except Exception as error:
                if complete:
                    self._log.failure("{path} failed to stop", path=self.path)
                else:
                    # A service that was started halfway may not be able to stop. The failure of its start is logged elsewhere.
                    self._log.info(
                        "{path} failed to stop after an incomplete start: {error}", path=self.path, error=repr(error)
                    )
            self._disown(service)
        if self.state != "planned":
            self.state = "stopped"

    async def _wait_for_stop(self, service: AnyService) -> None:
        stopping = as_deferred(service.stopService())
        if stopping is None:
            return
        timeout = self.spec.stop_timeout
        wait = Wait(stopping, self.log_late)
        if not timeout:
            wait.done.addErrback(lambda failure: None if failure.check(_TooSlow) else self.log_late(failure))
            wait.give_up(_TooSlow())
            return
        timer = None if timeout == math.inf else self._clock.callLater(timeout, wait.give_up, _TooSlow())
        try:
            await wait.done
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    def _disown(self, service: AnyService) -> None:
        if service not in self._parent.services:
            return
        try:
            service.disownServiceParent()
        except Exception:
            self._log.failure("{path} could not be removed from its supervisor", path=self.path)

    # -- the tree ------------------------------------------------------------------------------------------------------------

    def tree(self) -> TreeNode:
        """Return the child, and everything below it, as a node of the tree."""
        spec = self.spec
        service = self.service
        failure = self.failure
        if service is None and self.state == "planned" and spec.type == "supervisor":
            try:
                service = spec.start()
            except Exception:
                failure = explain(Failure())
        node: TreeNode = {
            "id": spec.id,
            "type": spec.type,
            "restart": spec.restart,
            "state": self.state,
            "restarts": self.restarts,
            "uptime": self._clock.seconds() - self.started if self.started is not None else None,
            "failure": failure,
        }
        if isinstance(service, HasTree):
            below = service.tree()
            for key in ("strategy", "intensity", "children", "count", "failures"):
                if key in below:
                    node[key] = below[key]
            node["failure"] = failure if failure is not None else below["failure"]
        return node
