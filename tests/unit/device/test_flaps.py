"""Tests of the limit on connections of one device within a minute."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.flaps import COUNTED, HELD_OFF, REMEMBERED, FlapLimit


class FlapLimitTests(SynchronousTestCase):
    def test_off(self) -> None:
        """Without a limit no device is held off, and none is remembered."""
        flaps = FlapLimit(None)
        self.assertEqual({flaps.enter("a", 0.0) for _ in range(100)}, {None})
        self.assertEqual(flaps._counts, {})

    def test_held_off(self) -> None:
        """The connection after the limit within a minute begins a minute in which all are refused. The begin is told once."""
        flaps = FlapLimit(3)
        self.assertEqual([flaps.enter("a", time) for time in (0.0, 20.0, 40.0)], [None] * 3)
        self.assertEqual(flaps.enter("a", 59.0), 4)
        self.assertEqual([flaps.enter("a", 59.0 + second) for second in range(int(HELD_OFF))], [0] * int(HELD_OFF))
        self.assertEqual(flaps.held_off(60.0), 1)
        self.assertEqual([flaps.enter("a", 59.0 + HELD_OFF + second) for second in range(4)], [None, None, None, 4])

    def test_others(self) -> None:
        """Other devices are not affected."""
        flaps = FlapLimit(1)
        self.assertEqual([flaps.enter(device, 0.0) for device in "aabb"], [None, 2, None, 2])
        self.assertEqual(flaps.enter("c", 0.0), None)

    def test_slow(self) -> None:
        """A device that stays below the limit is never held off."""
        flaps = FlapLimit(6)
        self.assertEqual({flaps.enter("a", 10.0 * number) for number in range(1000)}, {None})

    def test_storm(self) -> None:
        """When all devices come back at once, some of them twice or with a delay, none is held off."""
        flaps = FlapLimit(3)
        for time in (0.0, 2.0, 30.0):
            for number in range(50_000):
                self.assertIsNone(flaps.enter(f"device-{number}", time + number / 50_000))

    def test_storm_with_a_flapper(self) -> None:
        """A device that flaps is found in the middle of such a storm."""
        flaps = FlapLimit(3)
        results = []
        for number in range(50_000):
            flaps.enter(f"device-{number}", number / 1000)
            if number % 10_000 == 0:
                results.append(flaps.enter("flapper", number / 1000))
        self.assertEqual(results, [None, None, None, 4, 0])

    def test_memory(self) -> None:
        """Any number of devices takes some megabytes."""
        flaps = FlapLimit(1)
        for number in range(REMEMBERED + 1000):
            for _ in range(2):
                flaps.enter(f"a device with the number {number}", 0.0)
        self.assertEqual(len(flaps._held_until), REMEMBERED)
        for number in range(REMEMBERED + 1000):
            flaps.enter(f"another device with the number {number}", 0.0)
        self.assertEqual(len(flaps._counts), REMEMBERED)
        size = 0
        for table in (flaps._counts, flaps._held_until):
            size += sys.getsizeof(table) + sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in table.items())
        self.assertLess(size, 8_000_000)

    def test_configure(self) -> None:
        """Another limit holds at once, for the connections so far. Without a limit nobody is held off any longer."""
        flaps = FlapLimit(3)
        for _ in range(4):
            flaps.enter("a", 0.0)
            flaps.enter("b", 0.0)
        flaps.configure(100)
        self.assertEqual(flaps.enter("a", 1.0), 0)
        flaps.configure(None)
        self.assertEqual((flaps.enter("a", 1.0), flaps.held_off(1.0)), (None, 0))
        flaps.configure(3)
        self.assertIsNone(flaps.enter("a", 1.0))

    @given(st.integers(1, 5), st.lists(st.floats(0.0, 40.0), max_size=60))
    def test_any_times(self, limit: int, pauses: list[float]) -> None:
        """No device has more than twice the limit of connections within any minute, and each hold has a reason."""
        flaps = FlapLimit(limit)
        now, let_in, held_until = 0.0, [], 0.0
        for pause in pauses:
            now += pause
            result = flaps.enter("a", now)
            if result is None:
                self.assertGreaterEqual(now, held_until)
                let_in.append(now)
                self.assertLessEqual(sum(time > now - COUNTED for time in let_in), 2 * limit)
            elif result:
                self.assertEqual(result, limit + 1)
                self.assertGreaterEqual(sum(time > now - COUNTED for time in let_in), limit)
                held_until = now + HELD_OFF
            else:
                self.assertLess(now, held_until)
