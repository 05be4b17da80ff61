"""Devices that wander between two nodes, a back end that addresses them by name, and the books of both.

    python -m bench.wander --minutes 10 --devices 2000 --output wander.md

Two gateways on one RabbitMQ, which the program starts, have `--on-duplicate replace` and one consumer each, so that the order
is that of the queue. Devices with client certificates move between them (`wander_swarm.py` says how). A back end publishes
messages to `to_device` with a `device_id` alone, some to ids that nobody has, some in bursts to one device. Each has a serial
number in its body and as `message_id`; some have an `expires_at`, and half of them request a report.

At the end the books of the devices and of the back end are compared:

- No device received a message of another one.
- Each message was received, or is on record with a reason, and never both.
- A message that is neither was written to a connection that the device reset or closed at that time ("handed over is not
  read"). Its report says so, or, without a report, the time.
- `unknown-device` is the reason only where the device was away meanwhile, `expired` only after `expires_at`, and
  `connection-closed` only where a connection of the device ended meanwhile.
- Messages that the same node took from the queue reached a device in order. Which node took a message is known by RabbitMQ's
  message tracing.
- The earlier connection of a device that roamed was closed, and not the newest one, unless both began at once.

The exit status is 1 if the books do not balance.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pika
from prometheus_client.parser import text_string_to_metric_families

from owsla.runtime.open_files import raise_open_files_limit

from .harness import Gateway, arguments, circumstances, command_line, free_port, percentile, publish, table
from .own_broker import OwnBroker, run_with_broker
from .reload import Authority
from .wander_swarm import WanderingSwarm

NODES: Final = 2

AT_ONCE: Final = 0.5
"""Seconds between two handshakes of a device whose order a node may see otherwise: with TLS 1.3 a handshake is complete for the
device before it is for the node. One of the two connections stays."""

STRANGERS: Final = 0.02
"""Share of the messages that are for a device that does not exist."""

BURST: Final = 8
"""Messages in a burst to one device. One in four messages belongs to one."""

EXPIRING: Final = 0.2
"""Share of the messages that have an `expires_at`, from 0.1 to 5 s after they are published."""

REPORTED: Final = 0.5

SETTLING: Final = 0.3
"""Seconds from the end of a handshake, as the device sees it, within which its node has identified the device."""

NOTICED: Final = 0.5
"""Seconds within which a node has noticed a reset."""

HELD: Final = 5.0
"""Seconds for which a message waits at most while its device is asked for."""

CLOSED: Final = 15.0
"""Seconds within which the earlier connection of a device that roamed is closed: 10 s if the device roams often."""

EVERY: Final = 5.0
"""Seconds between two samples of the memory."""


WRITTEN: Final = "written to a connection"

OF_MESSAGES: Final = ("received", "out of order", "on record", "taken by", WRITTEN)
"""First words of the counts of messages."""


@dataclass(slots=True)
class Sent:
    """A message of the back end."""

    device: str
    at: float
    expires_at: float | None
    reported: bool


class BackEnd(threading.Thread):
    """Back end that publishes with transactions, and consumes everything else."""

    def __init__(self, url: str, from_device: str, to_device: str, devices: list[str], rate: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._parameters = pika.URLParameters(url)
        self._from_device = from_device
        self._to_device = to_device
        self._devices = devices
        self._rate = rate
        self._rng = random.Random(f"{seed}/back end")
        self._burst: list[str] = []
        self._end = threading.Event()
        self._quiet = threading.Event()
        self.sent: list[Sent] = []
        """Messages by serial number."""
        self.sessions: dict[str, tuple[str, int]] = {}
        """Device and number of its connection, by connection id."""
        self.reports: dict[int, list[tuple[str, str]]] = defaultdict(list)
        self.records: dict[int, list[tuple[str, str, float]]] = defaultdict(list)
        """Reason, node, and time of arrival."""
        self.takers: dict[int, str] = {}
        """Connection to RabbitMQ over which a message was taken."""
        self.failed: BaseException | None = None

    def stop_publishing(self) -> None:
        """Publish nothing more."""
        self._quiet.set()

    def stop(self) -> None:
        """End the thread, and raise its error, if any."""
        self._end.set()
        self.join(30)
        if self.failed is not None:
            raise self.failed

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failed = error

    def _run(self) -> None:
        connection = pika.BlockingConnection(self._parameters)
        channel, consuming = connection.channel(), connection.channel()
        channel.tx_select()
        self._consume(consuming)
        start, count = time.monotonic(), 0
        while not self._end.is_set():
            connection.process_data_events(time_limit=0.01)
            due = int((time.monotonic() - start) * self._rate)
            if self._quiet.is_set() or due <= count:
                continue
            while count < due:
                self._publish(channel)
                count += 1
            channel.tx_commit()
        connection.close()

    def _consume(self, channel: Any) -> None:
        reports, traces = f"{self._to_device}_reports", f"{self._to_device}_traces"
        channel.queue_declare(reports)
        channel.queue_declare(traces)
        channel.queue_bind(traces, "amq.rabbitmq.trace", f"deliver.{self._to_device}")
        channel.basic_consume(self._from_device, self._on_line, auto_ack=True)
        channel.basic_consume(reports, self._on_report, auto_ack=True)
        channel.basic_consume(traces, self._on_trace, auto_ack=True)
        channel.basic_consume(f"{self._to_device}.undeliverable", self._on_record, auto_ack=True)

    def _publish(self, channel: Any) -> None:
        rng = self._rng
        if not self._burst:
            device = rng.choice(self._devices)
            if rng.random() < STRANGERS:
                device = f"nobody-{rng.randrange(1000)}"
            self._burst = [device] * (BURST if rng.random() < 0.04 else 1)
        device = self._burst.pop()
        serial = len(self.sent)
        headers: dict[str, Any] = {"device_id": device}
        expires_at = None
        if rng.random() < EXPIRING:
            expires_at = time.time() + rng.uniform(0.1, 5)
            headers["expires_at"] = int(expires_at * 1000)
        reported = rng.random() < REPORTED
        properties = pika.BasicProperties(
            headers=headers,
            message_id=str(serial),
            reply_to=f"{self._to_device}_reports" if reported else None,
            correlation_id=str(serial) if reported else None,
        )
        self.sent.append(Sent(device, time.monotonic(), expires_at, reported))
        body = f"{serial} {device} {'.' * rng.choice((0, 10, 200))}".encode()
        channel.basic_publish("", self._to_device, body, properties)

    def _on_line(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        _, device, number = body.decode().split(" ")
        self.sessions[properties.headers["connection_id"]] = device, int(number)

    def _on_report(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        headers = properties.headers
        report = headers["owsla_report"], headers.get("connection_id", "")
        self.reports[int(properties.correlation_id)].append(report)

    def _on_record(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        headers = properties.headers
        record = headers["owsla_reason"], headers["owsla_node"], time.monotonic()
        self.records[int(properties.message_id)].append(record)

    def _on_trace(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        headers = properties.headers
        self.takers[int(headers["properties"]["message_id"])] = headers["connection"]


@dataclass(slots=True)
class Session:
    """One connection of a device, as in `wander_swarm`."""

    device: str
    number: int
    node: int
    begun: float
    ready: float
    left: float
    ended: float
    how: str

    @property
    def usable(self) -> tuple[float, float]:
        """Return the time in which a node certainly had this connection, and the device read it."""
        end = self.left if self.how in ("leaves", "drops") else self.ended
        return (self.ready + SETTLING if self.ready else float("inf")), (end or float("inf"))


@dataclass
class Books:
    """The records of both sides."""

    back_end: BackEnd
    sessions: dict[str, list[Session]]
    """By device, in order."""
    received: dict[int, list[tuple[str, int, float]]]
    """Device, number of its connection, and time, by serial number."""
    order: dict[str, list[int]]
    """Serial numbers by device, in the order of arrival."""
    strange: list[str]
    nodes: dict[str, str]
    """Node by connection to RabbitMQ."""
    reasons: dict[tuple[str, int], str]
    """Reason for the end of each connection, from the logs of the nodes, by its device and number."""
    stopped: float
    """Time at which the devices stopped reading."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def compare(self) -> None:
        """Fill in `counts` and `problems`."""
        self.problems += self.strange
        for serial in range(len(self.back_end.sent)):
            self._message(serial)
        for device in self.order:
            self._order(device)
        for sessions in self.sessions.values():
            self._connections(sessions)

    def _message(self, serial: int) -> None:
        sent = self.back_end.sent[serial]
        received, records = self.received.get(serial, []), self.back_end.records.get(serial, [])
        reports = [word for word, _ in self.back_end.reports.get(serial, [])]
        name = f"message {serial} to {sent.device}"
        if received:
            self.counts["received"] += 1
            self.counts["received more than once"] += len(received) > 1
            if records:
                self.problems.append(f"{name}: received, and on record as {records[0][0]}")
            if sent.reported and "delivered" not in reports:
                self.problems.append(f"{name}: received, and reported as {reports}")
        elif records:
            self.counts[f"on record: {records[0][0]}"] += 1
            if len(records) > 1:
                self.counts["on record more than once"] += 1
            self._record(name, sent, *records[0])
            if sent.reported and records[0][0] not in reports:
                self.problems.append(f"{name}: on record as {records[0][0]}, and reported as {reports}")
        elif how := self._written_to_a_closed_connection(serial, sent):
            self.counts[f"{WRITTEN} that the device {how} at that moment"] += 1
        else:
            self.problems.append(
                f"{name}: neither received nor on record; reports: {self.back_end.reports.get(serial)}; "
                f"{self._around(sent.device, sent.at)}"
            )

    def _around(self, device: str, at: float) -> str:
        """Describe the connections of a device at a time."""
        near = [each for each in self.sessions.get(device, []) if not each.ended or at - HELD < each.ended < at + 2 * HELD]
        texts = [
            f"connection {each.number} to node {each.node}, handshake at {each.ready - at:.2f} s, {each.how or 'stays'} at "
            f"{each.left - at:.2f} s, closed at {each.ended - at:.2f} s ({self.reasons.get((device, each.number))})"
            for each in near[:4]
        ]
        return "; ".join(texts)

    def _record(self, name: str, sent: Sent, reason: str, node: str, at: float) -> None:
        """Check that a message is on record for a reason."""
        sessions = self.sessions.get(sent.device, [])
        if reason == "unknown-device":
            if self._connected(sessions, sent.at, at):
                self.problems.append(
                    f"{name}: {reason} ({node}) after {at - sent.at:.2f} s, and the device was connected all the time; "
                    f"{self._around(sent.device, sent.at)}"
                )
        elif reason == "expired":
            if sent.expires_at is None or sent.expires_at - (time.time() - time.monotonic()) > at:
                self.problems.append(f"{name}: {reason} ({node}), and it had not expired")
        elif reason == "connection-closed":
            ends = [time for each in sessions for time in (each.left, each.ended) if time]
            if not any(sent.at - NOTICED <= end <= at + NOTICED for end in ends):
                self.problems.append(f"{name}: {reason} ({node}), and no connection of the device ended then")
        else:
            self.problems.append(f"{name}: on record as {reason} ({node})")

    @staticmethod
    def _connected(sessions: Iterable[Session], begin: float, end: float) -> bool:
        """Return whether a device was connected from `begin` to `end` without a gap."""
        for first, last in sorted(session.usable for session in sessions):
            if first <= begin < last:
                begin = last
        return begin > end

    def _written_to_a_closed_connection(self, serial: int, sent: Sent) -> str:
        """Return how the device closed the connection that a message was handed over to, or an empty text if it did not."""
        delivered = [connection_id for word, connection_id in self.back_end.reports.get(serial, []) if word == "delivered"]
        connections = [self.back_end.sessions.get(connection_id) for connection_id in delivered]
        for each in self.sessions.get(sent.device, []):
            if each.how not in ("drops", "leaves"):
                continue
            noticed = each.ended + (NOTICED if each.how == "drops" else 0)
            if sent.reported:
                matches = (each.device, each.number) in connections or None in connections
            else:
                matches = sent.at <= noticed and each.left <= sent.at + HELD
            if matches:
                return "reset" if each.how == "drops" else "closed"
        return ""

    def _order(self, device: str) -> None:
        last: dict[str, int] = {}
        for serial in dict.fromkeys(self.order[device]):
            taker = self.nodes.get(self.back_end.takers.get(serial, ""), "")
            if not taker:
                self.counts["taken by an unknown node"] += 1
            elif serial < last.get(taker, -1):
                self.counts["out of order"] += 1
                self.problems.append(f"{device}: message {serial} came after {last[taker]}, and node {taker} took both")
            last[taker] = max(serial, last.get(taker, -1))

    def _connections(self, sessions: list[Session]) -> None:
        self.counts["connections"] += len(sessions)
        for earlier, session in zip([None, *sessions], sessions, strict=False):
            name = f"connection {session.number} of {session.device}"
            if session.how:
                self.counts[f"device {session.how}" if session.how in ("roams", "leaves", "drops") else session.how] += 1
            if session.how == "closed" and earlier is not None and session.ready - earlier.ready < AT_ONCE:
                self.counts["closed: both of two connections at once were the newest to some node"] += 1
            elif session.how == "closed":
                self.problems.append(
                    f"{name}: the node closed the newest connection; {self._around(session.device, session.ended)}"
                )
            elif session.how.startswith("failed"):
                self.problems.append(f"{name}: {session.how}")
            if session.left and not session.ended and session.left < self.stopped - CLOSED:
                self.problems.append(f"{name}: still open {self.stopped - session.left:.1f} s after the device {session.how}")

    def closing_times(self) -> list[float]:
        """Return the seconds from a handshake until the earlier connection of the same device was closed."""
        found = []
        for sessions in self.sessions.values():
            for earlier, later in pairwise(sessions):
                if earlier.how == "roams" and earlier.ended and later.ready:
                    found.append(earlier.ended - later.ready)
        return found

    def latencies(self) -> list[float]:
        """Return the seconds from publish to arrival."""
        return [min(at for *_, at in arrivals) - self.back_end.sent[serial].at for serial, arrivals in self.received.items()]


