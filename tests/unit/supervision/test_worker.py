"""Reports of the end of a worker."""

from __future__ import annotations

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.supervision import Worker

from .fakes import Boom, boom


class WorkerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ends: list[str | None] = []
        self.worker = Worker(self.clock)
        self.worker.supervise(self.report)
        self.worker.startService()

    def report(self, failure: Failure | None) -> None:
        self.ends.append(None if failure is None else str(failure.value))

    def test_end(self) -> None:
        """A worker reports one end. A failure after that is logged."""
        self.worker.end()
        self.worker.end()
        self.worker.end(Boom("late"))
        self.assertEqual(self.ends, [None])
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 1)

    def test_reasons(self) -> None:
        """The reason is a Failure or an exception; after a new start a worker may end again."""
        self.worker.end(Boom("one"))
        self.worker.supervise(self.report)
        self.worker.end(Failure(Boom("two")))
        self.assertEqual(self.ends, ["one", "two"])

    def test_unsupervised(self) -> None:
        """A worker without a supervisor logs its failure, also under a plain MultiService."""
        above = MultiService()
        worker = Worker(self.clock)
        worker.setServiceParent(above)
        above.startService()
        worker.end(Boom())
        worker.end()
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 1)

    def test_later(self) -> None:
        """An exception in a timer, or in its Deferred, ends the worker."""
        calls: list[tuple[int, int]] = []
        self.worker.later(1, lambda number, other: calls.append((number, other)), 1, other=2)
        self.clock.advance(1)
        self.assertEqual((calls, self.ends), ([(1, 2)], []))
        self.worker.later(1, boom)
        self.clock.advance(1)
        self.assertEqual(self.ends, ["on demand"])
        self.worker.supervise(self.report)
        deferred: Deferred[None] = Deferred()
        self.worker.later(1, lambda: deferred)
        self.clock.advance(1)
        deferred.errback(Boom("in the end"))
        self.assertEqual(self.ends, ["on demand", "in the end"])

    def test_cancelled_timers(self) -> None:
        """Cancelling a timer, or stopping the worker, leaves no delayed call behind."""
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
        """A watched Deferred ends the worker if it fails, and its end is reported in any case."""
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
        """A watched coroutine starts at once."""

        async def run() -> None:
            await waiting
            raise Boom("in it")

        waiting: Deferred[None] = Deferred()
        self.worker.watch(run())
        waiting.callback(None)
        self.assertEqual(self.ends, ["in it"])

    def test_stop_cancels(self) -> None:
        """A stop cancels a watched coroutine, and the cancellation is not a failure."""
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
        """Another failure of a cancelled coroutine ends the worker."""

        async def run() -> None:
            try:
                await Deferred()
            finally:
                boom()

        self.worker.watch(run())
        self.worker.stopService()
        self.assertEqual(self.ends, ["on demand"])
