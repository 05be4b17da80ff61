"""Tests of the order of numbered messages: each at most once and in order, for any order of arrival."""

from __future__ import annotations

from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp.wire import Timestamp
from owsla.device import ordering as ordering_module
from owsla.device.ordering import SKIPS_REMEMBERED, Arrival, Ordering, PausableClock

NUMBERS = st.integers(0, 40)


class OrderingTests(SynchronousTestCase):
    def arrive(self, ordering: Ordering[str], *numbers: int) -> list[str]:
        """Return the messages that are released when these numbers arrive."""
        given = []
        for number in numbers:
            if ordering.arrive(number, str(number), 0.0) is Arrival.NEXT:
                given += [str(number), *ordering.take()]
        return given

    def test_in_order(self) -> None:
        """Messages in order are released on arrival, and none is held."""
        ordering: Ordering[str] = Ordering()
        self.assertEqual(self.arrive(ordering, 0, 1, 2), ["0", "1", "2"])
        self.assertEqual((ordering.expected, ordering.held), (3, 0))

    def test_any_order(self) -> None:
        """A message that is too early is held, and released after the missing one."""
        ordering: Ordering[str] = Ordering()
        self.assertEqual(self.arrive(ordering, 2, 1, 4), [])
        self.assertEqual(ordering.held, 3)
        self.assertEqual(self.arrive(ordering, 0), ["0", "1", "2"])
        self.assertEqual(self.arrive(ordering, 3), ["3", "4"])

    def test_begins_elsewhere(self) -> None:
        """Counting starts at the next number; lower ones were sent."""
        ordering: Ordering[str] = Ordering(7)
        self.assertIs(ordering.arrive(6, "6", 0.0), Arrival.DUPLICATE)
        self.assertEqual(self.arrive(ordering, 8, 7), ["7", "8"])

    def test_duplicates(self) -> None:
        """A number that was released, or is held, is a duplicate, and the first message is kept."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(1, "first", 0.0)
        self.assertIs(ordering.arrive(1, "second", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.NEXT)
        self.assertEqual(ordering.take(), ["first"])
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(1, "1", 0.0), Arrival.DUPLICATE)

    def test_skip(self) -> None:
        """A skip continues at the lowest held number. A skipped number that arrives is late, each time."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 5, 3, 4)
        self.assertEqual(ordering.skip(), range(1, 3))
        self.assertEqual(ordering.take(), ["3", "4", "5"])
        for _ in range(2):
            self.assertIs(ordering.arrive(1, "1", 0.0), Arrival.LATE)
            self.assertIs(ordering.arrive(2, "2", 0.0), Arrival.LATE)
        self.assertIs(ordering.arrive(3, "3", 0.0), Arrival.DUPLICATE)
        self.assertEqual(ordering.expected, 6)

    def test_missed_since(self) -> None:
        """A number is missing from the arrival of the first later one, not from the last delivery before it."""
        ordering: Ordering[str] = Ordering()
        self.assertIsNone(ordering.missed_since)
        ordering.arrive(5, "5", 3.0)
        ordering.arrive(2, "2", 4.0)
        self.assertEqual(ordering.missed_since, 3.0)
        ordering.skip()
        ordering.take()
        self.assertEqual(ordering.missed_since, 3.0)  # 3 and 4 are missing since 5 arrived
        ordering.skip()
        ordering.take()
        self.assertIsNone(ordering.missed_since)

    def test_missed_since_after_the_gap_closed(self) -> None:
        """When the missing number arrives, the time of the next gap starts at the first arrival that is still held."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(1, "1", 1.0)
        ordering.arrive(3, "3", 2.0)
        ordering.arrive(0, "0", 9.0)
        self.assertEqual((ordering.take(), ordering.missed_since), (["1"], 2.0))

    def test_forget(self) -> None:
        """A forgotten message is no longer held, and is released when it is delivered again. The expected number stays."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 2, 3)
        self.assertEqual(ordering.forget(lambda item: item == "2"), ["2"])
        self.assertEqual((ordering.expected, ordering.held), (1, 1))
        self.assertEqual(self.arrive(ordering, 1, 2), ["1", "2", "3"])

    def test_rewind(self) -> None:
        """Released numbers that were not used arrive again, and later ones are held until then."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 1, 2, 3, 7)
        ordering.rewind(1, [(2, "2"), (3, "3")], 5.0)
        self.assertEqual((ordering.expected, ordering.held), (1, 3))
        self.assertIs(ordering.arrive(2, "again", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.DUPLICATE)
        self.assertEqual(self.arrive(ordering, 1), ["1", "2", "3"])

    def test_clear(self) -> None:
        """At the end all held messages are returned in the order of their numbers."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 9, 3, 5)
        self.assertEqual((ordering.clear(), ordering.held, ordering.missed_since), (["3", "5", "9"], 0, None))

    def test_many_skips(self) -> None:
        """This many ranges of skipped numbers are distinguished from sent ones. Below those all numbers count as late, none as
        sent.
        """
        ordering: Ordering[str] = Ordering()
        stretches = SKIPS_REMEMBERED + 10
        for number in range(1, 2 * stretches, 2):  # the even ones never arrive
            ordering.arrive(number, str(number), 0.0)
            ordering.skip()
            ordering.take()
        for number in range(0, 2 * stretches, 2):
            self.assertIs(ordering.arrive(number, "", 0.0), Arrival.LATE, number)
        remembered = range(2 * stretches - 2 * SKIPS_REMEMBERED + 1, 2 * stretches, 2)
        for number in remembered:
            self.assertIs(ordering.arrive(number, "", 0.0), Arrival.DUPLICATE, number)

    def test_a_thousand_gaps(self) -> None:
        """Sent and skipped numbers are distinguished after a thousand gaps, too: a repeated number is not late."""
        ordering: Ordering[str] = Ordering()
        for number in range(1, 2001, 2):
            ordering.arrive(number, "", 0.0)
            ordering.skip()
            ordering.take()
        self.assertEqual({ordering.arrive(number, "", 0.0) for number in range(1, 2001, 2)}, {Arrival.DUPLICATE})
        self.assertEqual({ordering.arrive(number, "", 0.0) for number in range(0, 2000, 2)}, {Arrival.LATE})

    def test_a_long_way(self) -> None:
        """The lookup in a range of skipped numbers does not depend on its length, also for a subclass of `int`."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(2**62, "", 0.0)
        self.assertEqual(ordering.skip(), range(2**62))
        self.assertIs(ordering.arrive(Timestamp(2**40), "", 0.0), Arrival.LATE)

    def test_a_gap_that_comes_again(self) -> None:
        """Numbers skipped behind a number that arrives again are waited for again, and late once they are skipped again."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 2)
        ordering.skip()
        self.assertEqual(ordering.take(), ["2"])
        ordering.rewind(0, [(2, "2")], 0.0)
        self.assertEqual(self.arrive(ordering, 0), ["0"])
        self.assertEqual(ordering.skip(), range(1, 2))
        self.assertEqual(ordering.take(), ["2"])
        self.assertIs(ordering.arrive(1, "1", 0.0), Arrival.LATE)
        self.assertIs(ordering.arrive(2, "2", 0.0), Arrival.DUPLICATE)

    def test_any_history(self) -> None:
        """For any history, compared with a model: each number is released at most once and in order; a number that was neither
        released nor held is never called a duplicate; a number is released again only after it came back unused.
        """
        with mock.patch.object(ordering_module, "SKIPS_REMEMBERED", 3):
            run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


