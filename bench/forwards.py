"""Cost of a forward between nodes: messages of `to_device` that arrive at another node than that of their device.

    python -m bench.forwards --runs 5 --output forwards.md

It starts its own RabbitMQ and two nodes. The first one takes all messages from `to_device` (a queue with a single active
consumer); all devices are connected to the second one. The same messages take two ways in turn:

- *own queue*: to the queue of the second node, which is where `reply_to` of a line leads;
- *forwarded*: to `to_device`, from which the first node forwards them to that queue.

At a fixed rate, a back end publishes while the CPU of the nodes is read. At full speed the nodes are stopped (SIGSTOP) while it
publishes, and continue when all messages are in the queue: so it does not slow them down.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from owsla.amqp import wire
from owsla.amqp.methods import encode_method
from owsla.broker.client import FRAME_MAX

from . import proc
from .by_name import TICK, TO, Publisher, connection_ids, cycle, nodes
from .harness import Gateway, arguments, circumstances, command_line, median, publish, table
from .own_broker import OwnBroker, run_with_broker
from .wander import write_certificates
from .wander_swarm import WanderingSwarm

FULL: Final = "full speed"

Figures = dict[tuple[str, str], dict[str, list[float]]]

Messages = Iterator[tuple[dict[str, Any], bytes]]


class FramePublisher(Publisher):
    """Back end that writes all messages of a tick at once: pika alone needs 0.2 ms of CPU for each."""

    def pace(self, headers: Messages, rate: float, seconds: float, queue: str = TO) -> int:
        start, count = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            due = int(elapsed * rate) - count
            if due > 0:
                self.write(headers, due, queue)
            count += due
            self.connection.sleep(TICK)
        return count

    def write(self, headers: Messages, count: int, queue: str) -> None:
        """Publish messages as fast as it goes."""
        channel = self.channel.channel_number
        method = wire.frame(wire.FRAME_METHOD, channel, encode_method("basic.publish", routing_key=queue))
        frames = []
        for _ in range(count):
            one, body = next(headers)
            header = wire.header_payload(len(body), wire.encode_properties({"headers": one, "delivery_mode": 2}))
            frames += [method, wire.content_frames(channel, header, body, FRAME_MAX)]
        self.connection._impl._adapter_emit_data(b"".join(frames))


class Bench:
    """Two nodes, the devices of the second one, and a back end."""

    def __init__(self, broker: OwnBroker, gateways: Sequence[Gateway], out: FramePublisher, ids: dict[str, str]) -> None:
        self._broker = broker
        self._pids = {"first node": gateways[0].pid, "second node": gateways[1].pid, "RabbitMQ": broker.pid}
        self._out = out
        own = f"{TO}.{next(iter(ids.values()))[:8]}"
        self._ways = {"own queue": own, "forwarded": TO}
        self._messages: Messages = cycle([{"connection_id": one, "x": name} for name, one in ids.items()])
        self._queues = (TO, own)

    def measure(self, rate: str, way: str, seconds: float, burst: int) -> dict[str, float]:
        """Measure one way at one rate. Return CPU µs per message of each process, and messages per second."""
        if rate == FULL:
            return self._full_speed(self._ways[way], burst)
        before, start = self._cpu(), time.monotonic()
        count = self._out.pace(self._messages, float(rate), seconds, self._ways[way])
        elapsed = time.monotonic() - start
        self._drained()
        return self._figure(before, count, elapsed)

    def _full_speed(self, queue: str, burst: int) -> dict[str, float]:
        stopped = [self._pids["first node"], self._pids["second node"]]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            self._out.write(self._messages, burst, queue)
            self._out.connection.sleep(1)  # RabbitMQ takes them
            before, start = self._cpu(), time.monotonic()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        elapsed = self._drained() - start
        return self._figure(before, burst, elapsed)

    def _drained(self) -> float:
        """Wait until the queues are empty and the nodes are idle. Return the time at which the queues were empty."""
        while any(self._out.channel.queue_declare(queue, passive=True).method.message_count for queue in self._queues):
            self._out.connection.process_data_events(time_limit=0.02)
        empty = time.monotonic()
        self._out.connection.sleep(0.5)
        return empty

    def _cpu(self) -> dict[str, float]:
        return {name: proc.cpu(pid) for name, pid in self._pids.items()}

    def _figure(self, before: dict[str, float], count: int, elapsed: float) -> dict[str, float]:
        spent = {name: (now - before[name]) / count * 1e6 for name, now in self._cpu().items()}
        return {**spent, "a second": count / elapsed, "messages": count}


def measure(broker: OwnBroker, options: Any) -> str:
    """Measure all rates and ways in turn, and return the tables."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    names = [f"device-{number:04}" for number in range(options.devices)]
    rates = [*options.rates.split(","), FULL]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owsla-forwards-")))
        certificates = write_certificates(folder, names)
        gateways = stack.enter_context(nodes(broker, 2, "--client-ca", str(folder / "ca.pem")))
        swarm = stack.enter_context(WanderingSwarm([gateways[1].port], certificates, 1))
        swarm.call("connect")
        ids = connection_ids(broker, len(names))
        out = FramePublisher(broker.url)
        stack.callback(out.close)
        swarm.ask("wander", stay=1e9, seconds=0)
        bench = Bench(broker, gateways, out, ids)
        sent = 0.0
        for run in range(options.runs + 1):
            print(f"run {run} of {options.runs}", file=sys.stderr)
            for rate in rates:
                for way in ("own queue", "forwarded"):
                    figure = bench.measure(rate, way, options.seconds, options.burst)
                    sent += figure["messages"]
                    for name, value in figure.items():
                        if run:  # the first one warms up
                            figures[rate, way][name].append(value)
        swarm.ask("stop")
        arrived = len(swarm.answer()["received"])
    return report(figures, rates, options, broker.version, sent, arrived)


