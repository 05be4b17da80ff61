"""Tests of several doors of one gateway: each with a port, certificates and limits of its own, on the same queues."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.mischief import MischiefLab
from ._support.owsla import Owsla
from ._support.process import accepts, free_port
from ._support.waiting import block_on, reactor_test, until
from .test_changed_settings import Settings
from .test_supervision import PORT, tree_when
from .test_workers import devices_on_each, processes

CONFIG_DOOR = """
[[listen]]
name = "small"
port = 0
tls = true
interface = "127.0.0.1"
max-connections = {limit}
"""


async def port_of(owsla: Owsla, door: str) -> int:
    """Wait until another door than the first one is open, and return its port."""
    return int((await owsla.wait_for_line(rf"Listening for devices on port (\d+) .*\(door {door}\)"))[1])


def pem_of(pair: tuple[Path, Path]) -> Path:
    """Return a file with a certificate and its key."""
    file = pair[0].with_suffix(".both.pem")
    file.write_bytes(pair[0].read_bytes() + pair[1].read_bytes())
    return file


@reactor_test
async def test_migration_to_another_authority(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """Devices with a certificate of the old authority and of the new one come in at a door each, and at no other. Lines of both
    arrive on the same queue, and answers reach both.
    """
    old, new = (Authority(tmp_path / name, name=f"{name} authority") for name in ("old", "new"))
    gateway = await lab.gateway(
        embedded.url, client_ca=old.ca, listen=[f"tls:0:name=new:interface=127.0.0.1:client-ca={new.ca}"]
    )
    owsla = gateway.owsla
    ports = {"old": owsla.port, "new": await port_of(owsla, "new")}
    certificates = {name: pem_of(authority.issue("pump-1")) for name, authority in (("old", old), ("new", new))}
    for name, port in ports.items():
        device = await lab.device(owsla, port=port, certificate=certificates[name])
        await gateway.round_trip(device)
        where = "" if name == "old" else r" \(door new\)"
        await owsla.wait_for_line(rf"Device connected: \S+ \(device pump-1\) from [\d.:]+{where}, TLSv1.3")
    mark = owsla.mark()
    stranger = await lab.device(owsla, port=ports["new"], certificate=certificates["old"])  # in TLS 1.3 it hears of it later
    await stranger.closed()
    await owsla.wait_for_line(r"Handshake failed: [\d.:]+ \(door new\): TLS: .*refused", start=mark)
    assert len(owsla.lines("Device connected")) == 2


@reactor_test
async def test_busy_port(lab: Lab) -> None:
    """A door whose port is in use ends the start with one line that names it, and no other door is opened."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        owsla = lab.new_owsla(broker="embedded", embedded_port=0, listen=[f"tls:{port}:name=meters:interface=127.0.0.1"])
        owsla.launch()
        assert await owsla.exited() == 1
    assert re.fullmatch(rf".*--listen meters: .*{port}.*in use.*\n", owsla.errors()), owsla.output()
    assert not owsla.lines("Listening for devices")


