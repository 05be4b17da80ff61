"""How a child says that it ended."""

from __future__ import annotations

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import Worker, guarded

from .fakes import Boom, boom


class Handler(Worker):
    """A worker with handlers of messages."""

    seen: tuple[int, int] | None = None

    @guarded
    def received(self, number: int, *, other: int = 0) -> None:
        self.seen = number, other
        if number < 0:
            raise Boom(str(number))

    @guarded
    async def received_slowly(self, deferred: Deferred[None]) -> None:
        await deferred


class WorkerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ends: list[str | None] = []
        self.worker = Handler(self.clock)
        self.worker.supervise(self.report)
        self.worker.startService()

    def report(self, failure: Failure | None) -> None:
        self.ends.append(None if failure is None else str(failure.value))

    def test_end(self) -> None:
        """It says so once; a failure after that is logged, since nobody waits for it."""
        self.worker.end()
        self.worker.end()
        self.worker.end(Boom("late"))
        self.assertEqual(self.ends, [None])
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 1)

    def test_reasons(self) -> None:
        """The reason is a Failure or an exception; after a new start it counts again."""
        self.worker.end(Boom("one"))
        self.worker.supervise(self.report)
        self.worker.end(Failure(Boom("two")))
        self.assertEqual(self.ends, ["one", "two"])

    def test_unsupervised(self) -> None:
        """Without a supervisor a failure is logged, and a plain parent does not mind."""
        above = MultiService()
        worker = Worker(self.clock)
        worker.setServiceParent(above)
        above.startService()
        worker.end(Boom())
        worker.end()
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 1)

    def test_later(self) -> None:
        """What a timer raises, now or in its coroutine, is the end."""
        self.worker.later(1, self.worker.received, 1, other=2)
        self.clock.advance(1)
        self.assertEqual((self.worker.seen, self.ends), ((1, 2), []))
        self.worker.later(1, boom)
        self.clock.advance(1)
        self.assertEqual(self.ends, ["as told"])
        self.worker.supervise(self.report)
        deferred: Deferred[None] = Deferred()
        self.worker.later(1, lambda: deferred)
        self.clock.advance(1)
        deferred.errback(Boom("in the end"))
        self.assertEqual(self.ends, ["as told", "in the end"])

    def test_cancelled_timers(self) -> None:
        """A timer can be cancelled, by hand or by the stop, and leaves nothing behind."""
        timer = self.worker.later(1, boom)
        self.assertTrue(timer.active())
        timer.cancel()
        timer.cancel()
        self.assertFalse(timer.active())
        self.worker.later(1, boom)
        self.worker.later(2, boom)
        self.worker.stopService()
        self.assertEqual((self.clock.getDelayedCalls(), self.worker._worker_timers), ([], set()))

    def test_fired_timers(self) -> None:
        """A timer that has fired is forgotten."""
        self.worker.later(1, lambda: None)
        self.clock.advance(1)
        self.assertEqual(self.worker._worker_timers, set())

    def test_watch(self) -> None:
        """What is watched ends the worker if it fails, and says when it is over in any case."""
        first: Deferred[int] = Deferred()
        second: Deferred[int] = Deferred()
        over = [self.worker.watch(first), self.worker.watch(second)]
        first.callback(1)
        self.assertIsNone(self.successResultOf(over[0]))
        self.assertEqual(self.ends, [])
        self.assertNoResult(over[1])
        second.errback(Boom("failed"))
        self.assertIsNone(self.successResultOf(over[1]))
        self.assertEqual((self.ends, self.worker._worker_watched), (["failed"], set()))

    def test_watch_coroutine(self) -> None:
        """A coroutine runs at once, and is watched."""

        async def run() -> None:
            await waiting
            raise Boom("in it")

        waiting: Deferred[None] = Deferred()
        self.worker.watch(run())
        waiting.callback(None)
        self.assertEqual(self.ends, ["in it"])

    def test_stop_cancels(self) -> None:
        """What is watched is cancelled by the stop, and that is no failure."""
        cleaned: list[bool] = []

        async def run() -> None:
            try:
                await Deferred()
            finally:
                cleaned.append(True)

        over = self.worker.watch(run())
        self.worker.stopService()
        self.successResultOf(over)
        self.assertEqual((cleaned, self.ends, self.worker._worker_watched), ([True], [], set()))

    def test_fails_when_cancelled(self) -> None:
        """What fails otherwise when it is cancelled does count."""

        async def run() -> None:
            try:
                await Deferred()
            finally:
                boom()

        self.worker.watch(run())
        self.worker.stopService()
        self.assertEqual(self.ends, ["as told"])

    def test_guard(self) -> None:
        """A callback that is handed out ends the worker when it raises, and raises nothing itself."""
        called: list[int] = []
        self.worker.guard(called.append)(1)
        self.assertEqual((called, self.ends), ([1], []))
        self.worker.guard(boom)()
        self.assertEqual(self.ends, ["as told"])

    def test_guarded(self) -> None:
        """So does a decorated method, also one that is a coroutine."""
        self.worker.received(1, other=2)
        self.assertEqual((self.worker.seen, self.ends), ((1, 2), []))
        self.worker.received(-1)
        self.assertEqual(self.ends, ["-1"])
        self.worker.supervise(self.report)
        deferred: Deferred[None] = Deferred()
        self.worker.received_slowly(deferred)
        deferred.errback(Boom("later"))
        self.assertEqual(self.ends, ["-1", "later"])
