"""Supervisors: starting, restarting, giving up and stopping."""

from __future__ import annotations

import math

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from owsla.supervision import ChildSpec, GaveUp, Intensity, RestartReport
from owsla.supervision._decisions import RestartBackoff

from .fakes import Boom, Silent, SupervisionTestCase, boom


class StartAndStopTests(SupervisionTestCase):
    def test_order(self) -> None:
        """Children start in the order of the list, and stop in reverse."""
        root = self.world.supervisor("a", "b", "c")
        root.startService()
        self.assertEqual(self.world.take(), ["start a", "start b", "start c"])
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["stop c", "stop b", "stop a"])
        self.assertEqual(self.states(root), dict.fromkeys("abc", "stopped"))

    def test_stops_one_after_another(self) -> None:
        """A child is stopped when the child after it has stopped."""
        slow: Deferred[None] = Deferred()
        self.world.faults["stop b"] = lambda: slow
        root = self.world.supervisor("a", "b")
        root.startService()
        self.world.take()
        stopped = root.stopService()
        self.assertEqual(self.world.take(), ["stop b"])
        self.assertNoResult(stopped)
        slow.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.world.take(), ["stop a"])
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_shutdown(self) -> None:
        """A stop that takes longer than the spec allows is cancelled, and the next child is stopped."""
        cancelled: list[object] = []
        self.world.faults["stop b"] = lambda: Deferred(cancelled.append)
        root = self.world.supervisor("a", self.world.spec("b", shutdown=3))
        root.startService()
        stopped = root.stopService()
        self.world.clock.advance(2.9)
        self.assertNotIn("stop a", self.world.take())
        self.world.clock.advance(0.2)
        self.assertEqual(self.world.take(), ["stop a"])
        self.assertEqual(len(cancelled), 1)
        self.successResultOf(stopped)

    def test_no_wait_for_the_stop(self) -> None:
        """With a shutdown time of 0 the stop is not waited for."""
        self.world.faults["stop b"] = Deferred
        root = self.world.supervisor("a", self.world.spec("b", shutdown=0))
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take()[-2:], ["stop b", "stop a"])

    def test_no_wait_for_a_stop_that_fails(self) -> None:
        """The failure of a stop that is not waited for is logged."""
        self.world.faults["stop a"] = lambda: _failed()
        root = self.world.supervisor(self.world.spec("a", shutdown=0))
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.booms(), 1)

    def test_infinite(self) -> None:
        """The stop of a supervisor has no time limit: its children have limits of their own."""
        self.world.faults["stop a"] = Deferred
        inner = self.world.spec("inner", type="supervisor")
        self.assertEqual((inner.stop_timeout, self.world.spec("a").stop_timeout), (math.inf, 5.0))
        root = self.world.supervisor(
            ChildSpec("inner", lambda: self.world.inner(self.world.spec("a", shutdown=100)), type="supervisor")
        )
        root.startService()
        stopped = root.stopService()
        self.world.clock.advance(99)
        self.assertNoResult(stopped)
        self.world.clock.advance(1)
        self.successResultOf(stopped)

    def test_failing_stop(self) -> None:
        """A stop that fails is logged, and the other children stop."""
        self.world.faults["stop c"] = boom
        self.world.faults["stop b"] = lambda: _failed()
        root = self.world.supervisor("a", "b", "c")
        root.startService()
        self.world.take()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["stop c", "stop b", "stop a"])
        self.assertEqual(self.booms(), 2)

    def test_coroutines(self) -> None:
        """A service may start and stop in coroutines; the next child waits."""
        began: Deferred[None] = Deferred()

        async def begin() -> None:
            await began

        self.world.faults["start a"] = begin
        root = self.world.supervisor("a", "b")
        started = root.startService()
        self.assertEqual(self.world.take(), ["start a"])
        self.assertEqual(self.states(root), {"a": "starting", "b": "planned"})
        began.callback(None)
        self.assertEqual(self.world.take(), ["start b"])
        self.successResultOf(started)

    def test_privileged(self) -> None:
        """The privileged phase of all children comes before the first start, and each service is made once."""
        root = self.world.supervisor(
            "a", ChildSpec("inner", lambda: self.world.inner("b"), type="supervisor"), self.world.spec("c")
        )
        root.privilegedStartService()
        self.assertEqual(self.world.journal, ["privileged a", "privileged b", "privileged c"])
        root.startService()
        self.assertEqual(self.world.journal[3:], ["start a", "start b", "start c"])

    def test_privileged_at_a_restart(self) -> None:
        """A service that is made later has its privileged phase just before its start."""
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.world.journal, ["privileged a", "start a"])
        self.world.fail("a")
        self.assertEqual(self.world.journal[2:], ["stop a", "privileged a", "start a"])
        self.booms()

    def test_privileged_fails(self) -> None:
        """A child that fails in the privileged phase is restarted, and the others start."""
        for fault in ("make a", "privileged a"):
            self.world.faults[fault] = boom
            root = self.world.supervisor("a", "b")
            root.privilegedStartService()
            self.assertEqual(self.booms(), 0)
            self.world.faults.clear()
            root.startService()
            self.assertEqual(self.states(root), {"a": "restarting", "b": "running"})
            self.assertEqual(self.booms(), 1)
            self.world.turn()
            self.assertEqual(self.states(root), {"a": "running", "b": "running"})
            self.successResultOf(root.stopService())

    def test_never_started(self) -> None:
        """A service that ran its privileged phase only is stopped too: it may have opened a port."""
        root = self.world.supervisor("a")
        root.privilegedStartService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["stop a"])

    def test_again(self) -> None:
        """A supervisor can be started again, with new services and no failures counted."""
        root = self.world.supervisor("a", intensity=Intensity(1, 60))
        for _ in range(2):
            root.startService()
            self.world.fail("a")
            self.assertEqual(self.states(root), {"a": "running"})
            self.successResultOf(root.stopService())
        self.assertEqual(self.booms(), 2)

    def test_plain_services(self) -> None:
        """A plain service may be a child, and the supervisor is its parent."""
        service = Silent()
        root = self.world.supervisor(ChildSpec("plain", lambda: service))
        root.startService()
        self.assertIs(service.parent, root)
        self.assertEqual((list(root), root.getServiceNamed("plain"), service.name), ([service], service, "plain"))
        self.successResultOf(root.stopService())
        self.assertEqual((service.parent, list(root), service.log), (None, [], ["start", "stop"]))

    def test_under_a_plain_parent(self) -> None:
        """The parent of a root may be Twisted's MultiService, as under an Application."""
        above = MultiService()
        root = self.world.supervisor("a")
        root.setServiceParent(above)
        above.privilegedStartService()
        above.startService()
        self.successResultOf(above.stopService())
        self.assertEqual(self.world.take(), ["start a", "stop a"])

    def test_no_strangers(self) -> None:
        """A service without a spec is refused: it could not be restarted. The service of a child cannot be removed."""
        root = self.world.supervisor("a")
        self.assertRaises(TypeError, Silent().setServiceParent, root)
        root.startService()
        self.assertRaises(TypeError, self.world.services["a"].disownServiceParent)
        self.assertEqual(list(root), [self.world.services["a"]])


