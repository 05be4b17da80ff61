"""Tests of `owsla.worker` as a program. What a worker does is tested in `tests/integration/test_workers.py`."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase


class WorkerTests(SynchronousTestCase):
    def test_started_by_hand(self) -> None:
        """Without a parent the program ends with one line that says who starts it."""
        done = subprocess.run([sys.executable, "-m", "owsla.worker"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Aowsla\.worker is started by twistd owsla --workers, [^\n]+\n\Z")
