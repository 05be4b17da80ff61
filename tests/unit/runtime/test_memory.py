"""What the garbage collector looks at, and what the system is given back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.memory import Memory


def resident() -> int:
    """Bytes of this process in memory that are nobody else's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


class Knot:
    """Garbage that only the collector finds, once it is let go of."""

    def __init__(self) -> None:
        self.itself = self


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        frozen = gc.get_freeze_count()
        self.addCleanup(gc.unfreeze)
        self.assertEqual(frozen, 0)

    def test_out_of_sight(self) -> None:
        """What there is then is not looked at again; what is garbage already is gone."""
        memory = Memory()
        garbage = weakref.ref(Knot())
        stays = Knot()
        memory.settle()
        self.assertIsNone(garbage())
        self.assertFalse(any(each is stays for each in gc.get_objects()))
        comes = Knot()
        self.assertTrue(any(each is comes for each in gc.get_objects()))
        memory.settle()
        self.assertFalse(any(each is comes for each in gc.get_objects()))

    def test_garbage_in_the_end(self) -> None:
        """What was frozen, and became garbage, is found, if not soon."""
        memory = Memory()
        knot = Knot()
        gone = weakref.ref(knot)
        memory.settle()
        del knot
        memory.settle()
        self.assertIsNotNone(gone())
        for _ in range(Memory.ALL):
            memory.settle()
        self.assertIsNone(gone())

    def test_given_back(self) -> None:
        """What lies free between things in use is the system's again."""
        things = [bytearray(3000) for _ in range(20_000)]
        in_use = things[::100]
        full = resident()
        things.clear()
        Memory().give_back()
        self.assertLess(resident(), full - 30_000_000)
        self.assertEqual(len(in_use), 200)
