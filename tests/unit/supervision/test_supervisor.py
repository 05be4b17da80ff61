"""Supervisors: starting, restarting, giving up and stopping."""

from __future__ import annotations

import math
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from owsla.supervision import (
    KILL,
    Backoff,
    ChildExists,
    ChildNotStopped,
    ChildRestarted,
    ChildSpec,
    Intensity,
    NoSuchChild,
    NotRunning,
    SupervisorGaveUp,
)

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
        """A child is stopped when the one after it has stopped."""
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
        """A stop is waited for as long as the spec says; then it is cancelled and the next one's turn."""
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

    def test_kill(self) -> None:
        """With KILL nothing is waited for."""
        self.world.faults["stop b"] = Deferred
        root = self.world.supervisor("a", self.world.spec("b", shutdown=KILL))
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take()[-2:], ["stop b", "stop a"])

    def test_kill_that_fails_at_once(self) -> None:
        """A stop that nobody waits for, and that fails, is logged."""
        self.world.faults["stop a"] = lambda: _failed()
        root = self.world.supervisor(self.world.spec("a", shutdown=KILL))
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.booms(), 1)

    def test_infinite(self) -> None:
        """A supervisor is waited for without a bound: its children have theirs."""
        self.world.faults["stop a"] = Deferred
        inner = self.world.spec("inner", type="supervisor")
        self.assertEqual((inner.patience, self.world.spec("a").patience), (math.inf, 5.0))
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
        """A stop that fails, in whichever way, is logged and keeps nobody else from stopping."""
        self.world.faults["stop c"] = boom
        self.world.faults["stop b"] = lambda: _failed()
        root = self.world.supervisor("a", "b", "c")
        root.startService()
        self.world.take()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["stop c", "stop b", "stop a"])
        self.assertEqual(self.booms(), 2)

    def test_coroutines(self) -> None:
        """A service may start and stop in coroutines; the next one waits."""
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
        """What needs privileges is passed on to the children, before any of them starts, and each service is made once."""
        root = self.world.supervisor(
            "a", ChildSpec("inner", lambda: self.world.inner("b"), type="supervisor"), self.world.spec("c")
        )
        root.privilegedStartService()
        self.assertEqual(self.world.book, ["privileged a", "privileged b", "privileged c"])
        root.startService()
        self.assertEqual(self.world.book[3:], ["start a", "start b", "start c"])

    def test_privileged_at_a_restart(self) -> None:
        """A child that is made later has its privileged start too, just before the other."""
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.world.book, ["privileged a", "start a"])
        self.world.fail("a")
        self.assertEqual(self.world.book[2:], ["stop a", "privileged a", "start a"])
        self.booms()

    def test_privileged_fails(self) -> None:
        """A child that fails in the privileged phase keeps nobody from starting, and is restarted."""
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
        """What was only prepared is stopped too: it may have opened a port."""
        root = self.world.supervisor("a")
        root.privilegedStartService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["stop a"])

    def test_again(self) -> None:
        """It can be started again, with new services and a clean record."""
        root = self.world.supervisor("a", intensity=Intensity(1, 60))
        for _ in range(2):
            root.startService()
            self.world.fail("a")
            self.assertEqual(self.states(root), {"a": "running"})
            self.successResultOf(root.stopService())
        self.assertEqual(self.booms(), 2)

    def test_plain_services(self) -> None:
        """A service that knows nothing of supervision is a child like any other, and its parent is the supervisor."""
        service = Silent()
        root = self.world.supervisor(ChildSpec("plain", lambda: service))
        root.startService()
        self.assertIs(service.parent, root)
        self.assertEqual((list(root), root.getServiceNamed("plain"), service.name), ([service], service, "plain"))
        self.successResultOf(root.stopService())
        self.assertEqual((service.parent, list(root), service.log), (None, [], ["start", "stop"]))

    def test_under_a_plain_parent(self) -> None:
        """A root may itself be a child of Twisted's own MultiService, as under an Application."""
        above = MultiService()
        root = self.world.supervisor("a")
        root.setServiceParent(above)
        above.privilegedStartService()
        above.startService()
        self.successResultOf(above.stopService())
        self.assertEqual(self.world.take(), ["start a", "stop a"])

    def test_no_strangers(self) -> None:
        """A service without a spec could not be restarted: it is refused."""
        self.assertRaises(TypeError, Silent().setServiceParent, self.world.supervisor())


