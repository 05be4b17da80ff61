"""Settings that change in a running process, and those that take a restart: a changed file, SIGHUP, and devices."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until


class Settings:
    """A file of settings, and the gateway that reads it."""

    def __init__(self, path: Path, content: str = "") -> None:
        self.path = path
        self.path.write_text(content)
        self.gateway: Gateway | None = None

    async def start(self, lab: Lab, broker: Broker, **options: Any) -> Gateway:
        self.gateway = await lab.gateway(broker.url, config=self.path, watch="off", **options)
        return self.gateway

    async def change(self, content: str) -> str:
        """Write other settings and have them read. Return what the process says of the changes."""
        assert self.gateway is not None
        owsla = self.gateway.owsla
        self.path.write_text(content)
        mark = owsla.mark()
        owsla.process.signal(signal.SIGHUP)
        match = await owsla.wait_for_line(
            "(Configuration reloaded|Reload failed, and nothing was changed): (.*)", 30, start=mark
        )
        return match[2]


@reactor_test
async def test_idle_timeout(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A shorter --idle-timeout closes connected devices that are idle; a longer one spares them."""
    settings = Settings(tmp_path / "owsla.toml", "idle-timeout = '1h'\n")
    gateway = await settings.start(lab, broker)
    idle, busy = await lab.device(gateway), await lab.device(gateway)
    await gateway.round_trip(idle)
    assert await settings.change("idle-timeout = '2s'\n") == "idle-timeout"
    for _ in range(60):
        if not idle.is_open:
            break
        await gateway.round_trip(busy)
        await pause(0.2)
    await idle.closed()
    assert await settings.change("idle-timeout = 'off'\n") == "idle-timeout"
    await pause(4)
    await gateway.round_trip(busy)
    await gateway.owsla.wait_for_line("no line for 2 s")