class Watch(threading.Thread):
    """Samples of the memory of the nodes."""

    def __init__(self, gateways: list[Gateway]) -> None:
        super().__init__(daemon=True)
        self._gateways = gateways
        self._end = threading.Event()
        self.samples: list[list[float]] = []
        self._cpu = [gateway.cpu() for gateway in gateways]
        self._began = time.monotonic()
        self.shares: list[float] = []
        """CPU of each node as a share of one core."""

    def run(self) -> None:
        while not self._end.wait(EVERY):
            self.samples.append([gateway.pss() / 1024 for gateway in self._gateways])

    def stop(self) -> None:
        """Take the last sample."""
        self._end.set()
        self.join()
        elapsed = time.monotonic() - self._began
        self.shares = [(gateway.cpu() - cpu) / elapsed for gateway, cpu in zip(self._gateways, self._cpu, strict=True)]
        self.samples.append([gateway.pss() / 1024 for gateway in self._gateways])


def metrics(port: int) -> dict[str, float]:
    """Return the metrics of a node about devices by name and duplicate connections."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            name = sample.name + (f"{{{labels}}}" if labels else "")
            if name.startswith(METRICS) and (sample.value or "{" not in name):
                found[name] = sample.value
    return found


def write_certificates(folder: Path, names: list[str]) -> Path:
    """Write `ca.pem`, and a certificate for each device into a folder, which is returned."""
    authority = Authority("devices")
    (folder / "ca.pem").write_bytes(authority.pem)
    certificates = folder / "devices"
    certificates.mkdir()
    for name in names:
        pair = authority.issue(name)
        (certificates / f"{name}.pem").write_bytes(pair.certificate + pair.key)
    return certificates


METRICS: Final = (
    "owsla_device_lookups_total",
    "owsla_device_questions_total",
    "owsla_messages_returned_total",
    "owsla_messages_awaiting_lookup",
    "owsla_remembered_devices",
    "owsla_forwarded",
    "owsla_undeliverable_total",
    "owsla_events_total{event=device-replaced",
    "owsla_events_total{event=device-contested",
)


class Run:
    """One run."""

    def __init__(self, broker: OwnBroker, options: argparse.Namespace) -> None:
        self._broker = broker
        self._options = options
        self.metrics: list[dict[str, float]] = []
        self.watch: Watch
        self.books: Books

    def go(self) -> None:
        """Do everything, and compare the books."""
        options = self._options
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owsla-wander-")))
            names = [f"device-{number:05}" for number in range(options.devices)]
            certificates = write_certificates(folder, names)
            ports = [free_port() for _ in range(NODES)]
            queues = ("wander-from", "wander-to")
            settings = ["--client-ca", str(folder / "ca.pem"), "--on-duplicate", "replace"]
            settings += ["--consumers", str(options.consumers), "--prefetch", str(4000 // options.consumers)]
            gateways = [
                stack.enter_context(Gateway(self._broker.url, *settings, "--http", str(port), queues=queues)) for port in ports
            ]
            self._broker.ctl("trace_on")
            devices = stack.enter_context(WanderingSwarm([gateway.port for gateway in gateways], certificates, options.seed))
            print(f"{devices.call('connect')['connected']} devices are connected", file=sys.stderr)
            back_end = BackEnd(self._broker.url, *queues, names, options.rate, options.seed)
            devices.ask("wander", stay=options.stay, seconds=options.minutes * 60)
            back_end.start()
            self.watch = Watch(gateways)
            self.watch.start()
            time.sleep(options.minutes * 60 + 2)
            back_end.stop_publishing()
            nodes = self._nodes()
            self._drained()
            self.watch.stop()
            self.metrics = [metrics(port) for port in ports]
            devices.ask("stop")
            answer = devices.answer()
            back_end.stop()
            reasons = self._logs(gateways, back_end)
            self.books = self._compare(back_end, answer, nodes, reasons)

    def _nodes(self) -> dict[str, str]:
        """Return the node of each connection to RabbitMQ, by their names."""
        found = {}
        for line in self._broker.ctl("list_connections", "name", "client_properties").splitlines():
            name, _, properties = line.partition("\t")
            node = re.search(r'"connection_name","owsla (\w+) ', properties)
            if node is not None:
                found[name] = node[1]
        return found

    def _drained(self) -> None:
        """Wait until all messages are acknowledged."""
        patience = time.monotonic() + 60
        while time.monotonic() < patience:
            listed = self._broker.ctl("list_queues", "name", "messages").splitlines()
            counts = {name: int(count) for name, count in (line.split("\t") for line in listed)}
            if not any(count for name, count in counts.items() if not name.endswith(".nodes")):
                break
            time.sleep(0.5)
        time.sleep(2)

    def _compare(
        self, back_end: BackEnd, answer: dict[str, Any], nodes: dict[str, str], reasons: dict[tuple[str, int], str]
    ) -> Books:
        sessions: dict[str, list[Session]] = defaultdict(list)
        for record in answer["sessions"]:
            sessions[record["device"]].append(Session(**record))
        received: dict[int, list[tuple[str, int, float]]] = defaultdict(list)
        order: dict[str, list[int]] = defaultdict(list)
        for serial, device, number, at in answer["received"]:
            received[serial].append((device, number, at))
            order[device].append(serial)
        books = Books(back_end, sessions, received, order, answer["strange"], nodes, reasons, time.monotonic())
        books.compare()
        return books

    def _logs(self, gateways: list[Gateway], back_end: BackEnd) -> dict[tuple[str, int], str]:
        """Print what the nodes warn of. Return why connections ended, by device and number of the connection."""
        reasons = {}
        for gateway in gateways:
            text = gateway.log.read_text()
            told = [line for line in text.splitlines() if "#warn" in line or "#error" in line or "Traceback" in line]
            for line in told[:20]:
                print(line, file=sys.stderr)
            for connection_id, reason in re.findall(r"Device disconnected: ([0-9a-f-]{36}).* from [^ ]+, (.*?);", text):
                if connection_id in back_end.sessions:
                    reasons[back_end.sessions[connection_id]] = reason
        return reasons


def report(run: Run, options: argparse.Namespace, version: str) -> str:
    """Format the results as Markdown."""
    books, watch = run.books, run.watch
    sent = len(books.back_end.sent)
    rows = [(name, count, f"{count / sent:.3%}" if name.startswith(OF_MESSAGES) else "") for name, count
            in sorted(books.counts.items()) if count]  # fmt: skip
    lost = sum(count for name, count in books.counts.items() if name.startswith(WRITTEN))
    latencies, closing = books.latencies(), books.closing_times()
    seconds = [
        (
            what,
            len(values),
            *(f"{percentile(values, share):.3f}" for share in (0.5, 0.9, 0.99)),
            f"{max(values, default=0):.3f}",
        )
        for what, values in (("from publish to arrival", latencies), ("from a handshake to the end of the earlier", closing))
    ]
    memory = [
        (f"node {number}", f"{samples[0]:.1f}", f"{max(samples):.1f}", f"{samples[-1]:.1f}", f"{watch.shares[number]:.1%}")
        for number, samples in enumerate(zip(*watch.samples, strict=True))
    ]
    names = sorted({name for each in run.metrics for name in each})
    return "\n\n".join(
        [
            "# Devices that wander between two nodes",
            f"{circumstances()}, {version}. {options.devices} devices that move every {options.stay:g} s on average; "
            f"{options.rate:g} messages a second by name, for {options.minutes:g} minutes. Seed {options.seed}.",
            f"    {command_line()}",
            f"{sent} messages. **The books balance: {'no' if books.problems else 'yes'}.** "
            f"{lost} of them were written to a connection that the device reset or closed at that moment: neither received nor "
            "on record (docs/guarantees.md: handed over is not read).",
            table(("messages and connections", "number", "share of the messages"), rows),
            "## Times in seconds",
            table(("", "number", "median", "90 %", "99 %", "maximum"), seconds),
            "## Nodes: memory (PSS, MB) and CPU",
            table(("", "first", "maximum", "last", "CPU of a core"), memory),
            "## Metrics",
            table(
                ("", *(f"node {number}" for number in range(len(run.metrics)))),
                [(f"`{name}`", *(f"{each.get(name, 0):g}" for each in run.metrics)) for name in names],
            ),
            *(["## Problems", "\n".join(f"- {problem}" for problem in books.problems[:100])] if books.problems else []),
        ]
    )


def main() -> None:
    parser = arguments("Compare the books of devices that wander between two nodes, and of a back end that knows their names.")
    parser.add_argument("--minutes", type=float, default=10, help="length of the run (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=2000, help="number of devices (default: %(default)s)")
    parser.add_argument(
        "--stay", type=float, default=30, help="mean seconds between two moves of a device (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=200, help="messages per second (default: %(default)s)")
    parser.add_argument(
        "--consumers",
        type=int,
        default=1,
        help="consumers of each node; several keep no order (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="seed of all choices (default: random)")
    options = parser.parse_args()
    raise_open_files_limit()

    def measure(broker: OwnBroker) -> tuple[str, int]:
        run = Run(broker, options)
        run.go()
        return report(run, options, broker.version), len(run.books.problems)

    text, problems = run_with_broker(measure)
    publish(text, options.output)
    if problems:
        sys.exit(f"the books do not balance: {problems} problems")


if __name__ == "__main__":
    main()
