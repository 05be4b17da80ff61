"""Who is on the roll of nodes, and who is taken for dead."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.cluster.members import (
    FIRST,
    GONE,
    HERE,
    HURRY,
    HURRY_FOR,
    KEEP,
    KEPT,
    LEFT,
    RENEW,
    RENEWED,
    Members,
    Notice,
    Sight,
    Verdict,
)

ME, A, B = "00000000", "aaaaaaaa", "bbbbbbbb"
GRACE, INTERVAL = 10.0, 2.0


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


class NoticeTests(SynchronousTestCase):
    def test_packed(self) -> None:
        """What is packed is read again."""
        for state in (HERE, LEFT, GONE):
            for origin in (FIRST, RENEWED, KEPT):
                self.assertEqual(Notice.read(Notice(A, state, origin).pack()), Notice(A, state, origin))

    @given(st.binary() | st.dictionaries(st.sampled_from(["node", "state"]), st.text() | st.none()).map(as_json))
    def test_any_bytes(self, body: bytes) -> None:
        """Anybody may put anything into the register: it is no node's, and nothing is raised."""
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
        self.roll = Members(lambda: ME, GRACE, INTERVAL)
        self.tag = 0

    def hear(self, node: str, state: str = HERE, origin: str = FIRST) -> list[int]:
        self.tag += 1
        return self.roll.heard(self.tag, Notice(node, state, origin), self.now)

    def see(self, sight: Sight, node: str = A, after: float = INTERVAL) -> Verdict:
        self.now += after
        verdict, self.done = self.roll.saw(node, sight, self.now)
        return verdict

    def bury(self, node: str = A) -> None:
        self.roll.burying(node)


class WatchTests(Base):
    def test_dead_after_the_grace(self) -> None:
        """A node whose queue has no consumer, or is not there, in every look for the grace is dead: not before."""
        for sight in (Sight.IDLE, Sight.MISSING):
            self.setUp()
            self.hear(A)
            self.assertEqual([self.see(sight) for _ in range(6)], [Verdict.WAIT] * 5 + [Verdict.BURY])

    def test_seen_meanwhile(self) -> None:
        """One that is seen in between has all of the grace again."""
        self.hear(A)
        looks = [self.see(Sight.IDLE) for _ in range(5)]
        looks += [self.see(Sight.CONSUMED)]
        looks += [self.see(Sight.IDLE) for _ in range(5)]
        self.assertEqual(set(looks), {Verdict.WAIT})
        self.assertIs(self.see(Sight.IDLE), Verdict.BURY)

    def test_no_answer(self) -> None:
        """What the broker does not answer proves nothing; and the time in which nobody could look does not count."""
        self.hear(A)
        self.see(Sight.IDLE)
        self.assertEqual({self.see(Sight.UNKNOWN) for _ in range(100)}, {Verdict.WAIT})
        self.assertIs(self.see(Sight.IDLE, after=3600), Verdict.WAIT)
        self.assertEqual([self.see(Sight.IDLE) for _ in range(3)], [Verdict.WAIT] * 2 + [Verdict.BURY])

    def test_after_a_loss(self) -> None:
        """After the registrar lost its own connection nobody is dead for a while, however short the grace is."""
        self.roll.begin(self.now + 60)
        self.hear(A)
        self.assertEqual({self.see(Sight.IDLE) for _ in range(29)}, {Verdict.WAIT})
        self.assertIs(self.see(Sight.IDLE), Verdict.BURY)

    def test_oneself(self) -> None:
        """The registrar does not look at itself before it leaves; then it strikes itself off."""
        self.hear(ME)
        self.assertEqual(self.roll.due(), [])
        self.hear(ME, LEFT)
        self.assertEqual(self.roll.due(), [ME])
        self.assertIs(self.see(Sight.MISSING, ME), Verdict.STRIKE)
        self.assertEqual((self.done, len(self.roll)), ([2], 0))

    def test_copies(self) -> None:
        """Of several copies of a notice the last is held."""
        self.assertEqual([self.hear(A), self.hear(A), self.hear(B), self.hear(A)], [[], [1], [], [2]])
        self.assertEqual(self.roll.due(), [A, B])

    def test_kept(self) -> None:
        """What is held for long, since its node does not renew it, is put into the register again: once, also while a queue is
        cleaned up. The copy takes the place of the notice, and means nothing new.
        """
        self.assertLess(RENEW, KEEP, "a living node renews its notice before")
        self.hear(A)
        self.hear(B, GONE)
        self.bury(B)
        self.now += KEEP - 1
        self.assertEqual(self.roll.stale(self.now), [])
        self.now += 1
        self.assertEqual(self.roll.stale(self.now), [Notice(A, HERE, KEPT), Notice(B, GONE, KEPT)])
        self.assertEqual(self.roll.stale(self.now), [])
        self.assertEqual([self.hear(A, HERE, KEPT), self.hear(B, GONE, KEPT)], [[1], [2]])
        self.roll.announced(B)
        self.assertEqual(self.roll.buried(B), [4])
        self.assertEqual([self.hear(B, GONE, KEPT), self.hear(B, HERE, KEPT)], [[5], [6]], "that is dealt with")
        self.assertEqual(self.roll.surprised(), [])

    def test_kept_and_taken_back(self) -> None:
        """A copy that the registrar has put there, and that its node has taken back meanwhile, does not count any more."""
        for before, after in ((HERE, LEFT), (LEFT, HERE)):
            self.setUp()
            self.hear(A, before)
            self.assertEqual(self.hear(A, after), [1])
            self.assertEqual(self.hear(A, before, KEPT), [3])

    def test_vanished(self) -> None:
        """A renewal of a notice that the registrar does not have shows that the broker has dropped it."""
        self.assertFalse(self.roll.vanished(Notice(A, HERE)))
        self.assertTrue(self.roll.vanished(Notice(A, HERE, RENEWED)))
        self.hear(A)
        self.assertFalse(self.roll.vanished(Notice(A, HERE, RENEWED)))


