"""Doors behind a real HAProxy: the PROXY protocol, and TLS that ends in front of Owsla."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import deferToThread

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.haproxy import HAProxy
from ._support.journal import events_in
from ._support.lab import Gateway, Lab
from ._support.process import free_port
from ._support.waiting import pause, reactor_test, until

pytestmark = pytest.mark.usefixtures("require_haproxy")


def config(bind: str, server: str, *, frontend: str = "") -> str:
    """Return a configuration of HAProxy, with a frontend and a server `owsla`."""
    return f"""
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend devices
    bind {bind}
    default_backend gateways
    {frontend}
backend gateways
    server owsla {server}
"""


class Site:
    """A gateway with a door behind an HAProxy."""

    def __init__(self, lab: Lab, folder: Path, broker: EmbeddedBrokerProcess) -> None:
        self._lab = lab
        self._folder = folder
        self._broker = broker
        self._journal = folder / "events.json"
        self.door = free_port()
        """Port of the door, which HAProxy connects to."""
        self.port = free_port()
        """Port of HAProxy, which devices connect to."""
        self.haproxy: HAProxy | None = None
        self._gateway: Gateway | None = None

    @property
    def gateway(self) -> Gateway:
        assert self._gateway is not None
        return self._gateway

    async def start(
        self, send: str, *, bind: str = "127.0.0.1", tls: str = "", door: Sequence[str] = (), **options: Any
    ) -> Site:
        """Start both. `send` is what HAProxy sends, `tls` how it ends TLS, and `door` the options of the door."""
        await self.start_haproxy(send, bind=bind, tls=tls)
        return await self.start_gateway("tcp" if tls else "tls", door, **options)

    async def start_haproxy(self, send: str, *, bind: str = "127.0.0.1", tls: str = "") -> HAProxy:
        """Start HAProxy."""
        self.haproxy = HAProxy(self._folder / "haproxy", config(f"{bind}:{self.port} {tls}", f"127.0.0.1:{self.door} {send}"))
        self._lab.ends(self.haproxy.close)
        return await self.haproxy.start()

    async def start_gateway(self, kind: str, door: Sequence[str] = (), **options: Any) -> Site:
        """Start the gateway."""
        parts = [kind, str(self.door), "name=behind", *(door or ["proxy-protocol=127.0.0.1"])]
        events = ["console", f"json:{self._journal}"]
        self._gateway = await self._lab.gateway(self._broker.url, listen=":".join(parts), events=events, **options)
        return self

    async def device(self, **options: Any) -> Device:
        """Connect a device through HAProxy."""
        return await self._lab.device_at(self.port, self.gateway.owsla.ca, **options)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these kinds so far."""
        return [event for event in events_in(self._journal) if event["event"] in kinds]

    async def event(self, kind: str, **fields: object) -> dict[str, Any]:
        """Wait for an event with these fields, and return it."""

        def look() -> dict[str, Any] | None:
            return next((each for each in self.events(kind) if each | fields == each), None)

        found = await until(look, what=lambda: f"{kind} {fields} among {self.events(kind)}")
        assert found is not None
        return found


@pytest.fixture
def site(lab: Lab, tmp_path: Path, embedded: EmbeddedBrokerProcess) -> Site:
    """Return a gateway and an HAProxy, which are not started."""
    return Site(lab, tmp_path, embedded)


def address(device: Device) -> str:
    """Return the address of a device, as events show it."""
    host = device.transport.getHost()
    return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"


HEADERS = ("send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id")


# -- HAProxy passes TLS through ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", HEADERS)
@reactor_test
async def test_tls_passes_through(site: Site, send: str) -> None:
    """Through HAProxy a device has TLS with Owsla. Events show its own address, and that it came through this door."""
    await site.start(send)
    device = await site.device(source="127.0.0.7")
    await site.gateway.round_trip(device)
    seen = await site.event("device-connected", peer=address(device))
    assert (seen["door"], seen["tls"]) == ("behind", device.tls_version)
    peer = address(device)
    await device.close()
    assert (await site.event("device-disconnected", peer=peer))["door"] == "behind"


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
@reactor_test
async def test_ipv6(site: Site, send: str) -> None:
    """A device with an IPv6 address is shown with it, although HAProxy connects over IPv4."""
    await site.start(send, bind="[::1]")
    device = await site.device(host="::1")
    await site.gateway.round_trip(device)
    await site.event("device-connected", peer=address(device))


@reactor_test
async def test_devices_besides(lab: Lab, site: Site) -> None:
    """Devices connect to the first door without HAProxy, and to the other one through it."""
    await site.start("send-proxy-v2")
    through, besides = await site.device(), await lab.device(site.gateway)
    await site.gateway.round_trip(through)
    await site.gateway.round_trip(besides)
    assert (await site.event("device-connected", peer=address(besides)))["door"] == "default"


