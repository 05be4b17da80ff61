"""Results of the figures: as a table, as plots, and as raw numbers."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from .child import ROOT
from .figures_plots import Bar, Panel, Spread, draw_bars, draw_spreads
from .harness import circumstances, median, table

PUBLISHER = "bare C publisher"
TRIPS = "bare C, both queues"
CEILINGS = {PUBLISHER: "ingest", TRIPS: "trips"}
"""Part whose ceiling each C program is."""


@dataclass(frozen=True)
class Figure:
    """Definition of a figure."""

    name: str
    title: str
    unit: str
    digits: int
    less: bool = False
    """True if less is better."""

    def shown(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


FIGURES = (
    Figure("handshakes_per_cpu_s", "Full TLS 1.3 handshakes (P-256, {groups}) per server CPU second", "/CPU s", 0),
    Figure("idle_kb", "Memory of an idle connection (PSS)", "KB", 1, less=True),
    Figure("line_server_us", "CPU per line to RabbitMQ, {rate:g}/s from {devices} devices, each ms", "µs", 1, less=True),
    Figure("even_server_us", "The same, each line at its own time", "µs", 1, less=True),
    Figure("line_together_us", "CPU per line of gateway and RabbitMQ together, {rate:g}/s, each ms", "µs", 1, less=True),
    Figure("ingest_together_us", "CPU per line of gateway and RabbitMQ together, at full speed", "µs", 1, less=True),
    Figure("ingest_per_s", "Lines per second at full speed, {devices} devices, to a consumer that decodes them", "/s", 0),
    Figure("bursts_together_us", "CPU per line of gateway and RabbitMQ together, in bursts of {burst}", "µs", 1, less=True),
    Figure("bursts_per_s", "Lines per second at full speed, of which a device writes {burst} together", "/s", 0),
    Figure("trips_per_s", "Round trips per second, {trip_devices} devices", "/s", 0),
    Figure("quiet_p50_ms", "Round trip at {latency_rate:g}/s, p50", "ms", 2, less=True),
    Figure("quiet_p99_ms", "Round trip at {latency_rate:g}/s, p99", "ms", 2, less=True),
    Figure("storm_p50_ms", "The same during {connects:g} connects per second, p50", "ms", 2, less=True),
    Figure("storm_p99_ms", "The same during {connects:g} connects per second, p99", "ms", 2, less=True),
)

ELSEWHERE = (
    ("reached", "handshakes/s", "handshakes_per_s", lambda value: f"{value:,.0f}"),
    ("empty", "empty, MB", "empty_mb", lambda value: f"{value:.0f}"),
    ("rate", "lines/s at the fixed rate", "line_per_s", lambda value: f"{value:,.0f}"),
    ("swarm", "swarm µs per line", "line_swarm_us", lambda value: f"{value:.1f}"),
    ("back end", "back end µs per line", "line_back_end_us", lambda value: f"{value:.1f}"),
    ("broker", "RabbitMQ µs per line", "line_broker_us", lambda value: f"{value:.1f}"),
    ("storm", "connects/s during latency", "storm_per_s", lambda value: f"{value:.0f}"),
)
PARTS = ("server", "swarm", "back_end", "broker")


@dataclass
class Results:
    """Measured results."""

    command: str
    options: argparse.Namespace
    systems: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    runs: list[dict[str, dict[str, float]]] = field(default_factory=list)
    """Figures by system, of each run."""
    load: list[float] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    """Raw numbers that the figures are computed from: windows, and summaries of the swarms."""
    held: dict[str, dict[str, float]] = field(default_factory=dict)
    back_end: str = ""
    broker: str = ""
    """Product and version of the broker."""
    interrupted: bool = False

    def begin(self) -> None:
        """Begin a run."""
        self.runs.append({})
        self.load.append(os.getloadavg()[0])

    def keep(self, system: str, figures: dict[str, float]) -> None:
        self.runs[-1].setdefault(system, {}).update(figures)

    def failed(self, system: str, part: str, reason: str) -> None:
        self.failures.append({"run": len(self.runs), "system": system, "part": part, "reason": reason})

    def record(self, system: str, what: str, **numbers: Any) -> None:
        self.raw.append({"run": len(self.runs), "system": system, "what": what, **numbers})

    def note(self, system: str, text: str) -> None:
        self.notes.append({"run": len(self.runs), "system": system, "note": text})

    def hold(self, system: str, found: dict[str, float]) -> None:
        self.held[system] = found

    @property
    def anything(self) -> bool:
        return any(self.runs) or bool(self.held) or bool(self.failures)

    @property
    def rows(self) -> list[str]:
        """Names of all systems and ceilings, including those that failed."""
        return [*self.systems, *CEILINGS]

    def values(self, system: str, figure: str) -> list[float]:
        """Return the values of a figure, of the runs that have it."""
        return [run[system][figure] for run in self.runs if figure in run.get(system, {})]

    def ratio(self, system: str, other: str, figure: str) -> float | None:
        """Return the median of the ratios of two systems in each run."""
        ratios = [
            run[system][figure] / run[other][figure]
            for run in self.runs
            if figure in run.get(system, {}) and run.get(other, {}).get(figure)
        ]
        return median(ratios) if ratios else None

    def title(self, figure: Figure) -> str:
        return figure.title.format(**vars(self.options))


def write(results: Results, folder: Path) -> list[Path]:
    """Write all results into a folder and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    around = surroundings(results)
    numbers = folder / "figures.json"
    # First, before tables and plots can fail: the numbers took long to measure and cannot be computed again.
    numbers.write_text(json.dumps(raw(results, around), indent=1) + "\n")
    files: dict[str, str] = {}
    costs = draw_bars("Cost and throughput: medians, with minimum and maximum of the runs", panels(results))
    latencies = draw_spreads("Round trips", "milliseconds", spreads(results))
    files.update({name: text for name, text in (("figures-costs.svg", costs), ("figures-latency.svg", latencies)) if text})
    files["figures.md"] = markdown(results, around, [name for name in files if name.endswith(".svg")])
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("figures-costs.svg", "figures-latency.svg"):
        if name not in files:
            (folder / name).unlink(missing_ok=True)  # from an earlier run
    return [numbers, *(folder / name for name in files)]


