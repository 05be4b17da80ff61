"""Cost of the kinds of doors: CPU per connect and per line, and memory of an idle connection, beside those of TLS.

    python -m bench.doors --broker amqp://guest:guest@127.0.0.1:5672 --runs 3 --output doors.md

Each kind has a gateway of its own, with `owsla swarm` in front of it. In each run all kinds take turns, and the ratios are
medians of the ratios of the runs to the first kind, which is TLS with lines.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .backend import BackEnd
from .harness import BROKER, Gateway, arguments, circumstances, command_line, median, publish, settled, table
from .systems import DEVICES, SwarmCommand

GROUPS = "X25519"
"""Key exchange of the devices, as in `bench.figures`."""

CONNECT_RATE = 800
"""Connects per second."""

_PROXY = ("--proxy-protocol", "127.0.0.0/8")


@dataclass(frozen=True)
class Door:
    """A kind of door."""

    gateway: tuple[str, ...] = ()
    """Options of the gateway."""
    swarm: tuple[str, ...] = ()
    """Options of the swarm."""
    tls: bool = False


DOORS = {
    "TLS, lines": Door(tls=True),
    "TLS behind PROXY v2, lines": Door(_PROXY, ("--proxy", "v2"), tls=True),
    "TLS, length:2": Door(("--framing", "length:2"), ("--framing", "length:2"), tls=True),
    "TCP, lines": Door(("--tls", "no")),
    "TCP behind PROXY v2, lines": Door(("--tls", "no", *_PROXY), ("--proxy", "v2")),
    "TCP, length:2": Door(("--tls", "no", "--framing", "length:2"), ("--framing", "length:2")),
    "TCP, netstring": Door(("--tls", "no", "--framing", "netstring"), ("--framing", "netstring")),
}

FIGURES = ("CPU µs per connect", "KB per idle connection", "CPU µs per line")


def measure(door: Door, options: argparse.Namespace, openssl: Path) -> tuple[float, float, float]:
    """Return the `FIGURES` of a door."""
    with (
        Gateway(options.broker, *door.gateway) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
    ):
        back_end.call("begin", answers="", numbered=False)
        ca = gateway.ca if door.tls else None
        how = ["--mode", "flood", "--size", "50", "--tick", "1", *door.swarm]
        # A first hundred connections with lines, since allocations that are made once for all are not the cost of one.
        with SwarmCommand(gateway.port, ca, openssl, *how, "--rate", "500", "--seconds", "1") as swarm:
            sent = swarm.summary(60)["lines"]["written"]
        back_end.wait_for(sent, 10)
        empty, before = settled(gateway), gateway.cpu()
        # Without TLS a connection is silent for its first second, and silent connections are limited.
        how += [
            "--connections",
            str(options.connections),
            "--connect-rate",
            str(CONNECT_RATE),
            "--rate",
            str(options.rate),
            "--seconds",
            str(options.seconds + 3),
        ]
        with SwarmCommand(gateway.port, ca, openssl, *how, waits=True) as swarm:
            connected = swarm.ready()
            connecting = gateway.cpu() - before
            memory = settled(gateway) - empty
            swarm.begin()
            time.sleep(1.5)
            before, counted = gateway.cpu(), back_end.call("stats")["lines"]
            time.sleep(options.seconds)
            spent, lines = gateway.cpu() - before, back_end.call("stats")["lines"] - counted
    return connecting / connected * 1e6, memory / connected, spent / lines * 1e6


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--broker", default=BROKER, help="URL of the broker (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="number of alternating runs (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=5000, help="connections (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=5000, help="lines per second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each measurement of lines (default: %(default)s)")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as openssl:
        openssl.write(DEVICES.format(groups=GROUPS))
        openssl.flush()
        for _ in range(options.runs):
            for name, door in DOORS.items():
                found[name].append(measure(door, options, Path(openssl.name)))
    first = next(iter(found.values()))
    rows = []
    for name, runs in found.items():
        row = [name]
        for number in range(len(FIGURES)):
            ratio = median(run[number] / other[number] for run, other in zip(runs, first, strict=True))
            row.append(f"{median(run[number] for run in runs):.1f} ({ratio:.2f})")
        rows.append(row)
    publish(
        f"# Kinds of doors\n\n{circumstances(options.broker)}. Medians of {options.runs} alternating runs, and in brackets of "
        f"the ratios to the first row; {options.connections} connections, {options.rate} lines of 50 bytes a second, those "
        f"of a millisecond together; {CONNECT_RATE} connects a second; {GROUPS}. A connect "
        f"includes the handshake.\n\n    {command_line()}\n\n" + table(("door", *FIGURES), rows),
        options.output,
    )


if __name__ == "__main__":
    main()
