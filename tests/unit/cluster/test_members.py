"""The members of a cluster, and the decision that one is dead."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.cluster.members import (
    HURRIED_INTERVAL,
    HURRY_DURATION,
    KEEP_INTERVAL,
    RENEW_INTERVAL,
    Decision,
    Members,
    QueueCondition,
)
from owsla.cluster.notices import FIRST, GONE, HERE, KEPT, LEFT, RENEWED, Notice

ME, A, B = "00000000", "aaaaaaaa", "bbbbbbbb"
GRACE, INTERVAL = 10.0, 2.0


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


class NoticeTests(SynchronousTestCase):
    def test_packed(self) -> None:
        """A packed notice is read again."""
        for state in (HERE, LEFT, GONE):
            for origin in (FIRST, RENEWED, KEPT):
                self.assertEqual(Notice.read(Notice(A, state, origin).pack()), Notice(A, state, origin))

    @given(st.binary() | st.dictionaries(st.sampled_from(["node", "state"]), st.text() | st.none()).map(as_json))
    def test_any_bytes(self, body: bytes) -> None:
        """Any bytes are read without an exception, and are not a notice."""
        Notice.read(body)
        for odd in (
            b"", b"[]", b"7", b'{"node": 7, "state": "here"}', b'{"node": "aaaaaaaa\\n", "state": "here"}',
            b'{"node": "AAAAAAAA", "state": "here", "origin": "first"}', b'{"node": "aaaaaaaa", "state": [], "origin": "kept"}',
            b'{"node": "aaaaaaaa", "state": "here", "origin": []}', b'{"node": "aaaaaaaa", "state": "here"}', b"[" * 100_000,
        ):  # fmt: skip
            self.assertIsNone(Notice.read(odd), odd)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.members = Members(lambda: ME, GRACE, INTERVAL)
        self.tag = 0

    def hear(self, node: str, state: str = HERE, origin: str = FIRST) -> list[int]:
        self.tag += 1
        return self.members.heard(self.tag, Notice(node, state, origin), self.now)

    def see(self, condition: QueueCondition, node: str = A, after: float = INTERVAL) -> Decision:
        self.now += after
        decision, self.done = self.members.inspected(node, condition, self.now)
        return decision

    def clean_up(self, node: str = A) -> None:
        self.members.cleanup_begun(node)


class WatchTests(Base):
    def test_dead_after_the_grace(self) -> None:
        """A node is dead when its queue had no consumer, or did not exist, in every inspection of the grace; not before."""
        for condition in (QueueCondition.IDLE, QueueCondition.MISSING):
            self.setUp()
            self.hear(A)
            self.assertEqual([self.see(condition) for _ in range(6)], [Decision.WAIT] * 5 + [Decision.CLEAN_UP])

    def test_seen_meanwhile(self) -> None:
        """A node whose queue has a consumer in between has the whole grace again."""
        self.hear(A)
        looks = [self.see(QueueCondition.IDLE) for _ in range(5)]
        looks += [self.see(QueueCondition.CONSUMED)]
        looks += [self.see(QueueCondition.IDLE) for _ in range(5)]
        self.assertEqual(set(looks), {Decision.WAIT})
        self.assertIs(self.see(QueueCondition.IDLE), Decision.CLEAN_UP)

    def test_no_answer(self) -> None:
        """A missing answer proves nothing, and time without inspections does not count."""
        self.hear(A)
        self.see(QueueCondition.IDLE)
        self.assertEqual({self.see(QueueCondition.UNKNOWN) for _ in range(100)}, {Decision.WAIT})
        self.assertIs(self.see(QueueCondition.IDLE, after=3600), Decision.WAIT)
        self.assertEqual([self.see(QueueCondition.IDLE) for _ in range(3)], [Decision.WAIT] * 2 + [Decision.CLEAN_UP])

    def test_after_a_loss(self) -> None:
        """After a lost connection of the registrar no node is dead for a while, however short the grace is."""
        self.members.begin(self.now + 60)
        self.hear(A)
        self.assertEqual({self.see(QueueCondition.IDLE) for _ in range(29)}, {Decision.WAIT})
        self.assertIs(self.see(QueueCondition.IDLE), Decision.CLEAN_UP)

    def test_oneself(self) -> None:
        """The registrar does not inspect itself before it leaves; then it removes itself."""
        self.hear(ME)
        self.assertEqual(self.members.to_inspect(), [])
        self.hear(ME, LEFT)
        self.assertEqual(self.members.to_inspect(), [ME])
        self.assertIs(self.see(QueueCondition.MISSING, ME), Decision.REMOVE)
        self.assertEqual((self.done, len(self.members)), ([2], 0))

    def test_copies(self) -> None:
        """Of several copies of a notice the last one is held."""
        self.assertEqual([self.hear(A), self.hear(A), self.hear(B), self.hear(A)], [[], [1], [], [2]])
        self.assertEqual(self.members.to_inspect(), [A, B])

    def test_kept(self) -> None:
        """A notice that its node does not renew is published again once, also during a clean-up. The copy replaces the notice,
        and means nothing new.
        """
        self.assertLess(RENEW_INTERVAL, KEEP_INTERVAL, "a living node renews its notice before")
        self.hear(A)
        self.hear(B, GONE)
        self.clean_up(B)
        self.now += KEEP_INTERVAL - 1
        self.assertEqual(self.members.take_stale(self.now), [])
        self.now += 1
        self.assertEqual(self.members.take_stale(self.now), [Notice(A, HERE, KEPT), Notice(B, GONE, KEPT)])
        self.assertEqual(self.members.take_stale(self.now), [])
        self.assertEqual([self.hear(A, HERE, KEPT), self.hear(B, GONE, KEPT)], [[1], [2]])
        self.members.announced(B)
        self.assertEqual(self.members.cleaned_up(B), [4])
        self.assertEqual([self.hear(B, GONE, KEPT), self.hear(B, HERE, KEPT)], [[5], [6]], "that is dealt with")
        self.assertEqual(self.members.take_returned(), [])

    def test_kept_and_taken_back(self) -> None:
        """A copy that the registrar published, and that the node has revoked meanwhile, does not count."""
        for before, after in ((HERE, LEFT), (LEFT, HERE)):
            self.setUp()
            self.hear(A, before)
            self.assertEqual(self.hear(A, after), [1])
            self.assertEqual(self.hear(A, before, KEPT), [3])

    def test_states(self) -> None:
        """A member has left once its goodbye is there, also during a clean-up, and until it comes back."""
        self.hear(A)
        self.hear(B, LEFT)
        self.assertEqual(self.members.states(), {A: HERE, B: LEFT})
        self.clean_up(B)
        self.hear(A, GONE)
        self.assertEqual(self.members.states(), {A: HERE, B: LEFT})
        self.hear(B)
        self.assertEqual(self.members.states(), {A: HERE, B: HERE})

    def test_recalled(self) -> None:
        """A copy that the registrar expects of a lost node is held, once. The loss of the node is not announced again."""
        self.hear(A)
        self.clean_up()
        self.members.announced(A)
        self.assertEqual(self.members.cleaned_up(A), [1])
        self.members.recall(A)
        self.assertEqual(self.hear(A, HERE, KEPT), [])
        self.assertEqual(self.members.to_inspect(), [A])
        self.clean_up()
        self.assertFalse(self.members.must_announce(A))
        self.assertEqual(self.members.cleaned_up(A), [2])
        self.assertEqual(self.hear(A, HERE, KEPT), [3])

    def test_vanished(self) -> None:
        """A renewal of a notice that the registrar does not have shows that the broker has dropped it."""
        self.assertFalse(self.members.has_vanished(Notice(A, HERE)))
        self.assertTrue(self.members.has_vanished(Notice(A, HERE, RENEWED)))
        self.hear(A)
        self.assertFalse(self.members.has_vanished(Notice(A, HERE, RENEWED)))


class GoodbyeTests(Base):
    def test_left(self) -> None:
        """A node that left, and whose queue is gone, is removed at once, and nothing is announced."""
        self.hear(A)
        self.hear(A, LEFT)
        self.assertIs(self.see(QueueCondition.CONSUMED), Decision.WAIT)
        self.assertIs(self.see(QueueCondition.MISSING), Decision.REMOVE)
        self.assertEqual((self.done, A in self.members), ([2], False))

    def test_left_something(self) -> None:
        """The queue of a node that left is cleaned up at once, and nothing is announced."""
        self.hear(A, LEFT)
        self.assertIs(self.see(QueueCondition.IDLE), Decision.CLEAN_UP)
        self.clean_up()
        self.assertFalse(self.members.must_announce(A))

    def test_a_goodbye_that_it_did_not_say(self) -> None:
        """A node that announces itself has not left, whoever published the goodbye: its death is announced."""
        self.hear(A)
        self.assertEqual(self.hear(A, LEFT), [1])
        self.assertIs(self.see(QueueCondition.CONSUMED), Decision.WAIT)
        self.assertEqual(self.hear(A, HERE, RENEWED), [2])
        self.assertEqual([self.see(QueueCondition.IDLE) for _ in range(6)], [Decision.WAIT] * 5 + [Decision.CLEAN_UP])
        self.clean_up()
        self.assertTrue(self.members.must_announce(A))

    def test_gone_and_never_here(self) -> None:
        """A node that died before it joined, and has no queue, is removed, and nothing is announced."""
        self.hear(A, GONE)
        self.assertIs(self.see(QueueCondition.MISSING), Decision.REMOVE)
        self.hear(A, GONE)
        self.hear(A)
        self.assertIs(self.see(QueueCondition.MISSING), Decision.CLEAN_UP)

    def test_gone(self) -> None:
        """A node whose process is known to be dead is cleaned up as soon as its queue has no consumer."""
        self.hear(A)
        self.hear(A, GONE)
        self.assertEqual(self.members.interval(self.now), HURRIED_INTERVAL)
        self.assertIs(self.see(QueueCondition.CONSUMED, after=0), Decision.WAIT)
        self.assertIs(self.see(QueueCondition.IDLE, after=0), Decision.CLEAN_UP)
        self.clean_up()
        self.assertTrue(self.members.must_announce(A))
        self.members.announced(A)
        self.assertFalse(self.members.must_announce(A), "it is told once")
        self.assertEqual(self.members.cleaned_up(A), [1, 2])
        self.assertEqual(self.members.interval(self.now), INTERVAL)
        self.assertEqual(self.hear(A, GONE), [3], "somebody says so again: it is dealt with")

    def test_not_gone(self) -> None:
        """A node that is reported as gone and goes on consuming is watched like the others."""
        self.hear(A)
        self.hear(A, GONE)
        self.assertIs(self.see(QueueCondition.CONSUMED, after=HURRY_DURATION), Decision.WAIT)
        self.assertEqual(self.done, [2])
        self.assertIs(self.see(QueueCondition.IDLE), Decision.WAIT)

    def test_not_gone_and_never_here(self) -> None:
        """The only notice of a node is kept."""
        self.hear(A, GONE)
        self.see(QueueCondition.CONSUMED, after=HURRY_DURATION)
        self.assertEqual((self.done, A in self.members), ([], True))
        self.assertIs(self.see(QueueCondition.IDLE), Decision.WAIT)


class CleanupTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.hear(A)
        self.clean_up()

    def test_not_looked_at(self) -> None:
        """A node is not inspected during its clean-up."""
        self.assertEqual(self.members.to_inspect(), [])
        self.assertIs(self.see(QueueCondition.IDLE, after=100), Decision.WAIT)

    def test_back_before(self) -> None:
        """A node that came back before its queue was deleted is watched as before, and is not told anything."""
        self.assertEqual(self.members.cleanup_stopped(A), [])
        self.assertEqual((self.members.to_inspect(), self.members.take_returned()), ([A], []))
        self.assertIs(self.see(QueueCondition.IDLE), Decision.WAIT)

    def test_back_before_and_said_so(self) -> None:
        """The same holds if it has announced itself; its earlier notice is acknowledged."""
        self.hear(A)
        self.assertEqual(self.members.cleanup_stopped(A), [1])
        self.assertEqual((self.members.to_inspect(), self.members.take_returned()), ([A], []))

    def test_back_meanwhile(self) -> None:
        """A node that came back during its clean-up stays a member, and is told afterwards that it was announced as lost."""
        self.members.announced(A)
        self.hear(A)
        self.assertEqual(self.members.take_returned(), [])
        self.assertEqual(self.members.cleaned_up(A), [1])
        self.assertEqual((self.members.take_returned(), self.members.take_returned()), ([A], []))
        self.assertEqual(self.members.to_inspect(), [A])

    def test_back_later(self) -> None:
        """A node that comes back later is told the same."""
        self.members.announced(A)
        self.assertEqual(self.members.cleaned_up(A), [1])
        self.hear(A)
        self.assertEqual(self.members.take_returned(), [A])

    def test_back_and_told(self) -> None:
        """A node that came back after its loss was announced, before its queue was deleted, is told when it announces itself.
        """
        self.members.announced(A)
        self.assertEqual((self.members.cleanup_stopped(A), self.members.take_returned()), ([], []))
        self.assertEqual(self.hear(A, HERE, RENEWED), [1])
        self.assertEqual(self.members.take_returned(), [A])

    def test_delivered_again(self) -> None:
        """A redelivered notice does not say that a node is back; an incomplete clean-up is done again, and not announced again.
        """
        self.members.announced(A)
        self.members.begin(0.0)
        for state, origin in ((HERE, FIRST), (HERE, KEPT), (GONE, FIRST)):
            self.tag += 1
            self.assertLessEqual(len(self.members.heard(self.tag, Notice(A, state, origin), self.now, redelivered=True)), 1)
        self.assertEqual(self.members.take_returned(), [])
        self.assertIs(self.see(QueueCondition.IDLE), Decision.CLEAN_UP)
        self.clean_up()
        self.assertFalse(self.members.must_announce(A))

    def test_refused(self) -> None:
        """A clean-up that the broker refuses is tried again later, and the loss is not announced twice."""
        self.members.announced(A)
        self.hear(A, LEFT)
        self.assertEqual(self.members.cleanup_stopped(A, self.now + 10), [1])
        self.assertIs(self.see(QueueCondition.IDLE, after=9), Decision.WAIT)
        self.assertIs(self.see(QueueCondition.IDLE, after=1), Decision.CLEAN_UP)
        self.clean_up()
        self.assertFalse(self.members.must_announce(A))

    def test_gone_by_mistake(self) -> None:
        """A node that is back is no longer reported as gone."""
        self.members.cleaned_up(A)
        self.hear(B, GONE)
        self.hear(B)
        self.clean_up(B)
        self.assertEqual(self.members.cleanup_stopped(B), [2])
        self.assertIs(self.see(QueueCondition.IDLE, B), Decision.WAIT)


class AnyOrderTests(SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(st.sampled_from(["hear", "see", "announce", "done", "spare"]), st.sampled_from([HERE, LEFT, GONE]),
                      st.sampled_from([FIRST, RENEWED, KEPT]), st.sampled_from(list(QueueCondition)),
                      st.sampled_from([A, B, ME]),
                      st.floats(0, 30)),
            max_size=60,
        )
    )  # fmt: skip
    def test_every_tag_once(self, steps: list[tuple[str, str, str, QueueCondition, str, float]]) -> None:
        """A notice is acknowledged at most once, and a member always has one that is not, for the next registrar."""
        now, tag = 1000.0, 0
        members = Members(lambda: ME, GRACE, INTERVAL)
        told: dict[int, str] = {}
        cleaning: set[str] = set()
        for what, state, origin, condition, node, after in steps:
            now += after
            done: list[int] = []
            if what == "hear":
                tag += 1
                told[tag] = node
                done = members.heard(tag, Notice(node, state, origin), now)
            elif what == "see":
                decision, done = members.inspected(node, condition, now)
                if decision is Decision.CLEAN_UP:
                    cleaning.add(node)
                    members.cleanup_begun(node)
            elif node in cleaning and what == "announce":
                members.announced(node)
            elif node in cleaning:
                cleaning.remove(node)
                done = members.cleanup_stopped(node) if what == "spare" else members.cleaned_up(node)
            for one in done:
                del told[one]
            self.assertEqual({name for name in (A, B, ME) if name in members}, set(told.values()))
