"""Tests of the number of unconfirmed lines of each connection."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.outstanding_lines import OutstandingLines


class OutstandingLinesTests(SynchronousTestCase):
    def test_settle(self) -> None:
        """A connection whose last line is settled is forgotten; asking for it does not bring it back."""
        first: Any = "first"
        second: Any = "second"
        outstanding = OutstandingLines([first, second, first])
        outstanding.settle([(first, 0), (second, 0)])
        self.assertEqual((outstanding[first], outstanding[second]), (1, 0))
        self.assertEqual(list(outstanding), [first])
        outstanding.settle([(first, "a line of 7 bytes")])
        self.assertEqual(list(outstanding), [])
