"""Work in slices: one piece after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._slices import Slices, chunks


class SlicesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.slices = Slices(cast("Any", self.clock))
        self.done: list[str] = []

    def steps(self, name: str, fails: bool = False) -> Iterator[None]:
        for number in range(3):
            self.done.append(f"{name}{number}")
            yield
        if fails:
            raise ZeroDivisionError(name)

    def test_one_after_the_other(self) -> None:
        """The second begins when the first has ended, also with an exception, which fails its Deferred."""
        first, second = self.slices.run(self.steps("a", fails=True)), self.slices.run(self.steps("b"))
        self.clock.advance(0)
        self.failureResultOf(first, ZeroDivisionError)
        self.assertIsNone(self.successResultOf(second))
        self.assertEqual(self.done, ["a0", "a1", "a2", "b0", "b1", "b2"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_chunks(self) -> None:
        """Items come in lists of a size; the last one may be shorter."""
        self.assertEqual(list(chunks("abcde", 2)), [["a", "b"], ["c", "d"], ["e"]])
        self.assertEqual(list(chunks("", 2)), [])