class GoodbyeTests(Base):
    def test_left(self) -> None:
        """A node that left, and its queue with it, is struck off at once, and nobody is told."""
        self.hear(A)
        self.hear(A, LEFT)
        self.assertIs(self.see(Sight.CONSUMED), Verdict.WAIT)
        self.assertIs(self.see(Sight.MISSING), Verdict.STRIKE)
        self.assertEqual((self.done, A in self.roll), ([2], False))

    def test_left_something(self) -> None:
        """What it left in its queue is recorded at once, and nobody is told either."""
        self.hear(A, LEFT)
        self.assertIs(self.see(Sight.IDLE), Verdict.BURY)
        self.bury()
        self.assertFalse(self.roll.loud(A))

    def test_a_goodbye_that_it_did_not_say(self) -> None:
        """A node that says that it is here has not left, whoever said so: its death is told."""
        self.hear(A)
        self.assertEqual(self.hear(A, LEFT), [1])
        self.assertIs(self.see(Sight.CONSUMED), Verdict.WAIT)
        self.assertEqual(self.hear(A, HERE, RENEWED), [2])
        self.assertEqual([self.see(Sight.IDLE) for _ in range(6)], [Verdict.WAIT] * 5 + [Verdict.BURY])
        self.bury()
        self.assertTrue(self.roll.loud(A))

    def test_gone_and_never_here(self) -> None:
        """One that is dead before it joined, and has no queue, is struck off, and nobody is told."""
        self.hear(A, GONE)
        self.assertIs(self.see(Sight.MISSING), Verdict.STRIKE)
        self.hear(A, GONE)
        self.hear(A)
        self.assertIs(self.see(Sight.MISSING), Verdict.BURY)

    def test_gone(self) -> None:
        """A node whose process is known to be dead is not waited for, once nobody consumes its queue."""
        self.hear(A)
        self.hear(A, GONE)
        self.assertEqual(self.roll.interval(self.now), HURRY)
        self.assertIs(self.see(Sight.CONSUMED, after=0), Verdict.WAIT)
        self.assertIs(self.see(Sight.IDLE, after=0), Verdict.BURY)
        self.bury()
        self.assertTrue(self.roll.loud(A))
        self.roll.announced(A)
        self.assertFalse(self.roll.loud(A), "it is told once")
        self.assertEqual(self.roll.buried(A), [1, 2])
        self.assertEqual(self.roll.interval(self.now), INTERVAL)
        self.assertEqual(self.hear(A, GONE), [3], "somebody says so again: it is dealt with")

    def test_not_gone(self) -> None:
        """If somebody goes on consuming its queue that was wrong, and it is watched like the others."""
        self.hear(A)
        self.hear(A, GONE)
        self.assertIs(self.see(Sight.CONSUMED, after=HURRY_FOR), Verdict.WAIT)
        self.assertEqual(self.done, [2])
        self.assertIs(self.see(Sight.IDLE), Verdict.WAIT)

    def test_not_gone_and_never_here(self) -> None:
        """The only notice of a node is kept."""
        self.hear(A, GONE)
        self.see(Sight.CONSUMED, after=HURRY_FOR)
        self.assertEqual((self.done, A in self.roll), ([], True))
        self.assertIs(self.see(Sight.IDLE), Verdict.WAIT)


class BurialTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.hear(A)
        self.bury()

    def test_not_looked_at(self) -> None:
        """Whoever is being buried is not looked at."""
        self.assertEqual(self.roll.due(), [])
        self.assertIs(self.see(Sight.IDLE, after=100), Verdict.WAIT)

    def test_back_before(self) -> None:
        """One that came back before its queue was deleted is watched as before, and hears nothing of it."""
        self.assertEqual(self.roll.spared(A), [])
        self.assertEqual((self.roll.due(), self.roll.surprised()), ([A], []))
        self.assertIs(self.see(Sight.IDLE), Verdict.WAIT)

    def test_back_before_and_said_so(self) -> None:
        """The same when it has said so, and its earlier notice is done with."""
        self.hear(A)
        self.assertEqual(self.roll.spared(A), [1])
        self.assertEqual((self.roll.due(), self.roll.surprised()), ([A], []))

    def test_back_meanwhile(self) -> None:
        """One that came back while it was buried stays on the roll, and is told that it was said to be lost: afterwards."""
        self.roll.announced(A)
        self.hear(A)
        self.assertEqual(self.roll.surprised(), [])
        self.assertEqual(self.roll.buried(A), [1])
        self.assertEqual((self.roll.surprised(), self.roll.surprised()), ([A], []))
        self.assertEqual(self.roll.due(), [A])

    def test_back_later(self) -> None:
        """So is one that comes back later."""
        self.roll.announced(A)
        self.assertEqual(self.roll.buried(A), [1])
        self.hear(A)
        self.assertEqual(self.roll.surprised(), [A])

    def test_back_and_told(self) -> None:
        """One that came back before its queue was deleted, and after all were told, hears of that as soon as it says so."""
        self.roll.announced(A)
        self.assertEqual((self.roll.spared(A), self.roll.surprised()), ([], []))
        self.assertEqual(self.hear(A, HERE, RENEWED), [1])
        self.assertEqual(self.roll.surprised(), [A])

    def test_delivered_again(self) -> None:
        """A notice that was delivered before, when the registrar begins again, does not say that a node is back; what was not
        brought to its end is done again, and not told again.
        """
        self.roll.announced(A)
        self.roll.begin(0.0)
        for state, origin in ((HERE, FIRST), (HERE, KEPT), (GONE, FIRST)):
            self.tag += 1
            self.assertLessEqual(len(self.roll.heard(self.tag, Notice(A, state, origin), self.now, redelivered=True)), 1)
        self.assertEqual(self.roll.surprised(), [])
        self.assertIs(self.see(Sight.IDLE), Verdict.BURY)
        self.bury()
        self.assertFalse(self.roll.loud(A))

    def test_refused(self) -> None:
        """One whose queue the broker does not give out is tried again later, and not said to be lost a second time."""
        self.roll.announced(A)
        self.hear(A, LEFT)
        self.assertEqual(self.roll.spared(A, self.now + 10), [1])
        self.assertIs(self.see(Sight.IDLE, after=9), Verdict.WAIT)
        self.assertIs(self.see(Sight.IDLE, after=1), Verdict.BURY)
        self.bury()
        self.assertFalse(self.roll.loud(A))

    def test_gone_by_mistake(self) -> None:
        """One that was said to be gone, and is back, is not said to be gone any more."""
        self.roll.buried(A)
        self.hear(B, GONE)
        self.hear(B)
        self.bury(B)
        self.assertEqual(self.roll.spared(B), [2])
        self.assertIs(self.see(Sight.IDLE, B), Verdict.WAIT)


class AnyOrderTests(SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(st.sampled_from(["hear", "see", "announce", "done", "spare"]), st.sampled_from([HERE, LEFT, GONE]),
                      st.sampled_from([FIRST, RENEWED, KEPT]), st.sampled_from(list(Sight)), st.sampled_from([A, B, ME]),
                      st.floats(0, 30)),
            max_size=60,
        )
    )  # fmt: skip
    def test_every_tag_once(self, steps: list[tuple[str, str, str, Sight, str, float]]) -> None:
        """Whatever happens, a notice is acknowledged at most once, and a node on the roll has one that is not: so that the next
        registrar hears of it.
        """
        now, tag = 1000.0, 0
        roll = Members(lambda: ME, GRACE, INTERVAL)
        told: dict[int, str] = {}
        burying: set[str] = set()
        for what, state, origin, sight, node, after in steps:
            now += after
            done: list[int] = []
            if what == "hear":
                tag += 1
                told[tag] = node
                done = roll.heard(tag, Notice(node, state, origin), now)
            elif what == "see":
                verdict, done = roll.saw(node, sight, now)
                if verdict is Verdict.BURY:
                    burying.add(node)
                    roll.burying(node)
            elif node in burying and what == "announce":
                roll.announced(node)
            elif node in burying:
                burying.remove(node)
                done = roll.spared(node) if what == "spare" else roll.buried(node)
            for one in done:
                del told[one]
            self.assertEqual({name for name in (A, B, ME) if name in roll}, set(told.values()))