class RestartTests(SupervisionTestCase):
    def test_strategies(self) -> None:
        """Whoever the strategy says is stopped in reverse order, and started in order; the failed one is stopped first."""
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
        """Permanent children come back in any case, transient ones after a failure, temporary ones never."""
        for restart, failed, normal in (
            ("permanent", "running", "running"),
            ("transient", "running", "stopped"),
            ("temporary", None, None),
        ):
            for reason, state in ((Boom(), failed), (None, normal)):
                root = self.world.supervisor(self.world.spec("a", restart=restart))
                root.startService()
                self.world.lives["a"].end(reason)
                self.world.turn()
                self.assertEqual((restart, self.states(root).get("a")), (restart, state))
                self.assertEqual(self.world.take()[:2], ["start a", "stop a"])
                self.successResultOf(root.stopService())
                self.world.take()
        self.assertEqual(self.booms(), 3)

    def test_temporary_never_counts(self) -> None:
        """Temporary children may fail as often as they like."""
        root = self.world.supervisor("a", intensity=Intensity(0, 60))
        root.startService()
        for number in range(50):
            root.start_child(self.world.spec(str(number), restart="temporary"))
            self.world.fail(str(number))
        self.assertEqual(self.states(root), {"a": "running"})
        self.assertEqual(self.booms(), 50)

    def test_temporary_siblings(self) -> None:
        """A temporary child that is stopped for its sibling's sake is not started again, and forgotten."""
        root = self.world.supervisor("a", self.world.spec("b", restart="temporary"), strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running"})
        self.booms()

    def test_not_in_the_middle(self) -> None:
        """Whoever says that it ended is not stopped before it has returned."""
        root = self.world.supervisor("a")
        root.startService()
        self.world.take()
        self.world.lives["a"].end(Boom())
        self.assertEqual(self.world.take(), [])
        self.world.turn()
        self.assertEqual(self.world.take(), ["stop a", "start a"])
        self.booms()

    def test_waits(self) -> None:
        """The first restart comes at once; then each waits longer, until the child has lived for a period."""
        root = self.world.supervisor("a", intensity=Intensity(3, 100))
        root.startService()
        for wait in (0, 1, 2):
            self.world.take()
            self.world.fail("a")
            self.assertEqual(self.world.take(), ["stop a"] if wait else ["stop a", "start a"])
            if wait:
                self.world.clock.advance(wait - 0.1)
                self.assertEqual(self.states(root), {"a": "restarting"})
                self.world.clock.advance(0.2)
            self.assertEqual(self.states(root), {"a": "running"})
        self.world.clock.advance(100.5)
        self.world.fail("a")
        self.assertEqual(self.states(root), {"a": "running"})
        self.booms()

    def test_waits_leave_room_to_give_up(self) -> None:
        """A wait is never so long that the failures of a child that always fails fall out of the period."""
        root = self.world.supervisor("a", intensity=Intensity(3, 8), backoff=Backoff(first=60, most=60))
        self.world.faults["start a"] = boom
        root.startService()
        self.world.clock.pump([0.1] * 40)
        self.assertEqual(len(self.world.gave_up), 1)
        self.booms()

    def test_old_lives(self) -> None:
        """What an earlier life of a child says later is logged, and does nothing to the present one."""
        root = self.world.supervisor("a")
        root.startService()
        old = self.world.lives["a"]
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
        """Whatever fails in a start is a failure of the child, and the others start."""
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
        """What started halfway is stopped; that this fails is no second failure."""
        self.world.faults.update({"start a": boom, "stop a": boom})
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)
        self.assertEqual(list(root), [])

    def test_start_fails_for_those_after_it(self) -> None:
        """Where a strategy says that those after it depend on it, they wait until it has started."""
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
        """A child that says in its start that it ended, did so."""
        self.world.faults["start a"] = lambda: self.world.lives["a"].end(Boom())
        root = self.world.supervisor("a")
        root.startService()
        self.assertEqual(self.states(root), {"a": "restarting"})
        self.assertEqual(self.booms(), 1)

    def test_ends_before_its_start(self) -> None:
        """So did one that says it in the privileged phase: it is not started before it is made anew."""
        self.world.faults["privileged a"] = lambda: self.world.lives["a"].end(Boom())
        root = self.world.supervisor("a")
        root.privilegedStartService()
        root.startService()
        self.assertEqual(self.world.take(), ["stop a"])
        self.assertEqual(self.states(root), {"a": "restarting"})
        self.assertEqual(self.booms(), 1)

    def test_ends_while_its_start_takes_time(self) -> None:
        """A start that takes its time is not waited for when the child says that it ended."""
        self.world.faults["start a"] = Deferred
        root = self.world.supervisor("a", "b")
        started = root.startService()
        self.world.lives["a"].end(Boom())
        self.assertEqual(self.states(root), {"a": "restarting", "b": "running"})
        self.successResultOf(started)
        self.assertEqual(self.booms(), 1)

    def test_fails_while_a_sibling_waits(self) -> None:
        """With rest_for_one, a failure before a child that waits takes that one along: everybody is started once, in order."""
        root = self.world.supervisor("a", "b", "c", strategy="rest_for_one", intensity=Intensity(9, 60))
        root.startService()
        self.world.fail("b")
        self.world.lives["b"].end(Boom())
        self.world.clock.advance(0)
        self.assertEqual(self.states(root), {"a": "running", "b": "restarting", "c": "restarting"})
        self.world.take()
        self.world.fail("a")
        self.world.clock.advance(10)
        self.assertEqual(self.world.take(), ["stop a", "start a", "start b", "start c"])
        self.booms()

    def test_waits_longer_for_a_sibling(self) -> None:
        """And nobody is started before the one that they depend on, however long that one waits."""
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

    def test_two_at_once(self) -> None:
        """Several that end in one turn are each answered, one after the other."""
        root = self.world.supervisor("a", "b")
        root.startService()
        self.world.take()
        self.world.lives["a"].end(Boom())
        self.world.lives["b"].end(Boom())
        self.world.turn()
        self.assertEqual(self.world.take(), ["stop a", "stop b", "start a", "start b"])
        self.booms()

    def test_two_at_once_one_for_all(self) -> None:
        """Where the first one's restart takes the second along, the second's end is over with it: one restart for both."""
        root = self.world.supervisor("a", "b", strategy="one_for_all", intensity=Intensity(1, 60))
        root.startService()
        self.world.lives["a"].end(Boom())
        self.world.lives["b"].end(Boom())
        self.world.turn()
        self.assertEqual(self.states(root), {"a": "running", "b": "running"})
        self.assertEqual(self.booms(), 2)

    def test_thousands_at_once(self) -> None:
        """However many end in one turn, the stack does not grow with them."""
        names = [str(number) for number in range(3000)]
        root = self.world.supervisor(*[self.world.spec(name, restart="transient") for name in names])
        root.startService()
        for name in names:
            self.world.lives[name].end()
        self.world.turn()
        self.assertEqual(root.count_children().active, 0)