def raw(results: Results, around: list[str]) -> dict[str, Any]:
    kept = {"runs": results.runs, "load": results.load, "held": results.held}
    notes = {"failures": results.failures, "notes": results.notes, "interrupted": results.interrupted, "raw": results.raw}
    return {"command": results.command, "circumstances": around, **kept, **notes}


def surroundings(results: Results) -> list[str]:
    """Describe the machine and the software that the figures depend on."""
    model = ""
    with contextlib.suppress(OSError):
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), "")
    found = [model or platform.machine(), f"{platform.system()} {platform.release()}"]
    found.append(circumstances(devices=SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()))
    if results.broker:
        found.append(results.broker)
    with contextlib.suppress(OSError):
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            found.append(f"commit {commit.stdout.strip()}")
    found.append(f"back end: {results.back_end}" if results.back_end else "no back end")
    if results.load:
        found.append("load average at the start of the runs " + ", ".join(f"{load:.1f}" for load in results.load))
    found.append(time.strftime("%H:%M %Z"))
    return found


def markdown(results: Results, around: list[str], plots: list[str]) -> str:
    parts = ["# Figures", f"{', '.join(around)}.", f"    {results.command}"]
    if results.interrupted:
        parts.append("**Interrupted**: these are the figures up to the interruption.")
    if any(results.runs):
        options = results.options
        parts.append(
            f"Medians of {len(results.runs)} alternating runs of {options.seconds:g} s ({options.latency_seconds:g} s for "
            "latency), with minimum and maximum in brackets. "
            "Devices (lines of 50 bytes), back end and RabbitMQ are on the same machine. "
            "A ratio is the median of the ratios of the runs."
        )
        parts.append(summary(results))
        parts.append(elsewhere(results))
    if results.held:
        parts += ["## Connections held", held(results)]
    if results.failures:
        rows = [(failure["run"] or "", failure["system"], failure["part"], failure["reason"]) for failure in results.failures]
        parts += ["## Failures", table(("run", "system", "part", "reason"), rows)]
    if results.notes:
        notes = [(note["run"] or "", note["system"], note["note"]) for note in results.notes]
        parts += ["## Deviations", table(("run", "system", "note"), notes)]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """Build the table of all figures: the median of each system, and its ratio to other systems and to the ceiling."""
    rows: list[list[str]] = []
    for figure in FIGURES:
        title = f"**{results.title(figure)}**" + ("" if figure.unit.startswith("/") else f", {figure.unit}")
        for system in results.rows:
            found = results.values(system, figure.name)
            cell = failed(results, system, figure.name) if not found else ""
            if not found and not cell:
                continue
            row = [title, system]
            title = ""
            if found:
                spread = f" ({figure.shown(min(found))} to {figure.shown(max(found))})" if len(found) > 1 else ""
                row.append(f"**{figure.shown(median(found))}**{spread}")
            else:
                row.append(cell)
            for other in (*compared(results), ceiling(figure.name)):
                ratio = results.ratio(system, other, figure.name) if other and other != system else None
                row.append("" if ratio is None else f"{ratio:.2f}")
            rows.append(row)
    heads = [f"of {other}" for other in compared(results)]
    return table(("figure", "system", "median", *heads, "of the ceiling"), rows)


