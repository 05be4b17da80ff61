"""The bounded queues before handlers: in the reactor's thread, and between two threads."""

from __future__ import annotations

import time
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import BrokerWarning, Event, EventsDropped, Mailbox, Outbox, Record
from owsla.events._outbox import LONGEST_WAIT, OutboxSizes, Spool

from .doubles import NODE, Alive, MemoryWriter, Recorder
from .doubles import manager as new_manager


def event(number: int) -> Event:
    return BrokerWarning(str(number))


class SlowRecorder(Recorder):
    def __init__(self, clock: Any, takes: float) -> None:
        super().__init__()
        self.clock = clock
        self.takes = takes

    def handle(self, event: Event, node: str, when: float) -> None:
        super().handle(event, node, when)
        self.clock.rightNow += self.takes


class MailboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.manager = new_manager()
        self.stats = self.manager.stats("it")
        self.others = Recorder()
        self.manager.add(self.others)

    def mailbox(self, handler: Recorder, limit: int = 10) -> Mailbox:
        return Mailbox(self.clock, self.manager, handler, self.stats, limit)

    def test_in_a_later_turn(self) -> None:
        """Events are handed over after the turn in which they happened, in order."""
        handler = Recorder()
        mailbox = self.mailbox(handler)
        for number in range(3):
            mailbox.handle(event(number), NODE, 0.0)
        self.assertEqual(handler.seen, [])
        self.clock.advance(0)
        self.assertEqual(handler.seen, [event(0), event(1), event(2)])
        self.assertEqual((self.stats.number, self.stats.handled, self.stats.dropped), (3, 3, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_counted(self) -> None:
        """An event that its handler only counts is handled at once, and takes no place in the queue."""

        class Counting(Recorder):
            def counts(self, event: Event) -> bool:
                return True

        handler = Counting()
        mailbox = self.mailbox(handler, limit=1)
        for number in range(3):
            mailbox.handle(event(number), NODE, 0.0)
        self.assertEqual((len(mailbox), self.clock.getDelayedCalls(), handler.seen), (0, [], []))
        self.assertEqual((self.stats.number, self.stats.handled, self.stats.dropped), (3, 3, 0))

    def test_where_and_when(self) -> None:
        """However late they are handed over: with the node and the time that they happened at."""
        handler = Recorder()
        mailbox = self.mailbox(handler)
        mailbox.handle(event(0), "a", 5.0)
        mailbox.handle(event(0), "b", 4.0)
        self.clock.advance(1)
        self.assertEqual(handler.origins, [("a", 5.0), ("b", 4.0)])

    def test_what_does_not_fit(self) -> None:
        """Past its limit events are dropped, counted, and told of when there is room again."""
        handler = Recorder()
        mailbox = self.mailbox(handler, limit=2)
        for number in range(5):
            mailbox.handle(event(number), NODE, 0.0)
        self.assertEqual(len(mailbox), 2)
        self.clock.advance(0)
        self.assertEqual(handler.seen, [event(0), event(1)])
        self.assertEqual(self.manager.drops, {"it": 3, "recorder": 0})
        self.assertEqual(self.others.seen, [EventsDropped("it", 3)])

    def test_a_slow_one(self) -> None:
        """One that takes long has one call a turn, and a tenth of the time at most."""
        handler = SlowRecorder(self.clock, 0.01)
        mailbox = self.mailbox(handler, limit=1000)
        for number in range(1000):
            mailbox.handle(event(number), NODE, 0.0)
        self.clock.advance(0)
        self.assertEqual(len(handler.seen), 1)
        began = self.clock.seconds()
        while self.clock.seconds() < began + 1:
            self.clock.advance(0.001)
        self.assertTrue(5 <= len(handler.seen) <= 12, len(handler.seen))

    def test_failing(self) -> None:
        """What the handler raises ends it. What waits goes with it, so that an event it cannot bear does not come back."""
        handler = Alive()
        mailbox = self.mailbox(handler)
        failures: list[Failure] = []
        mailbox.start(failures.append)
        handler.error = error = ValueError()
        for number in range(3):
            mailbox.handle(event(number), NODE, 0.0)
        self.clock.advance(0)
        self.assertEqual([failure.value for failure in failures], [error])
        self.assertEqual(self.stats.dropped, 3)
        handler.error = None
        mailbox.stop()
        self.assertEqual((handler.calls, handler.seen), (["start", "stop"], []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping(self) -> None:
        """At the end everything that waits is handed over."""
        handler = Alive()
        mailbox = self.mailbox(handler)
        mailbox.start(lambda failure: None)
        mailbox.handle(event(1), NODE, 0.0)
        mailbox.reopen()
        mailbox.stop()
        self.assertEqual((handler.seen, handler.calls), ([event(1)], ["start", "reopen", "stop"]))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OutboxTests(SynchronousTestCase):
    """Without its thread: `work` is what it would do."""

    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.manager = new_manager()
        self.others = Recorder()
        self.manager.add(self.others, "others")
        self.writer = MemoryWriter()
        self.stats = self.manager.stats("it")
        self.failures: list[Failure] = []
        self.outbox = Outbox(
            self.clock,
            self.manager,
            self.writer,
            self.stats,
            in_reactor=lambda f, *args, **more: f(*args, **more),
            sizes=OutboxSizes(limit=5, batch=3, linger=0),
            random=lambda: 1.0,
        )
        self.logged: list[str] = []

        def observe(log: LogEvent) -> None:
            if str(log.get("log_namespace")).startswith("owsla.events."):
                self.logged.append(formatEvent(log))

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.handle(event(number), NODE, 1000.0 + self.clock.seconds())

    def test_batches(self) -> None:
        """Events are written in order and in batches, with the time at which they happened and their numbers."""
        self.put(0, 1)
        self.clock.advance(5)
        self.put(2, 3)
        self.assertEqual([self.outbox.work() for _ in range(3)], [0.0, 0.0, None])
        self.assertEqual(self.writer.batches, [3, 1])
        times = (1000.0, 1000.0, 1005.0, 1005.0)
        self.assertEqual(
            self.writer.written, [Record(NODE, n + 1, time, event(n)) for n, time in enumerate(times)]
        )
        self.assertEqual(self.stats.handled, 4)

    def test_report_of_drops(self) -> None:
        """Dropped events are reported once there is room in the queue for the report: once, with their number."""
        self.manager.add(self.outbox, "it")
        self.writer.trouble = "full"
        self.put(*range(3))
        self.outbox.work()
        self.put(*range(3, 12))
        self.writer.trouble = None
        self.outbox.work()
        self.assertEqual([str(event) for event in self.others.seen], [])
        while self.outbox.work() is not None:
            pass
        self.assertEqual(self.others.seen, [EventsDropped("it", 4)])
        self.assertEqual([record.event for record in self.writer.written], [*map(event, range(8)), EventsDropped("it", 4)])

    def test_several_nodes(self) -> None:
        """Each event is written as its own node's, with the time that it happened at there, and a number of that node's."""
        for node, when in (("a", 5.0), ("b", 4.0), ("a", 6.0)):
            self.outbox.handle(event(0), node, when)
        self.outbox.work()
        self.assertEqual(
            self.writer.written, [Record("a", 1, 5.0, event(0)), Record("b", 1, 4.0, event(0)), Record("a", 2, 6.0, event(0))]
        )

    def test_trouble(self) -> None:
        """While the writer is in trouble the batch is kept and tried again with back-off; one line says so, and one when it
        is over. What does not fit is dropped, counted, told of; its numbers are missing.
        """
        self.writer.trouble = "the disk is full"
        self.put(0, 1)
        waits = [self.outbox.work() for _ in range(9)]
        self.assertEqual(waits[:4], [0.5, 1.0, 2.0, 4.0])
        self.assertEqual(waits[-1], LONGEST_WAIT)
        self.put(*range(2, 10))
        self.assertEqual(self.logged, ["it: the disk is full; trying again"])
        self.assertEqual(self.stats.dropped, 3)
        self.writer.trouble = None
        while self.outbox.work() is not None:
            pass
        self.assertEqual([record.event for record in self.writer.written], [event(n) for n in range(7)])
        self.assertEqual(self.logged[1:], ["it: working again"])
        self.assertEqual(self.others.seen, [EventsDropped("it", 3)])
        self.put(10)
        self.outbox.work()
        self.assertEqual(self.writer.written[-1].number, 11)

    def test_another_trouble(self) -> None:
        """A new reason is a new line."""
        self.put(0)
        for trouble in ("a", "a", "b", "b"):
            self.writer.trouble = trouble
            self.outbox.work()
        self.assertEqual(self.logged, ["it: a; trying again", "it: b; trying again"])

    def test_unfit(self) -> None:
        """What the writer cannot keep for what is in it counts as dropped."""
        self.put(0, 1)
        self.writer.unfit = 1
        self.outbox.work()
        self.assertEqual((self.stats.handled, self.stats.dropped), (1, 1))
        self.assertEqual(self.others.seen, [EventsDropped("it", 1)])

    def threaded(self, outbox: Outbox) -> None:
        outbox.start(self.failures.append)
        self.addCleanup(outbox.stop)

    def wait(self, condition: Any) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)

    def test_the_thread(self) -> None:
        """With its thread: what is put is written, the rest at the stop, and then the writer is closed."""
        self.threaded(self.outbox)
        self.put(0)
        self.wait(lambda: len(self.writer.written) == 1)
        self.put(1, 2)
        stopped = self.outbox.stop()
        self.wait(lambda: stopped.called)
        self.assertEqual([record.event for record in self.writer.written], [event(n) for n in range(3)])
        self.assertEqual(self.writer.closed, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_in_between(self) -> None:
        """What comes after the thread's last look and before the stop is written too."""
        spool: Any = self.outbox._spool
        spool_take = spool.take
        late = [Record(NODE, 2, 0.0, event(2))]

        class Late:
            def take(inner, most: int) -> list[Record]:
                found: list[Record] = spool_take(most)
                if not found and late:
                    spool.put(late.pop())
                    self.outbox._stopping.set()
                return found

            def __len__(inner) -> int:
                return len(spool)

            put = spool.put

        self.outbox._spool = cast("Any", Late())
        self.outbox.start(self.failures.append)
        self.put(1)
        self.wait(lambda: self.outbox._over)
        self.assertEqual([record.event for record in self.writer.written], [event(1), event(2)])

    def test_stopping_in_trouble(self) -> None:
        """At the stop it is tried a last time; what is left then is counted."""
        self.writer.trouble = "gone"
        self.threaded(self.outbox)
        self.put(0, 1, 2, 3)
        self.wait(lambda: self.logged)
        stopped = self.outbox.stop()
        self.wait(lambda: stopped.called)
        self.assertEqual(self.stats.dropped, 4)
        self.assertEqual(self.writer.closed, 1)

    def test_a_writer_that_hangs(self) -> None:
        """A write that does not end delays the stop by seconds, and not for ever."""
        writer = self.writer
        release = False
        hanging: list[Any] = []

        def hang(batch: Any) -> int:
            hanging.append(batch)
            self.wait(lambda: release)
            return 0

        writer.write = hang  # type: ignore[method-assign]
        self.threaded(self.outbox)
        self.put(0)
        self.wait(lambda: hanging)
        stopped = self.outbox.stop()
        self.assertNoResult(stopped)
        self.clock.advance(3)
        self.successResultOf(stopped)
        self.assertEqual(self.stats.dropped, 1)
        release = True

    def test_a_defect(self) -> None:
        """What a writer should not raise is a failure: of the handler, not of the process."""
        self.writer.error = error = KeyError("x")
        self.threaded(self.outbox)
        self.put(0, 1)
        self.wait(lambda: self.failures)
        self.assertEqual([failure.value for failure in self.failures], [error])
        self.wait(lambda: self.writer.closed)
        self.wait(lambda: self.outbox._over)
        self.assertEqual(self.stats.dropped, 2)
        self.successResultOf(self.outbox.stop())

    def test_reopen(self) -> None:
        """Passed on."""
        self.outbox.reopen()
        self.assertEqual(self.writer.reopened, 1)


class SpoolMachine(RuleBasedStateMachine):
    """Against a list: nothing is lost but what was refused, nothing comes twice, and order is kept."""

    @initialize(limit=st.integers(1, 8))
    def begin(self, limit: int) -> None:
        self.spool = Spool(limit)
        self.model: list[Record] = []
        self.count = 0

    @rule()
    def put(self) -> None:
        self.count += 1
        record = Record(NODE, self.count, 0.0, event(0))
        taken = self.spool.put(record)
        assert taken == (len(self.model) < self.spool.limit)
        if taken:
            self.model.append(record)

    @rule(most=st.integers(0, 10))
    def take(self, most: int) -> None:
        assert self.spool.take(most) == self.model[:most]
        del self.model[:most]

    @invariant()
    def bounded(self) -> None:
        assert len(self.spool) == len(self.model) <= self.spool.limit


class OutboxMachine(RuleBasedStateMachine):
    """Whatever the writer does: what is written is in order and once, and all is written, waiting or counted as dropped."""

    @initialize(limit=st.integers(1, 6), batch=st.integers(1, 4))
    def begin(self, limit: int, batch: int) -> None:
        manager = new_manager()
        self.writer = MemoryWriter()
        self.stats = manager.stats("it")
        self.outbox = Outbox(
            cast("Any", Clock()),
            manager,
            self.writer,
            self.stats,
            in_reactor=lambda f, *args, **more: f(*args, **more),
            sizes=OutboxSizes(limit=limit, batch=batch),
        )
        self.bound = limit + batch

    @rule()
    def happens(self) -> None:
        self.outbox.handle(event(0), NODE, 0.0)

    @rule(trouble=st.sampled_from([None, "a", "b"]))
    def changes(self, trouble: str | None) -> None:
        self.writer.trouble = trouble

    @rule()
    def works(self) -> None:
        self.outbox.work()

    @invariant()
    def accounted_for(self) -> None:
        numbers = [record.number for record in self.writer.written]
        assert numbers == sorted(set(numbers))
        assert len(self.outbox) <= self.bound
        assert self.stats.number == len(numbers) + len(self.outbox) + self.stats.dropped
        assert self.stats.handled == len(numbers)


class StateTests(SynchronousTestCase):
    def test_the_queue(self) -> None:
        """The queue between the threads is a bounded list, whatever the order of puts and takes."""
        run_state_machine_as_test(
            SpoolMachine, settings=settings(max_examples=50, stateful_step_count=30, deadline=None)
        )

    def test_what_becomes_of_events(self) -> None:
        """In whatever troubles, each event is written once and in order, waits, or is counted as dropped."""
        run_state_machine_as_test(
            OutboxMachine, settings=settings(max_examples=50, stateful_step_count=30, deadline=None)
        )
