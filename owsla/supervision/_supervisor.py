"""The supervisor: starts its children in order, restarts those that end, and fails when they end too often.

Theory of operation
===================

Everything that takes time is a *job*: starting all children, the response to the end of a child, a restart that is due, and
stopping. A job queue runs one job after another, as the process of an OTP supervisor handles one message after another, so no
two jobs see each other's half-done work. Two things bypass the queue:

- **The end of a child** is noted at once, and its response is posted in a later turn of the reactor: the child that reports its
  end may be in the middle of a method, and must not be stopped there. The end of a child whose start is not complete goes to
  the job that waits for the start (`_child`).
- **A stop** is urgent. `stopService` and giving up clear `running`, cancel the pending restarts, log the noted ends without a
  response, and interrupt a start that the present job waits for. That job sees that the supervisor does not run, and returns;
  then the posted stop runs.

So each job must check after each `await` that `running` is still set, and that its child is still the same incarnation.

The response to an end: stop the remains of the child; decide whether to restart it (its restart type), whether there were too
many restarts (the intensity), which siblings to restart with it (the strategy) and after which delay (the back-off); stop the
siblings in reverse order; schedule the start of the group. `_decisions` decides; this module acts.

Giving up: stop all children in reverse order, and then report the failure to the parent, which treats this supervisor as a
child that failed; at the root, call `on_give_up`. If `stopService` is called in the meantime, the failure is not reported: the
supervisor has been stopped.

Invariants: `_children` is in order of starting. When the supervisor does not run and its job queue is empty, no child runs and
no delayed call is pending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ..supervision_tree import TreeNode
from ._child import Child, Incarnation
from ._decisions import Intensity, RestartBackoff, RestartHistory, Strategy, plan_restart, should_restart
from ._interfaces import EndCallback
from ._jobs import Job, JobQueue
from ._pending import PendingRestart, PendingRestarts
from ._reports import GaveUp, RestartReport, Untraced, explain
from ._spec import ChildSpec


class Supervisor(MultiService):
    """Service that keeps its children running, after the supervisor of OTP.

    https://www.erlang.org/doc/apps/stdlib/supervisor

    A supervisor may be a child itself (`ChildSpec(…, type="supervisor")`); it then fails to its parent when it gives up. It can
    be started again after it stopped or gave up.
    """

    _log = Logger(namespace="owsla.supervision")

    def __init__(
        self,
        clock: Clock,
        children: Iterable[ChildSpec] = (),
        *,
        name: str | None = None,
        strategy: Strategy = "one_for_one",
        intensity: Intensity | None = None,
        backoff: RestartBackoff | None = None,
        on_event: Callable[[RestartReport | GaveUp], object] | None = None,
        on_give_up: Callable[[GaveUp], object] | None = None,
    ) -> None:
        """Check the parameters. `children` start in this order and stop in reverse. Under a parent, the id in the child's spec
        replaces `name`.

        `on_event` gets the reports of this supervisor, and of the supervisors below it that have no `on_event`. `on_give_up` is
        for the root, which has no parent to fail to: it is called when all children have stopped.
        """
        super().__init__()
        if strategy not in get_args(Strategy):
            raise ValueError(f"unknown strategy: {strategy!r}")
        if name is not None:
            self.setName(name)
        self._clock = clock
        self._strategy: Strategy = strategy
        self._intensity = intensity or Intensity()
        self._backoff = backoff or RestartBackoff()
        self._on_event = on_event
        self._on_give_up = on_give_up
        self._children: dict[str, Child] = {}
        for spec in children:
            if spec.id in self._children:
                raise ValueError(f"duplicate id of a child: {spec.id}")
            self._children[spec.id] = Child(spec, clock, self)
        self._history = RestartHistory(self._intensity, self._backoff)
        self._on_end: EndCallback | None = None
        self._started: float | None = None
        self._stops = 0
        self._jobs = JobQueue()
        self._ends: list[tuple[Child, Incarnation, Failure | None]] = []
        self._ends_call: DelayedCall | None = None
        self._restarts = PendingRestarts(clock, self._restart_due)

    # -- as a service --------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Make all services and run their privileged phase. A service made later has that phase just before its start."""
        Service.privilegedStartService(self)
        for child in self._children.values():
            child.prepare()

    def startService(self) -> Deferred[None]:
        """Start the children in order. The Deferred fires once a start of each was attempted; it never fails."""
        Service.startService(self)
        self._started = self._clock.seconds()
        return self._jobs.post(self._start)

    def stopService(self) -> Deferred[None]:
        """Stop the children in reverse order, each within the stop time of its spec. The Deferred never fails."""
        Service.stopService(self)
        self._stops += 1
        self._cancel_waits()
        return self._jobs.post(self._stop_all)

    def supervise(self, on_end: EndCallback) -> None:
        """Take the callback for the end of this supervisor. A parent supervisor calls this before each start."""
        self._on_end = on_end

    def addService(self, service: Any) -> None:
        """Add the service of a child. Raise `TypeError` for any other service: without a `ChildSpec` it cannot be restarted."""
        if not self._belongs_to_child(service):
            raise TypeError("a supervisor has only children with a ChildSpec")
        self.services.append(service)

    def removeService(self, service: Any) -> None:
        """Remove the service of a former incarnation. Raise `TypeError` for the present service of a child."""
        if self._belongs_to_child(service):
            raise TypeError("the service belongs to a child of this supervisor")
        self.services.remove(service)

    def _belongs_to_child(self, service: Any) -> bool:
        return any(child.service is service for child in self._children.values())

    def getServiceNamed(self, name: str) -> Any:
        """Return the service of the child with this id. Raise `KeyError` without such a child, or while it has no service."""
        service = self._children[name].service
        if service is None:
            raise KeyError(name)
        return service

    # -- the tree ------------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Path in the tree, such as `owsla/broker`."""
        name = self.name or "supervisor"
        return f"{self.parent.path}/{name}" if isinstance(self.parent, Supervisor) else name

    def tree(self) -> TreeNode:
        """Return a snapshot of this supervisor and everything below it, or the planned tree before the start."""
        return {
            "id": self.name or "supervisor",
            "type": "supervisor",
            "restart": None,
            "state": "planned" if self._started is None else "running" if self.running else "stopped",
            "restarts": 0,
            "uptime": self._clock.seconds() - self._started if self.running and self._started is not None else None,
            "failure": None,
            "strategy": self._strategy,
            "intensity": {"restarts": self._intensity.restarts, "period": self._intensity.period},
            "children": [child.tree() for child in self._children.values()],
        }

    # -- starting and stopping -----------------------------------------------------------------------------------------------

    def _post(self, job: Job) -> None:
        """Post a job, and log its failure as a defect."""
        self._jobs.post(job).addErrback(
            lambda failure: self._log.failure("Defect in the supervisor {path}", failure, path=self.path)
        )

    async def _start(self) -> None:
        if self.running:
            self._history = RestartHistory(self._intensity, self._backoff)
            await self._start_children(list(self._children.values()))

    async def _start_children(self, children: Iterable[Child]) -> None:
        """Start the children that do not run, in this order."""
        for child in children:
            if not self.running:
                return
            if child.state == "running" or self._children.get(child.spec.id) is not child:
                continue
            end = await child.start()
            if end is None:
                continue
            await child.stop()
            await self._respond(child, end.reason)
            if child.state == "restarting" and self._strategy != "one_for_one":
                return  # the children after it depend on it; its restart starts them

    async def _stop_all(self) -> None:
        for child in reversed(list(self._children.values())):
            await child.stop()

    def _cancel_waits(self) -> None:
        """Cancel the pending restarts and the responses to ends, and stop waiting for the start of a child."""
        self._restarts.cancel()
        if self._ends_call is not None:
            self._ends_call.cancel()
            self._ends_call = None
        ends, self._ends = self._ends, []
        for child, _, reason in ends:
            child.log_late(reason)
        for child in list(self._children.values()):
            child.interrupt_start()

    # -- the end of a child --------------------------------------------------------------------------------------------------

    def child_ended(self, child: Child, incarnation: Incarnation, reason: Failure | None) -> None:
        """Note the end of a running child. Respond in a later turn: the child may be in the middle of a method now."""
        if not self.running:
            child.log_late(reason)
            return
        self._ends.append((child, incarnation, reason))
        if self._ends_call is None:
            self._ends_call = self._clock.callLater(0, self._take_ends)

    def _take_ends(self) -> None:
        self._ends_call = None
        ends, self._ends = self._ends, []
        for end in ends:
            self._post(partial(self._ended, *end))

    async def _ended(self, child: Child, incarnation: Incarnation, reason: Failure | None) -> None:
        # A sibling's restart or a stop may have stopped this child since it reported its end.
        if not self.running or not child.is_current(incarnation):
            child.log_late(reason)
            return
        if child.started is not None:
            self._history.ran(child.spec.id, self._clock.seconds() - child.started)
        await child.stop()
        await self._respond(child, reason)

    async def _respond(self, child: Child, reason: Failure | None) -> None:
        """Restart a child that ended and was stopped, or leave it stopped, or give up."""
        spec = child.spec
        if reason is not None or spec.restart == "permanent":
            child.record_failure(reason)
        if not self.running:
            child.log_late(reason)
        elif not should_restart(spec.restart, reason is not None):
            if reason is not None:
                self._log_end(child, reason, "no restart")
            if spec.restart == "temporary":
                self._children.pop(spec.id, None)
        elif not self._history.add(spec.id, self._clock.seconds()):
            self._log_end(child, reason, "too often")
            await self._give_up(child)
        else:
            delay = self._history.next_delay(spec.id)
            self._log_end(child, reason, f"restarting in {delay:.1f} s")
            await self._schedule_restart(child, explain(reason), delay)

    async def _schedule_restart(self, child: Child, reason: str, delay: float) -> None:
        """Stop the siblings that are restarted with a child, and schedule the start of the group."""
        children = self._children
        plan = plan_restart(self._strategy, [(id, each.spec.restart) for id, each in children.items()], child.spec.id)
        group = [children[id] for id in plan.start]
        for id in plan.stop:
            sibling = children[id]
            await sibling.stop()
            if sibling not in group:
                children.pop(id, None)
        if not self.running:
            return
        self._restarts.add(group, delay)
        siblings = tuple(id for id in plan.start if id != child.spec.id)
        self._report(RestartReport(child.path, reason, child.restarts + 1, delay, siblings))

    def _restart_due(self, restart: PendingRestart) -> None:
        self._post(partial(self._restart, restart))

    async def _restart(self, restart: PendingRestart) -> None:
        if not self._restarts.take(restart):
            return
        # A second `startService` may have started some of the children already.
        children = [child for child in restart.children if child.state == "restarting"]
        for child in children:
            child.count_restart()
        await self._start_children(children)

    async def _give_up(self, child: Child) -> None:
        """Stop all children, and report the failure to the parent or, at the root, to `on_give_up`."""
        gave_up = GaveUp(
            self.path,
            child.spec.id,
            failures=self._history.total,
            of_child=self._history.count(child.spec.id),
            restarts=self._intensity.restarts,
            period=self._intensity.period,
            reason=child.failure or "",
        )
        stops = self._stops  # to notice a `stopService` during the `await` below
        self.running = 0
        self._cancel_waits()
        self._log.critical("{gave_up}", gave_up=str(gave_up))
        self._report(gave_up)
        await self._stop_all()
        if self._stops != stops:
            return  # stopped by `stopService` in the meantime, so there is no failure to report
        if self._on_end is not None:
            self._on_end(Failure(gave_up))
        elif self._on_give_up is not None:
            try:
                self._on_give_up(gave_up)
            except Exception:
                self._log.failure("on_give_up of {path} failed", path=self.path)

    # -- reports -------------------------------------------------------------------------------------------------------------

    def _log_end(self, child: Child, reason: Failure | None, response: str) -> None:
        if reason is None or reason.check(Untraced):
            self._log.warn("{path} ended ({response}): {reason}", path=child.path, response=response, reason=explain(reason))
        else:
            self._log.failure("{path} failed ({response})", reason, path=child.path, response=response)

    def _report(self, report: RestartReport | GaveUp) -> None:
        """Pass a report to `on_event` of this supervisor, or of the nearest one above that has it."""
        above: Any = self
        while isinstance(above, Supervisor):
            if above._on_event is not None:
                try:
                    above._on_event(report)
                except Exception:
                    self._log.failure("on_event of {path} failed", path=above.path)
                return
            above = above.parent