def report(figures: Figures, rates: Sequence[str], options: Any, version: str, sent: float, arrived: int) -> str:
    """Format the results as Markdown."""
    processes = ("first node", "second node", "RabbitMQ")
    rows, hops = [], []
    for rate in rates:
        own, forwarded = figures[rate, "own queue"], figures[rate, "forwarded"]
        for way, figure in (("own queue", own), ("forwarded", forwarded)):
            rows.append((rate, way, *(f"{median(figure[one]):.1f}" for one in processes), f"{median(figure['a second']):.0f}"))
        more = {one: median(b - a for a, b in zip(own[one], forwarded[one], strict=True)) for one in processes}
        hops.append((rate, *(f"{more[one]:.1f}" for one in processes), f"**{more['first node'] + more['second node']:.1f}**"))
    return "\n\n".join(
        [
            "# Forwards between nodes",
            f"{circumstances()}, {version}. {options.devices} devices; medians of {options.runs} alternating runs of "
            f"{options.seconds:g} s, at full speed of {options.burst} messages. {sent:.0f} messages were sent, and {arrived} "
            "lines arrived at devices.",
            f"    {command_line()}",
            "## CPU µs per message",
            table(("messages a second", "way", *processes, "reached a second"), rows),
            "## The hop: forwarded less own queue, medians of the differences",
            table(("messages a second", *processes, "both nodes"), hops),
        ]
    )


def main() -> None:
    parser = arguments("Measure the cost of a forward between nodes.")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="length of a case (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="number of devices (default: %(default)s)")
    parser.add_argument("--rates", default="1000,5000", help="messages per second (default: %(default)s)")
    parser.add_argument("--burst", type=int, default=20_000, help="messages at full speed (default: %(default)s)")
    options = parser.parse_args()
    publish(run_with_broker(lambda broker: measure(broker, options)), options.output)


if __name__ == "__main__":
    main()
