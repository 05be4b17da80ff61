"""Costs of devices addressed by name: messages, questions, the first message, and what a node remembers.

    python -m bench.by_name --runs 5 --output by_name.md

It starts its own RabbitMQ. One node, the *asker*, takes all messages from `to_device` (a queue with a single active consumer),
so that it is known whose CPU is spent on what. Devices are connected to the asker and to another node.

- *Messages*: the same number of messages a second by connection id and by name, to devices of the asker, and to devices of the
  other node, which the asker has to forward. The four cases take turns; the ratios are medians of the ratios of the runs.
- *Questions*: messages for devices that do not exist, at a low rate, so that each is a question of its own, and at a high rate,
at
  which many ids go together. The cost of the record of such a message is that of a message whose `expires_at` has passed, which
  is subtracted. A queue that is bound to the exchange counts the questions.
- *The first message*: the time from publish to arrival of the first message to a device of another node, and of the second one.
- *Memory*: of the asker, before and after it has asked for many devices. A client in the place of a node answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pika

from .harness import Gateway, arguments, circumstances, command_line, median, percentile, publish, settled, table
from .own_broker import OwnBroker, run_with_broker
from .wander import write_certificates
from .wander_swarm import WanderingSwarm

FROM, TO = "by-name-from", "by-name-to"

SETTINGS: Final = ("--to-device-argument", "x-single-active-consumer=true")

TICK: Final = 0.01
"""Seconds between two batches of messages."""

LOW: Final = 20
"""Messages a second of which each is a question of its own: a node puts the ids of 10 ms together."""

NODES: Final = (1, 2, 8)

TIMED: Final = 10**15
"""Serial numbers above this one contain the time of the publish, in microseconds, and one digit: the number of the message."""

Figures = dict[str, list[float]]

Headers = dict[str, Any]


class Publisher:
    """Back end that publishes at a fixed rate, without confirms."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()

    def pace(self, headers: Iterator[tuple[Headers, bytes]], rate: float, seconds: float, queue: str = TO) -> int:
        """Publish `rate` messages a second to a queue, and return their number."""
        start, count = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            while count < elapsed * rate:
                one, body = next(headers)
                self.channel.basic_publish("", queue, body, pika.BasicProperties(headers=one))
                count += 1
            self.connection.process_data_events(time_limit=TICK)
        return count

    def drained(self) -> None:
        """Wait until no message is ready in `to_device`."""
        while self.channel.queue_declare(TO, passive=True).method.message_count:
            self.connection.process_data_events(time_limit=0.05)

    def close(self) -> None:
        self.connection.close()


@contextmanager
def nodes(broker: OwnBroker, count: int, *options: str) -> Iterator[list[Gateway]]:
    """Start gateways; the first one is the asker. Delete their queues at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(Gateway(broker.url, *SETTINGS, *options, queues=(FROM, TO))) for _ in range(count)]


@contextmanager
def publisher(broker: OwnBroker) -> Iterator[Publisher]:
    one = Publisher(broker.url)
    try:
        yield one
    finally:
        one.close()


def cpu(gateways: Sequence[Gateway], act: Callable[[], int]) -> tuple[list[float], int]:
    """Return the CPU seconds of each node while `act` runs and until a moment later, and the result of `act`."""
    before = [gateway.cpu() for gateway in gateways]
    result = act()
    time.sleep(0.3)
    return [gateway.cpu() - spent for gateway, spent in zip(gateways, before, strict=True)], result


def cycle(headers: Sequence[Headers]) -> Iterator[tuple[Headers, bytes]]:
    """Return messages to devices in turn."""
    serial = 0
    while True:
        one = headers[serial % len(headers)]
        serial += 1
        yield one, f"{serial} {one['x']} ......................".encode()


def connection_ids(broker: OwnBroker, count: int) -> dict[str, str]:
    """Return the connection id of each device, from the lines that they sent."""
    found: dict[str, str] = {}
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        for _, properties, body in connection.channel().consume(FROM, auto_ack=True):
            found[body.decode().split(" ")[1]] = properties.headers["connection_id"]
            if len(found) == count:
                return found
    raise AssertionError


def messages(broker: OwnBroker, options: argparse.Namespace, figures: dict[str, Figures], latency: Figures) -> None:
    """Measure messages to devices of the asker and of another node, and the first message to a device."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owsla-by-name-")))
        names = [f"device-{number:04}" for number in range(options.devices)]
        certificates = write_certificates(folder, names)
        gateways = stack.enter_context(nodes(broker, 2, "--client-ca", str(folder / "ca.pem")))
        swarm = stack.enter_context(WanderingSwarm([gateway.port for gateway in gateways], certificates, 1))
        swarm.call("connect")
        ids = connection_ids(broker, len(names))
        out = stack.enter_context(publisher(broker))
        swarm.ask("wander", stay=1e9, seconds=0)
        here, there = names[::2], names[1::2]  # the swarm connects devices to the nodes in turn
        first_messages(out, there)
        cases = {
            (where, how): [
                {"connection_id": ids[name], "x": name} if how == "connection id" else {"device_id": name, "x": name}
                for name in group
            ]
            for where, group in (("the asker", here), ("another node", there))
            for how in ("connection id", "name")
        }
        for headers in cases.values():
            out.pace(cycle(headers), options.rate, 1)
        for _ in range(options.runs):
            for (where, how), headers in cases.items():
                stream = cycle(headers)
                spent, count = cpu(gateways, lambda: out.pace(stream, options.rate, options.seconds))  # noqa: B023
                for gateway, seconds in zip(("asker", "other"), spent, strict=True):
                    figures[f"{where}, {how}"][gateway].append(seconds / count * 1e6)
        out.drained()
        time.sleep(1)
        swarm.ask("stop")
        arrivals = [(serial, name, at) for serial, name, _, at in swarm.answer()["received"]]
        for serial, _, at in arrivals:
            if serial > TIMED:
                at_microsecond, number = divmod(serial - TIMED, 10)
                latency["first" if number == 1 else "second"].append(at * 1e3 - at_microsecond / 1e3)
        figures["received"]["number"].append(len(arrivals))


