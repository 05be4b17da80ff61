"""Cost and throughput of a running gateway: CPU per handshake and per line, memory per connection, round trips and latency.

    python -m bench.gateway --broker amqp://guest:guest@127.0.0.1:5672 --runs 3 --output gateway.md

The gateway is `twistd-owsla`. Devices and the back end are processes of their own, which need CPU as well: on a machine with
few cores, the rates that the gateway *reaches* depend on them as much. The CPU that it *uses* is read from /proc, and depends
on them less.
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
"""Cases of CPU per line: options of the gateway, destination of the answers, and whether they have a `to_device_seq`."""


def handshakes(broker: str, seconds: float, figures: dict[str, Figures]) -> None:
    """Measure full TLS 1.3 handshakes at the rate that the swarm reaches."""
    with Gateway(broker) as gateway, Swarm(gateway.port) as swarm:
        swarm.call("storm", seconds=1)
        before, start = gateway.cpu(), time.monotonic()
        done = swarm.call("storm", seconds=seconds)
        time.sleep(0.2)
        spent, elapsed = gateway.cpu() - before, time.monotonic() - start - 0.2
    figure = figures["handshakes"]
    figure["a CPU second"].append(done["handshakes"] / spent)
    figure["ms"].append(spent / done["handshakes"] * 1e3)
    figure["a second"].append(done["handshakes"] / elapsed)
    figure["failed"].append(done["failed"])
    figure["swarm"].append(done["cpu"] / elapsed)


def memory(broker: str, connections: int, figures: dict[str, Figures]) -> None:
    """Measure the memory that a connection adds."""
    with (
        Gateway(broker) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
        Swarm(gateway.port) as swarm,
    ):
        # A first hundred connections with lines, since allocations that are made once for all are not the cost of one.
        back_end.call("begin", answers="reply_to", numbered=True)
        swarm.call("connect", count=100)
        swarm.call("send_lines", lines=5, answers=True)
        swarm.call("disconnect")
        empty = settled(gateway)
        connected = swarm.call("connect", count=connections)["connected"]
        figure = figures["memory"]
        figure["idle"].append((settled(gateway) - empty) / connected)
        swarm.call("send_lines", lines=5, answers=True)
        figure["after 5 lines and answers"].append((settled(gateway) - empty) / connected)
        swarm.call("disconnect")
        time.sleep(1.0)
        figure["left behind"].append((settled(gateway) - empty) / connected)
        figure["empty process, MB"].append(empty / 1024)


def lines(broker: str, case: str, rates: list[float], seconds: float, devices: int, figures: dict[str, Figures]) -> None:
    """Measure CPU per line at fixed rates."""
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
            # The figure includes the CPU of an idle gateway (timers, connections to the broker), which runs besides the lines.
            before, counted = gateway.cpu(), back_end.call("stats")
            done = swarm.call("pace", rate=rate, seconds=seconds, answers=bool(answers))
            after = back_end.wait_for(counted["lines"] + done["lines"], 5)
            arrived = after["lines"] - counted["lines"]
            spent = gateway.cpu() - before
            figure = figures[f"{case} @ {rate:g}"]
            figure["us"].append(spent / done["lines"] * 1e6)
            figure["rate"].append(done["lines"] / done["seconds"])
            figure["lost"].append(done["lines"] - arrived + (done["lines"] - done["answers"] if answers else 0))
            figure["acks"].append(done["acks"] / done["lines"])
            figure["p50"].append(percentile(done["delays"], 0.5))
            figure["p99"].append(percentile(done["delays"], 0.99))
            figure["swarm"].append(done["cpu"] / done["seconds"])
            figure["back end"].append((after["cpu"] - counted["cpu"]) / done["seconds"])


def full_speed(broker: str, seconds: float, devices: int, figures: dict[str, Figures]) -> None:
    """Measure lines and round trips at full speed."""
    with (
        Gateway(broker) as gateway,
        BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
        Swarm(gateway.port) as swarm,
    ):
        back_end.call("begin", answers="", numbered=False)
        swarm.call("connect", count=devices)
        # Lines count when they arrive at the back end, since written lines may still wait in a socket.
        swarm.ask("flood", seconds=seconds + 10)
        time.sleep(1.5)
        before, counted, start = gateway.cpu(), back_end.call("stats"), time.monotonic()
        time.sleep(seconds)
        after, spent = back_end.call("stats"), gateway.cpu() - before
        elapsed, arrived = time.monotonic() - start, after["lines"] - counted["lines"]
        swarm.ask("stop")
        done = swarm.answer()
        figure = figures["ingest"]
        figure["a second"].append(arrived / elapsed)
        figure["us"].append(spent / arrived * 1e6)
        figure["gateway"].append(spent / elapsed)
        figure["swarm"].append(done["cpu"] / done["seconds"])
        figure["back end"].append((after["cpu"] - counted["cpu"]) / elapsed)
        back_end.wait_for(done["lines"], 60)
        swarm.call("disconnect")
        back_end.call("begin", answers="reply_to", numbered=True)
        swarm.call("connect", count=devices)
        swarm.call("trips", seconds=1)
        before, counted = gateway.cpu(), back_end.call("stats")
        done = swarm.call("trips", seconds=seconds)
        after, spent = back_end.call("stats"), gateway.cpu() - before
        figure = figures["round trips"]
        figure["a second"].append(done["answers"] / done["seconds"])
        figure["us"].append(spent / done["answers"] * 1e6)
        figure["gateway"].append(spent / done["seconds"])
        figure["swarm"].append(done["cpu"] / done["seconds"])
        figure["back end"].append((after["cpu"] - counted["cpu"]) / done["seconds"])


def report(figures: dict[str, Figures], options: Any) -> str:
    """Format all results as Markdown."""
    parts = [
        "# A running gateway",
        f"{circumstances(options.broker)}. Medians of {options.runs} alternating runs of {options.seconds:g} s; "
        f"{options.devices} devices, lines of 50 bytes; the swarm, the back end and the broker on the same machine.",
        f"    {command_line()}",
    ]
    if options.broker == "embedded":
        parts.append("The embedded broker runs in the process of the gateway: its costs are among these figures.")
    if "handshakes" in figures:
        parts += report_handshakes(figures["handshakes"])
    if "memory" in figures:
        parts += report_memory(figures["memory"], options.connections)
    parts += report_lines(figures)
    if "round trips" in figures:
        parts += report_full_speed(figures, options.devices)
    return "\n\n".join(parts)


def report_handshakes(values: Figures) -> list[str]:
    """Format the costs of handshakes."""
    figure = {name: median(numbers) for name, numbers in values.items()}
    row = (
        f"{figure['a CPU second']:.0f}",
        f"{figure['ms']:.2f}",
        f"{figure['a second']:.0f}",
        f"{figure['failed']:.0f}",
        f"{figure['swarm']:.0%}",
    )
    heads = ("handshakes per CPU second", "ms of CPU each", "reached per second", "failed", "CPU of the swarm")
    return ["## Handshakes (full, TLS 1.3, P-256 certificate)", table(heads, [row])]


def report_memory(values: Figures, connections: int) -> list[str]:
    """Format the memory of a connection."""
    figure = {name: median(numbers) for name, numbers in values.items()}
    row = (
        f"{figure['idle']:.1f} KB",
        f"{figure['after 5 lines and answers']:.1f} KB",
        f"{figure['left behind']:.1f} KB",
        f"{figure['empty process, MB']:.0f} MB",
    )
    heads = ("idle", "after 5 lines and 5 answers", "kept after disconnecting", "process without connections")
    return [f"## Memory per connection ({connections} connections, PSS)", table(heads, [row])]


def report_lines(figures: dict[str, Figures]) -> list[str]:
    """Format CPU per line of all cases and rates."""
    rows = []
    for name, values in figures.items():
        if " @ " not in name:
            continue
        case, rate = name.split(" @ ")
        figure = {key: median(numbers) for key, numbers in values.items()}
        echo = case.startswith("echo")
        base = median(figures[f"{'echo by reply_to' if echo else 'ingest'} @ {rate}"]["us"])
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
    if not rows:
        return []
    heads = ("case", "lines/s requested", "reached", "µs of CPU per line", "ratio", "round trip p50 / p99", "acks per line")
    return [
        "## CPU per line",
        table((*heads, "missing", "CPU of swarm / back end"), rows),
        "A line is one line from a device; in an echo, its answer to the device is counted with it. The ratio is to the "
        "first ingest, or the first echo, at the same rate.",
    ]


def report_full_speed(figures: dict[str, Figures], devices: int) -> list[str]:
    """Format the rates at full speed."""
    rows = [
        (
            f"{name}, {devices} devices",
            f"{median(figures[name]['a second']):.0f}",
            f"{median(figures[name]['us']):.1f}",
            f"{median(figures[name]['gateway']):.0%}",
            f"{median(figures[name]['swarm']):.0%}",
            f"{median(figures[name]['back end']):.0%}",
        )
        for name in ("ingest", "round trips")
    ]
    return [
        "## Full speed",
        table(("", "per second", "µs of CPU each", "CPU of gateway", "of swarm", "of back end"), rows),
        "With fewer than four cores the gateway shares its core: this is a figure of the machine, not of the gateway.",
    ]


def main() -> None:
    parser = arguments("Measure cost and throughput of a running gateway.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker, or embedded (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement, alternating (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="devices for lines and round trips (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=2000, help="connections for memory (default: %(default)s)")
    parser.add_argument("--rates", default="500,2000,5000", help="lines per second (default: %(default)s)")
    parser.add_argument("--cases", default="abcdef", help="cases of CPU per line, by letter (default: all)")
    parser.add_argument(
        "--only", default="handshakes,memory,lines,most", help="measurements to make, of %(default)s (default: all)"
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
            full_speed(options.broker, options.seconds, options.devices, figures)
    publish(report(figures, options), options.output)


if __name__ == "__main__":
    main()