class GiveUpTests(SupervisionTestCase):
    def test_past_the_intensity(self) -> None:
        """One failure more than allowed: the children are stopped in reverse order, and the root says so."""
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
        """Failures that fall out of the period are forgotten."""
        root = self.world.supervisor("a", intensity=Intensity(1, 60))
        root.startService()
        for _ in range(10):
            self.world.fail("a")
            self.world.clock.advance(61)
        self.assertEqual(self.world.gave_up, [])
        self.booms()

    def test_sentences(self) -> None:
        """One line says which child failed how often, and why."""
        root = self.world.supervisor("a", "b", intensity=Intensity(2, 5))
        root.startService()
        self.world.fail("a")
        self.world.fail("a")
        self.world.fail("b")
        self.assertEqual(str(self.world.gave_up[0]), "root gave up: 3 failures within 5 s, 1 of b, the last one: Boom: of b")
        root = self.world.supervisor("a", intensity=Intensity(0, 5))
        root.startService()
        self.world.lives["a"].end(Boom("two\n lines " + 500 * "x"))
        self.world.turn()
        line = str(self.world.gave_up[1])
        self.assertTrue(line.startswith("root gave up: a failed: Boom: two lines xxx"), line)
        self.assertEqual((len(line) < 400, line.count("\n")), (True, 0))
        self.booms()

    def test_to_the_parent(self) -> None:
        """A supervisor that gives up fails to its parent, which restarts it, and at last gives up too."""
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
        """So it does when that happens while it starts."""
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
        """And while its parent waits for its start."""
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
        """A stop during it waits for the children that stop already, and then all is said: nobody is told of a failure."""
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

    def test_observers(self) -> None:
        """Observers hear of restarts and of giving up, also of those of the supervisors below."""
        root = self.world.supervisor(
            ChildSpec(
                "inner",
                lambda: self.world.inner("a", "b", intensity=Intensity(2, 60), strategy="rest_for_one"),
                type="supervisor",
            )
        )
        root.startService()
        self.world.fail("a")
        self.world.lives["b"].end()
        self.world.turn()
        self.world.fail("b")
        self.world.clock.advance(5)
        first, second, third, fourth = self.world.events
        self.assertEqual(first, ChildRestarted("root/inner/a", "Boom: of a", 1, 0, ("b",)))
        self.assertEqual(second, ChildRestarted("root/inner/b", "it ended, without a failure", 2, 0, ()))
        assert isinstance(third, SupervisorGaveUp)
        self.assertEqual((third.path, third.gave_up.child), ("root/inner", "b"))
        assert isinstance(fourth, ChildRestarted)
        self.assertEqual((fourth.path, fourth.reason), ("root/inner", str(third.gave_up)))
        self.booms()

    def test_failing_observers(self) -> None:
        """An observer that fails is logged, and hinders nothing."""

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
        """A stop while a restart waits: it never comes."""
        root = self.world.supervisor("a", "b")
        root.startService()
        self.world.fail("a")
        self.world.lives["a"].end(Boom())
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
        """A stop in the turn in which a child fails: the failure is logged, and nothing restarts."""
        root = self.world.supervisor("a")
        root.startService()
        self.world.lives["a"].end(Boom())
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)

    def test_during_a_slow_start(self) -> None:
        """A start that takes its time is not waited for: the child is stopped, and those after it are never started."""
        cancelled: list[object] = []
        self.world.faults["start b"] = lambda: Deferred(cancelled.append)
        root = self.world.supervisor("a", "b", "c")
        root.startService()
        self.successResultOf(root.stopService())
        self.assertEqual(self.world.take(), ["start a", "start b", "stop b", "stop a"])
        self.assertEqual(len(cancelled), 1)

    def test_stubborn_start(self) -> None:
        """Not even one that does not let itself be cancelled."""

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
        """A stop while siblings stop for a restart: they are stopped once, and not started."""
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
        self.assertEqual(self.world.events, [])
        self.booms()

    def test_twice(self) -> None:
        """Whoever asks is told when it has stopped."""
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
        """What a child says of itself while it is stopped is logged only."""
        self.world.faults["stop a"] = lambda: self.world.lives["a"].end(Boom())
        root = self.world.supervisor("a")
        root.startService()
        self.successResultOf(root.stopService())
        self.world.clock.advance(100)
        self.assertEqual(self.world.take(), ["start a", "stop a"])
        self.assertEqual(self.booms(), 1)


