"""Tests of `--on-duplicate replace` across nodes: a device has one connection, and presence, replayed, says which."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import ensureDeferred, gatherResults

from ._support.backend import Backend, Message
from ._support.certificates import Authority
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until

EVENTS = "connection_events"

HEARTBEAT = 2
"""Seconds of --heartbeat: a connection that is silent for one and a half times as long is dead."""

QUICK = 1.0
"""Seconds within which the older connection is closed."""


class Fleet:
    """Gateways of one deployment, its devices, and a back end that follows presence and hears the notices of nodes."""

    def __init__(self, lab: Lab, broker: Broker, options: dict[str, Any]) -> None:
        self.lab = lab
        self.broker = broker
        self.authority = Authority(lab.folder / "devices")
        self.options = options
        self.gateways: list[Gateway] = []
        self.hearing: Backend
        self.notices = f"notices_{secrets.token_hex(4)}"
        self._pairs: dict[str, Path] = {}
        self._presence: list[Message] = []
        self._claims: list[dict[str, Any]] = []

    @staticmethod
    async def start(lab: Lab, broker: Broker, each: Sequence[dict[str, Any]] = ({}, {}), **options: Any) -> Fleet:
        """Start a gateway with each of these options, on the same queues."""
        common = {"on_duplicate": "replace", "heartbeat": HEARTBEAT, "node_grace": "1.5s", "events": ["console", "amqp"]}
        fleet = Fleet(lab, broker, common | options)
        for own in each:
            await fleet.another(**own)
        await fleet.listen()
        return fleet

    async def another(self, **own: Any) -> Gateway:
        first = self.gateways[0] if self.gateways else None
        queues = {} if first is None else {"from_device": first.from_device, "to_device": first.to_device}
        options: dict[str, Any] = {"client_ca": self.authority.ca, **self.options, **queues, **own}
        gateway = await self.lab.gateway(options.pop("broker", self.broker.url), backend=False, **options)
        self.gateways.append(gateway)
        return gateway

    async def listen(self) -> None:
        first = self.gateways[0]
        back_end = await self.lab.backend(self.broker.url, first.from_device, first.undeliverable, EVENTS)
        for gateway in self.gateways:
            gateway._backend = back_end
        exchange, queue = f"{first.to_device}.all", self.notices
        await back_end.call(lambda channel: channel.queue_declare(queue, exclusive=True))
        await back_end.call(lambda channel: channel.queue_bind(queue, exchange))

    @property
    def backend(self) -> Backend:
        return self.gateways[0].backend

    # -- devices ---------------------------------------------------------------------------------------------------------

    def pair(self, device_id: str) -> Path:
        """Return a file with a certificate of a device and its key."""
        if device_id not in self._pairs:
            cert, key = self.authority.issue(device_id)
            self._pairs[device_id] = self.lab.folder / f"{device_id}.pair"
            self._pairs[device_id].write_bytes(cert.read_bytes() + key.read_bytes())
        return self._pairs[device_id]

    async def connect(self, device_id: str, gateway: Gateway) -> Device:
        return await self.lab.device(gateway, certificate=self.pair(device_id))

    async def settled(self, device_id: str, *, one: bool = True) -> str | None:
        """Wait until presence, replayed, has one open connection of a device, or none. Return its id."""
        count = 1 if one else 0
        await until(lambda: len(self.open(device_id)) == count, what=lambda: f"{count} open: {self.open(device_id)}")
        return next(iter(self.open(device_id)), None)

    def open(self, device_id: str) -> dict[str, dict[str, Any]]:
        """Replay presence as a back end would: return the bodies of the `connected` of open connections of a device, by id."""
        self._presence += self.backend.inbox[EVENTS].clear()
        found: dict[str, dict[str, Any]] = {}
        for message in self._presence:
            body = json.loads(message.body)
            if body["event"] == "node-lost":
                found = {each: said for each, said in found.items() if not each.startswith(body["node"])}
            elif body["event"] == "disconnected":
                found.pop(body["connection_id"], None)
            elif body["device_id"] == device_id:
                found[body["connection_id"]] = body
        return found

    async def is_at(self, device_id: str, connection_id: str, device: Device) -> None:
        """Check that presence has this connection of a device and no other, and that the device can be spoken to."""
        assert await self.settled(device_id) == connection_id
        body = secrets.token_hex(4).encode()
        await self.gateways[0].send(connection_id, body)
        assert await device.line() == body

    # -- notices ---------------------------------------------------------------------------------------------------------

    async def claims(self, device_id: str) -> list[dict[str, Any]]:
        """Return the claims about a device that nodes have announced so far."""
        while (message := await self.backend.fetch(self.notices)) is not None:
            if message.headers["owsla_notice"] == "here":
                self._claims += json.loads(message.body)
        return [claim for claim in self._claims if claim["device_id"] == device_id]

    async def known(self, device_id: str, connection_id: str) -> None:
        """Wait until a node has announced a connection of a device, and every node had the time to hear of it."""
        for _ in range(300):
            if connection_id in [claim["connection_id"] for claim in await self.claims(device_id)]:
                break
            await pause(0.05)
        else:
            raise AssertionError(f"{connection_id} was not announced: {self._claims}")
        await pause(0.2)


def new_id() -> str:
    return f"d-{secrets.token_hex(4)}"


async def seconds_until_closed(device: Device) -> float:
    began = time.monotonic()
    await device.closed()
    return time.monotonic() - began


async def move(fleet: Fleet, device_id: str, there: Gateway, here: Gateway) -> float:
    """Connect a device to one node and then to another one. Check what is left; return how long the older one stayed."""
    older = await fleet.connect(device_id, there)
    older_id = await fleet.gateways[0].introduce(older)
    await fleet.known(device_id, older_id)
    newer = await fleet.connect(device_id, here)
    seconds = await seconds_until_closed(older)
    newer_id = await fleet.gateways[0].introduce(newer)
    assert older_id[:8] != newer_id[:8]
    await there.owsla.wait_for_line(rf"Device replaced: {older_id} of device {device_id} is replaced by {newer_id}")
    await there.owsla.wait_for_line(rf"Device disconnected: {older_id} \(device {device_id}\).*, replaced;")
    await fleet.is_at(device_id, newer_id, newer)
    return seconds


@reactor_test
async def test_two_processes(broker: Broker, lab: Lab) -> None:
    """A device that connects to another process loses its earlier connection there within a second."""
    fleet = await Fleet.start(lab, broker)
    first, second = fleet.gateways
    took = [await move(fleet, new_id(), *ways) for ways in ((first, second), (second, first), (first, second))]
    assert min(took) < QUICK, took
    other = await fleet.connect(new_id(), first)
    await first.round_trip(other)


@reactor_test
async def test_since(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Presence has the order of the connections of a device at two nodes, also where all stay (--on-duplicate keep). Such nodes
    announce nothing.
    """
    fleet = await Fleet.start(lab, own_rabbitmq, on_duplicate="keep")
    device_id = new_id()
    ids = []
    for gateway in (*fleet.gateways, fleet.gateways[0]):
        device = await fleet.connect(device_id, gateway)
        ids.append(await fleet.gateways[0].introduce(device))
    await until(lambda: len(fleet.open(device_id)) == 3, what="presence")
    found = fleet.open(device_id)
    assert sorted(found, key=lambda each: found[each]["since"]) == ids
    assert abs(found[ids[0]]["since"] / 1000 - time.time()) < 60
    await pause(0.5)
    assert len(fleet.open(device_id)) == 3
    assert await fleet.claims(device_id) == []


