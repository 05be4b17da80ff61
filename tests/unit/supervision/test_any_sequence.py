"""Invariants of a supervisor under any sequence of events."""

from __future__ import annotations

from typing import Any, cast, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from owsla.supervision import ChildSpec, GaveUp, Intensity, Supervisor
from owsla.supervision._decisions import RestartBackoff, RestartType, Strategy
from owsla.supervision._interfaces import EndCallback

from .fakes import Boom, SupervisionTestCase

IDS = "abcd"

STEPS = st.one_of(
    st.tuples(st.sampled_from(("fail", "end", "settle")), st.sampled_from(IDS)),
    st.tuples(st.just("advance"), st.sampled_from((0, 0.3, 3, 70))),
    st.tuples(st.sampled_from(("stop", "start")), st.just("")),
)


class OneStart(Service):
    """Service of a child that may start once, stop once, and never again."""

    def __init__(self, case: Case, id: str) -> None:
        self.case = case
        self.id = id
        self.phase = "made"
        self.on_end: EndCallback | None = None
        self.waiting: Deferred[Any] | None = None

    def supervise(self, on_end: EndCallback) -> None:
        self.on_end = on_end

    def _do(self, phase: str) -> Any:
        case = self.case
        self.phase = phase
        behaviour = case.behaviours[len(case.services) % len(case.behaviours)]
        if behaviour == f"{phase} raises":
            raise Boom(phase)
        if behaviour == f"{phase} takes time":
            self.waiting = Deferred()
            return self.waiting
        if behaviour == f"{phase} ends":
            assert self.on_end is not None
            self.on_end(Failure(Boom(phase)))
        return None

    def startService(self) -> Any:
        assert self.phase == "made", self.phase
        assert all(one.phase != "start" for one in self.case.services if one.id == self.id), "two services at once"
        super().startService()
        return self._do("start")

    def stopService(self) -> Any:
        assert self.phase in ("made", "start"), self.phase
        super().stopService()
        return self._do("stop")


class Case:
    """A supervisor, the behaviour of its children, and all their services."""

    def __init__(self, strategy: Strategy, restarts: list[RestartType], behaviours: list[str]) -> None:
        self.clock = Clock()
        self.behaviours = behaviours
        self.services: list[OneStart] = []
        self.gave_up: list[GaveUp] = []
        self.pending: list[Deferred[Any]] = []
        self.root = Supervisor(
            self.clock,
            [self.spec(id, restart) for id, restart in zip(IDS, restarts, strict=True)],
            strategy=strategy,
            intensity=Intensity(3, 60),
            backoff=RestartBackoff(jitter=lambda: 0.5),
            on_give_up=self.gave_up.append,
        )

    def spec(self, id: str, restart: RestartType) -> ChildSpec:
        def start() -> OneStart:
            service = OneStart(self, id)
            self.services.append(service)
            return service

        return ChildSpec(id, start, restart=restart, shutdown=2)

    def step(self, what: str, about: Any) -> None:
        root = self.root
        last = next((one for one in reversed(self.services) if one.id == about), None)
        if what == "advance":
            self.clock.advance(about)
        elif what in ("fail", "end"):
            if last is not None and last.on_end is not None:
                last.on_end(Failure(Boom()) if what == "fail" else None)
        elif what == "settle":
            if last is not None and last.waiting is not None and not last.waiting.called:
                last.waiting.callback(None)
        elif what == "stop":
            self.pending.append(root.stopService())
        elif not root.running:
            self.pending.append(root.startService())


class AnySequenceTests(SupervisionTestCase):
    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(get_args(Strategy)),
        st.lists(st.sampled_from(get_args(RestartType)), min_size=4, max_size=4),
        st.lists(
            st.sampled_from(
                ("", "", *(f"{phase} {does}" for phase in ("start", "stop") for does in ("raises", "takes time", "ends")))
            ),
            min_size=1,
            max_size=7,
        ),
        st.lists(STEPS, max_size=25),
    )
    def test_always(
        self, strategy: str, restarts: list[RestartType], behaviours: list[str], steps: list[tuple[str, Any]]
    ) -> None:
        """No child has two services at once, or starts or stops one twice; all Deferreds fire; a stop stops everything."""
        case = Case(cast(Strategy, strategy), restarts, behaviours)
        case.step("start", "")
        for what, about in steps:
            case.step(what, about)
        stopped = case.root.stopService()
        case.clock.pump([2.1] * 20)
        self.successResultOf(stopped)
        self.assertEqual([one.phase for one in case.services if one.phase != "stop"], [])
        self.assertEqual([answer for answer in case.pending if not answer.called], [])
        self.assertEqual((list(case.root), case.clock.getDelayedCalls()), ([], []))
        self.assertTrue(set(self.states(case.root).values()) <= {"stopped", "planned"})
        self.assertEqual([failure for failure in self.flushLoggedErrors() if not failure.check(Boom)], [])
