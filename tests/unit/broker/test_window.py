"""The confirm window, against a model of a broker that confirms as RabbitMQ may."""

from __future__ import annotations

import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.window import Entry, UnknownTag, Window

Line = tuple[str, int]
"""(connection, number)."""


def packed(line: Line) -> bytes:
    """Return a packed line. Lines differ in length, so that a wrong sum shows."""
    return f"{line[0]}:{line[1]}:{'x' * (line[1] % 5)}".encode()


def lines(entries: list[Entry]) -> list[Line]:
    return [(entry.source, entry.seq) for entry in entries]


class WindowMachine(RuleBasedStateMachine):
    """Channel of a broker, as the model: its unanswered publishes, by delivery tag.

    Towards the window it does all that RabbitMQ does: it confirms and refuses, one or many, in any order, and each tag once.
    """

    @initialize(bound=st.sampled_from([1, 3, 20]))
    def begin(self, bound: int) -> None:
        self.window = Window(bound, 200)
        self.bound = bound
        self.next_seq = {"a": 0, "b": 0, "c": 0}
        self.by_bytes: dict[bytes, Line] = {}
        self.tag = 1
        self.unanswered: dict[int, Line] = {}
        self.refused: set[Line] = set()
        self.unsafe: set[Line] = set()
        self.was_refused = False
        self.repeated: set[int] = set()
        self.given_up = 0

    def publish(self, line: Line) -> None:
        self.unanswered[self.tag] = line
        self.tag += 1

    @rule(source=st.sampled_from("abc"), count=st.integers(1, 4), together=st.booleans())
    def read_lines(self, source: str, count: int, together: bool) -> None:
        first = self.next_seq[source]
        if together:
            self.window.add_lines(source, first, [packed((source, seq)) for seq in range(first, first + count)])
        for _ in range(count):
            line = source, self.next_seq[source]
            self.next_seq[source] += 1
            self.by_bytes[packed(line)] = line
            if not together:
                self.window.add(source, line[1], packed(line))
            self.unsafe.add(line)
            self.publish(line)

    def answer(self, data: st.DataObject) -> tuple[int, bool, list[int]]:
        """Return a tag to answer, whether it covers all up to it, and the answered tags."""
        tags = sorted(self.unanswered)
        tag = data.draw(st.sampled_from(tags) | st.just(tags[0]))
        multiple = data.draw(st.booleans())
        which = [one for one in tags if one <= tag] if multiple else [tag]
        if multiple and which == tags and data.draw(st.booleans()):
            tag = 0  # all of them (specification, basic.ack)
        return tag, multiple, which

    def take(self, which: list[int]) -> list[Line]:
        """Return the lines of these publishes that the window still waits for."""
        taken = [self.unanswered.pop(tag) for tag in which]
        fresh = [line for tag, line in zip(which, taken, strict=True) if tag not in self.repeated]
        self.repeated.difference_update(which)
        return fresh

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        tag, multiple, which = self.answer(data)
        expected = self.take(which)
        entries = self.window.confirm(tag, multiple)
        assert lines(entries) == expected
        back: list[Entry] = data.draw(st.lists(st.sampled_from(entries), unique=True)) if entries else []
        self.unsafe.difference_update(expected)
        if back and bool(data.draw(st.booleans())):  # the others were returned
            self.window.put_back(back)
            self.unsafe.update(lines(back))
            self.refused.update(lines(back))
            self.was_refused = True

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        tag, multiple, which = self.answer(data)
        expected = self.take(which)
        assert lines(self.window.refuse(tag, multiple)) == expected
        self.refused.update(expected)
        self.was_refused = True

    @rule()
    def retry(self) -> None:
        sources = {source for source, _ in self.refused}
        again = [self.by_bytes[data] for data in self.window.retry()]
        for source in "abc":
            mine = [line for line in again if line[0] == source]
            # From the first refused line on, in order; no confirmed line.
            assert mine == sorted(line for line in self.unsafe if line[0] == source and source in sources)
        for tag, (source, _) in self.unanswered.items():
            if source in sources:
                self.repeated.add(tag)  # its answer is pending, and no longer matters
        for line in again:
            self.publish(line)
        self.refused.clear()

    @rule(least=st.integers(3, 5), source=st.sampled_from("abc"))
    def give_up(self, least: int, source: str) -> None:
        """Give up the longest lines of a connection, in any state."""

        def hopeless(data: bytes) -> bool:
            return data.startswith(source.encode()) and data.count(b"x") >= least

        gone = {line for line in self.unsafe if hopeless(packed(line))}
        assert sorted(lines(self.window.give_up(hopeless))) == sorted(gone)
        self.unsafe -= gone
        self.given_up += len(gone)
        self.refused -= gone
        self.repeated.update(tag for tag, line in self.unanswered.items() if line in gone)

    @rule(bound=st.sampled_from([1, 3, 20]))
    def configure(self, bound: int) -> None:
        self.window.configure(bound, 200)
        self.bound = bound

    @rule(smaller=st.booleans())
    def reconnect(self, smaller: bool) -> None:
        def refit(data: bytes) -> bytes:
            return b"+" + data

        before = {b"+" + packed(line): line for line in self.unsafe} if smaller else self.by_bytes
        again = [before[data] for data in self.window.restart(refit if smaller else None)]
        assert sorted(again) == sorted(self.unsafe)
        for source in "abc":
            mine = [number for one, number in again if one == source]
            assert mine == sorted(mine)
        if smaller:
            self.window.restart(lambda data: data[1:])  # as it was, so that the model needs no second alphabet
        self.tag = 1
        self.unanswered.clear()
        self.refused.clear()
        self.repeated.clear()
        for line in again:
            self.publish(line)

    @rule(data=st.data(), multiple=st.booleans(), confirm=st.booleans())
    def nonsense(self, data: st.DataObject, multiple: bool, confirm: bool) -> None:
        """Return a tag that was never assigned, or was answered before."""
        answered = [tag for tag in range(1, self.tag) if tag not in self.unanswered] if not multiple else []
        tag = data.draw(st.sampled_from([*answered, self.tag, self.tag + 1, self.tag + 1000, (1 << 64) - 1]))
        try:
            (self.window.confirm if confirm else self.window.refuse)(tag, multiple)
        except UnknownTag:
            return
        # The last tag with `multiple`, when all were answered, is only superfluous.
        raise AssertionError(f"{tag} was taken")

    @invariant()
    def the_sums_are_right(self) -> None:
        if not hasattr(self, "window"):
            return
        window = self.window
        assert window.messages == len(window) == len(self.unsafe)
        assert window.size == sum(len(packed(line)) for line in self.unsafe)
        assert window.full == (window.messages >= self.bound or window.size >= 200)
        assert not (window.roomy and window.full)
        assert window.refused == bool(self.refused)
        assert window.entered == sum(self.next_seq.values())
        assert window.given_up_lines == self.given_up
        assert window.answered == window.entered - len(self.unsafe - self.refused)
        assert window.confirmed_messages == window.confirmed_lines
        assert sorted(window.sources()) == sorted(source for source, _ in self.unsafe)
        # Unanswered lines are kept, and a bounded number of gaps between them.
        kept = [tag for tag, entry in enumerate(window._entries, window._first) if entry is not None]
        assert [*window._aside, *kept] == sorted(self.unanswered)
        assert len(window._entries) - len(kept) <= 2 * self.bound


