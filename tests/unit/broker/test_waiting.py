"""Tests of the connections that wait to publish."""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.waiting import RESUMED_AT_ONCE, WaitingConnections


class Connection:
    """A connection that notes in which order it was resumed."""

    def __init__(self, order: list[Connection], fault: Exception | None = None) -> None:
        self.order = order
        self.fault = fault
        self.failures: list[BaseException | None] = []

    def resume(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.order.append(self)

    def failed(self, failure: Any) -> None:
        self.failures.append(failure.value)


class WaitingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.accepting = True
        self.waiting: Any = WaitingConnections(self.clock, lambda: self.accepting)
        self.order: list[Connection] = []

    def connections(self, count: int) -> list[Connection]:
        return [Connection(self.order) for _ in range(count)]

    def test_order(self) -> None:
        """Connections resume in the order of registration, also more than one iteration of the reactor resumes."""
        connections = self.connections(RESUMED_AT_ONCE + 1)
        self.waiting.add(connections)
        self.waiting.resume_soon()
        self.clock.advance(0)
        self.assertEqual(self.order, connections)

    def test_not_accepting(self) -> None:
        """No connection resumes while lines are not accepted."""
        self.waiting.add(self.connections(1))
        self.accepting = False
        self.waiting.resume_soon()
        self.clock.advance(0)
        self.assertEqual(self.order, [])

    def test_fault(self) -> None:
        """A connection that fails to resume costs no other connection."""
        broken, sound = Connection(self.order, ValueError("broken")), Connection(self.order)
        self.waiting.add([broken, sound])
        self.waiting.resume_soon()
        self.clock.advance(0)
        self.assertEqual((len(broken.failures), self.order), (1, [sound]))
        self.assertIs(broken.failures[0], broken.fault)

    def test_shares(self) -> None:
        """A connection waits for its next share until the lines of its last one have left the window."""
        first, second, third = self.connections(3)
        self.assertEqual(self.waiting.next_share, math.inf)
        self.waiting.add_sharing(second, 20)
        self.waiting.add_sharing(first, 10)
        self.waiting.add_sharing(third, 20)
        self.assertEqual(self.waiting.next_share, 10)
        self.waiting.grant_shares(10)
        self.clock.advance(0)
        self.assertEqual((self.order, self.waiting.next_share), ([first], 20))
        self.assertTrue(self.waiting.remove(second))
        self.assertFalse(self.waiting.remove(second))
        self.waiting.grant_shares(25)
        self.clock.advance(0)
        self.assertEqual((self.order, self.waiting.next_share), ([first, third], math.inf))
