"""CPU times read from /proc."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bench import proc

TICK = os.sysconf("SC_CLK_TCK")


class CpuTests(SynchronousTestCase):
    """CPU of a process and its descendants, from a simulated /proc."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp())  # mktemp() would leave it in the current folder under pytest
        self.addCleanup(shutil.rmtree, self.root)
        (self.root / "self").mkdir()
        self.patch(proc, "PROC", self.root)

    def process(self, pid: int, parent: int, *, ticks: int, ended: int = 0, threads: tuple[int, ...] = ()) -> None:
        """Create a process with CPU ticks of its own and of ended children, and nanoseconds of living threads."""
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        numbers = ["0"] * 6 + ["0"] + [str(ticks), "0", str(ended), "0"] + ["0"] * 30
        (folder / "stat").write_text(f"{pid} (a ) b) S {parent} 1 1 {' '.join(numbers)}\n")
        for thread, spent in enumerate(threads):
            task = folder / "task" / str(pid + thread)
            task.mkdir(parents=True, exist_ok=True)
            (task / "schedstat").write_text(f"{spent} 5 7\n")

    def test_all_below(self) -> None:
        """A process and its descendants are counted, and no others; to the nanosecond, if the kernel has schedstat."""
        self.process(10, 1, ticks=2 * TICK, threads=(1_500_000_000, 500_000_001))
        self.process(11, 10, ticks=TICK)
        self.process(12, 11, ticks=TICK)
        self.process(20, 1, ticks=TICK)
        self.assertEqual(proc.cpu(10), 4.000000001)

    def test_ended(self) -> None:
        """The CPU of ended threads and processes is counted: the difference of two values never misses it."""
        self.process(10, 1, ticks=TICK, threads=(1_000_000_000,))
        self.process(11, 10, ticks=3 * TICK, threads=(3_000_000_000,))
        before = proc.cpu(10)
        self.assertEqual(before, 4.0)
        # The child ends and is waited for; a thread that used a second ends as well.
        for path in sorted(self.root.glob("11/**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (self.root / "11").rmdir()
        self.process(10, 1, ticks=2 * TICK, ended=4 * TICK, threads=(1_000_000_000,))
        self.assertEqual(proc.cpu(10) - before, 2.0)

    def test_gone(self) -> None:
        """A process that is gone raises an error, since its CPU would seem to be 0 again."""
        self.assertRaises(ProcessLookupError, proc.cpu, 10)
