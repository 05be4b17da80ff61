"""Arguments of `python -m bench.figures`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from .harness import RESULTS

PARTS = ("memory", "handshakes", "line", "trips", "latency", "ingest", "bursts", "held")
VARIANTS = ("plain", "batch", "workers", "batch-workers")
"""Ways to run Owsla: with a message for each line, in batches, and each of these also with several workers."""
MEASURED = VARIANTS[:3]
"""Variants that are measured unless others are chosen."""
OWN = "own"
"""Value of `--broker` for a RabbitMQ that is started for the measurement."""


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments, by default those of this process. Exit with a message if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures", description="Measure cost and throughput of Owsla, compared with other systems."
    )
    parser.add_argument(
        "--broker", metavar="URL", default=OWN, help="a RabbitMQ; own: one that is started for it (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="runs, in each of which the systems take turns (default: %(default)s)"
    )
    parser.add_argument("--only", metavar="NAMES", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=RESULTS, help="folder of figures* (default: bench/results)"
    )
    _add_systems(parser)
    _add_load(parser)
    options = parser.parse_args(words)
    for name, known in (("only", PARTS), ("variants", VARIANTS)):
        chosen = getattr(options, name).split(",")
        for word in chosen:
            if word not in known:
                parser.error(f"--{name}: {word!r} is not one of {', '.join(known)}")
        setattr(options, name, chosen)
    for pair in options.beside:
        name, given, command = pair.partition("=")
        if not name or not given or "{port}" not in command:
            parser.error(f"--beside: {pair!r} is not NAME=COMMAND with {{port}} in the command")
    above_0 = ("runs", "burst", "seconds", "latency_seconds", "connections", "held", "held_minutes")
    for name in above_0:
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0")
    for name in ("batch", "workers"):
        if getattr(options, name) < 2:
            parser.error(f"--{name}: must be 2 or more; --variants plain measures without")
    return options


def _add_systems(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variants",
        metavar="NAMES",
        default=",".join(MEASURED),
        help="plain: a message for each line; batch: with --batch; workers: with --workers; batch-workers: with both "
        "(default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=200, help="maximum number of lines in a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="number of worker processes (default: %(default)s)")
    parser.add_argument(
        "--beside", metavar="NAME=COMMAND", action="append", default=[], help="another system; may be given several times"
    )
    parser.add_argument(
        "--mqtt", action="store_true", help="another system: the MQTT plugin of a RabbitMQ that is started for it, with QoS 1"
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=2.5, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--latency-seconds", type=float, default=4, help="the same for latency (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="devices for lines and latency (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5000, help="lines per second for CPU per line (default: %(default)s)")
    parser.add_argument(
        "--burst", type=int, default=20, help="lines that a device writes together in bursts (default: %(default)s)"
    )
    parser.add_argument("--trip-devices", type=int, default=500, help="devices for round trips (default: %(default)s)")
    parser.add_argument("--latency-rate", type=float, default=500, help="lines per second for latency (default: %(default)s)")
    parser.add_argument("--connects", type=float, default=500, help="connects per second during latency (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=2000, help="connections for memory (default: %(default)s)")
    # Current devices would offer X25519MLKEM768 first, which costs any gateway 7 KB per connection and a fifth more CPU.
    parser.add_argument("--groups", default="X25519", help="key exchange groups of the devices (default: %(default)s)")
    parser.add_argument("--held", type=int, default=10000, help="connections to hold (default: %(default)s)")
    parser.add_argument("--held-minutes", type=float, default=1, help="how long to hold them (default: %(default)s)")


def command_line(given: Iterable[str]) -> str:
    """Return the command that reproduces the figures, without passwords and without the paths of other systems."""
    words: list[str] = []
    arguments = iter(given)
    for word in arguments:
        name, equals, value = word.partition("=")
        if name not in ("--beside", "--broker", "--output"):
            words.append(word)
            continue
        value = value if equals else next(arguments, "")
        if name == "--beside":
            words += [name, f"{value.partition('=')[0]}=…"]
        elif name == "--broker" and value != OWN:
            words += [name, f"…{value[value.rfind('@') + 1 :]}"]
    return " ".join(["python", "-m", "bench.figures", *map(_quoted, words)])


def _quoted(word: str) -> str:
    return word if word.endswith("=…") and " " not in word else shlex.quote(word)
