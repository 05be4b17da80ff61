"""Tests of settled lines, when a dialect publishes none, one or several messages for a line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.settled_lines import SettledLines


class SettledLinesTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 3) | st.none(), max_size=80), st.data())
    def test_model(self, steps: list[int | None], data: st.DataObject) -> None:
        """A line is settled when every message published by the end of its processing is confirmed."""
        lines = SettledLines()
        needed: list[int] = []  # for each line: the number of published messages that must be confirmed
        published = confirmed = 0
        for step in steps:
            if step is None:
                confirmed = data.draw(st.integers(confirmed, published))
                lines.confirm(confirmed)
            else:
                published += step
                needed.append(published)
                lines.add(published, confirmed)
            settled = 0
            while settled < len(needed) and needed[settled] <= confirmed:
                settled += 1
            self.assertEqual((lines.settled, lines.received), (settled, len(needed)))
            self.assertLessEqual(len(lines), published - confirmed)