def first_messages(out: Publisher, names: Sequence[str]) -> None:
    """Publish two messages to each device, with the time in their serial numbers."""
    for number in (1, 2):
        for name in names:
            serial = TIMED + int(time.monotonic() * 1e6) * 10 + number
            properties = pika.BasicProperties(headers={"device_id": name})
            out.channel.basic_publish("", TO, f"{serial} {name} .".encode(), properties)
            out.connection.process_data_events(time_limit=0.03)


def strangers(expired: bool) -> Iterator[tuple[Headers, bytes]]:
    """Return messages for devices that do not exist."""
    more = {"expires_at": 1} if expired else {}
    while True:
        yield {"device_id": f"nobody-{uuid.uuid4()}", **more}, b"x"


def count_questions(out: Publisher) -> list[str]:
    """Return a list that grows with each question to all nodes."""
    asked: list[str] = []

    def on_notice(_channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        if properties.headers.get("owsla_notice") == "who-has":
            asked.append(properties.reply_to)

    tap = out.channel.queue_declare("", exclusive=True).method.queue
    out.channel.queue_bind(tap, f"{TO}.all")
    out.channel.basic_consume(tap, on_notice, auto_ack=True)
    return asked


def questions(broker: OwnBroker, options: argparse.Namespace, figures: dict[str, Figures]) -> None:
    """Measure questions with each number of nodes."""
    for count in NODES:
        with nodes(broker, count) as gateways, publisher(broker) as out:
            asked = count_questions(out)
            for rate in (LOW, options.rate):
                idle, _ = cpu(gateways, lambda: time.sleep(options.seconds) or 1)  # type: ignore[func-returns-value]
                for expired in (True, False):
                    out.pace(strangers(expired), rate, 1)
                    out.connection.sleep(2)
                    asked.clear()

                    def act(rate: float = rate, expired: bool = expired) -> int:
                        number = out.pace(strangers(expired), rate, options.seconds)
                        out.drained()
                        out.connection.sleep(2)
                        return number

                    spent, sent = cpu(gateways, act)
                    figure = figures[f"{count} nodes, {'expired' if expired else 'unknown'} @ {rate:g}"]
                    longer = (options.seconds + 2.3) / (options.seconds + 0.3)
                    figure["asker"].append((spent[0] - idle[0] * longer) / sent * 1e6)
                    others = [(each - still * longer) / sent * 1e6 for each, still in zip(spent[1:], idle[1:], strict=True)]
                    figure["another"].append(median(others) if others else float("nan"))
                    figure["questions"].append(len(asked) / sent)
                    out.channel.queue_purge(f"{TO}.undeliverable")


class FakeNode(threading.Thread):
    """Client that has every device: it answers questions as a node does, and takes the messages that are forwarded to it."""

    def __init__(self, broker: OwnBroker) -> None:
        super().__init__(daemon=True)
        self._connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self._end = threading.Event()
        self.answered = 0
        self.forwarded = 0

    def run(self) -> None:
        channel = self._connection.channel()
        queue = f"{TO}.fa4e0000"
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, f"{TO}.all")

        def on_message(_channel: Any, _method: Any, properties: Any, body: bytes) -> None:
            headers = properties.headers or {}
            if headers.get("owsla_notice") != "who-has":
                self.forwarded += headers.get("owsla_notice") is None
                return
            ids = [headers["device_id"]] if "device_id" in headers else json.loads(body)
            now = int(time.time() * 1000)
            claims = [
                {
                    "device_id": one,
                    "connection_id": f"fa4e0000{str(uuid.uuid4())[8:]}",
                    "since": now,
                    "age": 0,
                    "door": "default",
                }
                for one in ids
            ]
            self.answered += len(claims)
            answer = pika.BasicProperties(
                headers={"owsla_notice": "has"}, user_id="guest", correlation_id=properties.correlation_id
            )
            channel.basic_publish("", properties.reply_to, json.dumps(claims).encode(), answer)

        channel.basic_consume(queue, on_message, auto_ack=True)
        while not self._end.is_set():
            self._connection.process_data_events(time_limit=0.1)
        channel.queue_delete(queue)
        self._connection.close()

    def stop(self) -> None:
        self._end.set()
        self.join()


