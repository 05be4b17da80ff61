"""Files that the figures are written to."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bench import figures_report
from bench.figures_report import Results, write


class WriteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(figures_report, "surroundings", lambda results: ["a machine"])
        numbers = dict.fromkeys(("seconds", "rate", "devices", "trip_devices", "latency_rate", "connects"), 1.0)
        self.results = Results("the command", argparse.Namespace(runs=1, groups="X25519", **numbers))
        self.results.systems = ["Owsla"]
        self.results.begin()
        self.results.keep("Owsla", {"idle_kb": -1.5})
        self.folder = Path(tempfile.mkdtemp())  # mktemp() would leave it in the current folder under pytest
        self.addCleanup(shutil.rmtree, self.folder)

    def kept(self) -> Any:
        return json.loads((self.folder / "figures.json").read_text())["runs"]

    def test_negative(self) -> None:
        """A run whose only figure is negative, as noise makes them, is written like any other."""
        names = [path.name for path in write(self.results, self.folder)]
        self.assertEqual(names, ["figures.json", "figures-costs.svg", "figures.md"])
        self.assertEqual(self.kept(), [{"Owsla": {"idle_kb": -1.5}}])

    def test_numbers_first(self) -> None:
        """The raw numbers are written even if tables and plots fail."""

        def fails(*_: object) -> str:
            raise ArithmeticError

        self.patch(figures_report, "draw_bars", fails)
        self.assertRaises(ArithmeticError, write, self.results, self.folder)
        self.assertEqual(self.kept(), [{"Owsla": {"idle_kb": -1.5}}])
