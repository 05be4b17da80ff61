"""The order of numbered messages: each at most once and in order, whatever comes when."""

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
        """What is given out when these numbers come."""
        given = []
        for number in numbers:
            if ordering.arrive(number, str(number), 0.0) is Arrival.NEXT:
                given += [str(number), *ordering.take()]
        return given

    def test_in_order(self) -> None:
        """What comes in order is given out as it comes, and nothing is held."""
        ordering: Ordering[str] = Ordering()
        self.assertEqual(self.arrive(ordering, 0, 1, 2), ["0", "1", "2"])
        self.assertEqual((ordering.expected, ordering.held), (3, 0))

    def test_any_order(self) -> None:
        """What comes before its turn is held, and given out behind what was missing."""
        ordering: Ordering[str] = Ordering()
        self.assertEqual(self.arrive(ordering, 2, 1, 4), [])
        self.assertEqual(ordering.held, 3)
        self.assertEqual(self.arrive(ordering, 0), ["0", "1", "2"])
        self.assertEqual(self.arrive(ordering, 3), ["3", "4"])

    def test_begins_elsewhere(self) -> None:
        """It goes on from the number that is next; those below it were sent."""
        ordering: Ordering[str] = Ordering(7)
        self.assertIs(ordering.arrive(6, "6", 0.0), Arrival.DUPLICATE)
        self.assertEqual(self.arrive(ordering, 8, 7), ["7", "8"])

    def test_duplicates(self) -> None:
        """A number that was given out, or is held, is a duplicate, and the first one stays."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(1, "first", 0.0)
        self.assertIs(ordering.arrive(1, "second", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.NEXT)
        self.assertEqual(ordering.take(), ["first"])
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(1, "1", 0.0), Arrival.DUPLICATE)

    def test_skip(self) -> None:
        """Skipping goes on at the lowest number held; what was skipped is late when it comes, each time."""
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
        """A number is missed from when the first one behind it came, not from when the last one before it was sent."""
        ordering: Ordering[str] = Ordering()
        self.assertIsNone(ordering.missed_since)
        ordering.arrive(5, "5", 3.0)
        ordering.arrive(2, "2", 4.0)
        self.assertEqual(ordering.missed_since, 3.0)
        ordering.skip()
        ordering.take()
        self.assertEqual(ordering.missed_since, 3.0)  # 3 and 4 are missed since 5 came
        ordering.skip()
        ordering.take()
        self.assertIsNone(ordering.missed_since)

    def test_missed_since_after_the_gap_closed(self) -> None:
        """When what was missing came, the next gap counts from when the first of those still held came."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(1, "1", 1.0)
        ordering.arrive(3, "3", 2.0)
        ordering.arrive(0, "0", 9.0)
        self.assertEqual((ordering.take(), ordering.missed_since), (["1"], 2.0))

    def test_forget(self) -> None:
        """What is forgotten is no longer held, comes again, and is given out then; the expected number stays."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 2, 3)
        self.assertEqual(ordering.forget(lambda item: item == "2"), ["2"])
        self.assertEqual((ordering.expected, ordering.held), (1, 1))
        self.assertEqual(self.arrive(ordering, 1, 2), ["1", "2", "3"])

    def test_rewind(self) -> None:
        """Numbers that were given out and not used come again, and those behind them are held till then."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 0, 1, 2, 3, 7)
        ordering.rewind(1, [(2, "2"), (3, "3")], 5.0)
        self.assertEqual((ordering.expected, ordering.held), (1, 3))
        self.assertIs(ordering.arrive(2, "again", 0.0), Arrival.DUPLICATE)
        self.assertIs(ordering.arrive(0, "0", 0.0), Arrival.DUPLICATE)
        self.assertEqual(self.arrive(ordering, 1), ["1", "2", "3"])

    def test_clear(self) -> None:
        """At the end everything held comes back in the order of the numbers."""
        ordering: Ordering[str] = Ordering()
        self.arrive(ordering, 9, 3, 5)
        self.assertEqual((ordering.clear(), ordering.held, ordering.missed_since), (["3", "5", "9"], 0, None))

    def test_many_skips(self) -> None:
        """So many stretches of skipped numbers are told from numbers sent; below those all are late, none is forgotten."""
        ordering: Ordering[str] = Ordering()
        stretches = SKIPS_REMEMBERED + 10
        for number in range(1, 2 * stretches, 2):  # the even ones never come
            ordering.arrive(number, str(number), 0.0)
            ordering.skip()
            ordering.take()
        for number in range(0, 2 * stretches, 2):
            self.assertIs(ordering.arrive(number, "", 0.0), Arrival.LATE, number)
        remembered = range(2 * stretches - 2 * SKIPS_REMEMBERED + 1, 2 * stretches, 2)
        for number in remembered:
            self.assertIs(ordering.arrive(number, "", 0.0), Arrival.DUPLICATE, number)

    def test_a_thousand_gaps(self) -> None:
        """What was sent is told from what was skipped after a thousand gaps, too: a repeat is no late number."""
        ordering: Ordering[str] = Ordering()
        for number in range(1, 2001, 2):
            ordering.arrive(number, "", 0.0)
            ordering.skip()
            ordering.take()
        self.assertEqual({ordering.arrive(number, "", 0.0) for number in range(1, 2001, 2)}, {Arrival.DUPLICATE})
        self.assertEqual({ordering.arrive(number, "", 0.0) for number in range(0, 2000, 2)}, {Arrival.LATE})

    def test_a_long_way(self) -> None:
        """A range of skipped numbers is looked up at once however long it is, for a subclass of `int`, too."""
        ordering: Ordering[str] = Ordering()
        ordering.arrive(2**62, "", 0.0)
        self.assertEqual(ordering.skip(), range(2**62))
        self.assertIs(ordering.arrive(Timestamp(2**40), "", 0.0), Arrival.LATE)

    def test_a_gap_that_comes_again(self) -> None:
        """What was skipped behind a number that comes again is waited for again, and is late once it is skipped again."""
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
        """Against a model, over any history: each number is given out at most once and in order, a number that was neither
        given out nor held is never called a duplicate, and one that is given out again only after it came back unused.
        """
        with mock.patch.object(ordering_module, "SKIPS_REMEMBERED", 3):
            run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


class Machine(RuleBasedStateMachine):
    """The model: what was used, what is in hand but not used (a queue to a socket), what is held, what was skipped."""

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
            assert arrival in (Arrival.DUPLICATE, Arrival.LATE)  # before its time; late once much was skipped
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
        """Time in which it is paused does not count, however often it is told so."""
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
