"""What a running gateway spends: CPU a handshake, memory a connection, CPU a line; and what it reaches: round trips, latency.

    python -m bench.gateway --broker amqp://guest:guest@127.0.0.1:5672 --runs 3 --output gateway.md

The gateway is a real `twistd`; devices and the back end are processes of their own, which cost CPU as well: on a machine with
few cores, what the gateway *reaches* says as much about them. What it *spends* is read from /proc, and depends on them less.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

from .backend import BackEnd
from .harness import BROKER, Gateway, arguments, circumstances, command_line, median, percentile, publish, settled, table
from .swarm import Swarm

ACK = ("--device-ack", "ACK {seq}")

Figures = dict[str, list[float]]

CASES: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "ingest": ((), "", False),
    "ingest, --device-ack": (ACK, "", False),
    "echo by reply_to": ((), "reply_to", False),
    "echo by to_device": ((), "to_device", False),
    "echo by reply_to, numbered": ((), "reply_to", True),
    "echo by reply_to, numbered, --device-ack": (ACK, "reply_to", True),
}
"""What a line's cost is measured for: the gateway's options, where answers go, and whether they have a `to_device_seq`."""


def handshakes(broker: str, seconds: float, figures: dict[str, Figures]) -> None:
    """Full TLS 1.3 handshakes, as many as the swarm can do."""
    with Gateway(broker) as gateway, Swarm(gateway.port) as swarm:
        swarm.call("storm", seconds=1)
        before, start = gateway.cpu(), time.monotonic()
        done = swarm.call("storm", seconds=seconds)
        time.sleep(0.2)
        spent, took = gateway.cpu() - before, time.monotonic() - start - 0.2
    figure = figures["handshakes"]
    figure["a CPU second"].append(done["handshakes"] / spent)
    figure["ms"].append(spent / done["handshakes"] * 1e3)
    figure["a second"].append(done["handshakes"] / took)
    figure["failed"].append(done["failed"])
    figure["swarm"].append(done["cpu"] / took)


def memory(broker: str, connections: int, figures: dict[str, Figures]) -> None:
    """What a connection adds to the gateway's memory."""
    with (
        Gateway(broker) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
        Swarm(gateway.port) as swarm,
    ):
        # What is made once for all connections, and by the first lines, is no part of a connection's cost.
        back_end.call("begin", answers="reply_to", numbered=True)
        swarm.call("connect", count=100)
        swarm.call("say", lines=5, answers=True)
        swarm.call("disconnect")
        empty = settled(gateway)
        connected = swarm.call("connect", count=connections)["connected"]
        figure = figures["memory"]
        figure["idle"].append((settled(gateway) - empty) / connected)
        swarm.call("say", lines=5, answers=True)
        figure["after 5 lines and answers"].append((settled(gateway) - empty) / connected)
        swarm.call("disconnect")
        time.sleep(1.0)
        figure["left behind"].append((settled(gateway) - empty) / connected)
        figure["empty process, MB"].append(empty / 1024)


def lines(broker: str, case: str, rates: list[float], seconds: float, devices: int, figures: dict[str, Figures]) -> None:
    """CPU a line at fixed rates."""
    options, answers, numbered = CASES[case]
    with (
        Gateway(broker, *options) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
        Swarm(gateway.port) as swarm,
    ):
        back_end.call("begin", answers=answers, numbered=numbered)
        swarm.call("connect", count=devices)
        warm = swarm.call("pace", rate=500, seconds=2, answers=bool(answers))["lines"]
        back_end.wait_for(warm, 5)
        for rate in rates:
            # What an idle gateway spends (its own ticks, the connections to the broker) is part of the figure: it is what
            # runs beside the lines.
            before, books = gateway.cpu(), back_end.call("stats")
            done = swarm.call("pace", rate=rate, seconds=seconds, answers=bool(answers))
            after = back_end.wait_for(books["lines"] + done["lines"], 5)
            arrived = after["lines"] - books["lines"]
            spent = gateway.cpu() - before
            figure = figures[f"{case} @ {rate:g}"]
            figure["us"].append(spent / done["lines"] * 1e6)
            figure["rate"].append(done["lines"] / done["seconds"])
            figure["lost"].append(done["lines"] - arrived + (done["lines"] - done["answers"] if answers else 0))
            figure["acks"].append(done["acks"] / done["lines"])
            figure["p50"].append(percentile(done["delays"], 0.5))
            figure["p99"].append(percentile(done["delays"], 0.99))
            figure["swarm"].append(done["cpu"] / done["seconds"])
            figure["back end"].append((after["cpu"] - books["cpu"]) / done["seconds"])