class RestartTests(SupervisionTestCase):
    def test_strategies(self) -> None:
        """The failed child is stopped first, the siblings of the strategy in reverse order; all of them start in order."""
        expected = {
            "one_for_one": ["stop b", "start b"],
            "rest_for_one": ["stop b", "stop c", "start b", "start c"],
            "one_for_all": ["stop b", "stop c", "stop a", "start a", "start b", "start c"],
        }
        for strategy, entries in expected.items():
            root = self.world.supervisor("a", "b", "c", strategy=strategy)
            root.startService()
            self.world.take()
            self.world.fail("b")
            self.assertEqual((strategy, self.world.take()), (strategy, entries))
            self.successResultOf(root.stopService())
            self.world.take()
        self.assertEqual(self.booms(), 3)

    def test_restart_types(self) -> None:
        """Permanent children restart after any end, transient ones after a failure, temporary ones never."""
        for restart, failed, normal in (
            ("permanent", "running", "running"),
            ("transient", "running", "stopped"),
            ("temporary", None, None),
        ):
            for reason, state in ((Boom(), failed), (None, normal)):
                root = self.world.supervisor(self.world.spec("a", restart=restart))
                root.startService()
                self.world.services["a"].end(reason)
                self.world.turn()
                self.assertEqual((restart, self.states(root).get("a")), (restart, state))
                self.assertEqual(self.world.take()[:2], ["start a", "stop a"])
                self.successResultOf(root.stopService())
                self.world.take()
        self.assertEqual(self.booms(), 3)

    def test_temporary_never_counts(self) -> None:
        """Failures of temporary children do not count against the intensity."""
        names = [str(number) for number in range(50)]
        temporary = [self.world.spec(name, restart="temporary") for name in names]
        root = self.world.supervisor("a", *temporary, intensity=Intensity(0, 60))
        root.startService()
        for name in names:
            self.world.fail(name)
        self.assertEqual(self.states(root), {"a": "running"})
        self.assertEqual(self.booms(), 50)

    def test_temporary_siblings(self) -> None:
        """A temporary child that is stopped for the restart of a sibling is forgotten."""
        root = self.world.supervisor("a", self.world.spec("b", restart="temporary"), strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running"})
        self.booms()

    def test_not_in_the_middle(self) -> None:
        """A child that reports its end is stopped in a later turn, not in the middle of its method."""
        root = self.world.supervisor("a")
        root.startService()
        self.world.take()
        self.world.services["a"].end(Boom())
        self.assertEqual(self.world.take(), [])
        self.world.turn()
        self.assertEqual(self.world.take(), ["stop a", "start a"])
        self.booms()

    def test_delays(self) -> None:
        """The first restart has no delay; each further one has a longer delay, until the child has run for a period."""
        root = self.world.supervisor("a", intensity=Intensity(3, 100))
        root.startService()
        for delay in (0, 1, 2):
            self.world.take()
            self.world.fail("a")
            self.assertEqual(self.world.take(), ["stop a"] if delay else ["stop a", "start a"])
            if delay:
                self.world.clock.advance(delay - 0.1)
                self.assertEqual(self.states(root), {"a": "restarting"})
                self.world.clock.advance(0.2)
            self.assertEqual(self.states(root), {"a": "running"})
        self.world.clock.advance(100.5)
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running"})
        self.booms()

    def test_delays_leave_room_to_give_up(self) -> None:
        """A child that always fails makes the supervisor give up, however long the delays of its back-off."""
        root = self.world.supervisor("a", intensity=Intensity(3, 8), backoff=RestartBackoff(first=60, longest=60))
        self.world.faults["start a"] = boom
        root.startService()
        self.world.clock.pump([0.1] * 40)
        self.assertEqual(len(self.world.gave_up), 1)
        self.booms()

    def test_earlier_incarnation(self) -> None:
        """A late failure of an earlier incarnation is logged, and has no effect on the present one."""
        root = self.world.supervisor("a")
        root.startService()
        old = self.world.services["a"]
        self.world.fail("a")
        old._worker_ended = False
        old.end(Boom("late"))
        self.world.turn()
        self.assertEqual(self.world.take(), ["start a", "stop a", "start a"])
        self.assertEqual(root.tree()["children"][0]["restarts"], 1)
        self.assertEqual(self.booms(), 2)

    def test_same_service_again(self) -> None:
        """A factory may return the same service each time."""
        service = Silent()
        root = self.world.supervisor("a", ChildSpec("plain", lambda: service), strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        self.assertEqual(service.log, ["start", "stop", "start"])
        self.assertIs(service.parent, root)
        self.booms()

    def test_start_fails(self) -> None:
        """A failure at any point of a start is a failure of the child, and the others start."""
        for fault, result in (
            ("make a", boom),
            ("privileged a", boom),
            ("privileged a", lambda: _failed()),
            ("start a", boom),
            ("start a", lambda: _failed()),
        ):
            self.world.faults[fault] = result
            root = self.world.supervisor("a", "b")
            self.successResultOf(root.startService())
            self.assertEqual((fault, self.states(root)), (fault, {"a": "restarting", "b": "running"}))
            self.assertEqual(self.booms(), 1)
            self.world.faults.clear()
            self.world.turn()
            self.assertEqual(self.states(root), {"a": "running", "b": "running"})
            self.successResultOf(root.stopService())
            self.world.take()

    def test_half_started(self) -> None:
        """An incomplete start is stopped. A failure of that stop is not a second failure."""
        self.world.faults.update({"start a": boom, "stop a": boom})
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)
        self.assertEqual(list(root), [])

    def test_start_fails_for_those_after_it(self) -> None:
        """With rest_for_one and one_for_all, the children after one that fails to start wait for it."""
        for strategy, entries in (
            ("rest_for_one", ["start a", "start b", "stop b"]),
            ("one_for_all", ["start a", "start b", "stop b", "stop a"]),
        ):
            self.world.faults["start b"] = boom
            root = self.world.supervisor("a", "b", "c", strategy=strategy)
            root.startService()
            self.assertEqual(self.world.take(), entries)
            self.world.faults.clear()
            self.world.turn()
            self.assertEqual(self.states(root), dict.fromkeys("abc", "running"))
            self.successResultOf(root.stopService())
            self.world.take()
        self.booms()

    def test_ends_in_its_start(self) -> None:
        """A child that reports its end in its start is restarted."""
        self.world.faults["start a"] = lambda: self.world.services["a"].end(Boom())
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.states(root), {"a": "restarting"})
        self.assertEqual(self.booms(), 1)

    def test_ends_before_its_start(self) -> None:
        """A child that reports its end in the privileged phase is not started; it is made again first."""
        self.world.faults["privileged a"] = lambda: self.world.services["a"].end(Boom())
        root = self.world.supervisor("a")
        root.privilegedStartService()
        root.startService()
        self.assertEqual(self.world.take(), ["stop a"])
        self.assertEqual(self.states(root), {"a": "restarting"})
        self.assertEqual(self.booms(), 1)

    def test_ends_while_its_start_takes_time(self) -> None:
        """A slow start is no longer waited for when the child reports its end."""
        self.world.faults["start a"] = Deferred
        root = self.world.supervisor("a", "b")
        started = root.startService()
        self.world.services["a"].end(Boom())
        self.assertEqual(self.states(root), {"a": "restarting", "b": "running"})
        self.successResultOf(started)
        self.assertEqual(self.booms(), 1)

    def test_fails_while_a_sibling_waits(self) -> None:
        """With rest_for_one, a failure replaces the pending restart of a later sibling: each child starts once, in order."""
        root = self.world.supervisor("a", "b", "c", strategy="rest_for_one", intensity=Intensity(9, 60))
        root.startService()
        self.world.fail("b")
        self.world.services["b"].end(Boom())
        self.world.clock.advance(0)
        self.assertEqual(self.states(root), {"a": "running", "b": "restarting", "c": "restarting"})
        self.world.take()
        self.world.fail("a")
        self.world.clock.advance(10)
        self.assertEqual(self.world.take(), ["stop a", "start a", "start b", "start c"])
        self.booms()

    def test_waits_longer_for_a_sibling(self) -> None:
        """A pending restart of a later sibling waits as long as the child that it depends on."""
        root = self.world.supervisor("a", "b", strategy="rest_for_one", intensity=Intensity(9, 60))
        root.startService()
        for wait in (0, 1):
            self.world.fail("a")
            self.world.clock.advance(wait)
        for _ in range(2):
            self.world.fail("b")
        self.world.take()
        self.world.fail("a")
        self.world.clock.advance(1.9)
        self.assertEqual(self.world.take(), ["stop a"])
        self.world.clock.advance(0.2)
        self.assertEqual(self.world.take(), ["start a", "start b"])
        self.booms()

    def test_restart_due_during_another(self) -> None:
        """A restart that becomes due while an earlier sibling stops is replaced by that sibling's: each child starts once."""
        root = self.world.supervisor("a", "b", strategy="rest_for_one", intensity=Intensity(9, 60))
        root.startService()
        self.world.fail("b")
        self.world.fail("b")
        slow: Deferred[None] = Deferred()
        self.world.faults["stop a"] = lambda: slow
        self.world.take()
        self.world.fail("a")
        self.world.clock.advance(1)
        self.assertEqual(self.world.take(), ["stop a"])
        slow.callback(None)
        self.world.turn()
        self.assertEqual(self.world.take(), ["start a", "start b"])
        self.assertEqual(self.states(root), {"a": "running", "b": "running"})
        self.booms()

    def test_two_at_once(self) -> None:
        """Several ends in one turn are handled one after another."""
        root = self.world.supervisor("a", "b")
        root.startService()
        self.world.take()
        self.world.services["a"].end(Boom())
        self.world.services["b"].end(Boom())
        self.world.turn()
        self.assertEqual(self.world.take(), ["stop a", "stop b", "start a", "start b"])
        self.booms()

    def test_two_at_once_one_for_all(self) -> None:
        """With one_for_all, two ends in one turn are one restart, and the second end is only logged."""
        root = self.world.supervisor("a", "b", strategy="one_for_all", intensity=Intensity(1, 60))
        root.startService()
        self.world.services["a"].end(Boom())
        self.world.services["b"].end(Boom())
        self.world.turn()
        self.assertEqual(self.states(root), {"a": "running", "b": "running"})
        self.assertEqual(self.booms(), 2)

    def test_thousands_at_once(self) -> None:
        """The depth of the stack does not depend on the number of ends in one turn."""
        names = [str(number) for number in range(3000)]
        root = self.world.supervisor(*[self.world.spec(name, restart="transient") for name in names])
        root.startService()
        for name in names:
            self.world.services[name].end()
        self.world.turn()
        self.assertEqual(set(self.states(root).values()), {"stopped"})