@reactor_test
async def test_port_taken_meanwhile(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """If another process listens on the port of a door before the broker answers, the process ends with one line that names the
    door, and no door is opened.
    """
    proxy = await lab.proxy(embedded.port)
    await proxy.refuse()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        owsla = lab.new_owsla(broker=proxy.url, listen=[f"tls:{port}:name=meters:interface=127.0.0.1"])
        owsla.launch()
        await owsla.wait_for_line("Broker unavailable")
        taken.listen()
        await proxy.start()
        assert await owsla.exited() == 1
    assert owsla.errors() == f"owsla: --listen meters: port {port} cannot be opened: address already in use\n"
    assert not owsla.lines("Listening for devices")


@reactor_test
async def test_full_door(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A door at its own --max-connections lets devices wait, and says so, while another door accepts. A reload of its limit
    lets them in.
    """
    config = tmp_path / "owsla.toml"
    config.write_text(CONFIG_DOOR.format(limit=2))
    gateway = await lab.gateway(embedded.url, config=config, watch="off")
    owsla = gateway.owsla
    port = await port_of(owsla, "small")
    for _ in range(2):
        await gateway.round_trip(await lab.device(owsla, port=port))
    waiting = lab.waiting_device(owsla, port=port)
    waiting.begin(60)
    await owsla.wait_for_line(r"Not accepting connections \(door small\): as many devices as --max-connections allows \(2\)")
    for _ in range(3):
        await gateway.round_trip(await lab.device(gateway))
    assert not waiting.is_ready
    config.write_text(CONFIG_DOOR.format(limit=3))
    mark = owsla.mark()
    os.kill(owsla.pid, signal.SIGHUP)
    line = await owsla.wait_for_line("Configuration reloaded: .*", start=mark)
    assert line[0] == "Configuration reloaded: small.max-connections"
    await until(lambda: waiting.is_ready, what="the waiting device to be let in")
    await gateway.round_trip(waiting)


@reactor_test
async def test_drain(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """A stop closes all doors and the devices of all of them, in order."""
    gateway = await lab.gateway(embedded.url, listen=["tls:0:name=other:interface=127.0.0.1"])
    owsla = gateway.owsla
    ports = [owsla.port, await port_of(owsla, "other")]
    devices = [await lab.device(owsla, port=port) for port in ports for _ in range(3)]
    for device in devices:
        await gateway.introduce(device)  # in TLS 1.3 a handshake is complete at the device first
    for device in devices:
        device.send_line(b"last words")
    assert await owsla.terminate() == 0
    for device in devices:
        await device.closed()
    assert [message.body for message in await gateway.messages(len(devices))] == [b"last words"] * len(devices)
    assert not any(accepts(port) for port in ports)
    await owsla.wait_for_line("Stopped: 6 devices closed, everything confirmed")


@reactor_test
async def test_workers_share_all_doors(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """With --workers every worker accepts devices at every door."""
    port = free_port()
    gateway = await lab.gateway(embedded.url, workers=2, listen=[f"tls:{port}:name=other:interface=127.0.0.1"])
    await processes(gateway.owsla, 2)
    await devices_on_each(gateway, lab, 2)
    nodes = set()
    for _ in range(100):
        device = await lab.device(gateway.owsla, port=port)
        nodes.add((await gateway.introduce(device))[:8])
        if len(nodes) == 2:
            break
    assert len(nodes) == 2, "100 devices of the second door are on one worker"


@pytest.fixture
def mischief(tmp_path: Path, certs_dir: Path) -> Any:
    """Return a lab whose gateways can be made to fail."""
    one = MischiefLab(tmp_path, certs_dir)
    yield one
    block_on(one.close())


@reactor_test
async def test_restart_of_a_port(mischief: MischiefLab, embedded: EmbeddedBrokerProcess) -> None:
    """A port that fails is restarted without the other one, and all devices stay connected."""
    gateway: Gateway = await mischief.gateway(embedded.url, listen=["tls:0:name=other:interface=127.0.0.1"])
    owsla: Any = gateway.owsla
    port = await port_of(owsla, "other")
    devices = [await mischief.device(gateway), await mischief.device(owsla, port=port)]
    fault = await owsla.fail("owsla.device.acceptor:Acceptor._accept", only={"_service.name": "port other"})
    late = mischief.waiting_device(owsla, port=port)
    late.begin(30)
    await fault.strikes()
    await tree_when(owsla, lambda tree: tree.all_run and tree.restarts == {f"{PORT} other": 1})
    devices.append(await mischief.device(owsla, port=port))
    for device in devices:
        await gateway.round_trip(device)


DOOR_BEFORE = """
[[listen]]
name = "lb"
port = 0
tls = false
interface = "127.0.0.1"
proxy-protocol = "192.0.2.0/24"
max-line = 100
from-device = "lb"
"""

@reactor_test
async def test_reload_of_a_door(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A reload changes the settings of one door, names them with the door, and changes nothing at the others."""
    settings = Settings(tmp_path / "owsla.toml", DOOR_BEFORE)
    gateway = await settings.start(lab, embedded)
    port = await port_of(gateway.owsla, "lb")
    device = await lab.device(gateway)
    assert not said(port, b"PROXY UNKNOWN\r\n" + b"x" * 50 + b"\n")
    after = DOOR_BEFORE.replace("192.0.2.0/24", "127.0.0.0/8").replace("= 100", "= 10").replace('device = "lb"', 'device = "m"')
    told = await settings.change(after)
    assert told.startswith("lb.proxy-protocol, lb.max-line"), told
    assert "takes a restart: lb.from-device" in told, told
    mark = gateway.owsla.mark()
    said(port, b"PROXY TCP4 198.51.100.7 192.0.2.1 5000 1\r\n" + b"x" * 50 + b"\n")
    long_line = r"Device disconnected: \S+ from 198\.51\.100\.7:5000 \(door lb\), a line longer than 10"
    await gateway.owsla.wait_for_line(long_line, start=mark)
    await gateway.round_trip(device)  # its lines are longer
    told = await settings.change(after.replace('= 10\n', '= 20\n') + "[[listen]]\nport = 0\nname = 'new'\n")
    assert told == "lb.max-line; takes a restart: listen, lb.from-device", told


def said(port: int, data: bytes) -> bytes:
    """Send data to a port without TLS, and return what comes before the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        try:
            sock.sendall(data)
            return sock.recv(100)
        except ConnectionResetError:
            return b""