class RunTimeTests(SupervisionTestCase):
    def test_start_child(self) -> None:
        """A child that is added starts last, and stops first."""
        root = self.world.supervisor("a")
        root.startService()
        service = self.successResultOf(root.start_child(self.world.spec("b")))
        self.assertIs(service, self.world.lives["b"])
        self.failureResultOf(root.start_child(self.world.spec("b")), ChildExists)
        root.stopService()
        self.assertEqual(self.world.take(), ["start a", "start b", "stop b", "stop a"])
        self.failureResultOf(root.start_child(self.world.spec("c")), NotRunning)

    def test_added_before_the_start(self) -> None:
        """Before the start a child is only added."""
        root = self.world.supervisor("a")
        self.assertIsNone(self.successResultOf(root.start_child(self.world.spec("b"))))
        self.assertEqual(self.world.take(), [])
        root.startService()
        self.assertEqual(self.world.take(), ["start a", "start b"])

    def test_start_child_fails(self) -> None:
        """If it does not start, whoever asked is told; it is forgotten, and counts for nothing."""
        root = self.world.supervisor("a", intensity=Intensity(0, 60))
        root.startService()
        self.world.faults["start b"] = boom
        self.failureResultOf(root.start_child(self.world.spec("b")), Boom)
        self.assertEqual(self.states(root), {"a": "running"})
        self.assertEqual(list(root), [self.world.lives["a"]])

    def test_start_child_stopped_meanwhile(self) -> None:
        """Whoever waits for a child's slow start is told that it was stopped."""
        root = self.world.supervisor()
        root.startService()
        self.world.faults["start b"] = Deferred
        started = root.start_child(self.world.spec("b"))
        self.successResultOf(root.stopService())
        self.failureResultOf(started, NotRunning)

    def test_terminate_and_restart(self) -> None:
        """A child that was terminated stays so until it is asked for again."""
        root = self.world.supervisor("a", "b")
        root.startService()
        self.failureResultOf(root.restart_child("a"), ChildNotStopped)
        self.successResultOf(root.terminate_child("a"))
        self.world.clock.advance(100)
        self.assertEqual(self.states(root), {"a": "stopped", "b": "running"})
        self.assertIs(self.successResultOf(root.restart_child("a")), self.world.lives["a"])
        self.assertEqual(self.states(root), {"a": "running", "b": "running"})
        self.assertEqual([child["restarts"] for child in root.tree()["children"]], [1, 0])

    def test_restart_child_fails(self) -> None:
        """If it does not start it stays stopped, and whoever asked is told."""
        root = self.world.supervisor("a", intensity=Intensity(0, 60))
        root.startService()
        root.terminate_child("a")
        self.world.faults["make a"] = boom
        self.failureResultOf(root.restart_child("a"), Boom)
        self.assertEqual(self.states(root), {"a": "stopped"})
        self.assertEqual(root.tree()["children"][0]["failure"], "Boom: as told")
        root.stopService()
        self.failureResultOf(root.restart_child("a"), NotRunning)

    def test_terminate_during_a_wait(self) -> None:
        """A child that is terminated while it waits for its restart is not restarted; its siblings are."""
        root = self.world.supervisor("a", "b", strategy="rest_for_one")
        root.startService()
        self.world.fail("a")
        self.world.lives["a"].end(Boom())
        self.world.clock.advance(0)
        root.terminate_child("a")
        self.world.clock.advance(100)
        self.assertEqual(self.states(root), {"a": "stopped", "b": "running"})
        self.booms()

    def test_terminate_during_a_slow_start(self) -> None:
        """A child whose start takes its time can be terminated; the others start."""
        self.world.faults["start a"] = Deferred
        root = self.world.supervisor("a", "b")
        root.startService()
        self.successResultOf(root.terminate_child("a"))
        self.assertEqual(self.states(root), {"a": "stopped", "b": "running"})

    def test_terminate_temporary(self) -> None:
        """A temporary child that is terminated is forgotten."""
        root = self.world.supervisor(self.world.spec("a", restart="temporary"))
        root.startService()
        self.successResultOf(root.terminate_child("a"))
        self.assertEqual(self.states(root), {})

    def test_delete(self) -> None:
        """A child that is stopped can be deleted, and its id used again."""
        root = self.world.supervisor("a")
        root.startService()
        self.failureResultOf(root.delete_child("a"), ChildNotStopped)
        root.terminate_child("a")
        self.successResultOf(root.delete_child("a"))
        for ask in (root.delete_child, root.terminate_child, root.restart_child):
            self.failureResultOf(ask("a"), NoSuchChild)
        self.assertRaises(KeyError, root.getServiceNamed, "a")
        self.successResultOf(root.start_child(self.world.spec("a")))

    def test_from_within(self) -> None:
        """A child may ask for another in its start, and for its own end: it is done when the start is."""
        root = self.world.supervisor("a")
        asked: list[Deferred[Any]] = []
        self.world.faults["start a"] = lambda: asked.append(root.start_child(self.world.spec("b")))
        root.startService()
        self.successResultOf(asked[0])
        self.world.faults["start c"] = lambda: asked.append(root.terminate_child("c"))
        root.start_child(self.world.spec("c"))
        self.successResultOf(asked[1])
        self.assertEqual(self.states(root), {"a": "running", "b": "running", "c": "stopped"})

    def test_which_and_count(self) -> None:
        """What there is, in order, and how much of it."""
        inner = ChildSpec("inner", lambda: self.world.inner(), type="supervisor")
        root = self.world.supervisor("a", inner)
        root.privilegedStartService()
        self.assertEqual([child.service for child in root.which_children()], [None, None])
        self.assertEqual(tuple(root.count_children()), (2, 0, 1, 1))
        root.startService()
        root.terminate_child("a")
        self.assertEqual(
            [(child.id, child.service, child.type, child.state) for child in root.which_children()],
            [("a", None, "worker", "stopped"), ("inner", root.getServiceNamed("inner"), "supervisor", "running")],
        )
        self.assertEqual(tuple(root.count_children()), (2, 1, 1, 1))


class SpecTests(SupervisionTestCase):
    def test_refused(self) -> None:
        """A spec or a supervisor that makes no sense is refused when it is written down."""
        for options in ({"restart": "always"}, {"type": "thing"}, {"shutdown": -1}, {"shutdown": math.nan}):
            self.assertRaises(ValueError, self.world.spec, "a", **options)
        self.assertRaises(ValueError, self.world.spec, "")
        self.assertRaises(ValueError, self.world.spec, "a/b")
        self.assertRaises(ChildExists, self.world.supervisor, "a", "a")
        self.assertRaises(ValueError, self.world.supervisor, strategy="all")


def _failed() -> Deferred[None]:
    failed: Deferred[None] = succeed(None)
    return failed.addCallback(lambda _: Failure(Boom()))