def most(broker: str, seconds: float, devices: int, figures: dict[str, Figures]) -> None:
    """As fast as it goes: lines in one direction, and round trips."""
    with (
        Gateway(broker) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
        Swarm(gateway.port) as swarm,
    ):
        back_end.call("begin", answers="", numbered=False)
        swarm.call("connect", count=devices)
        # What the devices have written may still wait in a socket: what counts is what arrives behind the broker meanwhile.
        swarm.ask("flood", seconds=seconds + 10)
        time.sleep(1.5)
        before, books, start = gateway.cpu(), back_end.call("stats"), time.monotonic()
        time.sleep(seconds)
        after, spent = back_end.call("stats"), gateway.cpu() - before
        took, arrived = time.monotonic() - start, after["lines"] - books["lines"]
        swarm.ask("stop")
        done = swarm.answer()
        figure = figures["ingest"]
        figure["a second"].append(arrived / took)
        figure["us"].append(spent / arrived * 1e6)
        figure["gateway"].append(spent / took)
        figure["swarm"].append(done["cpu"] / done["seconds"])
        figure["back end"].append((after["cpu"] - books["cpu"]) / took)
        back_end.wait_for(done["lines"], 60)
        swarm.call("disconnect")
        back_end.call("begin", answers="reply_to", numbered=True)
        swarm.call("connect", count=devices)
        swarm.call("trips", seconds=1)
        before, books = gateway.cpu(), back_end.call("stats")
        done = swarm.call("trips", seconds=seconds)
        after, spent = back_end.call("stats"), gateway.cpu() - before
        figure = figures["round trips"]
        figure["a second"].append(done["answers"] / done["seconds"])
        figure["us"].append(spent / done["answers"] * 1e6)
        figure["gateway"].append(spent / done["seconds"])
        figure["swarm"].append(done["cpu"] / done["seconds"])
        figure["back end"].append((after["cpu"] - books["cpu"]) / done["seconds"])


