"""Tests of the count of unconfirmed notices."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker import headers as delivery
from owsla.broker.notices import QUESTION_PATIENCE, UNCONFIRMED_BYTES, UNCONFIRMED_NOTICES, Notice, UnconfirmedNotices


def notice(kind: str = delivery.HERE, size: int = 1) -> Notice:
    made = Notice({delivery.NOTICE: kind}, b"", 1.0)
    made.size = size
    return made


class UnconfirmedNoticesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.notices = UnconfirmedNotices()

    def test_full(self) -> None:
        """The limits are on the number of notices and on their bytes."""
        for size, number in ((1, UNCONFIRMED_NOTICES), (UNCONFIRMED_BYTES // 4, 4)):
            for _ in range(number):
                self.assertFalse(self.notices.full)
                self.notices.add(notice(size=size))
            self.assertTrue(self.notices.full)
            self.notices.remove(notice(size=size))
            self.assertFalse(self.notices.full)
            self.notices.add(notice(size=size))
            self.notices.clear()

    def test_questions(self) -> None:
        """A question waits for the confirm of the last one, but not longer than its time, nor for other notices."""
        self.assertTrue(self.notices.may_ask(100.0))
        question = notice(delivery.WHO_HAS)
        self.notices.add(question)
        self.notices.add(notice())
        self.assertFalse(self.notices.may_ask(100.0 + QUESTION_PATIENCE / 2))
        self.assertTrue(self.notices.may_ask(100.0 + QUESTION_PATIENCE))
        self.assertFalse(self.notices.may_ask(100.0 + QUESTION_PATIENCE * 1.5))
        self.notices.remove(question)
        self.assertTrue(self.notices.may_ask(100.0 + QUESTION_PATIENCE * 1.5))
        self.notices.add(question)
        self.notices.clear()
        self.assertTrue(self.notices.may_ask(100.0 + QUESTION_PATIENCE * 1.5))
