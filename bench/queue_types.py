"""Costs of a line by the type of its queue: classic, quorum, stream; each with a message for each line, and with --batch.

    python -m bench.queue_types --runs 3 --output queue_types.md

Owsla with one process, and a RabbitMQ that is started for it. The types take turns within each run. The back end is the C
program of `bench.figures`, which checks that no line is missing. Of a stream it reads what comes, and acknowledges it as with
other queues.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import own_broker
from .figures import Bench, interrupted, progress
from .figures_report import Results
from .harness import arguments, circumstances, command_line, free_port, median, publish, table
from .systems import RunningSystem, System, owsla

TYPES = "classic", "quorum", "stream"


class QueueTypes(Bench):
    """Measurements of Owsla with queues of each type."""

    def __init__(self, options: argparse.Namespace, broker: str, folder: Path, results: Results, pages: dict[str, int]) -> None:
        """`pages` has the port of the metrics of each system."""
        systems = [self._system(options, kind, batch, pages) for kind in TYPES for batch in (1, options.batch)]
        super().__init__(options, broker, folder, results, systems)
        self._pages = pages
        self.steps = {"line": self.paced, "ingest": self.ingest}

    @staticmethod
    def _system(options: argparse.Namespace, kind: str, batch: int, pages: dict[str, int]) -> System:
        name = kind if batch == 1 else f"{kind}, --batch {batch}"
        page = pages[name] = free_port()
        made = owsla(1, batch, "--from-device-argument", f"x-queue-type={kind}", "--http", str(page))
        return System(name, made.command, *made.queues, ours=True)

    def run(self, number: int) -> None:
        start = number % len(self.systems)
        for system in [*self.systems[start:], *self.systems[:start]]:
            self.turn(system)

    def paced(self, running: RunningSystem) -> dict[str, float]:
        """Measure CPU per line at a fixed rate, with the lines of each millisecond together, and the time to a confirm."""
        before = self._confirms(running)
        rate = "--connections", str(self.options.devices), "--rate", f"{self.options.rate:g}", "--tick", "1"
        found = self.measure_lines(running, "line", "--mode", "flood", *rate)
        confirms = {bound: count - before.get(bound, 0.0) for bound, count in self._confirms(running).items()}
        figures = {f"line_{part}_us": found[part] / found["lines"] * 1e6 for part in ("server", "broker", "back_end")}
        figures.update(self.together("line", found, running.broker))
        figures["confirm_p50_ms"], figures["confirm_p99_ms"] = (quantile(confirms, share) * 1e3 for share in (0.5, 0.99))
        return figures

    def _confirms(self, running: RunningSystem) -> dict[float, float]:
        """Return the histogram of the times from a publish to its confirm: cumulative counts by upper bounds in seconds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._pages[running.system.name]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        buckets = re.findall(r'^owsla_publish_to_confirm_seconds_bucket{.*le="(.+?)".*} (\S+)$', text, re.MULTILINE)
        return {float(bound): float(count) for bound, count in buckets}


def quantile(cumulative: Mapping[float, float], share: float) -> float:
    """Return the value below which a share of the observations is, by linear interpolation in its bucket.

    `cumulative` has the counts by upper bounds. Above the highest finite bound it is that bound; without observations 0.
    """
    wanted = share * max(cumulative.values(), default=0.0)
    lower = below = 0.0
    for bound, count in sorted(cumulative.items()):
        if bound == math.inf:
            break
        if count >= wanted and count > below:
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower if wanted else 0.0


def report(results: Results, options: argparse.Namespace, load: Sequence[float]) -> str:
    """Format the results as Markdown."""

    def cell(system: str, figure: str, form: str) -> str:
        values = results.values(system, figure)
        return f"{median(values):{form}}" if values else ""

    rows = [
        (
            system,
            cell(system, "line_server_us", ".1f"),
            cell(system, "line_broker_us", ".1f"),
            f"**{cell(system, 'line_together_us', '.1f')}**",
            _ratio(results.ratio(system, TYPES[0], "line_together_us")),
            f"{cell(system, 'confirm_p50_ms', '.1f')}, {cell(system, 'confirm_p99_ms', '.1f')}",
            cell(system, "ingest_per_s", ",.0f"),
            _ratio(results.ratio(system, TYPES[0], "ingest_per_s")),
            cell(system, "ingest_together_us", ".1f"),
        )
        for system in results.systems
    ]
    heads = (
        "queue",
        f"µs of CPU of the gateway, a line at {options.rate:g}/s",
        "of RabbitMQ",
        "together",
        "ratio",
        "ms to the confirm, median and 99 %",
        "lines a second at full speed",
        "ratio",
        "µs of both, a line at full speed",
    )
    parts = [
        "# Types of queues",
        f"{circumstances()}, {results.broker}. Medians of at most {len(results.runs)} alternating runs of {options.seconds:g} "
        f"s; {options.devices} devices over TLS with lines of 50 bytes; devices, gateway, RabbitMQ (one node) and back end "
        f"({results.back_end}) on the same machine, load average {', '.join(f'{one:.1f}' for one in load)} at the start of the "
        "runs.",
        f"    {command_line()}",
        table(heads, rows),
        "Each number is a median by itself, so gateway and RabbitMQ do not add up to *together*. The ratios are medians of the "
        "ratios to the classic queue with a message for each line, in the same run. *ms to the confirm*: of a sample of lines "
        "at the fixed rate, without the time that a batch waits to be filled; from the histogram of the gateway, by "
        "interpolation. RabbitMQ's CPU contains the delivery to one back end. Quorum queues and streams are on one node: "
        "replicas would add their costs on other hosts.",
    ]
    wrong = [f"- {each['system']}, run {each['run']}: {each.get('note') or each['reason']}" for each in results.notes]
    wrong += [f"- {each['system']}, run {each['run']}: {each['part']} failed: {each['reason']}" for each in results.failures]
    return "\n\n".join([*parts, *(["## Notes", "\n".join(wrong)] if wrong else [])])


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = arguments("Measure the costs of a line by the type of its queue.")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs, in each of which the types take turns (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=3, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="devices (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5000, help="lines per second for CPU per line (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=200, help="maximum number of lines in a batch (default: %(default)s)")
    parser.add_argument("--groups", default="X25519", help="key exchange groups of the devices (default: %(default)s)")
    options = parser.parse_args()
    options.only = ["line", "ingest"]
    results = Results(command_line(), options)
    # What was measured so far is published, also when the program is ended.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        measure(options, results)
    if not any(results.runs):
        raise SystemExit("nothing was measured")
    publish(report(results, options, results.load), options.output)
    if results.failures:
        sys.exit(1)


def measure(options: argparse.Namespace, results: Results) -> None:
    """Take all turns."""
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder, own_broker.running() as broker:
        bench = QueueTypes(options, broker, Path(folder), results, {})
        for number in range(options.runs):
            results.begin()
            began = time.monotonic()
            progress(f"run {number + 1} of {options.runs}, load average {results.load[-1]:.1f}")
            bench.run(number)
            progress(f"run {number + 1} took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
