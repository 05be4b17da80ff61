"""Supervisor of short-lived children."""

from __future__ import annotations

import tracemalloc

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import ChildSpec, DynamicSupervisor, Intensity, Supervisor

from .fakes import Boom


class Connection:
    """Child that ends when it is told to stop, or does not."""

    __slots__ = ("fault", "log", "supervisor")

    def __init__(self, supervisor: DynamicSupervisor[Connection], fault: str = "") -> None:
        self.supervisor = supervisor
        self.fault = fault
        self.log: list[str] = []

    def stop(self) -> None:
        self.log.append("stop")
        if self.fault == "raises":
            raise Boom("stop")
        if self.fault != "stays":
            self.supervisor.ended(self)


class DynamicTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.supervisor: DynamicSupervisor[Connection] = DynamicSupervisor(self.clock, name="endpoints")
        self.supervisor.startService()

    def add(self, count: int, fault: str = "") -> list[Connection]:
        added = [Connection(self.supervisor, fault) for _ in range(count)]
        for child in added:
            self.supervisor.start_child(child)
        return added

    def test_come_and_go(self) -> None:
        """A child is counted from its start to its end. A second end has no effect."""
        one, two = self.add(2)
        self.assertEqual((len(self.supervisor), one in self.supervisor), (2, True))
        self.supervisor.ended(one)
        self.supervisor.ended(one)
        self.assertEqual((len(self.supervisor), one in self.supervisor, two in self.supervisor), (1, False, True))
        self.assertTrue(self.supervisor)

    def test_not_running(self) -> None:
        """A supervisor that does not run, or stops, refuses children."""
        idle: DynamicSupervisor[Connection] = DynamicSupervisor(self.clock)
        self.assertRaises(RuntimeError, idle.start_child, Connection(idle))
        self.add(1, "stays")
        self.supervisor.stopService()
        self.assertRaises(RuntimeError, self.add, 1)

    def test_stop(self) -> None:
        """A stop tells all children to stop, and is complete when the last one has ended."""
        quick, slow = self.add(3), self.add(1, "stays")
        stopped = self.supervisor.stopService()
        self.assertEqual([child.log for child in quick + slow], [["stop"]] * 4)
        self.assertNoResult(stopped)
        also = self.supervisor.stopService()
        self.supervisor.ended(slow[0])
        self.successResultOf(stopped)
        self.successResultOf(also)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.supervisor.stopService())

    def test_stop_in_turns(self) -> None:
        """Children are stopped in batches, one in each turn. A child that has ended in the meantime is not stopped."""
        children = self.add(1000)
        stopped = self.supervisor.stopService()
        told = sum(len(child.log) for child in children)
        self.assertTrue(0 < told <= 200, told)
        gone = next(child for child in children if not child.log)
        self.supervisor.ended(gone)
        self.clock.pump([0] * 10)
        self.successResultOf(stopped)
        self.assertEqual((sum(len(child.log) for child in children), gone.log), (999, []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_time_to_stop(self) -> None:
        """Children that do not stop within the shutdown time are abandoned."""
        self.add(3, "stays")
        stopped = self.supervisor.stopService()
        self.clock.advance(4.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(len(self.supervisor), 0)

    def test_failing_stop(self) -> None:
        """A child whose stop raises has ended, and the others stop."""
        self.add(2, "raises")
        self.add(2)
        self.successResultOf(self.supervisor.stopService())
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 2)

    def test_failures(self) -> None:
        """All failures are counted, and ten a minute are logged."""
        for round_ in range(2):
            for child in self.add(5000):
                self.supervisor.ended(child, Failure(Boom("in a line")))
            self.assertEqual((round_, len(self.flushLoggedErrors(Boom))), (round_, 10))
            self.clock.advance(61)
        self.assertEqual((self.supervisor.failures, self.supervisor.last_failure), (10000, "Boom: in a line"))

    def test_five_thousand_drop(self) -> None:
        """5,000 children that drop or fail within one second restart nothing, and count against no intensity."""
        gave_up: list[object] = []
        root = Supervisor(
            self.clock,
            [ChildSpec("connections", lambda: self.supervisor, type="supervisor")],
            intensity=Intensity(0, 60),
            on_give_up=gave_up.append,
            on_event=gave_up.append,
        )
        root.startService()
        for number, child in enumerate(self.add(5000)):
            self.clock.advance(1 / 5000)
            self.supervisor.ended(child, Failure(Boom()) if number % 2 else None)
        self.assertEqual((gave_up, root.tree()["children"][0]["restarts"], len(self.supervisor)), ([], 0, 0))
        self.flushLoggedErrors(Boom)

    def test_cheap(self) -> None:
        """Each of 100,000 children costs an entry in a set, and no timer, Deferred or other object."""
        children = [Connection(self.supervisor) for _ in range(100_000)]
        tracemalloc.start()
        try:
            for child in children:
                self.supervisor.start_child(child)
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertTrue(size < 64 * len(children), size / len(children))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for child in children:
            self.supervisor.ended(child)
        self.assertEqual(len(self.supervisor), 0)

    def test_tree(self) -> None:
        """The tree counts the children, and does not list them."""
        self.add(3)
        self.clock.advance(5)
        tree = self.supervisor.tree()
        self.assertEqual(
            (tree["state"], tree["strategy"], tree["count"], tree["uptime"]), ("running", "simple_one_for_one", 3, 5)
        )
        self.add(1, "stays")
        self.supervisor.stopService()
        self.assertEqual((self.supervisor.tree()["state"], self.supervisor.tree()["uptime"]), ("stopping", None))
        self.clock.advance(5)
        self.assertEqual(self.supervisor.tree()["state"], "stopped")