def report(figures: dict[str, Figures], options: Any) -> str:
    """All of it as Markdown."""
    parts = [
        "# A running gateway",
        f"{circumstances(options.broker)}. Medians of {options.runs} alternating runs of {options.seconds:g} s; "
        f"{options.devices} devices, lines of 50 bytes; the swarm, the back end and the broker on the same machine.",
        f"    {command_line()}",
    ]
    if options.broker == "embedded":
        parts.append("The embedded broker runs in the gateway's process: its costs are among these figures.")
    if "handshakes" in figures:
        figure = {name: median(values) for name, values in figures["handshakes"].items()}
        parts += [
            "## Handshakes (full, TLS 1.3, P-256 certificate)",
            table(
                ("handshakes per CPU second", "ms of CPU each", "reached a second", "failed", "swarm's CPU"),
                [
                    (
                        f"{figure['a CPU second']:.0f}",
                        f"{figure['ms']:.2f}",
                        f"{figure['a second']:.0f}",
                        f"{figure['failed']:.0f}",
                        f"{figure['swarm']:.0%}",
                    )
                ],
            ),
        ]
    if "memory" in figures:
        figure = {name: median(values) for name, values in figures["memory"].items()}
        parts += [
            f"## Memory a connection ({options.connections} connections, PSS)",
            table(
                ("idle", "after 5 lines and 5 answers", "kept when they have gone", "process without connections"),
                [
                    (
                        f"{figure['idle']:.1f} KB",
                        f"{figure['after 5 lines and answers']:.1f} KB",
                        f"{figure['left behind']:.1f} KB",
                        f"{figure['empty process, MB']:.0f} MB",
                    )
                ],
            ),
        ]
    rows = []
    for name, values in figures.items():
        if " @ " not in name:
            continue
        case, rate = name.split(" @ ")
        figure = {key: median(numbers) for key, numbers in values.items()}
        base = median(figures[f"{'echo by reply_to' if case.startswith('echo') else 'ingest'} @ {rate}"]["us"])
        echo = case.startswith("echo")
        rows.append(
            (
                case,
                rate,
                f"{figure['rate']:.0f}",
                f"**{figure['us']:.1f}**",
                f"{figure['us'] / base:.2f}",
                f"{figure['p50']:.1f} / {figure['p99']:.1f} ms" if echo else "",
                f"{figure['acks']:.2f}" if "ack" in case else "",
                f"{sum(values['lost']):.0f}",
                f"{figure['swarm']:.0%} / {figure['back end']:.0%}",
            )
        )
    if rows:
        parts += [
            "## CPU a line",
            table(
                (
                    "case",
                    "lines/s asked",
                    "reached",
                    "µs of CPU a line",
                    "ratio",
                    "round trip p50 / p99",
                    "acks a line",
                    "missing",
                    "CPU of swarm / back end",
                ),
                rows,
            ),
            "A line is one line from a device; in an echo, its answer to the device is counted with it. The ratio is to the "
            "first ingest, or the first echo, at the same rate.",
        ]
    if "round trips" in figures:
        parts += [
            "## As fast as it goes",
            table(
                ("", "a second", "µs of CPU each", "CPU of gateway", "of swarm", "of back end"),
                [
                    (
                        f"{name}, {options.devices} devices",
                        f"{median(figures[name]['a second']):.0f}",
                        f"{median(figures[name]['us']):.1f}",
                        f"{median(figures[name]['gateway']):.0%}",
                        f"{median(figures[name]['swarm']):.0%}",
                        f"{median(figures[name]['back end']):.0%}",
                    )
                    for name in ("ingest", "round trips")
                ],
            ),
            "With fewer than four cores the gateway has none to itself: this is the machine's figure, not the gateway's.",
        ]
    return "\n\n".join(parts)


def main() -> None:
    parser = arguments("Measure what a running gateway spends.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker, or embedded (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement, alternating (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="for lines and round trips (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=2000, help="for memory (default: %(default)s)")
    parser.add_argument("--rates", default="500,2000,5000", help="lines a second (default: %(default)s)")
    parser.add_argument("--cases", default="abcdef", help="of CPU a line, by letter (default: all)")
    parser.add_argument(
        "--only", default="handshakes,memory,lines,most", help="which measurements, of %(default)s (default: all)"
    )
    options = parser.parse_args()
    only = options.only.split(",")
    rates = [float(rate) for rate in options.rates.split(",")]
    figures: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    for run in range(options.runs):
        print(f"run {run + 1} of {options.runs}", file=sys.stderr)
        if "handshakes" in only:
            handshakes(options.broker, options.seconds, figures)
        if "memory" in only:
            memory(options.broker, options.connections, figures)
        if "lines" in only:
            for letter, case in zip("abcdefgh", CASES, strict=False):
                if letter in options.cases:
                    lines(options.broker, case, rates, options.seconds, options.devices, figures)
        if "most" in only:
            most(options.broker, options.seconds, options.devices, figures)
    publish(report(figures, options), options.output)


if __name__ == "__main__":
    main()