def compared(results: Results) -> list[str]:
    """Return the systems that all are compared with: the first Owsla, if there are others, and those beside it."""
    ours = [system for system in results.systems if system not in results.beside]
    return [*(ours[:1] if len(ours) > 1 else []), *results.beside]


def ceiling(figure: str) -> str | None:
    return next((name for name, part in CEILINGS.items() if figure in (f"{part}_per_s", f"{part}_together_us")), None)


def failed(results: Results, system: str, figure: str) -> str:
    """Return the reason why a figure is missing, if its measurement failed."""
    part = step_of(figure)
    for failure in results.failures:
        if failure["system"] == system and part in failure["part"].split(", "):
            return f"failed: {failure['reason']}"
    return ""


def step_of(figure: str) -> str:
    """Return the part that measures a figure."""
    word = figure.partition("_")[0]
    return {"idle": "memory", "even": "line", "quiet": "latency", "storm": "latency"}.get(word, word)


def elsewhere(results: Results) -> str:
    """Build the table of secondary figures: rates that were reached, and the CPU of the other processes."""
    rows = []
    for system in results.rows:
        row = [system]
        for _, _, name, shown in ELSEWHERE:
            found = results.values(system, name)
            row.append(shown(median(found)) if found else "")
        for part in ("ingest", "bursts", "trips"):
            used = [results.values(system, f"{part}_{who}_share") for who in PARTS]
            row.append(" / ".join(f"{median(one):.0%}" if one else "-" for one in used) if any(used) else "")
        if any(row[1:]):
            rows.append(row)
    heads = [head for _, head, _, _ in ELSEWHERE]
    heads += [f"CPU at {what}: server / swarm / back end / RabbitMQ" for what in ("ingest", "bursts", "round trips")]
    text = "Secondary figures (medians). For a ceiling the server is the C program that publishes."
    return f"{text}\n\n{table(('system', *heads), rows)}" if rows else ""


def held(results: Results) -> str:
    rows = []
    for system, found in results.held.items():
        good = found["connected"] == results.options.held and not found["dropped"] and found["arrived"] == found["written"]
        minutes = found["minutes"]
        lines = f"{found['arrived']:,.0f} of {found['written']:,.0f}" + (
            f", {found['twice']:.0f} twice" if found["twice"] else ""
        )
        row = (system, f"{found['connected']:,.0f}", f"{minutes:g}", f"{found['dropped']:.0f}", lines)
        rows.append(
            (*row, f"{found['connect_s']:.0f} s", f"{found['kb']:.1f} KB", f"{found['cpu']:.1%}", "yes" if good else "**no**")
        )
    heads = ("system", "connections", "minutes", "failed or dropped", "lines that arrived", "connecting took")
    text = "A line per minute from each connection, measured once at the end."
    return f"{text}\n\n{table((*heads, 'memory per connection', 'CPU meanwhile', 'held'), rows)}"


# -- plots ---------------------------------------------------------------------------------------------------------------------


def panels(results: Results) -> list[Panel]:
    """Build a panel for each cost or rate."""
    found = []
    for figure in FIGURES:
        if figure.unit == "ms":
            continue
        bars = [
            Bar(system, median(values), min(values), max(values), kind(results, system))
            for system in results.rows
            if (values := results.values(system, figure.name))
        ]
        if bars:
            better = "less is better" if figure.less else "more is better"
            unit = "" if figure.unit.startswith("/") else f", {figure.unit}"  # the title has the unit of a rate
            found.append(Panel(f"{results.title(figure)}{unit} ({better})", bars, shower(figure)))
    return found


def shower(figure: Figure) -> Callable[[float], str]:
    return lambda value: figure.shown(value)


def kind(results: Results, system: str) -> str:
    return "ceiling" if system in CEILINGS else "beside" if system in results.beside else "ours"


def spreads(results: Results) -> list[tuple[str, Sequence[Spread]]]:
    """Collect the percentiles of latency, quiet and during connects."""
    groups: list[tuple[str, Sequence[Spread]]] = []
    titles = {
        "quiet": f"quiet, {results.options.latency_rate:g} lines per second",
        "storm": f"during {results.options.connects:g} connects per second",
    }
    for name, title in titles.items():
        rows = []
        for system in results.systems:
            points = [(percent, results.values(system, f"{name}_{percent}_ms")) for percent in ("p50", "p99")]
            if all(values and min(values) > 0 and math.isfinite(max(values)) for _, values in points):
                known = [(percent, median(values), min(values), max(values)) for percent, values in points]
                rows.append(Spread(system, known, kind(results, system)))
        if rows:
            groups.append((title, rows))
    return groups