class WindowTests(SynchronousTestCase):
    def test_against_a_model(self) -> None:
        """For any confirms, refusals, returns and lost connections: no line is forgotten, no safe line is repeated, lines of a
        connection are repeated in order, the sums are exact, and an invalid delivery tag is refused without effect.
        """
        run_state_machine_as_test(WindowMachine, settings=settings(deadline=None, max_examples=100, stateful_step_count=30))

    def setUp(self) -> None:
        self.window = Window(4, 1000)

    def add(self, *numbers: int, source: str = "a") -> None:
        for number in numbers:
            self.window.add(source, number, packed((source, number)))

    def numbers(self, entries: list[Entry]) -> list[int]:
        return [entry.seq for entry in entries]

    def test_smaller(self) -> None:
        """A smaller window keeps all lines, and no longer a record of many that were confirmed before an earlier one."""
        window = self.window = Window(100, 10_000)
        self.add(*range(100))
        for tag in range(2, 100):
            window.confirm(tag, False)
        window.configure(10, 10_000)
        self.assertLessEqual(len(window._entries), 10)
        self.assertEqual((window.messages, window.full), (2, False))
        self.assertEqual(self.numbers(window.confirm(1, False)), [0])
        self.assertEqual(self.numbers(window.confirm(100, False)), [99])

    def test_bounds(self) -> None:
        """The window is full at its limit of messages or of bytes, and open again only when an eighth is free."""
        window = Window(8, 100)
        for number in range(8):
            self.assertFalse(window.full)
            self.assertEqual(window.roomy, number <= 7)
            window.add("a", number, b"x")
        self.assertTrue(window.full)
        self.assertFalse(window.roomy)
        window.confirm(1, False)
        self.assertTrue(window.roomy)
        window.add("a", 8, b"x" * 93)
        self.assertTrue(window.full)
        window.confirm(8, True)
        self.assertFalse(window.roomy, "93 bytes of 100")

    def test_spare(self) -> None:
        """Lines of sources that left have as much room again, each source an eighth of the rest."""
        window = Window(80, 8000)
        self.assertEqual(window.spare, 20)
        for number in range(80):
            window.add("a", number, b"x")
        self.assertEqual(window.spare, 10)
        window.defer("b", 0, b"x" * 15_000)  # 920 bytes are left: nine lines of a hundred
        self.assertEqual(window.spare, 1)
        window.defer("b", 1, b"x" * 920)
        self.assertEqual(window.spare, 0)
        for number in range(80):
            window.confirm(number + 1, False)
        self.assertEqual(window.messages, 2)
        self.assertEqual(window.retry(), [b"x" * 15_000, b"x" * 920])

    def test_cumulative_then_none(self) -> None:
        """A cumulative confirm after all lines were confirmed one by one confirms nothing, and is no error."""
        self.add(0, 1)
        self.window.confirm(1, False)
        self.window.confirm(2, False)
        self.assertEqual(self.window.confirm(2, True), [])
        self.assertEqual(self.window.confirm(0, True), [])

    def test_unknown_tags(self) -> None:
        """A tag that was not assigned, or was confirmed before, raises `UnknownTag` without effect."""
        self.add(0, 1, 2)
        self.window.confirm(2, False)
        for tag, multiple in ((2, False), (4, False), (4, True), (0, False)):
            for answer in (self.window.confirm, self.window.refuse):
                with self.assertRaises(UnknownTag):
                    answer(tag, multiple)
        self.assertEqual(self.window.messages, 2)
        self.assertEqual(self.numbers(self.window.confirm(3, True)), [0, 2])

    def test_refused_lines_stay(self) -> None:
        """A refused line counts in the window, and so does a returned one."""
        self.add(0, 1)
        size = self.window.size
        self.window.refuse(1, False)
        self.window.put_back(self.window.confirm(2, False))
        self.assertEqual((self.window.messages, self.window.size), (2, size))
        self.assertTrue(self.window.refused)

    def test_retry_goes_back(self) -> None:
        """After a refusal the lines of that connection are repeated from the first refused one. Others are not repeated."""
        self.add(0, 1)
        self.add(0, source="b")
        self.add(2)
        self.window.confirm(1, False)
        self.window.refuse(2, False)
        self.assertEqual(self.window.retry(), [packed(("a", 1)), packed(("a", 2))])
        self.assertFalse(self.window.refused)
        self.assertEqual(lines(self.window.confirm(3, False)), [("b", 0)])

    def test_late_answers(self) -> None:
        """Late answers to first copies say nothing of the second copies."""
        for answer in (Window.confirm, Window.refuse):
            for multiple in (False, True):
                self.window = Window(4, 1000)
                self.add(0, 1, 2)
                self.window.refuse(1, False)
                self.assertEqual(len(self.window.retry()), 3)  # with the tags 4, 5, 6
                if not multiple:
                    self.assertEqual(answer(self.window, 2, False), [])
                self.assertEqual(answer(self.window, 3, multiple), [])
                self.assertEqual(self.window.messages, 3)
                self.assertFalse(self.window.refused)
                self.assertEqual(self.numbers(self.window.confirm(6, True)), [0, 1, 2])
                self.assertEqual((self.window.messages, self.window.size), (0, 0))

    def test_restart_begins_with_the_refused(self) -> None:
        """On a new channel refused lines are sent in their places, before later lines."""
        self.add(0, 1, 2, 3)
        self.window.refuse(2, False)
        self.assertEqual(self.window.restart(), [packed(("a", number)) for number in range(4)])
        self.assertFalse(self.window.refused)
        self.assertEqual(self.numbers(self.window.confirm(4, True)), [0, 1, 2, 3])

    def test_restart_refits(self) -> None:
        """Lines packed again for another frame size count with their new size."""
        self.add(0, 1)
        self.assertEqual(self.window.restart(lambda data: data + b"!!"), [b"a:0:!!", b"a:1:x!!"])
        self.assertEqual(self.window.size, 13)
        self.window.confirm(2, True)
        self.assertEqual(self.window.size, 0)

    def test_memory_behind_one_that_is_not_answered(self) -> None:
        """Any number of lines confirmed one by one behind unanswered ones leaves nothing in memory. The unanswered ones are
        confirmed, refused and repeated as usual, before later lines.
        """

        def begin() -> None:
            self.window = Window(4, 1000)
            self.add(0, 1, 2, source="b")
            for number in range(500):
                self.add(number)
                self.assertEqual(self.numbers(self.window.confirm(number + 4, False)), [number])
            self.assertLess(len(self.window._entries) + len(self.window._aside), 20)
            self.assertEqual(list(self.window.sources()), ["b"] * 3)

        begin()
        self.assertEqual(self.numbers(self.window.confirm(2, False)), [1])
        for tag, multiple in ((2, False), (4, False), (0, False), (504, True)):
            self.assertRaises(UnknownTag, self.window.confirm, tag, multiple)
        self.assertEqual(self.numbers(self.window.confirm(2, True)), [0])
        self.assertEqual(self.window.confirm(2, True), [])
        self.assertRaises(UnknownTag, self.window.confirm, 1, True)
        self.assertEqual(self.numbers(self.window.confirm(503, True)), [2])
        self.assertEqual((self.window.messages, self.window.size), (0, 0))
        begin()
        self.add(500)
        self.assertEqual(self.numbers(self.window.confirm(0, True)), [0, 1, 2, 500])
        begin()
        self.window.refuse(2, False)
        self.assertEqual(self.window.retry(), [packed(("b", number)) for number in range(3)])
        self.assertEqual(self.window.confirm(503, True), [], "the answers to the first copies")
        self.assertEqual(self.numbers(self.window.confirm(506, True)), [0, 1, 2])
        begin()
        self.add(500)
        self.assertEqual(self.window.restart(), [packed(("b", number)) for number in range(3)] + [packed(("a", 500))])
        self.assertEqual(self.numbers(self.window.confirm(3, True)), [0, 1, 2])

    def test_retry_of_a_large_window(self) -> None:
        """The time to republish the lines behind refused ones is proportional to their number, as that of a restart is: with
        quadratic time, all devices would wait for seconds.
        """
        sources, each = 100, 4000
        window = Window(sources * each, 1 << 30)
        for seq in range(each):
            for source in range(sources):
                window.add(source, seq, b"x")
        retry, restart = [], []
        for _ in range(3):
            window.refuse(sources, True)  # the first line of each connection
            begin = time.process_time()
            self.assertEqual(len(window.retry()), sources * each)
            middle = time.process_time()
            self.assertEqual(len(window.restart()), sources * each)
            retry.append(middle - begin)
            restart.append(time.process_time() - middle)
        self.assertLess(min(retry), 4 * min(restart))

    def test_memory(self) -> None:
        """Confirmed lines leave nothing in memory, in any order of confirms."""
        for first in range(1, 999, 2):
            self.add(first, first + 1)
            self.window.confirm(first + 1, False)
            self.window.confirm(first, False)
        self.assertEqual(len(self.window._entries), 0)
