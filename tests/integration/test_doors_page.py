"""Tests of docs/doors.md: its configurations, of Owsla and of HAProxy, do what the page says.

They are taken from the page and used as they are, except for folders, addresses, ports, the broker, and the number of
connections that HAProxy wants open files for.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from owsla.config.sources import load_settings
from owsla.device.proxy_header import write_v2

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.haproxy import HAProxy
from ._support.journal import events_in
from ._support.lab import Gateway, Lab
from ._support.page import Page
from ._support.process import free_port
from ._support.waiting import pause, reactor_test, until


class Site(Page):
    """The machines of the page, all in one, with an authority for gateways and devices."""

    def __init__(self, root: Path, lab: Lab, broker: EmbeddedBrokerProcess) -> None:
        super().__init__("doors.md", root)
        self._lab = lab
        self._broker = broker
        self.authority = Authority(root / "authority")
        self.path("/etc/owsla/broker-password").write_text("guest\n")
        for name in ("gw.example.com/current", "old", "new"):
            self.certificate(self.authority, name)

    def certificate(self, authority: Authority, name: str) -> None:
        """Put a server certificate into a folder of /etc/owsla/tls."""
        folder = self.path("/etc/owsla/tls") / name
        folder.mkdir(parents=True, exist_ok=True)
        cert, key = authority.issue("gateway")
        (folder / "fullchain.pem").write_bytes(cert.read_bytes())
        (folder / "privkey.pem").write_bytes(key.read_bytes())

    def settings(self, text: str, replace: Mapping[str, str] | None = None, *, name: str = "owsla") -> Path:
        """Write the configuration that contains `text` to a file, with the broker of the test. Return its path."""
        broker = self._broker.url.replace("guest:guest", "guest")
        content = self.block("toml", text, {"amqps://owsla@rabbit.example/": broker} | dict(replace or {}))
        path = self.path("/etc/owsla") / f"{name}.toml"
        path.write_text(content)
        return path

    async def gateway(self, config: Path, **options: Any) -> Gateway:
        """Start a gateway with a configuration."""
        journal = config.with_suffix(".json")
        own: dict[str, Any] = {"broker": None, "interface": None, "port": None, "watch": "off", "config": config}
        own["events"] = ["console", f"json:{journal}"]
        return await self._lab.gateway(self._broker.url, **(own | options))

    async def haproxy(self, text: str, replace: Mapping[str, str]) -> HAProxy:
        """Start HAProxy with the configuration that contains `text`."""
        replace = {"maxconn 200000": "maxconn 1000"} | dict(replace)
        haproxy = HAProxy(self.root / "haproxy", self.block("haproxy", text, replace))
        self._lab.ends(haproxy.close)
        return await haproxy.start()

    async def device(self, port: int, **options: Any) -> Device:
        """Connect a device to a port."""
        return await self._lab.device_at(port, options.pop("ca", self.authority.ca), **options)

    async def connected(self, *peers: str, name: str = "owsla") -> None:
        """Wait until a gateway has reported the devices with these addresses, and no others."""

        def look() -> bool:
            return [event["peer"].partition(":")[0] for event in self.events("device-connected", name)] == list(peers)

        await until(look, what=lambda: f"{peers}: {self.events('device-connected', name)}")

    def events(self, kind: str, name: str = "owsla") -> list[dict[str, Any]]:
        """Return the events of a kind that a gateway has reported."""
        return [event for event in events_in(self.path("/etc/owsla") / f"{name}.json") if event["event"] == kind]


@pytest.fixture
def site(tmp_path: Path, lab: Lab, embedded: EmbeddedBrokerProcess) -> Site:
    """Return the machines of the page."""
    return Site(tmp_path / "m", lab, embedded)


def test_description_of_a_door(tmp_path: Path) -> None:
    """The table and the command line of the page describe the same door."""
    page = (Path(__file__).parents[2] / "docs" / "doors.md").read_text()
    command = re.search(r"^    twistd -n owsla (--port .*)$", page, re.MULTILINE)
    table = re.search(r"^```toml\n(port = 8883\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert command is not None
    assert table is not None
    file = tmp_path / "owsla.toml"
    file.write_text(table[1])
    for argv in (shlex.split(command[1]), ["--config", str(file)]):
        settings = load_settings(argv, {}, certificates="left")
        (door,) = settings.listen
        own = door.settings
        assert (settings.port, door.name) == (8883, "trackers")
        assert (own.port, own.tls, own.interface, own.idle_timeout) == (9001, False, "127.0.0.1", 7200)


@pytest.mark.usefixtures("require_haproxy")
@reactor_test
async def test_tls_passes_through(site: Site) -> None:
    """Devices connect to two gateways through HAProxy, and events have their addresses. When one gateway stops, new devices
    get the other one at once.
    """
    front, ports = free_port(), (free_port(), free_port())
    local = {"10.0.0.10": "127.0.0.1", "10.0.0.21": "127.0.0.1"}
    gateways = []
    for name, port in zip(("one", "two"), ports, strict=True):
        config = site.settings("# passing through HAProxy", local, name=name)
        gateways.append(await site.gateway(config, port=port))
    await site.haproxy(
        "server owsla2 10.0.0.22:8883 send-proxy-v2 check",
        {
            "10.0.0.10:8883": f"127.0.0.1:{front}",
            "10.0.0.21:8883": f"127.0.0.1:{ports[0]}",
            "10.0.0.22:8883": f"127.0.0.1:{ports[1]}",
        },
    )
    for last in range(2, 6):
        await site.device(front, source=f"127.0.0.{last}")

    def seen() -> list[str]:
        """Return the addresses of the devices, if each gateway has two."""
        each = [site.events("device-connected", name) for name in ("one", "two")]
        addresses = [event["peer"].partition(":")[0] for events in each for event in events]
        return sorted(addresses) if [len(events) for events in each] == [2, 2] else []

    await until(lambda: seen() == [f"127.0.0.{last}" for last in range(2, 6)])
    assert await gateways[0].owsla.terminate() == 0
    for _ in range(4):
        await gateways[1].round_trip(await site.device(front))


@pytest.mark.usefixtures("require_haproxy")
@reactor_test
async def test_haproxy_ends_tls(site: Site) -> None:
    """The name in the certificate that HAProxy verifies is the device id."""
    front, port = free_port(), free_port()
    config = site.settings(
        "# HAProxy has ended TLS", {"10.0.0.10": "127.0.0.1", "10.0.0.21": "127.0.0.1", "port = 9000": f"port = {port}"}
    )
    gateway = await site.gateway(config)
    cert, key = site.authority.issue("haproxy")
    (site.path("/etc/haproxy") / "gw.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    (site.path("/etc/haproxy") / "devices-ca.pem").write_bytes(site.authority.ca.read_bytes())
    await site.haproxy(
        "verify required",
        {
            "10.0.0.10:8883": f"127.0.0.1:{front}",
            "10.0.0.21:9000": f"127.0.0.1:{port}",
            "10.0.0.22:9000": f"127.0.0.1:{free_port()}",  # is down
        },
    )
    for _ in range(2):
        device = await site.device(front, certificate=site.authority.credentials("meter-17"))
        device.send_line(b"hello")
        assert (await gateway.message()).headers["device_id"] == "meter-17"


@pytest.mark.usefixtures("require_haproxy")
@reactor_test
async def test_over_a_unix_socket(site: Site) -> None:
    """Through a unix socket of the same host, events have the addresses of the devices."""
    front = free_port()
    gateway = await site.gateway(site.settings('proxy-protocol = ["unix"]'))
    await site.haproxy("unix@/run/owsla", {"bind :8883": f"bind 127.0.0.1:{front}"})
    device = await site.device(front, source="127.0.0.9")
    await gateway.round_trip(device)
    await site.connected("127.0.0.9")


NOOP = 0x04


@reactor_test
async def test_network_load_balancer(site: Site, lab: Lab) -> None:
    """A device whose header comes with its first bytes connects, and a health check of the load balancer is no event."""
    config = site.settings("# subnets of the load balancer", {"10.0.1.0/24": "127.0.0.0/24"})
    port = free_port()
    gateway = await site.gateway(config, port=port)
    proxy = await lab.proxy(port)
    # As long as an NLB's: 100 bytes, a checksum and padding among them.
    proxy.before = write_v2(("203.0.113.7", 50123), ("10.0.1.10", 8883), tlvs=[(NOOP, bytes(62))], checksum=True)
    assert len(proxy.before) == 100
    device = await site.device(proxy.port)
    await gateway.round_trip(device)
    await site.connected("203.0.113.7")
    check = await lab.plain(port)
    check.send_raw(bytes.fromhex("0d0a0d0a000d0a515549540a20110054030004bce5951f04004a") + bytes(74))
    await pause(0.3)
    await check.close()
    await gateway.round_trip(device)
    assert site.events("handshake-failed") == []


@reactor_test
async def test_two_authorities(site: Site, tmp_path: Path) -> None:
    """Devices of both authorities connect, each through the door of its own, and keep their names. Neither is admitted by the
    door of the other.
    """
    new = Authority(tmp_path / "new", name="The new one")
    site.certificate(new, "new")
    for authority, name in ((site.authority, "old"), (new, "new")):
        (site.path("/etc/owsla") / f"devices-ca-{name}.pem").write_bytes(authority.ca.read_bytes())
    ports = {name: free_port() for name in ("8883", "8884", "9100")}
    config = site.settings('name = "new-ca"', {f" = {old}": f" = {port}" for old, port in ports.items()})
    gateway = await site.gateway(config)
    doors = ((site.authority, ports["8883"], "default"), (new, ports["8884"], "new-ca"))
    for authority, port, door in doors:
        device = await site.device(port, ca=authority.ca, certificate=authority.credentials("meter-17"))
        device.send_line(b"hello")
        message = await gateway.message()
        assert (message.headers["device_id"], message.headers["door"]) == ("meter-17", door)
        await gateway.round_trip(device)
    await until(lambda: [event["door"] for event in site.events("device-connected")] == ["default", "new-ca"])
    stranger = await site.device(ports["8884"], ca=new.ca, certificate=site.authority.credentials("meter-18"))
    await stranger.closed()
    await until(lambda: [event["door"] for event in site.events("handshake-failed")] == ["new-ca"])


@reactor_test
async def test_fleet_of_meters(site: Site, lab: Lab) -> None:
    """A meter's frames come to the queue of meters, and the answer is a frame; lines of other devices come to `from_device`."""
    port = free_port()
    config = site.settings('name = "meters"', {"port = 9000": f"port = {port}", "10.0.0.21": "127.0.0.1"})
    first = free_port()
    gateway = await site.gateway(config, port=first)
    backend = await lab.backend(site._broker.url, "meters")
    body = b"\x00reading\r\n\xff"
    meter = await lab.plain(port)
    meter.send_raw(struct.pack(">H", len(body)) + body)
    message = await backend.get("meters")
    assert message.body == body
    await gateway.send(message.connection_id, b"\n\x00")
    await until(lambda: meter.protocol.received >= 4)
    other = await site.device(first)
    await gateway.round_trip(other)
    too_long = await lab.plain(port)
    too_long.send_raw(struct.pack(">H", 2049))
    await too_long.closed()
