"""Whatever happens to a supervisor, in whichever order: some things are always true."""

from __future__ import annotations

from typing import Any, cast, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from owsla.supervision import ChildSpec, GaveUp, Intensity, Report, Restart, Strategy, Supervisor

from .fakes import Boom, SupervisionTestCase

IDS = "abcd"

STEPS = st.one_of(
    st.tuples(st.sampled_from(("fail", "end", "terminate", "restart", "delete", "add", "settle")), st.sampled_from(IDS)),
    st.tuples(st.just("advance"), st.sampled_from((0, 0.3, 3, 70))),
    st.tuples(st.sampled_from(("stop", "start")), st.just("")),
)


class Life(Service):
    """One life of a child: it starts once, stops once, and never again."""

    def __init__(self, case: Case, id: str) -> None:
        self.case = case
        self.id = id
        self.phase = "made"
        self.report: Report | None = None
        self.waiting: Deferred[Any] | None = None

    def supervise(self, report: Report) -> None:
        self.report = report

    def _do(self, phase: str) -> Any:
        case = self.case
        self.phase = phase
        behaviour = case.behaviours[len(case.lives) % len(case.behaviours)]
        if behaviour == f"{phase} raises":
            raise Boom(phase)
        if behaviour == f"{phase} takes time":
            self.waiting = Deferred()
            return self.waiting
        if behaviour == f"{phase} ends":
            assert self.report is not None
            self.report(Failure(Boom(phase)))
        return None

    def startService(self) -> Any:
        assert self.phase == "made", self.phase
        assert all(life.phase != "start" for life in self.case.lives if life.id == self.id), "two lives at once"
        super().startService()
        return self._do("start")

    def stopService(self) -> Any:
        assert self.phase in ("made", "start"), self.phase
        super().stopService()
        return self._do("stop")


class Case:
    """A supervisor, what its children do, and all their lives."""

    def __init__(self, strategy: Strategy, restarts: list[Restart], behaviours: list[str]) -> None:
        self.clock = Clock()
        self.restarts = dict(zip(IDS, restarts, strict=True))
        self.behaviours = behaviours
        self.lives: list[Life] = []
        self.gave_up: list[GaveUp] = []
        self.pending: list[Deferred[Any]] = []
        self.root = Supervisor(
            self.clock,
            [self.spec(id) for id in IDS[:3]],
            strategy=strategy,
            intensity=Intensity(3, 60),
            on_give_up=self.gave_up.append,
            random=lambda: 0.5,
        )

    def spec(self, id: str) -> ChildSpec:
        def start() -> Life:
            life = Life(self, id)
            self.lives.append(life)
            return life

        return ChildSpec(id, start, restart=self.restarts[id], shutdown=2)

    def step(self, what: str, about: Any) -> None:
        root = self.root
        last = next((life for life in reversed(self.lives) if life.id == about), None)
        if what == "advance":
            self.clock.advance(about)
        elif what in ("fail", "end"):
            if last is not None and last.report is not None:
                last.report(Failure(Boom()) if what == "fail" else None)
        elif what == "settle":
            if last is not None and last.waiting is not None and not last.waiting.called:
                last.waiting.callback(None)
        elif what == "start":
            if not root.running:
                self.ask(root.startService())
        elif what == "stop":
            self.ask(root.stopService())
        elif what == "add":
            self.ask(root.start_child(self.spec(about)))
        else:
            self.ask(getattr(root, f"{what}_child")(about))

    def ask(self, answer: Deferred[Any]) -> None:
        answer.addErrback(lambda _: None)
        self.pending.append(answer)


class AnySequenceTests(SupervisionTestCase):
    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(get_args(Strategy)),
        st.lists(st.sampled_from(get_args(Restart)), min_size=4, max_size=4),
        st.lists(
            st.sampled_from(
                ("", "", *(f"{phase} {does}" for phase in ("start", "stop") for does in ("raises", "takes time", "ends")))
            ),
            min_size=1,
            max_size=7,
        ),
        st.lists(STEPS, max_size=25),
    )
    def test_always(self, strategy: str, restarts: list[Restart], behaviours: list[str], steps: list[tuple[str, Any]]) -> None:
        """No child lives twice at once, or starts or stops twice; everybody who asks is answered; a stop stops everything."""
        case = Case(cast(Strategy, strategy), restarts, behaviours)
        case.step("start", "")
        for what, about in steps:
            case.step(what, about)
        stopped = case.root.stopService()
        case.clock.pump([2.1] * 20)
        self.successResultOf(stopped)
        self.assertEqual([life.phase for life in case.lives if life.phase != "stop"], [])
        self.assertEqual([answer for answer in case.pending if not answer.called], [])
        self.assertEqual((list(case.root), case.clock.getDelayedCalls()), ([], []))
        self.assertTrue(set(self.states(case.root).values()) <= {"stopped", "planned"})
        self.assertEqual([failure for failure in self.flushLoggedErrors() if not failure.check(Boom)], [])
