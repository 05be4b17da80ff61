"""What is done once at the end of a reactor turn."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.end_of_turn import Turn


class TurnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.turn = Turn(self.clock)
        self.calls: list[str] = []

    def note(self, what: str) -> None:
        self.calls.append(what)

    def end(self) -> list[str]:
        self.clock.advance(0)
        calls, self.calls = self.calls, []
        return calls

    def test_devices_before_the_broker(self) -> None:
        """What goes to devices is written before what goes to the broker, whoever asked first."""
        self.turn.broker(lambda: self.note("broker"))
        self.turn.devices(lambda: self.note("device 1"))
        self.turn.devices(lambda: self.note("device 2"))
        self.assertEqual(self.calls, [])
        self.assertEqual(self.end(), ["device 1", "device 2", "broker"])

    def test_one_timer_a_turn(self) -> None:
        """However many ask, there is one delayed call, and none when nobody asks."""
        for _ in range(100):
            self.turn.broker(lambda: None)
            self.turn.devices(lambda: None)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.turn.devices(lambda: self.note("again"))
        self.assertEqual(self.end(), ["again"])

    def test_asked_for_by_a_flush(self) -> None:
        """What a flush asks of its own round or a later one is done in the same turn."""
        self.turn.devices(lambda: self.turn.broker(lambda: self.note("acknowledge")))
        self.turn.broker(lambda: self.turn.broker(lambda: self.note("write")))
        self.assertEqual(self.end(), ["acknowledge", "write"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asked_for_by_a_later_round(self) -> None:
        """What the broker's round asks of the devices' is done in another turn, and not forgotten."""
        self.turn.broker(lambda: self.turn.devices(lambda: self.note("device")))
        self.turn.broker(lambda: self.note("broker"))
        self.assertEqual(self.end(), ["broker", "device"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_raises(self) -> None:
        """A flush that raises is logged, and the others are done all the same."""
        self.turn.devices(lambda: 1 / 0)
        self.turn.devices(lambda: self.note("device"))
        self.turn.broker(lambda: self.note("broker"))
        self.assertEqual(self.end(), ["device", "broker"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