class GiveUpTests(SupervisionTestCase):
    def test_past_the_intensity(self) -> None:
        """After one failure more than allowed the children stop in reverse order, and the root gives up."""
        root = self.world.supervisor("a", "b", intensity=Intensity(1, 60))
        root.startService()
        self.world.fail("a")
        self.world.take()
        self.world.fail("a")
        self.assertEqual(self.world.take(), ["stop a", "stop b"])
        [gave_up] = self.world.gave_up
        self.assertEqual(str(gave_up), "root gave up: a failed 2 times within 60 s: Boom: of a")
        self.assertEqual(
            (gave_up.supervisor, gave_up.child, gave_up.failures, gave_up.restarts, gave_up.period, gave_up.reason),
            ("root", "a", 2, 1, 60, "Boom: of a"),
        )
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.successResultOf(root.stopService())
        self.assertEqual((self.world.take(), len(self.world.gave_up)), ([], 1))
        self.booms()

    def test_slow_enough(self) -> None:
        """Failures older than the period do not count."""
        root = self.world.supervisor("a", intensity=Intensity(1, 60))
        root.startService()
        for _ in range(10):
            self.world.fail("a")
            self.world.clock.advance(61)
        self.assertEqual(self.world.gave_up, [])
        self.booms()

    def test_text(self) -> None:
        """The text of GaveUp is one line, with the child, the number of failures and the reason."""
        root = self.world.supervisor("a", "b", intensity=Intensity(2, 5))
        root.startService()
        self.world.fail("a")
        self.world.fail("a")
        self.world.fail("b")
        self.assertEqual(str(self.world.gave_up[0]), "root gave up: 3 failures within 5 s, 1 of b, the last one: Boom: of b")
        root = self.world.supervisor("a", intensity=Intensity(0, 5))
        root.startService()
        self.world.services["a"].end(Boom("two\n lines " + 500 * "x"))
        self.world.turn()
        line = str(self.world.gave_up[1])
        self.assertTrue(line.startswith("root gave up: a failed: Boom: two lines xxx"), line)
        self.assertEqual((len(line) < 400, line.count("\n")), (True, 0))
        self.booms()

    def test_to_the_parent(self) -> None:
        """A supervisor that gives up fails to its parent, which restarts it, and in the end gives up too."""
        root = self.world.supervisor(
            "x",
            ChildSpec("inner", lambda: self.world.inner("a", "b", intensity=Intensity(1, 60)), type="supervisor"),
            intensity=Intensity(1, 60),
        )
        root.startService()
        for _ in range(2):
            self.world.fail("a")
        self.world.turn()
        self.assertEqual(self.states(root), {"x": "running", "inner": "running"})
        self.assertEqual(self.world.take()[-4:], ["stop a", "stop b", "start a", "start b"])
        self.assertEqual(self.world.gave_up, [])
        for _ in range(2):
            self.world.fail("a")
        self.world.turn()
        self.assertEqual(
            str(self.world.gave_up[0]),
            "root gave up: inner failed 2 times within 60 s: root/inner gave up: a failed 2 times within 60 s: Boom: of a",
        )
        self.assertEqual(self.world.take()[-1], "stop x")
        self.booms()

    def test_in_its_start(self) -> None:
        """A supervisor may give up while it starts."""
        self.world.faults["start a"] = boom
        root = self.world.supervisor(
            "x",
            ChildSpec("inner", lambda: self.world.inner("a", intensity=Intensity(0, 60)), type="supervisor"),
            "y",
            intensity=Intensity(0, 60),
        )
        self.successResultOf(root.startService())
        self.assertEqual(len(self.world.gave_up), 1)
        self.assertEqual(self.world.take(), ["start x", "start a", "stop a", "stop x"])
        self.booms()

    def test_in_its_slow_start(self) -> None:
        """A supervisor may give up while its parent waits for its start."""
        slow: Deferred[None] = Deferred()
        self.world.faults["start b"] = lambda: slow
        root = self.world.supervisor(
            ChildSpec("inner", lambda: self.world.inner("b", intensity=Intensity(0, 60)), type="supervisor"),
            "y",
        )
        started = root.startService()
        self.assertNoResult(started)
        slow.errback(Boom())
        self.successResultOf(started)
        self.assertEqual(self.states(root), {"inner": "restarting", "y": "running"})
        self.booms()

    def test_stop_meanwhile(self) -> None:
        """A stop while the supervisor gives up waits for the children that stop, and no failure is reported."""
        slow: Deferred[None] = Deferred()
        self.world.faults["stop a"] = lambda: slow
        root = self.world.supervisor("a", "b", intensity=Intensity(0, 60))
        root.startService()
        self.world.fail("b")
        stopped = root.stopService()
        self.assertNoResult(stopped)
        slow.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.world.gave_up, [])
        self.assertEqual(self.states(root), {"a": "stopped", "b": "stopped"})
        self.booms()

    def test_reports(self) -> None:
        """on_event gets the reports of the supervisor and of the supervisors below it."""
        root = self.world.supervisor(
            ChildSpec(
                "inner",
                lambda: self.world.inner("a", "b", intensity=Intensity(2, 60), strategy="rest_for_one"),
                type="supervisor",
            )
        )
        root.startService()
        self.world.fail("a")
        self.world.services["b"].end()
        self.world.turn()
        self.world.fail("b")
        self.world.clock.advance(5)
        first, second, third, fourth = self.world.reports
        self.assertEqual(first, RestartReport("root/inner/a", "Boom: of a", 1, 0, ("b",)))
        self.assertEqual(second, RestartReport("root/inner/b", "ended without a failure", 2, 0, ()))
        assert isinstance(third, GaveUp)
        self.assertEqual((third.supervisor, third.child), ("root/inner", "b"))
        assert isinstance(fourth, RestartReport)
        self.assertEqual((fourth.path, fourth.reason), ("root/inner", str(third)))
        self.booms()

    def test_failing_callbacks(self) -> None:
        """Failures of on_event and on_give_up are logged, and change nothing."""

        def fail(_: object) -> None:
            boom()

        root = self.world.supervisor("a", on_event=fail, on_give_up=fail, intensity=Intensity(1, 60))
        root.startService()
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running"})
        self.assertEqual(self.booms(), 2)
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "stopped"})
        self.assertEqual(self.booms(), 3)
        self.world.faults["start a"] = boom
        self.successResultOf(self.world.supervisor("a", on_give_up=fail, intensity=Intensity(0, 60)).startService())
        self.assertEqual(self.booms(), 2)


