"""Files that the figures are written to."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from bench import figures_report
from bench.figures_arguments import read_arguments
from bench.figures_report import Results, write


class WriteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(figures_report, "surroundings", lambda results: ["a machine"])
        self.results = Results("the command", read_arguments([]))
        self.results.systems = ["Owsla"]
        self.results.begin()
        self.results.keep("Owsla", {"idle_kb": -1.5})
        self.folder = Path(tempfile.mkdtemp())  # mktemp() would leave it in the current folder under pytest
        self.addCleanup(shutil.rmtree, self.folder)

    def rows(self) -> dict[tuple[str, str], list[str]]:
        """Return the cells of the table of figures, from the value on, by title and system."""
        found = {}
        title = ""
        for row in (self.folder / "figures.md").read_text().splitlines():
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            if row.startswith("|") and len(cells) > 3:
                title = cells[0] or title
                found[title, cells[1]] = cells[2:]
        return found

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

    def test_systems(self) -> None:
        """The table has each system with its median, its spread, and the medians of the ratios of the runs."""
        self.results.systems, self.results.beside = ["Owsla", "Owsla, --batch 200", "go"], ["go"]
        for ours, batch, go, ceiling in ((100.0, 20.0, 200.0, 150.0), (120.0, 20.0, 160.0, 150.0), (110.0, 55.0, 220.0, 110.0)):
            self.results.begin()
            for system, value in (
                ("Owsla", ours),
                ("Owsla, --batch 200", batch),
                ("go", go),
                (figures_report.PUBLISHER, ceiling),
            ):
                self.results.keep(system, {"ingest_together_us": value})
        write(self.results, self.folder)
        rows = self.rows()
        title = "**CPU per line of gateway and RabbitMQ together, at full speed**, µs"
        self.assertEqual(rows[title, "Owsla"], ["**110.0** (100.0 to 120.0)", "", "0.50", "0.80"])
        self.assertEqual(rows[title, "Owsla, --batch 200"], ["**20.0** (20.0 to 55.0)", "0.20", "0.12", "0.13"])
        self.assertEqual(rows[title, "go"], ["**200.0** (160.0 to 220.0)", "2.00", "", "1.33"])
        self.assertEqual(rows[title, figures_report.PUBLISHER], ["**150.0** (110.0 to 150.0)", "1.25", "0.75", ""])

    def test_failed(self) -> None:
        """A system that fails has the reason in its rows, and the others have their figures."""
        self.results.systems = ["Owsla", "go"]
        self.results.failed("go", "memory, line", "it did not start: no broker")
        self.results.keep("Owsla", {"line_together_us": 50.0})
        write(self.results, self.folder)
        rows = self.rows()
        self.assertEqual(rows["**Memory of an idle connection (PSS)**, KB", "go"][0], "failed: it did not start: no broker")
        titles = {title for title, system in rows if system == "go" and "failed" in rows[title, system][0]}
        self.assertEqual(len(titles), 4)  # memory, and three of the part "line"

    def test_six_systems(self) -> None:
        """Plots have a row for each of six systems, and no text is outside of them."""
        self.results.systems = ["Owsla", "Owsla, 9 workers, --batch 200", "Owsla, --batch 200", "erlang", "go", "RabbitMQ MQTT"]
        self.results.beside = self.results.systems[3:]
        for number, system in enumerate(self.results.systems, 1):
            figures = {figure.name: float(number) for figure in figures_report.FIGURES}
            self.results.keep(system, {**figures, "storm_p99_ms": 9876.5 * number, "ingest_per_s": 123456.0 * number})
        write(self.results, self.folder)
        for name in ("figures-costs.svg", "figures-latency.svg"):
            root = ElementTree.parse(self.folder / name).getroot()
            texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
            for system in self.results.systems:
                self.assertTrue(any(one.text == system for one in texts), system)
            for one in texts:
                size = 6.2 * len(one.text or "")
                left = float(one.get("x", 0)) - size * {"end": 1, "middle": 0.5}.get(one.get("text-anchor", ""), 0)
                self.assertTrue(left >= 0 and left + size <= float(root.get("width", 0)), one.text)
