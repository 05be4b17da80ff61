"""Tests of the deadlines of many connections."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.deadlines import SLACK, Deadlines


class TimersTests(SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 50))
            | st.tuples(st.just("clear"), st.integers(0, 5), st.just(0))
            | st.tuples(st.just("due"), st.just(0), st.integers(0, 10)),
            max_size=60,
        )
    )
    def test_model(self, steps: list[tuple[str, int, int]]) -> None:
        """Each entry expires at its last deadline, once, in the order of deadlines."""
        timers: Deadlines[int] = Deadlines()
        model: dict[int, int] = {}
        now = 0
        for what, who, number in steps:
            if what == "set":
                timers.set(who, now + number)
                model.pop(who, None)
                model[who] = now + number
            elif what == "clear":
                timers.clear(who)
                model.pop(who, None)
            else:
                now += number
                due = list(timers.due(now))
                self.assertEqual(sorted(due), sorted(who for who, when in model.items() if when <= now))
                self.assertEqual([model[who] for who in due], sorted(model[who] for who in due))
                model = {who: when for who, when in model.items() if when > now}
            self.assertEqual(len(timers), len(model))

    def test_changes_while_due(self) -> None:
        """In its callback an entry may set its own deadline again, and clear that of another, which is then not called."""
        timers: Deadlines[str] = Deadlines()
        for who in "abc":
            timers.set(who, 1.0)
        told = []
        for who in timers.due(1.0):
            told.append(who)
            timers.set(who, 2.0)
            timers.clear("b")
        self.assertEqual((told, len(timers)), (["a", "c"], 2))

    def test_memory(self) -> None:
        """A deadline that is reset with every line does not accumulate memory, and keeps no ended connection alive."""

        class Waiter:
            pass

        timers: Deadlines[Waiter] = Deadlines()
        waiter = Waiter()
        for number in range(10_000):
            timers.set(waiter, 1000.0 + number)
        self.assertLessEqual(len(timers._heap), 2 + SLACK)
        gone = weakref.ref(waiter)
        timers.clear(waiter)
        del waiter
        gc.collect()
        self.assertIsNone(gone())
