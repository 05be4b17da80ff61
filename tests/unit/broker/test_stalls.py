"""Tests of connections that stall separately: which ones, for how long, and what is logged."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.stalls import REASONS_REPORTED, Stalls


class StallsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stalls: Stalls[str, str] = Stalls()

    def test_one(self) -> None:
        """A connection stalls at the first refused line, until a line that was published again is safe."""
        self.assertFalse(self.stalls)
        self.assertEqual(self.stalls.refuse("a", "full"), (True, True))
        self.assertEqual(self.stalls.refuse("a", "full"), (False, False))
        self.stalls.wait("a", "a")
        self.assertIn("a", self.stalls)
        self.assertNotIn("b", self.stalls)
        self.assertEqual(self.stalls.safe(["a", "b"]), [], "that was one which was not refused, before it was tried again")
        self.assertEqual((self.stalls.holds("a"), self.stalls.holds("b")), (True, False))
        self.stalls.published_again()
        self.assertFalse(self.stalls.holds("a"))
        self.assertIn("a", self.stalls)
        self.assertEqual(self.stalls.safe(["b", "a", "a"]), ["a"])
        self.assertFalse(self.stalls)

    def test_refused_again(self) -> None:
        """A connection with another refused line stays stalled, whatever other lines of it are safe."""
        self.stalls.refuse("a", "full")
        self.stalls.wait("a", "a")
        self.stalls.published_again()
        self.stalls.refuse("a", "full")
        self.assertEqual(self.stalls.safe(["a"]), [])
        self.assertIn("a", self.stalls)

    def test_who_does_not_wait(self) -> None:
        """A connection that has left, or does not wait, is not called."""
        for source in "abc":
            self.stalls.refuse(source, "full")
            self.stalls.wait(source, source)
        self.stalls.leave("b")
        self.stalls.leave("z")
        self.stalls.refuse("d", "full")
        self.stalls.published_again()
        self.assertEqual(self.stalls.safe("dcba"), ["c", "a"])

    def test_reasons(self) -> None:
        """A reason is logged once, and again after all connections stalled for it have continued."""
        self.assertEqual(self.stalls.refuse("a", "full"), (True, True))
        self.assertEqual(self.stalls.refuse("b", "full"), (True, False))
        self.assertEqual(self.stalls.refuse("c", "nowhere"), (True, True))
        self.stalls.published_again()
        self.stalls.safe("a")
        self.assertEqual(self.stalls.refuse("d", "full"), (True, False))
        self.stalls.published_again()
        self.stalls.safe("bd")
        self.assertEqual(self.stalls.refuse("e", "full"), (True, True))
        self.assertEqual(self.stalls.refuse("f", "nowhere"), (True, False))

    def test_many_reasons(self) -> None:
        """Of very many reasons the first ones are logged. When they are over, there is room for others."""
        told = [self.stalls.refuse(str(number), str(number))[1] for number in range(2 * REASONS_REPORTED)]
        self.assertEqual(sum(told), REASONS_REPORTED)
        self.stalls.published_again()
        self.stalls.safe(map(str, range(2 * REASONS_REPORTED)))
        self.assertEqual(self.stalls.refuse("0", "again"), (True, True))

    def test_clear(self) -> None:
        """On a new connection to the broker no connection is stalled. Waiting ones continue in their order."""
        for source in "cab":
            self.stalls.refuse(source, "full")
        self.stalls.wait("b", "b")
        self.stalls.wait("c", "c")
        self.assertEqual(self.stalls.clear(), ["c", "b"])
        self.assertEqual((len(self.stalls), self.stalls.clear()), (0, []))
        self.assertEqual(self.stalls.refuse("a", "full"), (True, True))
