"""Tests of messages for many devices: selectors, reports and records, on several nodes that stop, die, or lose the broker."""

from __future__ import annotations

import secrets
import signal
import time
from pathlib import Path
from typing import Any

from ._support.backend import Backend, Message
from ._support.device import Plain
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Gateway, Lab
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import reactor_test, until

NAMING = """\
from owsla.dialects import Dialect

class Naming(Dialect):
    def line(self, line):
        if self.conversation.device_id is None:
            self.conversation.identify(line.decode())
        self.conversation.publish(line)
"""

QUORUM = {f"{queue}_argument": ["x-queue-type=quorum"] for queue in ("to_device", "node_queue")}

WORKERS = {"worker-1", "worker-2"}

GRACE = 1.5
"""Seconds of --node-grace."""


class Nodes:
    """Nodes without TLS on the same queues, a back end, and a queue for its reports. Devices say their id first."""

    def __init__(self, lab: Lab, gateways: list[Gateway], backend: Backend, answers: str) -> None:
        self.lab = lab
        self.gateways = gateways
        self.backend = backend
        self.answers = answers
        self.to_device = gateways[0].to_device
        self.undeliverable = gateways[0].undeliverable
        self.devices = 0

    @staticmethod
    async def start(lab: Lab, url: str, folder: Path, *, second: dict[str, Any] | None = None, **options: Any) -> Nodes:
        """Start two nodes; `second` are the options of the second one that differ, or empty for one node."""
        (folder / "naming.py").write_text(NAMING)
        options = {
            "tls": "no",
            "dialect": "naming:Naming",
            "env": {"PYTHONPATH": str(folder)},
            "node_grace": f"{GRACE}s",
            "heartbeat": "2",
        } | options
        gateways = [await lab.gateway(url, backend=False, **options)]
        if second != {}:
            queues = {"from_device": gateways[0].from_device, "to_device": gateways[0].to_device}
            owsla = lab.new_owsla(**options | {"broker": url} | queues | (second or {}))
            await owsla.start()
            gateways.append(Gateway(lab, owsla, url, gateways[0].from_device, gateways[0].to_device))
        answers = f"answers_{secrets.token_hex(4)}"
        admin = await lab.backend(gateways[0].broker_url)
        await admin.call(lambda channel: channel.queue_declare(answers))
        backend = await lab.backend(gateways[0].broker_url, gateways[0].from_device, gateways[0].undeliverable, answers)
        for gateway in gateways:
            gateway._backend = backend
        return Nodes(lab, gateways, backend, answers)

    async def device(self, node: int = 0, device_id: str | None = None) -> Plain:
        """Connect a device to a node, and wait until it is identified."""
        self.devices += 1
        device = await self.lab.plain(self.gateways[node].owsla.port, delimiter=b"\r\n")
        device.send_line((device_id or f"d-{self.devices}").encode())
        await self.backend.get(self.gateways[0].from_device)
        return device

    async def name(self, node: int) -> str:
        """Return the name of a node."""
        probe = await self.lab.plain(self.gateways[node].owsla.port)
        probe.send_line(b"probe")
        message = await self.backend.get(self.gateways[0].from_device)
        await probe.close()
        await self.gateways[node].owsla.wait_for_line("Device disconnected: .*device probe")
        return message.connection_id[:8]

    async def send(
        self,
        body: bytes,
        selector: str = "all",
        *,
        seconds: float = 60.0,
        exchange: str = "",
        queue: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> None:
        """Send a message for many that expires in some seconds, and asks for reports."""
        expires_at = round((time.time() + seconds) * 1000)
        await self.backend.publish(
            self.to_device if queue is None else queue,
            body,
            {"owsla_to": selector, "expires_at": expires_at} | (headers or {}),
            exchange=exchange,
            reply_to=self.answers,
            correlation_id=body.decode(),
        )

    async def reports(self, count: int, outcome: str = "fanned-out") -> list[Message]:
        """Take some reports of one outcome."""
        reports = await self.backend.inbox[self.answers].take(count)
        assert [report.headers["owsla_report"] for report in reports] == [outcome] * count
        return reports

    async def nothing_else(self, *devices: Plain) -> None:
        """Check that the devices were sent nothing else: the next line of each is that of a last message."""
        await self.send(b"last")
        for device in devices:
            assert await device.line() == b"last"
        await self.reports(len(self.gateways))
        assert not len(self.backend.inbox[self.undeliverable])


def reached(reports: list[Message]) -> list[tuple[int, int]]:
    """Return the numbers of devices that each node has handed the message over to, and missed, in ascending order."""
    return sorted((report.headers["owsla_devices"], report.headers["owsla_missed"]) for report in reports)


@reactor_test
async def test_all(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A message for all reaches each device of each node once. Each node reports the number of its devices."""
    nodes = await Nodes.start(lab, broker.url, tmp_path)
    devices = [await nodes.device(number % 2) for number in range(5)]
    await nodes.send(b"now")
    for device in devices:
        assert await device.line() == b"now"
    reports = await nodes.reports(2)
    assert reached(reports) == [(2, 0), (3, 0)]
    assert {report.headers["owsla_node"] for report in reports} == {await nodes.name(0), await nodes.name(1)}
    assert {(report.properties.correlation_id, report.body) for report in reports} == {("now", b"")}
    await nodes.nothing_else(*devices)


@reactor_test
async def test_selectors(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A message for a door or a prefix of device ids reaches those devices on all nodes. Nobody gets one for an unknown door,
    and each node reports that.
    """
    listen = [r"tcp:0:name=frames:interface=127.0.0.1:framing=length\:2"]
    nodes = await Nodes.start(lab, broker.url, tmp_path, listen=listen)
    meters = [await nodes.device(number, f"m-{number}") for number in (0, 1)]
    pump = await nodes.device(0, "p-1")
    found = await nodes.gateways[1].owsla.wait_for_line(r"Listening for devices on port (\d+) .*\(door frames\)")
    framed = await lab.plain(int(found[1]), delimiter=b"\0\x05fine")
    framed.send_raw(b"\0\x03f-1")
    await nodes.backend.get(nodes.gateways[0].from_device)
    await nodes.send(b"meters", "prefix:m-")
    assert [await meter.line() for meter in meters] == [b"meters"] * 2
    assert reached(await nodes.reports(2)) == [(1, 0), (1, 0)]
    await nodes.send(b"a\nb", "door:frames")
    await until(lambda: framed.protocol.rest == b"\0\x03a\nb")
    assert reached(await nodes.reports(2)) == [(0, 0), (1, 0)]
    await nodes.send(b"nobody", "door:nowhere")
    assert reached(await nodes.reports(2)) == [(0, 0), (0, 0)]
    await nodes.send(b"c\nd")  # which only one of the doors can be sent
    await until(lambda: framed.protocol.rest == b"\0\x03a\nb\0\x03c\nd")
    assert reached(await nodes.reports(2)) == [(0, 2), (1, 1)]
    await framed.close()
    await nodes.nothing_else(*meters, pump)


@reactor_test
async def test_faults(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A message that cannot be spread is recorded once, by the node that took it, and reported with the reason."""
    nodes = await Nodes.start(lab, embedded.url, tmp_path)
    device = await nodes.device()
    for headers, reason in (
        ({"owsla_to": "everybody"}, "bad-selector"),
        ({"owsla_to": "prefix:"}, "bad-selector"),
        ({"owsla_to": 7}, "bad-selector"),
        ({"expires_at": None}, "bad-expires-at"),
        ({"expires_at": "soon"}, "bad-expires-at"),
        ({"expires_at": 1}, "expired"),
        ({"to_device_seq": 0}, "bad-seq"),
    ):
        await nodes.send(b"refused", headers=headers)
        record = await nodes.backend.get(nodes.undeliverable)
        assert (record.headers["owsla_reason"], record.body) == (reason, b"refused"), headers
        await nodes.reports(1, reason)
    await nodes.nothing_else(device)


@reactor_test
async def test_exchange_and_queue_of_a_node(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A back end can publish to the exchange of all nodes itself, or to the queue of one node: then its devices only get it."""
    nodes = await Nodes.start(lab, broker.url, tmp_path)
    first, second = [await nodes.device(number) for number in (0, 1)]
    await nodes.send(b"exchange", exchange=f"{nodes.to_device}.all", queue="")
    assert [await device.line() for device in (first, second)] == [b"exchange"] * 2
    assert reached(await nodes.reports(2)) == [(1, 0), (1, 0)]
    await nodes.send(b"queue", queue=f"{nodes.to_device}.{await nodes.name(1)}")
    assert await second.line() == b"queue"
    assert reached(await nodes.reports(1)) == [(1, 0)]
    await nodes.nothing_else(first, second)


@reactor_test
async def test_close(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """`owsla_close` closes the connections behind the line."""
    nodes = await Nodes.start(lab, embedded.url, tmp_path)
    devices = [await nodes.device(number % 2) for number in range(4)]
    await nodes.send(b"bye", headers={"owsla_close": True})
    for device in devices:
        assert await device.line() == b"bye"
        await device.closed()
    assert reached(await nodes.reports(2)) == [(2, 0), (2, 0)]


@reactor_test
async def test_expiry_in_the_middle(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """What is not handed over at the expiry is not sent any more. Each node records the message once, with its numbers."""
    nodes = await Nodes.start(lab, broker.url, tmp_path, fanout_rate=4)
    devices = [[await nodes.device(node) for _ in range(10)] for node in (0, 1)]
    await nodes.send(b"late", seconds=1.5)
    records = await nodes.backend.inbox[nodes.undeliverable].take(2)
    reports = await nodes.reports(2, "expired")
    assert {record.headers["owsla_reason"] for record in records} == {"expired"}
    assert reached(records) == reached(reports)
    assert {record.headers["owsla_node"] for record in records} == {await nodes.name(0), await nodes.name(1)}
    for handed_over, missed in reached(records):
        assert 0 < handed_over < 10
        assert handed_over + missed == 10
    lines = [sum(len(device.lines) for device in own) for own in devices]
    assert sorted(lines) == [handed_over for handed_over, _ in reached(records)]


async def _begun(devices: list[Plain]) -> None:
    """Wait until some of the devices have a line."""
    await until(lambda: sum(len(device.lines) for device in devices) >= 2, what="the first lines of a message for many")
    assert sum(len(device.lines) for device in devices) < len(devices), "it is too late"


@reactor_test
async def test_node_that_is_cut_off(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A node that loses the broker in the middle goes on. The repeat that it gets joins: each device has the message once, and
    each node reports once. With RabbitMQ, the queues are quorum queues.
    """
    proxy = await lab.proxy(broker.port)
    options = {"fanout_rate": 10, "node_grace": "20s"} | (QUORUM if isinstance(broker, RabbitMQ) else {})
    nodes = await Nodes.start(lab, broker.url, tmp_path, second={"broker": proxy.url}, **options)
    devices = [await nodes.device(1) for _ in range(20)]
    await nodes.send(b"now")
    assert reached(await nodes.reports(1)) == [(0, 0)]
    await _begun(devices)
    proxy.cut()
    for device in devices:
        assert await device.line() == b"now"
    assert reached(await nodes.reports(1)) == [(20, 0)]
    await nodes.nothing_else(*devices)


@reactor_test
async def test_node_that_stops(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A node that stops in the middle reports how many devices it has handed the message over to. No record is made."""
    nodes = await Nodes.start(lab, broker.url, tmp_path, fanout_rate=10, drain_spread="0.5s")
    devices = [await nodes.device(1) for _ in range(30)]
    await nodes.send(b"now")
    assert reached(await nodes.reports(1)) == [(0, 0)]
    await _begun(devices)
    nodes.gateways[1].owsla.process.signal(signal.SIGTERM)
    ((handed_over, missed),) = reached(await nodes.reports(1))
    assert await nodes.gateways[1].owsla.exited() == 0
    assert (handed_over, handed_over + missed) == (sum(len(device.lines) for device in devices), 30)
    assert not len(nodes.backend.inbox[nodes.undeliverable])


@reactor_test
async def test_node_that_is_killed(own_rabbitmq: RabbitMQ, lab: Lab, tmp_path: Path) -> None:
    """A node that dies in the middle leaves the message in its queue: it is on record that the node is lost."""
    nodes = await Nodes.start(lab, own_rabbitmq.url, tmp_path, fanout_rate=10)
    devices = [await nodes.device(1) for _ in range(20)]
    await nodes.send(b"now")
    assert reached(await nodes.reports(1)) == [(0, 0)]
    await _begun(devices)
    nodes.gateways[1].owsla.process.signal(signal.SIGKILL)
    record = await nodes.backend.get(nodes.undeliverable, 30)
    assert (record.headers["owsla_reason"], record.headers["owsla_to"], record.body) == ("node-lost", "all", b"now")
    (report,) = await nodes.reports(1, "node-lost")
    assert report.properties.correlation_id == "now"


@reactor_test
async def test_workers_with_the_embedded_broker(lab: Lab, tmp_path: Path) -> None:
    """The workers of a gateway with the embedded broker are nodes, too: the devices of all of them are reached."""
    port = free_port()
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2f"
    nodes = await Nodes.start(lab, url, tmp_path, second={}, broker="embedded", embedded_port=port, workers=2)
    owsla = nodes.gateways[0].owsla
    await until(lambda: {line.partition("#")[0][-8:] for line in owsla.lines("Listening for devices")} == WORKERS)
    devices = [await nodes.device() for _ in range(8)]
    await nodes.send(b"now")
    for device in devices:
        assert await device.line() == b"now"
    counts = reached(await nodes.reports(2))
    assert sum(handed_over for handed_over, _ in counts) == 8
