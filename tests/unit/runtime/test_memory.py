"""Objects that the garbage collector examines, and memory that is returned to the system."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.imports import without_collection
from owsla.runtime.memory import ProcessMemory, TrimSchedule


def resident() -> int:
    """Return the private resident memory of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


class Knot:
    """An object in a cycle: only the collector finds it when it is garbage."""

    def __init__(self) -> None:
        self.itself = self


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        gc.unfreeze()  # the commands of other tests have frozen what they imported
        self.addCleanup(gc.unfreeze)

    def test_out_of_sight(self) -> None:
        """Objects that are frozen are not examined again; existing garbage is collected."""
        memory = ProcessMemory()
        garbage = weakref.ref(Knot())
        stays = Knot()
        memory.freeze()
        self.assertIsNone(garbage())
        self.assertFalse(any(each is stays for each in gc.get_objects()))
        comes = Knot()
        self.assertTrue(any(each is comes for each in gc.get_objects()))
        memory.freeze()
        self.assertFalse(any(each is comes for each in gc.get_objects()))

    def test_garbage_in_the_end(self) -> None:
        """Frozen objects that become garbage are collected at a later call."""
        memory = ProcessMemory()
        knot = Knot()
        gone = weakref.ref(knot)
        memory.freeze()
        del knot
        memory.freeze()
        self.assertIsNotNone(gone())
        for _ in range(ProcessMemory.UNFREEZE_EVERY):
            memory.freeze()
        self.assertIsNone(gone())

    def test_imports(self) -> None:
        """During imports nothing is collected. What they leave is not examined, at the first call of `freeze` either."""
        with without_collection():
            self.assertFalse(gc.isenabled())
            stays = Knot()
        self.assertTrue(gc.isenabled())
        self.assertFalse(any(each is stays for each in gc.get_objects()))
        gone = weakref.ref(stays)
        del stays
        ProcessMemory().freeze()
        self.assertIsNotNone(gone())

    def test_failed_import(self) -> None:
        """Garbage is collected again after an import that fails."""

        def fail() -> None:
            with without_collection():
                raise ImportError

        self.assertRaises(ImportError, fail)
        self.assertTrue(gc.isenabled())

    def test_given_back(self) -> None:
        """Free memory between objects in use is returned to the system."""
        things = [bytearray(3000) for _ in range(20_000)]
        in_use = things[::100]
        full = resident()
        things.clear()
        ProcessMemory().trim()
        self.assertLess(resident(), full - 30_000_000)
        self.assertEqual(len(in_use), 200)


class TrimScheduleTests(SynchronousTestCase):
    def trims(self, schedule: TrimSchedule, rates: list[tuple[int, int]]) -> list[int]:
        """Run phases of some seconds with a number of handshakes in each second. Return the seconds of the returns."""
        made = now = 0
        found = []
        for rate, seconds in rates:
            for _ in range(seconds):
                now += 1
                made += rate
                if schedule.due(made, now):
                    found.append(now)
        return found

    def test_after_a_stampede(self) -> None:
        """Memory is returned a second after a stampede, whenever it comes, and not while it lasts."""
        self.assertEqual(self.trims(TrimSchedule(0.0), [(1000, 10), (0, 600)]), [11])
        self.assertEqual(self.trims(TrimSchedule(0.0), [(0, 100), (1000, 10), (20, 100)]), [111, 171])

    def test_few_handshakes(self) -> None:
        """A few handshakes return nothing, until there were many in all."""
        self.assertEqual(self.trims(TrimSchedule(0.0), [(1, 499)]), [])
        self.assertEqual(self.trims(TrimSchedule(0.0), [(1, 1100)]), [500, 1000])

    def test_interval(self) -> None:
        """After a second stampede within a minute, memory is returned when the minute is over."""
        self.assertEqual(self.trims(TrimSchedule(0.0), [(1000, 5), (0, 10), (1000, 5), (0, 100)]), [6, 66])

    def test_endless(self) -> None:
        """While handshakes never become few, memory is returned once in five minutes."""
        self.assertEqual(self.trims(TrimSchedule(0.0), [(100, 900)]), [240, 540, 840])
