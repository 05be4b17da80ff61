"""Which received lines are safe, where a dialect publishes none, one or several for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.marks import Marks


class MarksTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 3) | st.none(), max_size=80), st.data())
    def test_model(self, steps: list[int | None], data: st.DataObject) -> None:
        """A line is safe when everything is confirmed that was published by the end of it: against the definition itself."""
        marks = Marks()
        needed: list[int] = []  # of each line: how many published ones must be safe
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