@reactor_test
async def test_workers(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A device that connects again to the same port has one connection, whichever worker took each."""
    fleet = await Fleet.start(lab, own_rabbitmq, ({"workers": 2},))
    (gateway,) = fleet.gateways
    await gateway.owsla.wait_for_line(r"worker-1#info\] Listening")
    await gateway.owsla.wait_for_line(r"worker-2#info\] Listening")
    took, across = [], 0
    while across < 3:
        device_id = new_id()
        older = await fleet.connect(device_id, gateway)
        older_id = await gateway.introduce(older)
        await fleet.known(device_id, older_id)
        newer = await fleet.connect(device_id, gateway)
        seconds = await seconds_until_closed(older)
        newer_id = await gateway.introduce(newer)
        if newer_id[:8] != older_id[:8]:
            across += 1
            took.append(seconds)
        await fleet.is_at(device_id, newer_id, newer)
    assert min(took) < QUICK, took


@pytest.mark.parametrize("ahead", ["older", "newer"])
@reactor_test
async def test_clocks_an_hour_apart(require_faketime: None, lab: Lab, own_rabbitmq: RabbitMQ, ahead: str) -> None:
    """The newer connection stays, whichever node's clock is an hour ahead, also if its node never heard of the older one."""
    wrong = {"through": ["faketime", "-f", "+1h"], "env": {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}}
    fleet = await Fleet.start(lab, own_rabbitmq, (wrong, {}))
    there, here = fleet.gateways if ahead == "older" else fleet.gateways[::-1]
    took = [await move(fleet, new_id(), there, here) for _ in range(3)]
    assert min(took) < QUICK, took
    device_id = new_id()
    older = await fleet.connect(device_id, there)
    older_id = await there.introduce(older)
    await fleet.settled(device_id)
    (said,) = fleet.open(device_id).values()
    assert (said["since"] / 1000 - time.time() > 3000) == (ahead == "older"), "the clock of the node is as it should be"
    await fleet.known(device_id, older_id)
    new = await fleet.another()  # it has not heard the claim of the older one
    newer = await fleet.connect(device_id, new)
    await older.closed()
    await fleet.is_at(device_id, await here.introduce(newer), newer)


@reactor_test
async def test_two_at_once(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Of two connections at the same time at two nodes, one stays."""
    fleet = await Fleet.start(lab, own_rabbitmq)
    for _ in range(5):
        device_id = new_id()
        fleet.pair(device_id)
        connecting = [ensureDeferred(fleet.connect(device_id, gateway)) for gateway in fleet.gateways]
        devices: list[Device] = await gatherResults(connecting)
        await until(lambda devices=devices: not all(device.is_open for device in devices), what="the end of one")  # type: ignore[misc]
        await pause(0.5)
        (stays,) = [device for device in devices if device.is_open]
        await fleet.is_at(device_id, await fleet.gateways[0].introduce(stays), stays)


@reactor_test
async def test_flapping(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A device that connects to two nodes in turn costs a few notices each time, and none when it rests."""
    fleet = await Fleet.start(lab, own_rabbitmq)
    device_id = new_id()
    devices = []
    for number in range(20):
        devices.append(await fleet.connect(device_id, fleet.gateways[number % 2]))
        await fleet.known(device_id, await fleet.gateways[0].introduce(devices[-1]))
    await fleet.settled(device_id)  # replaced connections of a contested device id stay for 10 s
    assert [device for device in devices if device.is_open] == devices[-1:]
    announced = await fleet.claims(device_id)
    assert len(devices) <= len(announced) <= 4 * len(devices)
    await pause(2.0)
    assert await fleet.claims(device_id) == announced
    await fleet.gateways[0].owsla.wait_for_line(
        rf"Device contested: {device_id} was replaced 6 times in a row, last by 127\.0\.0\.1:\d+ and node [0-9a-f]{{8}};"
    )
    await fleet.gateways[0].round_trip(devices[-1])


@reactor_test
async def test_cut_off(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """When a node that was cut off from the broker is back, its older connections go, and elsewhere those that are older than
    its own.
    """
    proxy = await lab.proxy(own_rabbitmq.port)
    fleet = await Fleet.start(lab, own_rabbitmq, ({"broker": proxy.url}, {}))
    cut, other = fleet.gateways
    left, came = new_id(), new_id()
    older = await fleet.connect(left, cut)
    to_stay = await fleet.connect(came, other)
    await fleet.known(left, await other.introduce(older))
    await other.introduce(to_stay)
    mark = cut.owsla.mark()
    await proxy.refuse()
    proxy.cut()
    await cut.owsla.wait_for_line("Broker lost", start=mark)
    newer = await fleet.connect(left, other)
    newer_id = await other.introduce(newer)
    newest = await fleet.connect(came, cut)
    await pause(QUICK)
    assert (older.is_open, to_stay.is_open) == (True, True), "the nodes cannot hear each other"
    await proxy.start()
    await older.closed()
    await to_stay.closed()
    await fleet.is_at(left, newer_id, newer)
    await fleet.is_at(came, await other.introduce(newest), newest)


@pytest.mark.parametrize("seconds", [1.0, 4.0 * HEARTBEAT])
@reactor_test
async def test_suspended(lab: Lab, own_rabbitmq: RabbitMQ, seconds: float) -> None:
    """A node that was suspended closes its older connection when it continues, also after it was taken for dead."""
    fleet = await Fleet.start(lab, own_rabbitmq)
    suspended, other = fleet.gateways
    device_id = new_id()
    older = await fleet.connect(device_id, suspended)
    await fleet.known(device_id, await other.introduce(older))
    suspended.owsla.process.signal(signal.SIGSTOP)
    newer = await fleet.connect(device_id, other)
    newer_id = await other.introduce(newer)
    await pause(seconds)
    assert older.is_open
    suspended.owsla.process.signal(signal.SIGCONT)
    await older.closed()
    await fleet.is_at(device_id, newer_id, newer)
    await pause(0.5)
    await fleet.is_at(device_id, newer_id, newer)


@reactor_test
async def test_reload(lab: Lab, own_rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """After a reload to `replace` on all nodes, the connections of a device stay, and its next one replaces them everywhere."""
    files = [tmp_path / f"owsla-{number}.toml" for number in range(2)]
    for file in files:
        file.write_text("on-duplicate = 'keep'\n")
    fleet = await Fleet.start(lab, own_rabbitmq, [{"config": file, "watch": "off"} for file in files], on_duplicate=None)
    device_id = new_id()
    earlier = [await fleet.connect(device_id, gateway) for gateway in fleet.gateways]
    for device in earlier:
        await fleet.gateways[0].introduce(device)
    for gateway, file in zip(fleet.gateways, files, strict=True):
        file.write_text("on-duplicate = 'replace'\n")
        gateway.owsla.process.signal(signal.SIGHUP)
        await gateway.owsla.wait_for_line("Configuration reloaded: .*on-duplicate")
    await pause(0.5)
    assert all(device.is_open for device in earlier)
    newest = await fleet.connect(device_id, fleet.gateways[1])
    for device in earlier:
        await device.closed()
    await fleet.is_at(device_id, await fleet.gateways[0].introduce(newest), newest)
