"""The supervisor: starts its children in order, restarts those that end, and fails itself when that happens too often.

Like OTP's, it does one thing at a time: starting, stopping, the answer to a child's end and each request wait for one another
in a mailbox. Only a stop does not wait: it ends the waits for a restart and for a child's slow start. What is to be done
is decided elsewhere (`_decisions`); this does it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_args

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._decisions import Backoff, Intensity, RestartWindow, Strategy, plan_restart, to_be_restarted
from ._dynamic import NotRunning
from ._interfaces import AnyService, Clock, DelayedCall, Report, Supervised
from ._reports import ChildRestarted, GaveUp, SupervisorGaveUp, Untraced, explain
from ._spec import ChildSpec
from ._tree import HasTree, Node, State
from ._waiting import Wait, as_deferred

T = TypeVar("T")


class ChildExists(ValueError):
    """There is a child of that id already."""


class NoSuchChild(KeyError):
    """There is no child of that id."""


class ChildNotStopped(RuntimeError):
    """Only a child that was stopped can be deleted, or started again by hand."""


class ChildInfo(NamedTuple):
    """One of `Supervisor.which_children`."""

    id: str
    service: AnyService | None
    """`None` while it does not run."""
    type: str
    state: State


class ChildCounts(NamedTuple):
    """The result of `Supervisor.count_children`, named as in OTP."""

    specs: int
    active: int
    """Children that run."""
    supervisors: int
    workers: int


class _Interrupted(Exception):
    """A child's start is waited for no more: its supervisor stops."""


class _EndedEarly(Exception):
    """A child's start is waited for no more: it says that it ended."""


class _TooSlow(Exception):
    """A child took longer to stop than its spec allows."""


@dataclass(slots=True)
class _End:
    """A child ended."""

    reason: Failure | None


class _Life:
    """One life of a child, from its start to its end. It takes the child's report; one of an earlier life goes nowhere."""

    __slots__ = ("_supervisor", "child", "early")

    def __init__(self, supervisor: Supervisor, child: _Child) -> None:
        self._supervisor = supervisor
        self.child = child
        self.early: _End | None = None
        """Its end, where that came before its start was complete."""

    def report(self, reason: Failure | None) -> None:
        self._supervisor._reported(self, reason)


class _Child:
    """What a supervisor knows of a child."""

    __slots__ = ("failure", "life", "privileged", "restarts", "service", "spec", "started", "state", "streak", "unmade")

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state: State = "planned"
        self.service: AnyService | None = None
        self.life: _Life | None = None
        self.privileged: Deferred[Any] | None = None
        """What its `privilegedStartService` returned, until its start waits for it."""
        self.unmade: Failure | None = None
        """Why it could not be prepared in the privileged phase: its start will fail with that."""
        self.started: float | None = None
        self.restarts = 0
        self.streak = 0
        """Its restarts in a row that did not help."""
        self.failure: str | None = None


class _Restart:
    """Children that wait for their start, all together."""

    __slots__ = ("call", "children")

    def __init__(self, children: list[_Child]) -> None:
        self.children = children
        self.call: DelayedCall