def memory(broker: OwnBroker, options: argparse.Namespace, figures: dict[str, Figures]) -> None:
    """Measure the memory that a remembered device adds."""
    with nodes(broker, 1) as (gateway,), publisher(broker) as out:
        other = FakeNode(broker)
        other.start()
        time.sleep(1)

        def ask(begin: int, end: int) -> None:
            stream = (({"device_id": f"remembered-{number:08}"}, b"x") for number in range(begin, end + 1))
            out.pace(stream, options.rate, (end - begin) / options.rate)
            out.drained()
            time.sleep(2)

        ask(0, 2000)  # what is allocated once for all
        empty, before = settled(gateway), other.answered
        ask(2000, 2000 + options.remembered)
        figures["memory"]["bytes a device"].append((settled(gateway) - empty) * 1024 / max(1, other.answered - before))
        figures["memory"]["answered"].append(other.answered - before)
        figures["memory"]["forwarded"].append(other.forwarded)
        other.stop()


def report(figures: dict[str, Figures], latency: Figures, options: argparse.Namespace, version: str) -> str:
    """Format all results as Markdown."""
    rows = []
    for where in ("the asker", "another node"):
        by_id, by_name = figures[f"{where}, connection id"], figures[f"{where}, name"]
        for node in ("asker", "other"):
            ratios = [new / old for new, old in zip(by_name[node], by_id[node], strict=True)]
            rows.append((where, node, f"{median(by_id[node]):.1f}", f"{median(by_name[node]):.1f}", f"{median(ratios):.2f}"))
    asking = []
    for count in NODES:
        for rate in (LOW, options.rate):
            record, asked = (figures[f"{count} nodes, {kind} @ {rate:g}"] for kind in ("expired", "unknown"))
            asking.append(
                (
                    count,
                    f"{rate:g}",
                    f"{median(asked['questions']):.3f}",
                    f"{median(record['asker']):.0f}",
                    f"{median(asked['asker']) - median(record['asker']):.0f}",
                    f"{median(asked['another']) - median(record['another']):.0f}" if count > 1 else "",
                )
            )
    times = [
        (which, len(values), *(f"{percentile(values, share):.1f}" for share in (0.5, 0.9, 0.99)))
        for which, values in latency.items()
    ]
    memory = figures["memory"]
    return "\n\n".join(
        [
            "# Devices by name",
            f"{circumstances()}, {version}. {options.devices} devices; medians of {options.runs} alternating runs of "
            f"{options.seconds:g} s.",
            f"    {command_line()}",
            f"## CPU µs per message, at {options.rate:g} messages a second",
            table(("to a device of", "CPU of the", "by connection id", "by name", "ratio"), rows),
            "## Messages for devices that do not exist: CPU µs per message",
            table(
                (
                    "nodes",
                    "messages a second",
                    "questions per message",
                    "asker: record",
                    "asker: question",
                    "each other node: question",
                ),
                asking,
            ),
            "## From publish to arrival at a device of another node, in ms",
            table(("message", "number", "median", "90 %", "99 %"), times),
            "## Memory",
            f"A remembered device takes {median(memory['bytes a device']):.0f} bytes: PSS of a node that asked for "
            f"{median(memory['answered']):.0f} devices.",
        ]
    )


def main() -> None:
    parser = arguments("Measure the costs of devices addressed by name.")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="length of a case (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="number of devices (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1000, help="messages per second (default: %(default)s)")
    parser.add_argument("--remembered", type=int, default=20_000, help="devices to remember (default: %(default)s)")
    options = parser.parse_args()
    figures: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    latency: Figures = defaultdict(list)

    def measure(broker: OwnBroker) -> str:
        for part, of in ((messages, (figures, latency)), (questions, (figures,)), (memory, (figures,))):
            print(f"{part.__name__} …", file=sys.stderr)
            part(broker, options, *of)
        return report(figures, latency, options, broker.version)

    publish(run_with_broker(measure), options.output)


if __name__ == "__main__":
    main()
