"""Who may connect, and how connections are counted."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.admission import Admission


class AdmissionTests(SynchronousTestCase):
    def test_silent_takes_no_handshake(self) -> None:
        """Connections that have said nothing take no place among the handshakes, but one among the connections."""
        admission: Admission[str] = Admission(max_connections=10, max_handshakes=2)
        for name in "abcde":
            admission.accepted(name, 1.0)
        self.assertEqual((admission.connections, admission.handshaking, admission.room), (5, 0, 2))
        admission.spoke("c")
        admission.spoke("a")
        self.assertEqual((admission.handshaking, admission.room), (2, 0))
        admission.secured("c")
        self.assertEqual((admission.open, admission.handshaking, admission.room), (1, 1, 1))

    def test_full(self) -> None:
        """At the limit of connections there is no room, in whichever state they are, until one is lost."""
        admission: Admission[str] = Admission(max_connections=3, max_handshakes=5)
        for name in "abc":
            admission.accepted(name, 1.0)
        admission.spoke("a")
        admission.spoke("b")
        admission.secured("b")
        self.assertEqual(admission.room, 0)
        for room, name in enumerate("bca", 1):
            admission.lost(name)
            self.assertEqual(admission.room, room)

    def test_overdue(self) -> None:
        """Overdue are those whose deadline has passed and whose handshake is not complete, silent or not."""
        admission: Admission[str] = Admission(10, 10)
        for deadline, name in enumerate("abcdef"):
            admission.accepted(name, float(deadline))
        for name in "dbe":  # they speak in an order of their own
            admission.spoke(name)
        admission.secured("e")
        self.assertEqual(set(admission.overdue(-1.0)), set())
        self.assertEqual(set(admission.overdue(2.0)), {"a", "b", "c"})
        self.assertEqual(set(admission.overdue(9.0)), {"a", "b", "c", "d", "f"})

    def test_overdue_may_be_lost_meanwhile(self) -> None:
        """Those that are named may be dropped one by one while the rest is named."""
        admission: Admission[str] = Admission(10, 10)
        for name in "abcd":
            admission.accepted(name, 1.0)
        admission.spoke("b")
        admission.spoke("d")
        for name in admission.overdue(1.0):
            admission.lost(name)
        self.assertEqual(admission.connections, 0)

    def test_any_history(self) -> None:
        """Over any history the counts are those of a model that keeps every connection's state."""
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[int] = Admission(8, 3)
        self.states: dict[int, str] = {}
        self.deadlines: dict[int, float] = {}
        self.now = 0.0

    def count(self, *states: str) -> int:
        return sum(state in states for state in self.states.values())

    def some(self, data: st.DataObject, *states: str) -> int | None:
        among = [name for name, state in self.states.items() if state in states]
        return data.draw(st.sampled_from(among)) if among else None

    @precondition(lambda self: self.admission.room > 0)
    @rule()
    def accepted(self) -> None:
        name = len(self.deadlines)
        self.now += 1
        self.deadlines[name] = self.now + 10
        self.states[name] = "silent"
        self.admission.accepted(name, self.now + 10)

    @rule(data=st.data())
    def spoke(self, data: st.DataObject) -> None:
        name = self.some(data, "silent")
        if name is not None:
            self.states[name] = "handshaking"
            self.admission.spoke(name)

    @rule(data=st.data())
    def secured(self, data: st.DataObject) -> None:
        name = self.some(data, "handshaking")
        if name is not None:
            self.states[name] = "open"
            self.admission.secured(name)

    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        name = self.some(data, "silent", "handshaking", "open")
        if name is not None:
            del self.states[name]
            self.admission.lost(name)

    @rule(ahead=st.integers(0, 20))
    def overdue(self, ahead: int) -> None:
        now = self.now + ahead
        late = {
            name for name, state in self.states.items() if state in ("silent", "handshaking") and self.deadlines[name] <= now
        }
        assert sorted(self.admission.overdue(now)) == sorted(late)

    @invariant()
    def counts(self) -> None:
        connections, handshaking = len(self.states), self.count("handshaking")
        assert self.admission.connections == connections
        assert self.admission.handshaking == handshaking
        assert self.admission.open == self.count("open")
        assert self.admission.room == min(8 - connections, 3 - handshaking)
