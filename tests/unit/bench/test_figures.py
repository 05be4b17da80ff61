"""What becomes of figures, whatever they are."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from bench import figures_report
from bench.figures_plots import Bars, Panel, draw_bars
from bench.figures_report import Results, write


def drawn(*values: float) -> list[dict[str, str]]:
    """The rectangles of a panel with these values."""
    panel = Panel("what", [Bars("Owsla", value, value - 1, value + 1, "ours") for value in values], str)
    return [dict(one.attrib) for one in ElementTree.fromstring(draw_bars("all", [panel])).iter() if one.get("class") == "ours"]


class PlotTests(SynchronousTestCase):
    """The plots."""

    def test_below_zero(self) -> None:
        """A value below 0, as noise makes them, is drawn as 0; also where there are no others."""
        for values in ((-5.0, -3.0), (0.0,), (-1.0,), (-5.0, 8.0)):
            widths = [float(bar["width"]) for bar in drawn(*values)]
            self.assertEqual([width > 0 for width in widths], [value > 0 for value in values], values)
            self.assertTrue(min(widths) >= 0, values)


class WriteTests(SynchronousTestCase):
    """The files."""

    def setUp(self) -> None:
        self.patch(figures_report, "surroundings", lambda results: ["a machine"])
        numbers = dict.fromkeys(("seconds", "rate", "devices", "trip_devices", "latency_rate", "connects"), 1.0)
        self.results = Results("the command", argparse.Namespace(runs=1, groups="X25519", **numbers))
        self.results.systems = ["Owsla"]
        self.results.begin()
        self.results.keep("Owsla", {"idle_kb": -1.5})
        self.folder = Path(tempfile.mkdtemp())  # mktemp() would leave it in the current folder, under pytest
        self.addCleanup(shutil.rmtree, self.folder)

    def kept(self) -> Any:
        return json.loads((self.folder / "figures.json").read_text())["runs"]

    def test_negative(self) -> None:
        """A run whose only figure is below 0 is written like any other."""
        names = [path.name for path in write(self.results, self.folder)]
        self.assertEqual(names, ["figures.json", "figures-costs.svg", "figures.md"])
        self.assertEqual(self.kept(), [{"Owsla": {"idle_kb": -1.5}}])

    def test_numbers_first(self) -> None:
        """What was measured is kept even when nothing can be made of it."""

        def fails(*_: object) -> str:
            raise ArithmeticError

        self.patch(figures_report, "draw_bars", fails)
        self.assertRaises(ArithmeticError, write, self.results, self.folder)
        self.assertEqual(self.kept(), [{"Owsla": {"idle_kb": -1.5}}])