@reactor_test
async def test_workers(site: Site) -> None:
    """With workers each of them has the door, and shows the devices' addresses."""
    await site.start("send-proxy-v2", workers=2)
    nodes = set()
    for last in range(2, 40):
        device = await site.device(source=f"127.0.0.{last}")
        await site.gateway.round_trip(device)
        nodes.add((await site.event("device-connected", peer=address(device)))["node"])
        if len(nodes) == 2:
            return
    raise AssertionError("one worker has got all devices")


@reactor_test
async def test_limit_for_an_address(site: Site) -> None:
    """The limit for an address counts the connections of a device, not those of HAProxy."""
    await site.start("send-proxy-v2", max_per_address=2)
    devices = [await site.device(source=f"127.0.0.{last}") for last in (2, 2, 3, 3, 4)]
    for device in devices:
        await site.gateway.round_trip(device)
    with pytest.raises(ConnectionLost):
        await site.device(source="127.0.0.2")
    assert (await site.event("turned-away"))["address"] == "127.0.0.2"
    peer = address(devices[0])
    await devices[0].close()
    await site.event("device-disconnected", peer=peer)
    await site.gateway.round_trip(await site.device(source="127.0.0.2"))


@reactor_test
async def test_drain(site: Site) -> None:
    """A gateway that stops closes its devices through HAProxy, and has published what they sent."""
    await site.start("send-proxy-v2", device_ack="ACK {seq}")
    devices = [await site.device() for _ in range(3)]
    for device in devices:
        device.send_line(b"last words")
        assert await device.line() == b"ACK 0"
    assert await site.gateway.owsla.terminate() == 0
    for device in devices:
        await device.closed()
    assert len(await site.gateway.messages(3)) == 3


@reactor_test
async def test_reload_of_haproxy(site: Site) -> None:
    """A device stays connected while HAProxy is reloaded, and others connect through the new process."""
    haproxy = (await site.start("send-proxy-v2")).haproxy
    assert haproxy is not None
    before = await site.device()
    await site.gateway.round_trip(before)
    await haproxy.reload()
    after = await site.device()
    for device in (before, after):
        await site.gateway.round_trip(device)


# -- HAProxy ends TLS ----------------------------------------------------------------------------------------------------


def ends_tls(site_folder: Path, authority: Authority, verify: str) -> str:
    """Return options for an HAProxy that ends TLS, with a certificate of the authority."""
    cert, key = authority.issue("haproxy")
    pem = site_folder / "haproxy.pem"
    pem.write_bytes(cert.read_bytes() + key.read_bytes())
    return f"ssl crt {pem} ca-file {authority.ca} verify {verify}"


IDENTITY = ("proxy-protocol=127.0.0.1", "proxy-identity=cn")


@pytest.mark.parametrize("options", ["", " proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c"])
@reactor_test
async def test_tls_ends_at_haproxy(lab: Lab, site: Site, tmp_path: Path, options: str) -> None:
    """The name in the client certificate that HAProxy has verified is the device id, in events and for back ends."""
    authority = Authority(tmp_path / "authority")
    await site.start("send-proxy-v2-ssl-cn" + options, tls=ends_tls(tmp_path, authority, "required"), door=IDENTITY)
    device = await lab.device_at(site.port, authority.ca, certificate=authority.credentials("meter-7"), source="127.0.0.7")
    device.send_line(b"hello")
    message = await site.gateway.message()
    assert (message.body, message.headers["device_id"]) == (b"hello", "meter-7")
    seen = await site.event("device-connected", peer=address(device))
    assert (seen["door"], seen["device_id"]) == ("behind", "meter-7")
    await site.gateway.round_trip(device)


@reactor_test
async def test_no_identity_is_taken(lab: Lab, site: Site, tmp_path: Path) -> None:
    """Without a certificate, and with one that HAProxy could not verify, a device has no identity."""
    authority, other = Authority(tmp_path / "authority"), Authority(tmp_path / "other", name="Another")
    tls = ends_tls(tmp_path, authority, "optional crt-ignore-err all ca-ignore-err all")
    await site.start("send-proxy-v2-ssl-cn", tls=tls, door=IDENTITY)
    for certificate in (None, other.credentials("meter-7")):
        device = await lab.device_at(site.port, authority.ca, certificate=certificate)
        device.send_line(b"hello")
        assert "device_id" not in (await site.gateway.message()).headers
        assert (await site.event("device-connected", peer=address(device)))["device_id"] is None
    known = await lab.device_at(site.port, authority.ca, certificate=authority.credentials("meter-8"))
    known.send_line(b"hello")
    assert (await site.gateway.message()).headers["device_id"] == "meter-8"


