"""Who is told of events, and what becomes of handlers that fail."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import BrokerUnblocked, BrokerWarning, Event, EventManager, HandlerFailed, HandlerService
from owsla.supervision import ChildSpec, Intensity, Supervised, Supervisor

from .doubles import NODE, NOW, Alive, Picky, Recorder, connected
from .doubles import Supervised as Report
from .doubles import manager as new_manager

ONE, TWO = BrokerWarning("one"), BrokerWarning("two")


class ManagerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.manager = new_manager()

    def test_everybody_is_told(self) -> None:
        """Each handler is told of each event, in order, until it is removed."""
        first, last = Recorder(), Recorder()
        self.manager.add(first)
        self.manager.emit(ONE)
        self.manager.add(last)
        self.manager.emit(TWO)
        self.manager.remove(first)
        self.manager.emit(ONE)
        self.assertEqual((first.seen, last.seen), ([ONE, TWO], [TWO, ONE]))

    def test_only_what_it_wants(self) -> None:
        """A handler that says which types it wants is told of no others; of their subclasses too."""
        picky, base = Picky(), Recorder()
        base.wants = (Event,)  # type: ignore[attr-defined]
        self.manager.add(picky)
        self.manager.add(base)
        for event in (ONE, connected("c"), TWO):
            self.manager.emit(event)
        self.assertEqual(picky.seen, [connected("c")])
        self.assertEqual(len(base.seen), 3)

    def test_one_that_raises(self) -> None:
        """It is removed and reported, its owner hears why, and nobody else is hurt."""
        first, broken, last = Recorder(), Recorder(ZeroDivisionError("no\nway")), Recorder()
        failures: list[Failure] = []
        self.manager.add(first)
        self.manager.add(broken, "broken", failures.append)
        self.manager.add(last)
        self.manager.emit(ONE)
        self.manager.emit(TWO)
        self.assertEqual([type(failure.value) for failure in failures], [ZeroDivisionError])
        report = HandlerFailed("broken", "ZeroDivisionError: no way")
        self.assertEqual(set(first.seen), {ONE, report, TWO})
        self.assertEqual(set(last.seen), {ONE, report, TWO})
        self.assertEqual(self.manager.stats("broken").failures, 1)

    def test_all_that_raise(self) -> None:
        """Handlers that fail over the report of each other's failure are all removed, and it ends."""
        for _ in range(3):
            self.manager.add(Recorder(ZeroDivisionError()))
        self.manager.emit(ONE)
        self.manager.emit(TWO)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_twice(self) -> None:
        """A handler is installed once; removing one that is not there does nothing."""
        handler = Recorder()
        self.manager.add(handler)
        with self.assertRaises(ValueError):
            self.manager.add(handler)
        self.manager.remove(Recorder())
        self.manager.remove(handler)
        self.manager.remove(handler)

    def test_reopen(self) -> None:
        """Those that hold a file are told to open it again; one that fails in that is removed."""
        alive, plain, broken = Alive(), Recorder(), Alive()
        broken.reopen = lambda: 1 // 0  # type: ignore[method-assign, assignment]
        for handler in (alive, plain, broken):
            self.manager.add(handler)
        self.manager.reopen()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(alive.calls, ["reopen"])
        self.manager.emit(ONE)
        self.assertNotIn(ONE, broken.seen)

    def test_here_and_now(self) -> None:
        """An event is of the manager's own node, whichever that is just then, and happens now."""
        names = ["a", "b"]
        times = [1.0, 2.0]
        manager = EventManager(lambda: names[0], now=lambda: times[0])
        handler = Recorder()
        manager.add(handler)
        manager.emit(ONE)
        del names[0], times[0]
        manager.emit(ONE)
        self.assertEqual((handler.origins, manager.node), ([("a", 1.0), ("b", 2.0)], "b"))

    def test_elsewhere(self) -> None:
        """One of another node, or of another time, is told of as that; what a handler does wrong with it is our own node's."""
        handler = Recorder()
        self.manager.add(handler)
        self.manager.add(Recorder(ZeroDivisionError()))
        self.manager.emit(ONE, "deadbeef", 5.0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(sorted(handler.origins), [(NODE, NOW), ("deadbeef", 5.0)])

    def test_numbers(self) -> None:
        """A handler's events are numbered for each node by itself."""
        stats = self.manager.stats("it")
        self.assertEqual([stats.count(node) for node in ("a", "a", "b", "a")], [1, 2, 1, 3])
        self.assertEqual(stats.number, 4)

    def test_drops_by_handler(self) -> None:
        """Drops are counted by the handler's name, and outlive it."""
        self.manager.add(Recorder(), "one")
        self.manager.stats("two").dropped += 5
        self.assertEqual(self.manager.drops, {"one": 0, "two": 5})


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.manager = new_manager()
        self.handler = Alive()
        self.service = HandlerService(self.manager, self.handler, "alive")
        self.report = Report()

    def test_its_life(self) -> None:
        """The handler is started, told of events while the service runs, and then stopped."""
        self.manager.emit(ONE)
        self.service.startService()
        self.manager.emit(TWO)
        self.service.stopService()
        self.manager.emit(ONE)
        self.assertEqual((self.handler.calls, self.handler.seen), (["start", "stop"], [TWO]))

    def test_a_supervised_child(self) -> None:
        """It is a child as supervisors want it."""
        self.assertIsInstance(self.service, Supervised)

    def test_failing_in_handle(self) -> None:
        """What the handler raises is the end of the service, once."""
        self.service.supervise(self.report)
        self.service.startService()
        self.handler.error = error = ValueError()
        self.manager.emit(ONE)
        self.assertEqual(self.report.reports, [error])
        assert self.handler.fail is not None
        self.handler.fail(Failure(KeyError()))
        self.assertEqual(self.report.reports, [error])

    def test_failing_by_itself(self) -> None:
        """So is what fails in its timers or its thread: it is removed, and reported as an event."""
        other = Recorder()
        self.manager.add(other)
        self.service.supervise(self.report)
        self.service.startService()
        error = ValueError("x")
        assert self.handler.fail is not None
        self.handler.fail(Failure(error))
        self.assertEqual(self.report.reports, [error])
        self.assertEqual(other.seen, [HandlerFailed("alive", "ValueError: x")])
        self.assertEqual(self.handler.seen, [])

    def test_nobody_supervises(self) -> None:
        """Without a supervisor it is only removed and reported."""
        self.service.startService()
        self.handler.error = ValueError()
        self.manager.emit(ONE)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class SupervisionTests(SynchronousTestCase):
    """With the supervisor that it is made for."""

    def start(self, restarts: int) -> tuple[EventManager, list[Recorder], list[Any], Any]:
        clock: Any = cast("Any", Clock())
        manager = new_manager()
        made: list[Recorder] = []
        gave_up: list[Any] = []

        def make() -> HandlerService:
            made.append(Recorder())
            return HandlerService(manager, made[-1], "recorder")

        supervisor = Supervisor(
            clock, [ChildSpec("recorder", make)], name="events", intensity=Intensity(restarts, 60), on_give_up=gave_up.append
        )
        supervisor.startService()
        clock.advance(0)
        self.addCleanup(lambda: (supervisor.stopService(), clock.pump([0] * 5)))
        return manager, made, gave_up, clock

    def test_reinstalled(self) -> None:
        """A handler that raises comes back as a new one, with the same name and numbers."""
        manager, made, _, clock = self.start(3)
        made[0].error = ValueError()
        manager.emit(ONE)
        clock.pump([0.5] * 10)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(len(made), 2)
        manager.emit(TWO)
        self.assertEqual((made[0].seen, made[1].seen), ([], [TWO]))
        self.assertEqual(manager.stats("recorder").failures, 1)

    def test_within_the_intensity(self) -> None:
        """One that always raises is installed again as often as the intensity allows; then its supervisor gives up."""
        manager, made, gave_up, clock = self.start(2)
        for _ in range(5):
            made[-1].error = ValueError()
            manager.emit(ONE)
            clock.pump([0.5] * 20)
        self.flushLoggedErrors()
        self.assertEqual(len(made), 3)
        self.assertEqual(len(gave_up), 1)
        manager.emit(BrokerUnblocked())


class DeferredStopTests(SynchronousTestCase):
    def test_waits_for_the_handler(self) -> None:
        """Stopping waits for what the handler has still to do."""
        manager = new_manager()
        handler = Alive()
        stopping: Deferred[None] = Deferred()
        handler.stop = lambda: stopping  # type: ignore[method-assign, assignment]
        service = HandlerService(manager, handler, "alive")
        service.startService()
        result = service.stopService()
        self.assertNoResult(result)
        stopping.callback(None)
        self.successResultOf(result)
