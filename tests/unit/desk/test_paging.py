"""The selection of a page out of many rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._paging import Selection


class SelectionTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 100), max_size=400), st.integers(1, 20), st.booleans())
    def test_first(self, values: list[int], limit: int, descending: bool) -> None:
        """The first items of the order are selected, out of any number, in order; and whether there are more."""
        selection: Selection[str] = Selection(limit, descending)
        items = [((value, number), f"{value} {number}") for number, value in enumerate(values)]
        for key, item in items:
            selection.offer(key, item)
        items.sort(reverse=descending)
        self.assertEqual(selection.take(), items[:limit])
        self.assertEqual(selection.more, len(values) > limit)

    def test_bounded(self) -> None:
        """Twice as many items as wanted are kept at most, and some, also if each comes before all others."""
        selection: Selection[None] = Selection(10, descending=True)
        for number in range(10_000):
            selection.offer(number, None)
            self.assertLessEqual(len(selection._items), 2 * 10 + 64)
        self.assertEqual([key for key, _ in selection.take()], list(range(9999, 9989, -1)))