@reactor_test
async def test_resumed_session(site: Site, tmp_path: Path) -> None:
    """A device that resumes a TLS session with HAProxy shows no certificate again, and keeps its identity."""
    authority = Authority(tmp_path / "authority")
    await site.start("send-proxy-v2-ssl-cn", tls=ends_tls(tmp_path, authority, "required"), door=IDENTITY)
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(authority.credentials("meter-7"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions are there after the handshake

    def say(line: bytes, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        tcp = socket.create_connection(("127.0.0.1", site.port), timeout=10)
        with tcp, context.wrap_socket(tcp, server_hostname="localhost", session=session) as tls:
            tls.sendall(line + b"\n")
            return tls.session, tls.session_reused

    session, _ = await deferToThread(say, b"first", None)
    _, resumed = await deferToThread(say, b"second", session)
    assert resumed
    messages = await site.gateway.messages(2)
    # In either order: HAProxy may pass the second connection on before the end of the first.
    assert {(each.body, each.headers["device_id"]) for each in messages} == {(b"first", "meter-7"), (b"second", "meter-7")}


@reactor_test
async def test_identity_is_off(lab: Lab, site: Site, tmp_path: Path) -> None:
    """Without --proxy-identity the name in the header is not the device id."""
    authority = Authority(tmp_path / "authority")
    await site.start("send-proxy-v2-ssl-cn", tls=ends_tls(tmp_path, authority, "required"))
    device = await lab.device_at(site.port, authority.ca, certificate=authority.credentials("meter-7"))
    device.send_line(b"hello")
    assert "device_id" not in (await site.gateway.message()).headers


# -- Health checks and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tls", "tcp"])
@pytest.mark.parametrize(
    ("send", "door"),
    [("", "idle-timeout=30m"), ("send-proxy", ""), ("send-proxy-v2", ""), ("send-proxy-v2 check-send-proxy", "")],
)
@reactor_test
async def test_health_checks(site: Site, kind: str, send: str, door: str) -> None:
    """HAProxy's health checks succeed, and are no devices: with and without a header there is no event of them."""
    haproxy = await site.start_haproxy(f"{send} check inter 50ms fastinter 50ms downinter 50ms rise 10 fall 1")
    await haproxy.shows("owsla", "DOWN")  # so that UP means ten checks that have succeeded
    await site.start_gateway(kind, [door] if door else [])
    await haproxy.shows("owsla", "UP")
    await pause(1.2)  # a connection without TLS is taken for a device after a second
    assert site.events("device-connected", "device-disconnected", "handshake-failed") == []
    assert site.gateway.owsla.lines("Handshake|Device") == []


@reactor_test
async def test_untrusted_sender(site: Site) -> None:
    """Connections of an HAProxy that is not among the trusted senders are closed, and one event says so for all of a minute."""
    await site.start("send-proxy-v2", door=["proxy-protocol=10.0.0.0/8", "proxy-protocol=127.0.0.2"])
    for _ in range(3):
        with pytest.raises(ConnectionLost):
            await site.device()
    await site.event("proxy-untrusted", address="127.0.0.1", door="behind")
    with pytest.raises(ConnectionLost):
        await site.device()
    await pause(2.2)  # events are reported once a second
    assert len(site.events("proxy-untrusted")) == len(site.gateway.owsla.lines("Proxy untrusted")) == 1
    assert site.events("handshake-failed") == []


@reactor_test
async def test_header_is_missing(site: Site) -> None:
    """A device whose HAProxy sends no header is refused, with the reason."""
    await site.start("")
    with pytest.raises(ConnectionLost):
        await site.device()
    reason = (await site.event("handshake-failed"))["reason"]
    assert "PROXY protocol header" in reason


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
@reactor_test
async def test_header_is_not_expected(site: Site, send: str) -> None:
    """A header on a door that expects none is named as the reason."""
    await site.start(send, door=["idle-timeout=30m"])
    with pytest.raises((SSL.Error, ConnectionLost)):  # with an alert, if HAProxy still passes it on
        await site.device()
    assert "a PROXY protocol header" in (await site.event("handshake-failed"))["reason"]


@reactor_test
async def test_half_headers(lab: Lab, site: Site) -> None:
    """Connections with half a header are silent ones: they keep no device out, and are closed in time, with the reason."""
    await site.start("send-proxy-v2", max_connections=10, handshake_timeout="5s")
    halves = [await lab.plain(site.door) for _ in range(20)]
    for number, half in enumerate(halves):
        half.send_raw(b"PROXY TCP4 192.0.2.7 " if number % 2 else b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0e\x00" + bytes(100))
    await until(lambda: sum(half.is_open for half in halves) <= 5)  # half as many as devices may connect
    for _ in range(5):
        await site.gateway.round_trip(await site.device())
    for half in halves:
        await half.closed()
    await site.event("silent-evicted", door="behind")
    await site.event("handshake-failed", reason="no PROXY protocol header within 5 s")