class Machine(RuleBasedStateMachine):
    """The model: used numbers, released but unused ones (waiting for a socket), held ones, skipped ones."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    @initialize(start=st.integers(0, 3))
    def begin(self, start: int) -> None:
        self.ordering: Ordering[tuple[int, str]] = Ordering(start)
        self.start = start
        self.next = start
        self.used: set[int] = set()
        self.queue: list[tuple[int, str]] = []
        self.held: dict[int, tuple[float, str]] = {}
        self.skipped: set[int] = set()

    def give(self, item: tuple[int, str]) -> None:
        assert item[0] == self.next, (item, self.next)
        assert item[0] not in self.used
        self.next += 1
        self.queue.append(item)

    def take(self) -> None:
        for item in self.ordering.take():
            _, source = self.held.pop(item[0])
            assert item == (item[0], source)
            self.give(item)

    @rule(number=NUMBERS, source=st.sampled_from("ab"))
    def comes(self, number: int, source: str) -> None:
        self.now += 1
        arrival = self.ordering.arrive(number, (number, source), self.now)
        given = number in self.used or any(number == queued for queued, _ in self.queue)
        if number == self.next:
            assert arrival is Arrival.NEXT
            self.give((number, source))
            self.take()
        elif number in self.held:
            assert arrival is Arrival.DUPLICATE
        elif number > self.next:
            assert arrival is Arrival.HELD
            self.held[number] = (self.now, source)
        elif number < self.start:
            assert arrival in (Arrival.DUPLICATE, Arrival.LATE)  # too early; late once many were skipped
        elif not given:
            assert arrival is Arrival.LATE, number  # it was skipped: never dropped without a record
        elif not self.skipped:
            assert arrival is Arrival.DUPLICATE
        else:
            assert arrival in (Arrival.DUPLICATE, Arrival.LATE)

    @precondition(lambda self: self.held)
    @rule()
    def skip(self) -> None:
        missing = self.ordering.skip()
        assert missing == range(self.next, min(self.held))
        self.skipped.update(missing)
        self.next = missing.stop
        self.take()

    @rule(count=st.integers(1, 5))
    def the_socket_takes(self, count: int) -> None:
        self.used.update(number for number, _ in self.queue[:count])
        del self.queue[:count]

    @rule(gone=st.sampled_from("ab"))
    def a_consumer_dies(self, gone: str) -> None:
        self.now += 1
        forgotten = {number for number, (_, source) in self.held.items() if source == gone}
        assert {number for number, _ in self.ordering.forget(lambda item: item[1] == gone)} == forgotten
        for number in forgotten:
            del self.held[number]
        unused = [number for number, source in self.queue if source == gone]
        if unused:
            first = min(unused)
            behind = [item for item in self.queue if item[0] > first and item[1] != gone]
            self.queue = [item for item in self.queue if item[0] < first]
            self.held.update((number, (self.now, source)) for number, source in behind)
            self.ordering.rewind(first, [(item[0], item) for item in behind], self.now)
            self.next = first

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "ordering"):
            return
        assert self.ordering.expected == self.next
        assert self.ordering.held == len(self.held)
        assert self.ordering.missed_since == min((now for now, _ in self.held.values()), default=None)
        assert self.used.isdisjoint(number for number, _ in self.queue)

    def teardown(self) -> None:
        if hasattr(self, "ordering"):
            assert self.ordering.clear() == [(number, self.held[number][1]) for number in sorted(self.held)]


class PausableClockTests(SynchronousTestCase):
    def test_stands_still(self) -> None:
        """Paused time does not count, even if the pause is repeated."""
        clock = Clock()
        pausable = PausableClock(clock.seconds)
        clock.advance(3)
        self.assertEqual(pausable(), 3)
        pausable.pause()
        clock.advance(10)
        self.assertEqual(pausable(), 3)
        pausable.pause()
        clock.advance(10)
        self.assertEqual(pausable(), 3)
        pausable.resume()
        pausable.resume()
        clock.advance(1)
        self.assertEqual(pausable(), 4)
        pausable.pause()
        clock.advance(1)
        pausable.resume()
        self.assertEqual(pausable(), 4)