@reactor_test
async def test_max_connections(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A higher --max-connections lets a waiting device in. A lower one closes none, and lets none in until there is room."""
    settings = Settings(tmp_path / "owsla.toml", "max-connections = 2\n")
    gateway = await settings.start(lab, embedded)
    devices = [await lab.device(gateway) for _ in range(2)]
    third = lab.waiting_device(gateway)
    third.begin(60)
    await pause(1)
    assert not third.is_ready
    assert await settings.change("max-connections = 3\n") == "max-connections"
    await until(lambda: third.is_ready)
    await gateway.owsla.wait_for_line("Up to 3 devices can be connected: --max-connections")
    devices.append(third)
    assert await settings.change("max-connections = 1\n") == "max-connections"
    fourth = lab.waiting_device(gateway)
    fourth.begin(60)
    for device in devices:
        await gateway.round_trip(device)
    for device in devices:
        assert not fourth.is_ready
        await device.close()
    await until(lambda: fourth.is_ready)
    await gateway.round_trip(fourth)


@reactor_test
async def test_max_per_address(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """--max-per-address counts the devices that were connected before it was set. None of them is closed."""
    settings = Settings(tmp_path / "owsla.toml")
    gateway = await settings.start(lab, embedded)
    devices = [await lab.device(gateway) for _ in range(3)]
    assert await settings.change("max-per-address = 2\n") == "max-per-address"
    await refused(lab, gateway)
    for device in devices:
        await gateway.round_trip(device)
    await (await lab.device(gateway, source="127.0.0.2")).close()
    await devices[0].close()
    await refused(lab, gateway)
    await devices[1].close()
    await lab.device(gateway)
    await refused(lab, gateway)
    assert await settings.change("max-per-address = 3\n") == "max-per-address"
    await lab.device(gateway)
    await refused(lab, gateway)
    assert await settings.change("") == "max-per-address"
    await lab.device(gateway)


async def refused(lab: Lab, gateway: Gateway) -> None:
    """Connect a device that is closed before its handshake is complete."""
    device = lab.waiting_device(gateway)
    device.begin(10)
    await device.closed()
    assert not device.is_ready


@reactor_test
async def test_max_rate(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A device that is slowed down continues at once under a higher --max-rate; a lower one slows connected devices down."""
    settings = Settings(tmp_path / "owsla.toml", "max-rate = 0.1\n")
    gateway = await settings.start(lab, broker)
    device = await lab.device(gateway)
    device.send_line(*[b"line"] * 50)
    await gateway.messages(50)
    device.send_line(b"much later")
    await pause(1)
    assert not len(gateway.backend.inbox[gateway.from_device])
    assert await settings.change("max-rate = 1000\n") == "max-rate"
    assert (await gateway.message()).body == b"much later"
    device.send_line(*[b"line"] * 500)
    await gateway.messages(500)
    assert await settings.change("max-rate = 0.1\n") == "max-rate"
    device.send_line(*[b"line"] * 50)
    await gateway.messages(50)
    device.send_line(b"at once")
    await pause(1)
    assert not len(gateway.backend.inbox[gateway.from_device])
    assert await settings.change("") == "max-rate"
    assert (await gateway.message()).body == b"at once"


@reactor_test
async def test_device_ack(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """Another --device-ack is for devices that connect later. A connected one has the acknowledgements that it began with."""
    settings = Settings(tmp_path / "owsla.toml")
    gateway = await settings.start(lab, broker)
    first = await lab.device(gateway)
    first.send_line(b"before")
    await gateway.message()
    assert await settings.change("device-ack = 'ACK {seq}'\n") == "device-ack"
    second = await lab.device(gateway)
    second.send_line(b"0")
    assert await second.line() == b"ACK 0"
    assert await settings.change("device-ack = 'OK {seq}'\n") == "device-ack"
    third = await lab.device(gateway)
    third.send_line(b"0")
    assert await third.line() == b"OK 0"
    assert await settings.change("") == "device-ack"
    fourth = await lab.device(gateway)
    fourth.send_line(b"0")
    for device in (second, third):
        device.send_line(b"1")
    assert await second.line() == b"ACK 1"
    assert await third.line() == b"OK 1"
    await gateway.messages(5)
    for device in (first, fourth):
        await gateway.round_trip(device)


@reactor_test
async def test_max_line(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """--max-line holds for connected devices, in both directions."""
    settings = Settings(tmp_path / "owsla.toml", "max-line = 10\n")
    gateway = await settings.start(lab, broker)
    device, other = await lab.device(gateway), await lab.device(gateway)
    device.send_line(b"short")
    connection_id = (await gateway.message()).connection_id
    await gateway.send(connection_id, b"x" * 50)
    assert (await gateway.refused()).headers["owsla_reason"] == "too-long"
    assert await settings.change("max-line = 50\n") == "max-line"
    device.send_line(b"y" * 50)
    assert (await gateway.message()).body == b"y" * 50
    await gateway.send(connection_id, b"x" * 50)
    assert await device.line() == b"x" * 50
    assert await settings.change("max-line = 20\n") == "max-line"
    device.send_line(b"z" * 20)
    assert (await gateway.message()).body == b"z" * 20
    device.send_line(b"z" * 21)
    await device.closed()
    await gateway.round_trip(other)


@reactor_test
async def test_on_duplicate(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """After a change to --on-duplicate replace, the connections of a device stay, and its next one replaces the newest."""
    tokens = tmp_path / "devices"
    tokens.write_text("d1:s3cret\n")
    settings = Settings(tmp_path / "owsla.toml")
    gateway = await settings.start(lab, embedded, dialect="login", login_checker=f"file:{tokens}")

    async def connect() -> Device:
        device = await lab.device(gateway)
        device.send_line(b"HELLO d1 s3cret")
        assert await device.line() == b"WELCOME d1"
        return device

    first, second = await connect(), await connect()
    assert await settings.change("on-duplicate = 'replace'\n") == "on-duplicate"
    for device in (first, second):
        await gateway.round_trip(device)
    third = await connect()
    await second.closed()
    for device in (first, third):
        await gateway.round_trip(device)
    assert await settings.change("") == "on-duplicate"
    await connect()
    await gateway.round_trip(third)


@reactor_test
async def test_restart(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """What takes a restart is named at each reload until it is taken back; the rest applies, and no value is named."""
    settings = Settings(tmp_path / "owsla.toml", "seq-header = 'seq'\n")
    gateway = await settings.start(lab, broker)
    device = await lab.device(gateway)
    device.send_line(b"*" * 20)
    assert (await gateway.message()).headers["seq"] == 0
    said = await settings.change("seq-header = 'number'\nundeliverable-limit = 5\nmax-line = 100\n")
    assert said == "max-line; takes a restart: seq-header, undeliverable-limit"
    device.send_line(b"*" * 100)
    message = await gateway.message()
    assert (message.headers["seq"], len(message.body)) == (1, 100)
    said = await settings.change("seq-header = 'number'\nmax-line = 50\n")
    assert said == "max-line; takes a restart: seq-header"
    assert await settings.change("seq-header = 'seq'\nmax-line = 50\n") == "nothing has changed"
    assert "a time" in await settings.change("idle-timeout = 'soon'\nmax-line = 5\n")
    device.send_line(b"*" * 50)
    assert len((await gateway.message()).body) == 50


@reactor_test
async def test_workers(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """All workers follow. What new workers follow is named until all workers are new, the rest until it is taken back."""
    settings = Settings(tmp_path / "owsla.toml")
    gateway = await settings.start(lab, rabbitmq, workers=2, drain_spread="0s")
    owsla = gateway.owsla
    devices = [await lab.device(gateway) for _ in range(8)]
    content = "seq-header = 'number'\nembedded-port = 5\n"
    said = await settings.change(f"{content}idle-timeout = '1s'\n")
    assert said == "idle-timeout; takes a rolling restart: seq-header; takes a restart: embedded-port"
    for device in devices:
        await device.closed()
    mark = owsla.mark()
    settings.path.write_text(content)
    owsla.process.signal(signal.SIGUSR2)
    await owsla.wait_for_line("All 2 workers were replaced", 90, start=mark)
    assert await settings.change(f"{content}max-line = 50\n") == "max-line; takes a restart: embedded-port"
    device = await lab.device(gateway)
    device.send_line(b"a line")
    assert (await gateway.message()).headers["number"] == 0
    assert not re.search("WARN|rror", "".join(owsla.lines("[Rr]eload", start=mark)))
    assert await owsla.terminate() == 0


@reactor_test
async def test_logins(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """Another --login-checker or --login-timeout is for devices that connect later. Failed logins are not forgotten."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("d1:s3cret\n")
    new.write_text("d1:s3cret\nd2:other\n")
    settings = Settings(tmp_path / "owsla.toml", f"login-checker = 'file:{old}'\n")
    gateway = await settings.start(lab, embedded, dialect="login")

    async def answer(hello: bytes) -> bytes:
        device = await lab.device(gateway)
        device.send_line(hello)
        return await device.line()

    waiting = await lab.device(gateway)
    for _ in range(10):
        assert await answer(b"HELLO d1 wrong") == b"DENIED"
    assert await answer(b"HELLO d2 other") == b"DENIED"
    said = await settings.change(f"login-checker = 'file:{new}'\nlogin-timeout = '1s'\n")
    assert said == "login-checker, login-timeout"
    assert await answer(b"HELLO d2 other") == b"WELCOME d2"
    assert await answer(b"HELLO d1 s3cret") == b"DENIED", "ten logins of it have failed"
    silent = await lab.device(gateway)
    assert await silent.line() == b"DENIED"
    waiting.send_line(b"HELLO d2 other")
    assert await waiting.line() == b"DENIED"
    assert "login-checker" in await settings.change("login-checker = 'file:/nonexistent/file'\n")
    assert await answer(b"HELLO d2 other") == b"WELCOME d2"
    assert "s3cret" not in gateway.owsla.output()
