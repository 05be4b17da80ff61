"""Tests of safe lines, when a dialect publishes none, one or several messages for a line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.marks import Marks


class MarksTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 3) | st.none(), max_size=80), st.data())
    def test_model(self, steps: list[int | None], data: st.DataObject) -> None:
        """By the definition itself: a line is safe when every message published by the end of it is confirmed."""
        marks = Marks()
        needed: list[int] = []  # for each line: the number of published messages that must be safe
        published = confirmed = 0
        for step in steps:
            if step is None:
                confirmed = data.draw(st.integers(confirmed, published))
                marks.confirm(confirmed)
            else:
                published += step
                needed.append(published)
                marks.add(published, confirmed)
            safe = 0
            while safe < len(needed) and needed[safe] <= confirmed:
                safe += 1
            self.assertEqual((marks.safe, marks.received), (safe, len(needed)))
            self.assertLessEqual(len(marks), published - confirmed)
