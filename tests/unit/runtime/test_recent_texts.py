"""Texts that are reported once in an interval."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.recent_texts import LIMIT, RecentTexts


class RecentTextsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.texts = RecentTexts(self.clock, 60.0)

    def test_repeated(self) -> None:
        """A text that is repeated all the time is reported once in each interval; other texts do not change that."""
        reported = []
        for second in range(125):
            for text in ("one", "two") if second % 2 else ("one",):
                if not self.texts.repeats(text):
                    reported.append((second, text))
            self.clock.advance(1)
        self.assertEqual(reported, [(0, "one"), (1, "two"), (60, "one"), (61, "two"), (120, "one"), (121, "two")])

    def test_bounded(self) -> None:
        """The number of texts that are remembered has a limit; past it the oldest are forgotten."""
        for number in range(LIMIT + 1):
            self.assertFalse(self.texts.repeats(str(number)))
        self.assertTrue(self.texts.repeats(str(LIMIT)))
        self.assertFalse(self.texts.repeats("0"))