class Supervisor(MultiService):
    """Keeps its children running: OTP's supervisor, as a Twisted service.

    https://www.erlang.org/doc/apps/stdlib/supervisor

    It may be a child itself (`ChildSpec(…, type="supervisor")`), and then fails to its parent when it gives up. It can be
    started again after it stopped or gave up.
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
        backoff: Backoff | None = None,
        on_event: Callable[[ChildRestarted | SupervisorGaveUp], object] | None = None,
        on_give_up: Callable[[GaveUp], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`children` start in this order and stop in reverse. Under a parent, `name` is the id in the child's spec.

        `on_event` is told of this supervisor's events, and of those of the supervisors below it that have no `on_event`.
        `on_give_up` is for the root: it is called when all children have stopped, and there is no parent to fail to.
        `random()` is from 0 to 1.
        """
        super().__init__()
        if strategy not in get_args(Strategy):
            raise ValueError(f"no such strategy: {strategy!r}")
        if name is not None:
            self.setName(name)
        self._clock = clock
        self._strategy: Strategy = strategy
        self._intensity = intensity or Intensity()
        self._backoff = backoff or Backoff()
        self._on_event = on_event
        self._on_give_up = on_give_up
        self._random = random
        self._children: dict[str, _Child] = {}
        for spec in children:
            self._add(spec)
        self._window = RestartWindow(self._intensity)
        self._report: Report | None = None
        self._started: float | None = None
        self._stops = 0
        self._moving: AnyService | None = None  # a service that this adopts or disowns just now
        self._mailbox: deque[tuple[Callable[[], Awaitable[Any]], Deferred[Any]]] = deque()
        self._working = False
        self._start_wait: tuple[_Child, Wait] | None = None
        self._ends: list[tuple[_Life, Failure | None]] = []
        self._ends_call: DelayedCall | None = None
        self._restarts: list[_Restart] = []

    # -- as a service ------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Make the children, and pass this on to them: to those that exist now. The others have it just before their start."""
        Service.privilegedStartService(self)
        for child in self._children.values():
            if child.service is None:
                try:
                    self._make(child)
                except Exception:
                    child.unmade = Failure()

    def startService(self) -> Deferred[None]:
        """Start the children in order. Fires when that was done; a child whose start fails is another matter."""
        Service.startService(self)
        self._started = self._clock.seconds()
        return self._post(self._start)

    def stopService(self) -> Deferred[None]:
        """Stop the children in reverse order, each in its time. It never fails."""
        Service.stopService(self)
        self._stops += 1
        self._forget_waits()
        return self._post(self._stop_all)

    def supervise(self, report: Report) -> None:
        """Called by the parent before each start."""
        self._report = report

    def addService(self, service: Any) -> None:
        if service is not self._moving:
            raise TypeError("a supervisor's children have a ChildSpec: see start_child")
        self.services.append(service)

    def removeService(self, service: Any) -> None:
        if service is not self._moving:
            raise TypeError("see terminate_child and delete_child")
        self.services.remove(service)

    def getServiceNamed(self, name: str) -> Any:
        """The service that runs as the child of this id; `KeyError` if none does."""
        service = self._child(name).service
        if service is None:
            raise KeyError(name)
        return service

    # -- its children at run time ------------------------------------------------------------------------------------------

    def start_child(self, spec: ChildSpec) -> Deferred[AnyService | None]:
        """Add a child at the end, and start it. If its start fails, so does this, and the child is forgotten.

        Before this supervisor is started the child is only added, and the result is `None`. `ChildExists`; `NotRunning` once
        it has stopped.
        """

        async def start() -> AnyService | None:
            if not self.running and self._started is not None:
                raise NotRunning(f"{self.path} does not run")
            child = self._add(spec)
            if not self.running:
                return None
            try:
                return await self._start_by_hand(child)
            except Exception:
                self._children.pop(spec.id, None)
                raise

        return self._post(start)

    def terminate_child(self, id: str) -> Deferred[None]:
        """Stop a child, or a restart of it that waits, and keep its spec; a temporary one is forgotten. `NoSuchChild`."""

        if self._start_wait is not None and self._start_wait[0].spec.id == id:
            self._start_wait[1].give_up(_Interrupted())

        async def terminate() -> None:
            child = self._child(id)
            await self._stop_one(child)
            child.state = "stopped"
            if child.spec.restart == "temporary":
                self._children.pop(id, None)

        return self._post(terminate)

    def restart_child(self, id: str) -> Deferred[AnyService | None]:
        """Start a child that is stopped. If its start fails, so does this, and the child stays stopped.

        `NoSuchChild`, `ChildNotStopped`, `NotRunning`.
        """

        async def restart() -> AnyService | None:
            child = self._child(id)
            if not self.running:
                raise NotRunning(f"{self.path} does not run")
            if child.state not in ("stopped", "planned"):
                raise ChildNotStopped(f"{self.path}/{id} is {child.state}")
            child.restarts += 1
            return await self._start_by_hand(child)

        return self._post(restart)

    async def _start_by_hand(self, child: _Child) -> AnyService | None:
        """Start a child for somebody who wants to know whether that works: its failure is theirs, and is not counted."""
        end = await self._start_one(child)
        service = child.service
        if end is not None:
            await self._stop_one(child)
            if end.reason is not None:
                child.failure = explain(end.reason)
                end.reason.raiseException()
            await self._answer(child, None)
        elif service is None:
            raise NotRunning(f"{self.path}/{child.spec.id} was stopped while it started")
        return service

    def delete_child(self, id: str) -> Deferred[None]:
        """Forget a child that is stopped. `NoSuchChild`, `ChildNotStopped`."""

        async def delete() -> None:
            child = self._child(id)
            if child.state not in ("stopped", "planned"):
                raise ChildNotStopped(f"{self.path}/{id} is {child.state}")
            await self._stop_one(child)  # it may have been prepared
            self._children.pop(id, None)

        return self._post(delete)

    def which_children(self) -> list[ChildInfo]:
        """All children, in the order of starting."""
        return [
            ChildInfo(child.spec.id, child.service if child.state == "running" else None, child.spec.type, child.state)
            for child in self._children.values()
        ]

    def count_children(self) -> ChildCounts:
        """How many there are."""
        children = self._children.values()
        supervisors = sum(child.spec.type == "supervisor" for child in children)
        active = sum(child.state == "running" for child in children)
        return ChildCounts(len(children), active, supervisors, len(children) - supervisors)

    # -- what it looks like --------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Where it is in the tree, such as `owsla/broker`."""
        name = self.name or "supervisor"
        return f"{self.parent.path}/{name}" if isinstance(self.parent, Supervisor) else name

    def tree(self) -> Node:
        """A snapshot of this and everything below, as plain values. Before the start it is what is planned."""
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
            "children": [self._node(child) for child in self._children.values()],
        }

    def _node(self, child: _Child) -> Node:
        spec = child.spec
        service = child.service
        failure = child.failure
        if service is None and child.state == "planned" and spec.type == "supervisor":
            try:
                service = spec.start()
            except Exception:
                failure = explain(Failure())
        node: Node = {
            "id": spec.id,
            "type": spec.type,
            "restart": spec.restart,
            "state": child.state,
            "restarts": child.restarts,
            "uptime": self._clock.seconds() - child.started if child.started is not None else None,
            "failure": failure,
        }
        if isinstance(service, HasTree):
            below = service.tree()
            for key in ("strategy", "intensity", "children", "count", "failures"):
                if key in below:
                    node[key] = below[key]
            node["failure"] = failure if failure is not None else below["failure"]
        return node

    # -- one thing at a time -------------------------------------------------------------------------------------------------

    def _post(self, job: Callable[[], Awaitable[T]]) -> Deferred[T]:
        """Do this after what is being done."""
        result: Deferred[T] = Deferred()
        self._mailbox.append((job, result))
        if not self._working:
            self._working = True
            Deferred.fromCoroutine(self._work())
        return result

    def _post_own(self, job: Callable[[], Awaitable[None]]) -> None:
        self._post(job).addErrback(
            lambda failure: self._log.failure("The supervisor {path} itself failed", failure, path=self.path)
        )

    async def _work(self) -> None:
        while self._mailbox:
            job, result = self._mailbox.popleft()
            try:
                value = await job()
            except Exception:
                result.errback(Failure())
            else:
                result.callback(value)
        self._working = False

    # -- ends ----------------------------------------------------------------------------------------------------------------

    def _reported(self, life: _Life, reason: Failure | None) -> None:
        """A child says that it ended. It is stopped in a later turn: it may be in the middle of something now."""
        child = life.child
        if child.life is life and child.started is None and life.early is None:
            life.early = _End(reason)
            if self._start_wait is not None and self._start_wait[0] is child:
                self._start_wait[1].give_up(_EndedEarly())
        elif child.life is not life or not self.running:
            self._too_late(child, reason)
        else:
            self._ends.append((life, reason))
            if self._ends_call is None:
                self._ends_call = self._clock.callLater(0, self._take_ends)

    def _too_late(self, child: _Child, reason: Failure | None) -> None:
        if reason is not None:
            self._log.failure("{path}/{child} failed while it stopped", reason, path=self.path, child=child.spec.id)

    def _take_ends(self) -> None:
        self._ends_call = None
        ends, self._ends = self._ends, []
        for life, reason in ends:
            self._post_own(lambda life=life, reason=reason: self._ended(life, reason))  # type: ignore[misc]

    async def _ended(self, life: _Life, reason: Failure | None) -> None:
        child = life.child
        if child.life is not life or not self.running:
            self._too_late(child, reason)
            return
        if child.started is not None and self._clock.seconds() - child.started >= self._intensity.period:
            child.streak = 0
        await self._stop_one(child)
        await self._answer(child, reason)

    async def _answer(self, child: _Child, reason: Failure | None) -> None:
        """A child ended, and what was left of it is stopped: restart it, or leave it, or give up."""
        spec = child.spec
        child.state = "stopped"
        if reason is not None or spec.restart == "permanent":
            child.failure = explain(reason)
        if not self.running:
            self._too_late(child, reason)
            return
        if not to_be_restarted(spec.restart, reason is not None):
            if reason is not None:
                self._log_end(child, reason, "it is not restarted")
            if spec.restart == "temporary":
                self._children.pop(spec.id, None)
            return
        if not self._window.failed(spec.id, self._clock.seconds()):
            self._log_end(child, reason, "too often")
            await self._give_up(child)
            return
        wait = self._backoff.wait(child.streak, self._random())
        delay = min(wait, self._intensity.longest_wait)
        child.streak += 1
        self._log_end(child, reason, f"restarting in {delay:.1f} s")
        plan = plan_restart(self._strategy, [(id, each.spec.restart) for id, each in self._children.items()], spec.id)
        together = [self._children[id] for id in plan.start]
        for id in plan.stop:
            sibling = self._children[id]
            await self._stop_one(sibling)
            if sibling not in together:
                self._children.pop(id, None)
        if not self.running:
            return
        self._wait_for_restart(together, delay)
        self._emit(
            ChildRestarted(
                f"{self.path}/{spec.id}",
                explain(reason),
                child.restarts + 1,
                delay,
                tuple(id for id in plan.start if id != spec.id),
            )
        )

    def _log_end(self, child: _Child, reason: Failure | None, what: str) -> None:
        path = f"{self.path}/{child.spec.id}"
        if reason is None or reason.check(Untraced):
            self._log.warn("{path} ended ({what}): {reason}", path=path, what=what, reason=explain(reason))
        else:
            self._log.failure("{path} failed ({what})", reason, path=path, what=what)

    def _wait_for_restart(self, children: list[_Child], delay: float) -> None:
        # Those that waited already now wait with the others: a strategy's group holds every smaller one of the same child.
        for waiting in [each for each in self._restarts if any(child in children for child in each.children)]:
            self._restarts.remove(waiting)
            waiting.call.cancel()
        for child in children:
            child.state = "restarting"
        restart = _Restart(children)
        self._restarts.append(restart)
        restart.call = self._clock.callLater(delay, self._post_own, lambda: self._restart(restart))

    async def _restart(self, restart: _Restart) -> None:
        if restart not in self._restarts:
            return
        self._restarts.remove(restart)
        # Whoever was terminated meanwhile stays so.
        children = [child for child in restart.children if child.state == "restarting"]
        for child in children:
            child.restarts += 1
        await self._start_all(children)

    async def _give_up(self, child: _Child) -> None:
        """Stop everything, and fail."""
        spec = child.spec
        gave_up = GaveUp(
            self.path,
            spec.id,
            failures=self._window.total,
            of_child=self._window.of(spec.id),
            restarts=self._intensity.restarts,
            period=self._intensity.period,
            reason=child.failure or "",
        )
        stops = self._stops
        self.running = 0
        self._forget_waits()
        self._log.critical("{gave_up}", gave_up=str(gave_up))
        self._emit(SupervisorGaveUp(gave_up))
        await self._stop_all()
        if self._stops != stops:
            return  # stopping is what was asked for meanwhile, and it is done
        if self._report is not None:
            self._report(Failure(gave_up))
        elif self._on_give_up is not None:
            try:
                self._on_give_up(gave_up)
            except Exception:
                self._log.failure("Giving up at {path} failed", path=self.path)

    def _forget_waits(self) -> None:
        """It stops: nothing is restarted any more, and no start is waited for."""
        for restart in self._restarts:
            if restart.call.active():
                restart.call.cancel()
        self._restarts.clear()
        if self._ends_call is not None:
            self._ends_call.cancel()
            self._ends_call = None
        ends, self._ends = self._ends, []
        for life, reason in ends:
            self._too_late(life.child, reason)
        if self._start_wait is not None:
            self._start_wait[1].give_up(_Interrupted())

    def _emit(self, event: ChildRestarted | SupervisorGaveUp) -> None:
        above: Any = self
        while isinstance(above, Supervisor):
            if above._on_event is not None:
                try:
                    above._on_event(event)
                except Exception:
                    self._log.failure("The observer of {path} failed", path=above.path)
                return
            above = above.parent

    # -- starting ------------------------------------------------------------------------------------------------------------

    def _add(self, spec: ChildSpec) -> _Child:
        if spec.id in self._children:
            raise ChildExists(f"there is a child {spec.id} already")
        child = self._children[spec.id] = _Child(spec)
        return child

    def _child(self, id: str) -> _Child:
        try:
            return self._children[id]
        except KeyError:
            raise NoSuchChild(id) from None

    def _make(self, child: _Child) -> AnyService:
        """Make the service, take it in, and let it do what needs privileges."""
        service = child.spec.start()
        if isinstance(service, HasTree) or getattr(service, "name", None) is None:
            # A supervisor's path is made of names, so it must be called what its parent calls it.
            service.setName(child.spec.id)
        self._moving = service
        try:
            service.setServiceParent(self)
        finally:
            self._moving = None
        child.service = service
        child.life = _Life(self, child)
        if isinstance(service, Supervised):
            service.supervise(child.life.report)
        child.privileged = as_deferred(service.privilegedStartService())
        return service

    async def _start(self) -> None:
        if self.running:
            self._window = RestartWindow(self._intensity)
            for child in self._children.values():
                child.streak = 0
            await self._start_all(list(self._children.values()))

    async def _start_all(self, children: list[_Child]) -> None:
        """Start those that do not run, in this order."""
        for child in children:
            if not self.running:
                return
            if child.state == "running" or self._children.get(child.spec.id) is not child:
                continue
            end = await self._start_one(child)
            if end is None:
                continue
            await self._stop_one(child)
            await self._answer(child, end.reason)
            if child.state == "restarting" and self._strategy != "one_for_one":
                return  # those after it wait for it

    async def _start_one(self, child: _Child) -> _End | None:
        """Start a child. If it ended in that, its end; what is left of it is then to be stopped."""
        child.state = "starting"
        try:
            unmade, child.unmade = child.unmade, None
            if unmade is not None:
                return _End(unmade)
            service = child.service or self._make(child)
            privileged, child.privileged = child.privileged, None
            await self._settle(child, privileged)
            if child.life is not None and child.life.early is None:
                await self._settle(child, as_deferred(service.startService()))
        except _EndedEarly:
            pass
        except _Interrupted:
            await self._stop_one(child)
            return None
        except Exception:
            if child.life is None or child.life.early is None:
                return _End(Failure())
        if child.life is not None and child.life.early is not None:
            return child.life.early
        child.state = "running"
        child.started = self._clock.seconds()
        return None

    async def _settle(self, child: _Child, result: Deferred[Any] | None) -> None:
        if result is None:
            return
        wait = Wait(result, lambda failure: self._too_late(child, failure))
        self._start_wait = child, wait
        try:
            await wait.done
        finally:
            self._start_wait = None

    # -- stopping ------------------------------------------------------------------------------------------------------------

    async def _stop_all(self) -> None:
        for child in reversed(list(self._children.values())):
            await self._stop_one(child)

    async def _stop_one(self, child: _Child) -> None:
        """Stop what there is of a child, within its time."""
        service, child.service = child.service, None
        child.life = None
        child.unmade = None
        complete = child.started is not None
        child.started = None
        privileged, child.privileged = child.privileged, None
        if privileged is not None:
            privileged.addErrback(lambda failure: self._too_late(child, failure))
        if service is not None:
            child.state = "stopping"
            try:
                await self._wait_for_stop(child, service)
            except _TooSlow:
                self._log.warn(
                    "{path}/{child} did not stop within {seconds:g} s",
                    path=self.path,
                    child=child.spec.id,
                    seconds=child.spec.patience,
                )
            except Exception as error:
                if complete:
                    self._log.failure("{path}/{child} failed to stop", path=self.path, child=child.spec.id)
                else:
                    # What was started halfway may not know how to stop; why it was is told elsewhere.
                    self._log.info(
                        "{path}/{child} was not quite started, and failed to stop: {error}",
                        path=self.path,
                        child=child.spec.id,
                        error=repr(error),
                    )
            self._disown(service)
        if child.state != "planned":
            child.state = "stopped"

    async def _wait_for_stop(self, child: _Child, service: AnyService) -> None:
        stopping = as_deferred(service.stopService())
        if stopping is None:
            return
        patience = child.spec.patience
        wait = Wait(stopping, lambda failure: self._too_late(child, failure))
        if not patience:
            wait.done.addErrback(lambda failure: None if failure.check(_TooSlow) else self._too_late(child, failure))
            wait.give_up(_TooSlow())
            return
        timer = None if patience == math.inf else self._clock.callLater(patience, wait.give_up, _TooSlow())
        try:
            await wait.done
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    def _disown(self, service: AnyService) -> None:
        if service not in self.services:
            return
        self._moving = service
        try:
            service.disownServiceParent()
        except Exception:
            self._log.failure("A child of {path} could not be let go", path=self.path)
        finally:
            self._moving = None
