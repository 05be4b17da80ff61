"""Children that do as they are told, and a book of what happened to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import (
    Backoff,
    ChildRestarted,
    ChildSpec,
    GaveUp,
    Intensity,
    Supervisor,
    SupervisorGaveUp,
    Worker,
)


class Boom(Exception):
    """A defect of our own."""


class Child(Worker):
    """A worker that notes what happens to it, and fails where `World.faults` says so."""

    def __init__(self, world: World, id: str) -> None:
        super().__init__(world.clock)
        self.world = world
        self.id = id

    def _do(self, what: str) -> Any:
        self.world.book.append(f"{what} {self.id}")
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
    """A clock, a book, and supervisors whose children are written in it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.book: list[str] = []
        self.faults: dict[str, Callable[[], Any]] = {}
        """What a child does besides, such as `start a`: raise, or return a Deferred."""
        self.lives: dict[str, Child] = {}
        """The latest service of each id."""
        self.events: list[ChildRestarted | SupervisorGaveUp] = []
        self.gave_up: list[GaveUp] = []

    def spec(self, id: str, **options: Any) -> ChildSpec:
        def start() -> Child:
            fault = self.faults.get(f"make {id}")
            if fault is not None:
                fault()
            self.lives[id] = Child(self, id)
            return self.lives[id]

        return ChildSpec(id, start, **options)

    def supervisor(self, *children: str | ChildSpec, **options: Any) -> Supervisor:
        """A root, with neither jitter nor, for a first restart, a wait."""
        options.setdefault("name", "root")
        options.setdefault("on_give_up", self.gave_up.append)
        options.setdefault("on_event", self.events.append)
        return self.inner(*children, **options)

    def inner(self, *children: str | ChildSpec, **options: Any) -> Supervisor:
        """A supervisor for below another."""
        options.setdefault("intensity", Intensity(3, 60))
        options.setdefault("backoff", Backoff(first=1, most=10))
        return Supervisor(
            self.clock,
            [child if isinstance(child, ChildSpec) else self.spec(child) for child in children],
            random=lambda: 1.0,
            **options,
        )

    def take(self) -> list[str]:
        """What happened since the last look, without the privileged phase."""
        book, self.book = self.book, []
        return [entry for entry in book if not entry.startswith("privileged")]

    def fail(self, id: str) -> None:
        """This child fails, and its restart, if it waits for nothing, is done."""
        self.lives[id].end(Boom(f"of {id}"))
        self.turn()

    def turn(self) -> None:
        """One turn takes a child's end, the next one restarts."""
        self.clock.advance(0)
        self.clock.advance(0)


class SupervisionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def booms(self) -> int:
        """How many failures of children were logged since the last look."""
        return len(self.flushLoggedErrors(Boom))

    def states(self, supervisor: Supervisor) -> dict[str, str]:
        return {child.id: child.state for child in supervisor.which_children()}


def boom() -> None:
    raise Boom("as told")


class Silent(Service):
    """A service that knows nothing of supervision."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def startService(self) -> None:
        super().startService()
        self.log.append("start")

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self.log.append("stop")
        return None


class Connection:
    """A child of a dynamic supervisor."""

    def stop(self) -> None: ...
