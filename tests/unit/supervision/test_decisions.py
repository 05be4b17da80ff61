"""Whether, whom and when to restart: the decisions without the services."""

from __future__ import annotations

from typing import cast, get_args

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import Backoff, Intensity, Restart, RestartWindow, Strategy, plan_restart, to_be_restarted

CHILDREN = st.lists(
    st.tuples(st.integers(0, 30).map(str), st.sampled_from(get_args(Restart))), min_size=1, unique_by=lambda c: c[0]
)


class RestartTests(SynchronousTestCase):
    def test_types(self) -> None:
        """Permanent: always. Transient: after a failure. Temporary: never."""
        table = {restart: (to_be_restarted(restart, True), to_be_restarted(restart, False)) for restart in get_args(Restart)}
        self.assertEqual(table, {"permanent": (True, True), "transient": (True, False), "temporary": (False, False)})


class StrategyTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """The page of OTP's principles, in three lines."""
        children: list[tuple[str, Restart]] = [("a", "permanent"), ("b", "transient"), ("c", "permanent")]
        plans = {strategy: plan_restart(cast(Strategy, strategy), children, "b") for strategy in get_args(Strategy)}
        self.assertEqual((plans["one_for_one"].stop, plans["one_for_one"].start), ((), ("b",)))
        self.assertEqual((plans["rest_for_one"].stop, plans["rest_for_one"].start), (("c",), ("b", "c")))
        self.assertEqual((plans["one_for_all"].stop, plans["one_for_all"].start), (("c", "a"), ("a", "b", "c")))

    @given(st.sampled_from(get_args(Strategy)), CHILDREN, st.data())
    def test_set_and_order(self, strategy: Strategy, children: list[tuple[str, Restart]], data: st.DataObject) -> None:
        """Exactly the strategy's children are stopped, in reverse order, and started, in order; temporary ones only stopped."""
        failed, restart = data.draw(st.sampled_from(children))
        assume(restart != "temporary")
        plan = plan_restart(strategy, children, failed)
        order = [id for id, _ in children]
        after = order[order.index(failed) + 1 :]
        stopped = {"one_for_one": set(), "rest_for_one": set(after), "one_for_all": set(order) - {failed}}[strategy]
        self.assertEqual(set(plan.stop), stopped)
        temporary = {id for id, restart in children if restart == "temporary"}
        self.assertEqual(set(plan.start), (stopped | {failed}) - temporary)
        self.assertEqual(list(plan.start), sorted(plan.start, key=order.index))
        self.assertEqual(list(plan.stop), sorted(plan.stop, key=order.index, reverse=True))


class IntensityTests(SynchronousTestCase):
    @given(
        st.integers(0, 6),
        st.integers(1, 20),
        st.lists(st.tuples(st.integers(0, 10), st.sampled_from("ab")), max_size=60),
    )
    def test_like_a_naive_model(self, restarts: int, period: int, failures: list[tuple[int, str]]) -> None:
        """A failure is one too many if, with it, there are more than `restarts` in the closed period that ends with it."""
        window = RestartWindow(Intensity(restarts, period))
        now = 0
        past: list[tuple[int, str]] = []
        for step, child in failures:
            now += step
            past.append((now, child))
            within = [each for time, each in past if now - period <= time]
            self.assertEqual(window.failed(child, now), len(within) <= restarts)
            self.assertEqual((window.total, window.of(child)), (len(within), within.count(child)))

    def test_impossible(self) -> None:
        """An intensity that means nothing is refused."""
        self.assertRaises(ValueError, Intensity, -1, 5)
        self.assertRaises(ValueError, Intensity, 1, 0)


class BackoffTests(SynchronousTestCase):
    def test_waits(self) -> None:
        """The first restart waits for nothing, each further one twice as long, up to the bound."""
        backoff = Backoff(first=1, most=5)
        self.assertEqual([backoff.wait(streak, 1.0) for streak in range(6)], [0, 1, 2, 4, 5, 5])

    @given(st.integers(1, 5000), st.floats(0, 1))
    def test_jitter(self, streak: int, random: float) -> None:
        """Half of a wait is certain, and none is above the bound, however often it was tried."""
        wait = Backoff().wait(streak, random)
        self.assertTrue(Backoff().wait(streak, 1.0) / 2 <= wait <= Backoff().most)

    @given(st.integers(0, 20), st.floats(0.1, 3600), st.floats(0.01, 60), st.floats(0.01, 600))
    def test_no_way_around_giving_up(self, restarts: int, period: float, first: float, most: float) -> None:
        """However long the waits, a child that always fails at once uses up the intensity: it is never retried for ever."""
        intensity = Intensity(restarts, period)
        backoff = Backoff(first, most)
        window = RestartWindow(intensity)
        now = 0.0
        for streak in range(restarts):
            self.assertTrue(window.failed("a", now))
            now += min(backoff.wait(streak, 1.0), intensity.longest_wait)
        self.assertFalse(window.failed("a", now))
