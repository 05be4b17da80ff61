"""A parent's questions to its workers."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import NO_ARGS, Answers, Args, WorkerQueries
from owsla.desk._asking import RETRY, TIME_LIMIT


class Plain:
    """A worker that answers what and when the test says."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"worker-{number}"
        self.state = "ready"
        self.asked: list[Deferred[Any]] = []
        self.cancelled = 0

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[Any]:
        self.asked.append(Deferred(self._cancelled))
        return self.asked[-1]

    def _cancelled(self, _: object) -> None:
        self.cancelled += 1


class QuestionsTests(SynchronousTestCase):
    """Whatever workers do."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.workers = [Plain(1), Plain(2)]
        self.one, self.two = self.workers
        self.questions = WorkerQueries(cast("Any", self.clock), lambda: self.workers)

    def ask(self) -> Deferred[Answers]:
        return self.questions.ask("state")

    def result(self, asked: Deferred[Answers]) -> list[Any]:
        return [answer for _, answer in self.successResultOf(asked)]

    def test_all(self) -> None:
        """All are asked at once, and the answers are in the workers' order, whichever comes first."""
        asked = self.ask()
        self.two.asked[0].callback("b")
        self.assertNoResult(asked)
        self.one.asked[0].callback("a")
        self.assertEqual(self.successResultOf(asked), [(self.one, "a"), (self.two, "b")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody(self) -> None:
        """Without workers there is nothing to wait for."""
        self.workers.clear()
        self.assertEqual(self.result(self.ask()), [])

    def test_one_that_cannot(self) -> None:
        """One that fails, in whichever way, says nothing, and delays nobody."""
        asked = self.ask()
        self.one.asked[0].errback(ValueError("gone"))
        self.two.asked[0].callback("b")
        self.assertEqual(self.result(asked), [None, "b"])
        self.one.ask = lambda what, args=NO_ARGS: cast("Any", 1 // 0)  # type: ignore[method-assign]
        asked = self.ask()
        self.two.asked[1].callback("b")
        self.assertEqual(self.result(asked), [None, "b"])

    def test_one_that_hangs(self) -> None:
        """It is waited for once, for the bound; then it delays nobody, until its answer comes: late, but it is there."""
        asked = self.ask()
        self.two.asked[0].callback("b")
        self.clock.advance(TIME_LIMIT - 0.1)
        self.assertNoResult(asked)
        self.clock.advance(0.2)
        self.assertEqual(self.result(asked), [None, "b"])

        asked = self.ask()
        self.two.asked[1].callback("b")
        self.assertEqual(self.result(asked), [None, "b"])
        self.assertEqual(len(self.one.asked), 1)

        self.one.asked[0].callback("too late for anybody")
        asked = self.ask()
        self.one.asked[1].callback("a")
        self.two.asked[2].callback("b")
        self.assertEqual(self.result(asked), ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asked_again(self) -> None:
        """After a while it is asked again, in case the question was lost, without anybody waiting. The old one is let go."""
        self.workers.remove(self.two)
        self.ask()
        self.clock.advance(RETRY - 0.1)
        self.ask()
        self.assertEqual((len(self.one.asked), self.one.cancelled), (1, 0))
        self.clock.advance(0.2)
        self.assertEqual(self.result(self.ask()), [None])
        self.assertEqual((len(self.one.asked), self.one.cancelled), (2, 1))
        self.one.asked[1].callback("a")
        asked = self.ask()
        self.assertEqual(len(self.one.asked), 3)
        self.assertNoResult(asked)

    def test_many_who_ask(self) -> None:
        """Who asks while a question is under way waits for its answer; other questions are questions of their own."""
        first, second = self.ask(), self.ask()
        other = self.questions.ask("metrics")
        self.assertEqual((len(self.one.asked), len(self.two.asked)), (2, 2))
        for worker, answer in ((self.one, "a"), (self.two, "b")):
            worker.asked[0].callback(answer)
        self.assertEqual((self.result(first), self.result(second)), (["a", "b"], ["a", "b"]))
        self.assertNoResult(other)

    def test_arguments(self) -> None:
        """Questions with other arguments are questions of their own; with the same ones they share a query."""
        first, second = self.questions.ask("devices", {"query": "a"}), self.questions.ask("devices", {"query": "b"})
        third = self.questions.ask("devices", {"query": "a"})
        self.assertEqual((len(self.one.asked), len(self.two.asked)), (2, 2))
        for worker in self.workers:
            worker.asked[0].callback("a")
        self.assertEqual((self.result(first), self.result(third)), (["a", "a"], ["a", "a"]))
        self.assertNoResult(second)

    def test_one_late_query(self) -> None:
        """Of several late queries of a kind one is kept, whatever their arguments; later ones do not wait for this worker."""
        self.workers.remove(self.two)
        asked = [self.questions.ask("devices", {"query": str(number)}) for number in range(5)]
        self.clock.advance(TIME_LIMIT)
        self.assertEqual([self.result(each) for each in asked], [[None]] * 5)
        self.assertEqual(self.one.cancelled, 4)
        self.assertEqual(self.result(self.questions.ask("devices", {"query": "other"})), [None])
        self.assertEqual(len(self.one.asked), 5)
        self.assertNoResult(self.questions.ask("state"))
        self.one.asked[0].callback("late")
        self.questions.ask("devices", {"query": "other"})
        self.assertEqual(len(self.one.asked), 7)

    def test_actions(self) -> None:
        """An action is sent by each request, also after one that was not answered in time, and never again by itself."""
        self.workers.remove(self.two)
        first, second = (self.questions.ask("close", {"id": "a"}, action=True) for _ in range(2))
        self.assertEqual(len(self.one.asked), 2)
        self.one.asked[0].callback("a")
        self.assertEqual(self.result(first), ["a"])
        self.clock.advance(TIME_LIMIT)
        self.assertEqual(self.result(second), [None])
        third = self.questions.ask("close", {"id": "a"}, action=True)
        self.assertEqual(len(self.one.asked), 3)
        self.one.asked[2].callback("b")
        self.assertEqual(self.result(third), ["b"])
        self.clock.advance(2 * RETRY)
        self.questions.ask("close", {"id": "b"}, action=True)
        self.assertEqual(len(self.one.asked), 4)

    def test_a_new_process(self) -> None:
        """A worker that is replaced is forgotten with what it was asked; the new one is asked for itself."""
        first = self.ask()
        self.two.asked[0].callback("b")
        self.workers[0] = new = Plain(1)
        second = self.ask()
        self.assertEqual(self.result(first), [None, "b"])
        self.assertEqual(self.one.cancelled, 1)
        new.asked[0].callback("n")
        self.two.asked[1].callback("b")
        self.assertEqual(self.result(second), ["n", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Machine(RuleBasedStateMachine):
    """Workers that come, answer, fail, hang and go: everybody who asks has an answer within the bound, one for each worker."""

    @initialize(count=st.integers(0, 3))
    def begin(self, count: int) -> None:
        self.clock = Clock()
        self.workers = [Plain(number) for number in range(count)]
        self.questions = WorkerQueries(cast("Any", self.clock), lambda: self.workers)
        self.waiting: list[tuple[float, int, list[Any]]] = []

    @rule(what=st.sampled_from(["state", "metrics"]))
    def ask(self, what: Any) -> None:
        got: list[Any] = []
        self.questions.ask(what).addCallback(got.append)
        self.waiting.append((self.clock.seconds(), len(self.workers), got))

    @rule(which=st.integers(0, 2), fails=st.booleans())
    def answers(self, which: int, fails: bool) -> None:
        open_ones = [one for worker in self.workers for one in worker.asked if not one.called]
        if open_ones:
            one = open_ones[which % len(open_ones)]
            one.errback(ValueError()) if fails else one.callback("x")

    @rule(seconds=st.sampled_from([0.0, 0.5, TIME_LIMIT, RETRY]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(which=st.integers(0, 2))
    def goes(self, which: int) -> None:
        if self.workers:
            self.workers.pop(which % len(self.workers))

    @rule()
    def comes(self) -> None:
        self.workers.append(Plain(9))

    @invariant()
    def bounded(self) -> None:
        for since, count, got in self.waiting:
            if got:
                assert len(got[0]) == count
            else:
                assert self.clock.seconds() - since < TIME_LIMIT
        for worker in self.workers:
            assert sum(not one.called for one in worker.asked) <= 2


class AnyOrderTests(SynchronousTestCase):
    def test_it(self) -> None:
        """In any order of questions, answers, failures, silences, deaths and births."""
        run_state_machine_as_test(Machine, settings=settings(max_examples=100, stateful_step_count=30, deadline=None))