class StopMeanwhileTests(SupervisionTestCase):
    def test_during_a_wait(self) -> None:
        """A stop cancels a pending restart."""
        root = self.world.supervisor("a", "b")
        root.startService()
        self.world.fail("a")
        self.world.services["a"].end(Boom())
        self.world.clock.advance(0)
        self.assertEqual(self.states(root), {"a": "restarting", "b": "running"})
        self.world.take()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.world.clock.advance(100)
        self.assertEqual(self.world.take(), ["stop b"])
        root.startService()
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running", "b": "running"})
        self.booms()

    def test_before_an_end_is_taken(self) -> None:
        """A stop in the turn in which a child fails logs the failure, and nothing restarts."""
        root = self.world.supervisor("a")
        root.startService()
        self.world.services["a"].end(Boom())
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)

    def test_during_a_slow_start(self) -> None:
        """A stop interrupts a slow start: the child is stopped, and the children after it are never started."""
        cancelled: list[object] = []
        self.world.faults["start b"] = lambda: Deferred(cancelled.append)
        root = self.world.supervisor("a", "b", "c")
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["start a", "start b", "stop b", "stop a"])
        self.assertEqual(len(cancelled), 1)

    def test_stubborn_start(self) -> None:
        """A stop interrupts even a start that ignores its cancellation."""

        async def begin() -> None:
            while True:
                try:
                    await Deferred()
                except CancelledError:
                    pass

        self.world.faults["start a"] = begin
        root = self.world.supervisor("a")
        root.startService()
        self.successResultOf(root.stopService())

    def test_during_a_group_restart(self) -> None:
        """A stop while siblings stop for a restart stops each child once, and starts none."""
        slow: Deferred[None] = Deferred()
        self.world.faults["stop b"] = lambda: slow
        root = self.world.supervisor("a", "b", strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        stopped = root.stopService()
        slow.callback(None)
        self.successResultOf(stopped)
        self.world.clock.advance(100)
        self.assertEqual(self.world.take(), ["start a", "start b", "stop a", "stop b"])
        self.assertEqual(self.world.reports, [])
        self.booms()

    def test_twice(self) -> None:
        """Each caller of stopService waits for the end of the stop."""
        slow: Deferred[None] = Deferred()
        self.world.faults["stop a"] = lambda: slow
        root = self.world.supervisor("a")
        root.startService()
        both = [root.stopService(), root.stopService()]
        for stopped in both:
            self.assertNoResult(stopped)
        slow.callback(None)
        for stopped in both:
            self.successResultOf(stopped)
        self.assertEqual(self.world.take(), ["start a", "stop a"])

    def test_fails_while_it_stops(self) -> None:
        """A failure that a child reports while it is stopped is only logged."""
        self.world.faults["stop a"] = lambda: self.world.services["a"].end(Boom())
        root = self.world.supervisor("a")
        root.startService()
        self.successResultOf(root.stopService())
        self.world.clock.advance(100)
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)


class SpecTests(SupervisionTestCase):
    def test_refused(self) -> None:
        """An invalid spec, strategy or duplicate id is refused at once."""
        for options in ({"restart": "always"}, {"type": "thing"}, {"shutdown": -1}, {"shutdown": math.nan}):
            self.assertRaises(ValueError, self.world.spec, "a", **options)
        self.assertRaises(ValueError, self.world.spec, "")
        self.assertRaises(ValueError, self.world.spec, "a/b")
        self.assertRaises(ValueError, self.world.supervisor, "a", "a")
        self.assertRaises(ValueError, self.world.supervisor, strategy="all")


def _failed() -> Deferred[None]:
    failed: Deferred[None] = succeed(None)
    return failed.addCallback(lambda _: Failure(Boom()))
