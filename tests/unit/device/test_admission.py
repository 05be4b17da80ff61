"""Tests of admission: limits and counts of connections and handshakes, and the order of waiting ones."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.admission import (
    OVERLOADED_OF,
    OVERLOADED_QUEUE,
    REPORT_INTERVAL,
    SILENT_SHARE,
    STALLED,
    STALLED_AT_FIRST,
    USUAL_OF,
    Admission,
    PortAdmission,
    Tally,
)


class AdmissionTests(SynchronousTestCase):
    def test_silent_takes_no_handshake(self) -> None:
        """Silent connections use no handshake slot."""
        admission: Admission[str] = Admission(max_connections=10, max_handshakes=2)
        for name in "abcde":
            admission.accepted(name)
        self.assertEqual((admission.connections, admission.handshaking, admission.next_turn(0.0)), (5, 0, None))
        admission.spoke("c")
        admission.spoke("a")
        self.assertEqual((admission.next_turn(0.0), admission.next_turn(0.0), admission.handshaking), ("c", "a", 2))
        admission.secured("c", 0.0)
        self.assertEqual((admission.open, admission.handshaking), (1, 1))

    def test_handshakes_are_bounded(self) -> None:
        """Handshakes in progress stay within the limit. Other connections that have sent data wait, in order of arrival."""
        admission: Admission[str] = Admission(max_connections=100, max_handshakes=2)
        for name in "abcdef":
            admission.accepted(name)
        for name in "fbeacd":
            admission.spoke(name)
        self.assertEqual((admission.next_turn(0.0), admission.next_turn(0.0), admission.next_turn(0.0)), ("f", "b", None))
        self.assertEqual((admission.handshaking, admission.waiting), (2, 4))
        admission.secured("b", 0.0)
        self.assertEqual((admission.next_turn(0.0), admission.next_turn(0.0)), ("e", None))
        admission.lost("f")
        self.assertEqual(admission.next_turn(0.0), "a")
        admission.lost("c")  # this one gave up waiting
        admission.lost("e")
        self.assertEqual((admission.next_turn(0.0), admission.next_turn(0.0), admission.waiting), ("d", None, 0))
        self.assertEqual(admission.handshaking, 2)

    def test_impatient(self) -> None:
        """Once a waiting connection has given up, the newest is next, until the queue is empty."""
        admission: Admission[str] = Admission(max_connections=100, max_handshakes=9)
        for name in "abcd":
            admission.accepted(name)
            admission.spoke(name)
        self.assertEqual(admission.next_turn(0.0), "a")
        admission.lost("a")
        admission.gave_up()
        self.assertEqual([admission.next_turn(0.0) for _ in range(4)], ["d", "c", "b", None])
        for name in "ef":
            admission.accepted(name)
            admission.spoke(name)
        self.assertEqual([admission.next_turn(0.0) for _ in range(2)], ["e", "f"])

    def test_lost_while_waiting(self) -> None:
        """A connection that is lost while it waits has given up."""
        admission: Admission[str] = Admission(max_connections=100, max_handshakes=9)
        for name in "abcd":
            admission.accepted(name)
            admission.spoke(name)
        admission.lost("b")
        self.assertEqual([admission.next_turn(0.0) for _ in range(4)], ["d", "c", "a", None])

    def test_overloaded(self) -> None:
        """When most peers are gone before their turn, few wait, until most peers are served again and none waits."""
        admission: Admission[int] = Admission(max_connections=10_000, max_handshakes=500)

        def arrive(number: int) -> None:
            admission.accepted(number)
            admission.spoke(number)

        def serve() -> None:
            served = admission.next_turn(0.0)
            assert served is not None
            admission.secured(served, 0.0)

        for number in range(10 * OVERLOADED_OF):  # every third one gives up
            arrive(number)
            if number % 3:
                serve()
            else:
                admission.lost(number)
        self.assertEqual((admission.overloaded, admission.room), (False, SILENT_SHARE * 500))
        for number in range(OVERLOADED_OF):
            arrive(number)
        for number in range(OVERLOADED_OF):
            admission.lost(number)
        self.assertEqual((admission.overloaded, admission.room), (True, OVERLOADED_QUEUE))
        arrive(0)
        for number in range(1, 4 * OVERLOADED_OF):
            self.assertEqual((admission.overloaded, admission.room), (True, OVERLOADED_QUEUE - 1))
            arrive(number)
            serve()  # the newest; one still waits
        serve()
        self.assertEqual((admission.waiting, admission.overloaded, admission.room), (0, False, SILENT_SHARE * 500))

    def test_overloaded_without_room(self) -> None:
        """An overloaded process accepts no more while more wait than it allows then."""
        admission: Admission[int] = Admission(max_connections=10_000, max_handshakes=500)
        for number in range(1000):
            admission.accepted(number)
            admission.spoke(number)
        for number in range(OVERLOADED_OF):
            admission.lost(number)
        self.assertTrue(admission.overloaded)
        self.assertLess(admission.room, 0)

    def test_emptied_by_peers_that_are_gone(self) -> None:
        """A process stays overloaded if its queue is empty because all peers in it were gone."""
        admission: Admission[int] = Admission(max_connections=10_000, max_handshakes=500)
        for number in range(1000):
            admission.accepted(number)
            admission.spoke(number)
        while (connection := admission.next_turn(0.0)) is not None:
            admission.lost(connection)
            admission.gave_up()
        self.assertEqual((admission.waiting, admission.overloaded), (0, True))

    def test_stalled(self) -> None:
        """The oldest handshake is stalled when all slots are used, others wait, and it takes several times the usual time."""
        admission: Admission[str] = Admission(max_connections=100, max_handshakes=2)

        def begin(name: str, now: float) -> None:
            admission.accepted(name)
            admission.spoke(name)
            admission.next_turn(now)

        begin("a", 0.0)
        begin("b", 0.5)
        self.assertIsNone(admission.stalled(50.0))  # no connection waits
        begin("c", 0.6)
        self.assertEqual((admission.stalled(STALLED_AT_FIRST - 0.01), admission.stalled(STALLED_AT_FIRST)), (None, "a"))
        admission.lost("a")
        self.assertIsNone(admission.stalled(50.0))  # a slot is free
        self.assertEqual(admission.next_turn(6.0), "c")
        admission.lost("b")
        for number in range(10 * USUAL_OF):  # recent ones take 10 ms
            begin(f"fast {number}", 7.0)
            admission.secured(f"fast {number}", 7.01)
        begin("d", 7.0)
        begin("e", 7.0)
        self.assertEqual((admission.stalled(6.0 + STALLED - 0.1), admission.stalled(6.0 + STALLED)), (None, "c"))
        admission.lost("c")
        admission.next_turn(8.0)
        for _ in range(10 * USUAL_OF):  # recent ones take 3 s now: a handshake of that length is not stalled
            admission.secured("e", 11.0)
            begin("e", 8.0)
        admission.accepted("f")
        admission.spoke("f")
        self.assertIsNone(admission.stalled(7.0 + 11.0))
        self.assertEqual(admission.stalled(7.0 + 12.1), "d")

    def test_room(self) -> None:
        """As many connections may wait for a handshake as may be silent. The others stay in the accept queue."""
        admission: Admission[int] = Admission(max_connections=1000, max_handshakes=5)
        for number in range(SILENT_SHARE * 5):
            self.assertGreater(admission.room, 0)
            admission.accepted(number)
            admission.spoke(number)
        self.assertEqual(admission.room, 0)
        admission.next_turn(0.0)
        self.assertEqual(admission.room, 1)

    def test_silent_pool(self) -> None:
        """The silent pool is larger than the number of handshakes, and leaves half of the connections to devices."""
        for connections, handshakes, silent in (
            (20_000, 512, 4 * 512),
            (1_000, 512, 500),
            (4, 512, 2),
            (1, 1, 1),
            (10_000_000, 10_000_000, 5_000_000),
        ):
            self.assertEqual(Admission[str](connections, handshakes).max_silent, silent)
        self.assertGreater(SILENT_SHARE, 1)

    def test_crowded(self) -> None:
        """When the silent pool is full, its oldest connection is closed for the next one."""
        admission: Admission[str] = Admission(max_connections=6, max_handshakes=2)
        self.assertIsNone(admission.oldest)
        for name in "abc":
            self.assertFalse(admission.crowded)
            admission.accepted(name)
        self.assertEqual((admission.crowded, admission.oldest, admission.room), (True, "a", 3))
        admission.spoke("a")
        self.assertEqual((admission.crowded, admission.oldest), (False, "b"))

    def test_full(self) -> None:
        """At the limit of connections there is no room until one is lost. Silent connections do not count."""
        admission: Admission[str] = Admission(max_connections=3, max_handshakes=5)
        for name in "abc":
            admission.accepted(name)
        self.assertEqual((admission.full, admission.crowded), (False, True))
        for full, name in zip((False, False, True), "abc", strict=True):
            admission.spoke(name)
            self.assertEqual(admission.full, full)
            self.assertEqual(admission.next_turn(0.0), name)
            admission.secured(name, 0.0)
        self.assertEqual(admission.room, 0)
        for name in "bca":
            admission.lost(name)
            self.assertEqual((admission.room, admission.full), (1, False))

    def test_any_history(self) -> None:
        """After any history the counts equal those of a model that keeps the state of every connection, and the limits hold."""
        run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


class PortTests(SynchronousTestCase):
    """Two ports of a process."""

    def setUp(self) -> None:
        self.process: Admission[str] = Admission(max_connections=20, max_handshakes=3)
        self.first = PortAdmission(self.process, 20)
        self.second = PortAdmission(self.process, 4)

    def test_overdue(self) -> None:
        """A connection is overdue if the time-out of its port has passed before its handshake is complete: silent, waiting or
        in the handshake.
        """
        for number, name in enumerate("abcdefgh"):
            self.first.accepted(name, float(number))
        for name in "dbehc":  # they send in another order; the last two wait
            self.first.spoke(name)
        for name in "dbe":
            self.assertEqual(self.process.next_turn(0.0), name)
        self.first.secured("e", 0.0)
        self.second.accepted("x", 2.0)
        self.assertEqual(self.first.overdue(-1.0, 0.0), [])
        self.assertEqual(self.first.overdue(7.0, 5.0), ["a", "b", "c"])
        self.assertEqual(self.first.overdue(9.0, 0.0), ["a", "b", "c", "d", "f", "g", "h"])
        self.assertEqual((self.second.overdue(11.0, 10.0), self.second.overdue(11.0, 9.0)), ([], ["x"]))

    def test_overdue_may_be_lost_meanwhile(self) -> None:
        """Overdue connections may be dropped while the iteration over them continues."""
        for name in "abcde":
            self.first.accepted(name, 0.0)
        for name in "bde":
            self.first.spoke(name)
        self.process.next_turn(0.0)
        for name in self.first.overdue(1.0, 1.0):
            self.first.lost(name)
        self.assertEqual((self.process.connections, self.first.connections), (0, 0))

    def test_full(self) -> None:
        """A port at its own limit is full, and the others are not. At the limit of the process all are."""
        for number in range(4):
            self.second.accepted(f"s{number}", 0.0)
            self.second.spoke(f"s{number}")
        self.assertEqual((self.second.full, self.second.at_own_limit), (True, True))
        self.assertEqual((self.first.full, self.process.full), (False, False))
        self.assertEqual((self.second.room, self.first.room), (0, 6))
        self.process.configure(4, 3)
        self.assertEqual((self.first.full, self.first.at_own_limit), (True, False))

    def test_without_handshakes(self) -> None:
        """A port without TLS accepts while as many handshakes wait at another port as may wait."""
        plain = PortAdmission(self.process, 20, handshakes=False)
        for number in range(self.process.max_silent + self.process.max_handshakes):
            self.first.accepted(f"f{number}", 0.0)
            self.first.spoke(f"f{number}")
            self.process.next_turn(0.0)
        self.assertEqual((self.first.room, plain.room), (0, 7))
        self.process.configure(13, 3)
        self.assertEqual(plain.room, 0)

    def test_silent_ones_of_a_port(self) -> None:
        """A port at its own limit closes its own silent connections for the next, and none of another port."""
        self.first.accepted("f", 0.0)
        for number in range(4):
            self.assertFalse(self.second.crowded)
            self.second.accepted(f"s{number}", 1.0)
        self.second.spoke("s0")
        self.assertEqual((self.first.crowded, self.second.crowded, self.second.oldest), (False, True, "s1"))

    def test_silent_ones_of_the_process(self) -> None:
        """If too many connections of the process are silent, the oldest is closed, whichever port has accepted it."""
        for number in range(self.process.max_silent):
            self.first.accepted(f"f{number}", 0.0)
        self.assertEqual((self.first.crowded, self.second.crowded, self.second.oldest), (True, True, "f0"))
        self.first.lost("f0")
        self.assertFalse(self.second.crowded)


LIMITS = (8, 5)
"""Limits of the two ports of `Machine`."""

TIMEOUTS = (10.0, 4.0)
"""Times for handshakes of the two ports of `Machine`."""


class Machine(RuleBasedStateMachine):
    """Model of the admission of two ports. Connections with even numbers are those of the first port."""

    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[int] = Admission(8, 2)
        self.ports = [PortAdmission(self.admission, limit) for limit in LIMITS]
        self.states: dict[int, str] = {}
        self.queue: list[int] = []
        self.impatient = False
        self.times: dict[int, float] = {}
        self.now = 0.0

    def count(self, *states: str, port: int | None = None) -> int:
        return sum(state in states for name, state in self.states.items() if port is None or name % 2 == port)

    def some(self, data: st.DataObject, *states: str) -> int | None:
        among = [name for name, state in self.states.items() if state in states]
        return data.draw(st.sampled_from(among)) if among else None

    @rule()
    def turn(self) -> None:
        """Start a waiting handshake, as the port does when a slot may be free."""
        name = self.admission.next_turn(self.now)
        if name is None:
            assert not self.queue or self.count("handshaking") == 2
            return
        assert self.queue.pop(-1 if self.impatient else 0) == name
        self.impatient = self.impatient and bool(self.queue)
        self.states[name] = "handshaking"

    @precondition(lambda self: self.queue)
    @rule()
    def gave_up(self) -> None:
        self.admission.gave_up()
        self.impatient = True

    @rule(port=st.sampled_from((0, 1)))
    def accepted(self, port: int) -> None:
        admission = self.ports[port]
        if admission.room <= 0:
            return
        if admission.crowded:
            silent = [name for name, state in self.states.items() if state == "silent"]
            if sum(name % 2 == port for name in self.states) >= LIMITS[port]:
                silent = [name for name in silent if name % 2 == port]
            oldest = min(silent, key=lambda name: self.times[name])
            assert admission.oldest == oldest
            del self.states[oldest]
            self.ports[oldest % 2].lost(oldest)
        name = 2 * len(self.times) + port
        self.now += 1
        self.times[name] = self.now
        self.states[name] = "silent"
        admission.accepted(name, self.now)

    @rule(data=st.data())
    def spoke(self, data: st.DataObject) -> None:
        name = self.some(data, "silent")
        if name is not None:
            self.ports[name % 2].spoke(name)
            self.states[name] = "waiting"
            self.queue.append(name)

    @rule(data=st.data())
    def secured(self, data: st.DataObject) -> None:
        name = self.some(data, "handshaking")
        if name is not None:
            self.states[name] = "open"
            self.ports[name % 2].secured(name, self.now)

    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        name = self.some(data, "silent", "waiting", "handshaking", "open")
        if name is not None:
            if self.states.pop(name) == "waiting":
                self.queue.remove(name)
                self.impatient = True
            self.ports[name % 2].lost(name)

    @rule(ahead=st.integers(0, 20))
    def overdue(self, ahead: int) -> None:
        now = self.now + ahead
        for port, timeout in enumerate(TIMEOUTS):
            late = [name for name, state in self.states.items() if state != "open" and self.times[name] + timeout <= now]
            assert sorted(self.ports[port].overdue(now, timeout)) == sorted(name for name in late if name % 2 == port)

    @invariant()
    def counts(self) -> None:
        admission = self.admission
        silent, handshaking, waiting = self.count("silent"), self.count("handshaking"), self.count("waiting")
        assert admission.connections == len(self.states)
        assert admission.handshaking == handshaking
        assert admission.waiting == waiting
        assert admission.open == self.count("open")
        assert admission.room == min(8 - (len(self.states) - silent), 4 - waiting)
        assert admission.full == (len(self.states) - silent >= 8)
        for port, limit in enumerate(LIMITS):
            own = self.ports[port]
            spoken = self.count("handshaking", "waiting", "open", port=port)
            assert own.spoken == spoken
            assert own.connections == spoken + self.count("silent", port=port)
            assert own.room == min(admission.room, limit - spoken)
            assert own.full == (admission.full or spoken >= limit)

    @invariant()
    def bounds(self) -> None:
        assert len(self.states) <= 8
        assert self.count("handshaking") <= 2
        assert self.count("silent") <= 4
        for port, limit in enumerate(LIMITS):
            assert self.ports[port].connections <= limit


class TallyTests(SynchronousTestCase):
    def test_now_and_then(self) -> None:
        """An occurrence is reported at the next check, later ones as a number at intervals. None is reported twice or omitted.
        """
        tally = Tally()
        self.assertEqual(tally.due(0.0), 0)
        tally.count += 1
        self.assertEqual(tally.due(1.0), 1)
        tally.count += 500
        self.assertEqual([tally.due(1.0 + second) for second in (1.0, REPORT_INTERVAL - 1)], [0, 0])
        tally.count += 500
        self.assertEqual(tally.due(1.0 + REPORT_INTERVAL), 1000)
        self.assertEqual(tally.due(1.0 + 2 * REPORT_INTERVAL), 0)
        tally.count += 1
        self.assertEqual((tally.due(2.0 + 2 * REPORT_INTERVAL), tally.count), (1, 1002))

    def test_the_last_time(self) -> None:
        """The rest is reported at the end, at any time."""
        tally = Tally()
        tally.count = 3
        self.assertEqual(tally.due(1.0), 3)
        tally.count = 5
        self.assertEqual((tally.due(1.1), tally.due(1.1, last=True), tally.due(1.1, last=True)), (0, 2, 0))
