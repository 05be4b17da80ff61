"""Children that fail on demand, and a journal of their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import ChildSpec, GaveUp, Intensity, RestartReport, Supervisor, Worker
from owsla.supervision._decisions import RestartBackoff


class Boom(Exception):
    """Defect of the program."""


class Child(Worker):
    """Worker that writes its calls into the journal, and fails as `World.faults` says."""

    def __init__(self, world: World, id: str) -> None:
        super().__init__(world.clock)
        self.world = world
        self.id = id

    def _do(self, what: str) -> Any:
        self.world.journal.append(f"{what} {self.id}")
        fault = self.world.faults.get(f"{what} {self.id}")
        return fault() if fault is not None else None

    def privilegedStartService(self) -> Any:
        return self._do("privileged")

    def startService(self) -> Any:
        super().startService()
        return self._do("start")

    def stopService(self) -> Any:
        super().stopService()
        return self._do("stop")


class World:
    """Clock, journal, and factory of supervisors whose children write into the journal."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.journal: list[str] = []
        self.faults: dict[str, Callable[[], Any]] = {}
        """Additional work of a call such as `start a`: raise an exception, or return a Deferred."""
        self.services: dict[str, Child] = {}
        """Latest service of each id."""
        self.reports: list[RestartReport | GaveUp] = []
        self.gave_up: list[GaveUp] = []

    def spec(self, id: str, **options: Any) -> ChildSpec:
        def start() -> Child:
            fault = self.faults.get(f"make {id}")
            if fault is not None:
                fault()
            self.services[id] = Child(self, id)
            return self.services[id]

        return ChildSpec(id, start, **options)

    def supervisor(self, *children: str | ChildSpec, **options: Any) -> Supervisor:
        """Make a root, whose restarts have no jitter."""
        options.setdefault("name", "root")
        options.setdefault("on_give_up", self.gave_up.append)
        options.setdefault("on_event", self.reports.append)
        return self.inner(*children, **options)

    def inner(self, *children: str | ChildSpec, **options: Any) -> Supervisor:
        """Make a supervisor for a place below another."""
        options.setdefault("intensity", Intensity(3, 60))
        options.setdefault("backoff", RestartBackoff(first=1, longest=10, jitter=lambda: 1.0))
        return Supervisor(
            self.clock, [child if isinstance(child, ChildSpec) else self.spec(child) for child in children], **options
        )

    def take(self) -> list[str]:
        """Return the calls since the last look, without the privileged phase."""
        journal, self.journal = self.journal, []
        return [entry for entry in journal if not entry.startswith("privileged")]

    def fail(self, id: str) -> None:
        """Let a child fail, and run its restart if that has no delay."""
        self.services[id].end(Boom(f"of {id}"))
        self.turn()

    def turn(self) -> None:
        """Run two turns: the first handles the end of a child, the second restarts it."""
        self.clock.advance(0)
        self.clock.advance(0)


class SupervisionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def booms(self) -> int:
        """Return the number of failures of children logged since the last look."""
        return len(self.flushLoggedErrors(Boom))

    def states(self, supervisor: Supervisor) -> dict[str, str]:
        """Return the state of each child."""
        return {child["id"]: child["state"] for child in supervisor.tree()["children"]}


def boom() -> None:
    raise Boom("on demand")


class Silent(Service):
    """Plain service."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def startService(self) -> None:
        super().startService()
        self.log.append("start")

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self.log.append("stop")
        return None
