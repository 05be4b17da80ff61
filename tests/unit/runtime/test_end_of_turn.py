"""Work that is done once, at the end of a reactor turn."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.end_of_turn import EndOfTurn


class TurnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.turn = EndOfTurn(self.clock)
        self.calls: list[str] = []

    def note(self, what: str) -> None:
        self.calls.append(what)

    def end(self) -> list[str]:
        self.clock.advance(0)
        calls, self.calls = self.calls, []
        return calls

    def test_devices_before_the_broker(self) -> None:
        """The first round is called before the second one, in whichever order they were asked for."""
        self.turn.call_last(lambda: self.note("broker"))
        self.turn.call_first(lambda: self.note("device 1"))
        self.turn.call_first(lambda: self.note("device 2"))
        self.assertEqual(self.calls, [])
        self.assertEqual(self.end(), ["device 1", "device 2", "broker"])

    def test_time(self) -> None:
        """The time of a turn is read when its devices are polled and when its end begins, and not for each line."""
        times = iter((1.0, 2.0, 3.0))
        turn = EndOfTurn(self.clock, lambda: next(times))
        self.assertEqual(turn.now, 1.0)
        turn.read_time()
        self.assertEqual(turn.now, 2.0)
        for _ in range(2):
            turn.call_first(lambda: self.calls.append(str(turn.now)))
        self.assertEqual(self.end(), ["3.0", "3.0"])

    def test_one_timer_a_turn(self) -> None:
        """All calls of a turn share one delayed call. Without calls there is none."""
        for _ in range(100):
            self.turn.call_last(lambda: None)
            self.turn.call_first(lambda: None)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.turn.call_first(lambda: self.note("again"))
        self.assertEqual(self.end(), ["again"])

    def test_asked_for_by_a_flush(self) -> None:
        """A flush that asks for a call in its own round or in the later one gets it in the same turn."""
        self.turn.call_first(lambda: self.turn.call_last(lambda: self.note("acknowledge")))
        self.turn.call_last(lambda: self.turn.call_last(lambda: self.note("write")))
        self.assertEqual(self.end(), ["acknowledge", "write"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asked_for_by_a_later_round(self) -> None:
        """A call in the first round that the second round asks for is made in the next turn."""
        self.turn.call_last(lambda: self.turn.call_first(lambda: self.note("device")))
        self.turn.call_last(lambda: self.note("broker"))
        self.assertEqual(self.end(), ["broker", "device"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_raises(self) -> None:
        """A flush that raises is logged, and the others are still called."""
        self.turn.call_first(lambda: 1 / 0)
        self.turn.call_first(lambda: self.note("device"))
        self.turn.call_last(lambda: self.note("broker"))
        self.assertEqual(self.end(), ["device", "broker"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_flush(self) -> None:
        """Before long work in a turn its calls are made at once, in both rounds. Later ones are made at its end."""
        self.turn.flush()
        self.turn.call_last(lambda: self.note("broker"))
        self.turn.call_first(lambda: self.note("device"))
        self.turn.flush()
        self.assertEqual(self.calls, ["device", "broker"])
        self.turn.call_last(lambda: self.note("later"))
        self.assertEqual(self.end(), ["device", "broker", "later"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_urgent(self) -> None:
        """Long work is interrupted while a watched descriptor has something to read."""
        before = len(os.listdir("/proc/self/fd"))
        ours, theirs = socket.socketpair()
        self.assertFalse(self.turn.urgent())
        self.turn.watch(ours.fileno())
        self.assertFalse(self.turn.urgent())
        theirs.send(b"a")
        self.assertTrue(self.turn.urgent())
        ours.recv(1)
        self.assertFalse(self.turn.urgent())
        fd = ours.fileno()
        theirs.close()
        ours.close()
        self.assertFalse(self.turn.urgent())
        self.turn.unwatch(fd)
        self.turn.unwatch(fd)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_several_urgent(self) -> None:
        """Each watched descriptor interrupts until it is no longer watched, although it stays open and readable."""
        pairs = [socket.socketpair() for _ in range(2)]
        for ours, theirs in pairs:
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            self.turn.watch(ours.fileno())
        for ours, theirs in pairs:
            self.assertFalse(self.turn.urgent())
            theirs.send(b"a")
            self.assertTrue(self.turn.urgent())
            self.turn.unwatch(ours.fileno())
        self.assertFalse(self.turn.urgent())

    def test_unwatchable(self) -> None:
        """A descriptor that the system cannot watch, or has no memory to watch, is not an error: nothing interrupts for it."""
        with open(__file__, "rb") as file:
            before = len(os.listdir("/proc/self/fd"))
            self.turn.watch(file.fileno())
            self.assertFalse(self.turn.urgent())
            self.turn.unwatch(file.fileno())
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_no_descriptors(self) -> None:
        """A process without free descriptors does not interrupt long work."""

        def fail() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(select, "epoll", fail)
        self.turn.watch(0)
        self.assertFalse(self.turn.urgent())
