"""Decisions of a supervisor, without services."""

from __future__ import annotations

from typing import cast, get_args

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import Intensity
from owsla.supervision._decisions import (
    RestartBackoff,
    RestartHistory,
    RestartType,
    Strategy,
    plan_restart,
    should_restart,
)

CHILDREN = st.lists(
    st.tuples(st.integers(0, 30).map(str), st.sampled_from(get_args(RestartType))), min_size=1, unique_by=lambda c: c[0]
)


class RestartTypeTests(SynchronousTestCase):
    def test_types(self) -> None:
        """Permanent: always. Transient: after a failure. Temporary: never."""
        table = {restart: (should_restart(restart, True), should_restart(restart, False)) for restart in get_args(RestartType)}
        self.assertEqual(table, {"permanent": (True, True), "transient": (True, False), "temporary": (False, False)})


class StrategyTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """The strategies restart the children that OTP's documentation names."""
        children: list[tuple[str, RestartType]] = [("a", "permanent"), ("b", "transient"), ("c", "permanent")]
        plans = {strategy: plan_restart(cast(Strategy, strategy), children, "b") for strategy in get_args(Strategy)}
        self.assertEqual((plans["one_for_one"].stop, plans["one_for_one"].start), ((), ("b",)))
        self.assertEqual((plans["rest_for_one"].stop, plans["rest_for_one"].start), (("c",), ("b", "c")))
        self.assertEqual((plans["one_for_all"].stop, plans["one_for_all"].start), (("c", "a"), ("a", "b", "c")))

    @given(st.sampled_from(get_args(Strategy)), CHILDREN, st.data())
    def test_set_and_order(self, strategy: Strategy, children: list[tuple[str, RestartType]], data: st.DataObject) -> None:
        """Exactly the strategy's children stop, in reverse order, and start, in order. Temporary children only stop."""
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
        """A restart is refused if more than `restarts` failures are in the closed period that ends with the last one."""
        history = RestartHistory(Intensity(restarts, period), RestartBackoff())
        now = 0
        past: list[tuple[int, str]] = []
        for step, child in failures:
            now += step
            past.append((now, child))
            within = [each for time, each in past if now - period <= time]
            self.assertEqual(history.add(child, now), len(within) <= restarts)
            self.assertEqual((history.total, history.count(child)), (len(within), within.count(child)))

    def test_invalid(self) -> None:
        """A negative number of restarts, or a period of no length, is refused."""
        self.assertRaises(ValueError, Intensity, -1, 5)
        self.assertRaises(ValueError, Intensity, 1, 0)


class BackoffTests(SynchronousTestCase):
    def test_delays(self) -> None:
        """The first restart has no delay; each further delay is twice as long, up to the bound."""
        backoff = RestartBackoff(first=1, longest=5, jitter=lambda: 1.0)
        self.assertEqual([backoff.delay(streak) for streak in range(6)], [0, 1, 2, 4, 5, 5])

    @given(st.integers(1, 5000), st.floats(0, 1))
    def test_jitter(self, streak: int, random: float) -> None:
        """At most half of a delay is random, and no delay exceeds the bound, however long the streak."""
        full, delay = RestartBackoff(jitter=lambda: 1.0).delay(streak), RestartBackoff(jitter=lambda: random).delay(streak)
        self.assertTrue(full / 2 <= delay <= full <= RestartBackoff().longest)

    def test_streaks(self) -> None:
        """Each child has a streak of its own, which ends when the child has run for a whole period."""
        history = RestartHistory(Intensity(3, 100), RestartBackoff(first=1, jitter=lambda: 1.0))
        self.assertEqual([history.next_delay("a") for _ in range(3)], [0, 1, 2])
        self.assertEqual(history.next_delay("b"), 0)
        history.ran("a", 99.9)
        self.assertEqual(history.next_delay("a"), 4)
        history.ran("a", 100)
        self.assertEqual(history.next_delay("a"), 0)

    @given(st.integers(0, 20), st.floats(0.1, 3600), st.floats(0.01, 60), st.floats(0.01, 600))
    def test_no_way_around_giving_up(self, restarts: int, period: float, first: float, longest: float) -> None:
        """With any delays, a child that always fails at once uses up the intensity: it is never retried for ever."""
        history = RestartHistory(Intensity(restarts, period), RestartBackoff(first, longest, jitter=lambda: 1.0))
        now = 0.0
        for _ in range(restarts):
            self.assertTrue(history.add("a", now))
            now += history.next_delay("a")
        self.assertFalse(history.add("a", now))
