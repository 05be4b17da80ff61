"""Tests of thousands of simultaneous or hostile connections: established devices are served, and others can connect."""

from __future__ import annotations

import re
import urllib.request

import pytest
from OpenSSL import SSL
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.internet.threads import deferToThread

from ._support.attack import Attack
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until, within

HANDSHAKES = 50
"""`--max-handshakes` during an attack: few, so that the attack is large in comparison."""

LATECOMERS = 20
"""Devices that connect during an attack."""


def _read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    samples = [sample for family in parse(text) for sample in family.samples]
    return {" ".join((sample.name, *sample.labels.values())): sample.value for sample in samples}


async def metrics(port: int) -> dict[str, float]:
    """Return all samples, by name and labels."""
    return await within(deferToThread(_read, port), 30, "the metrics")


async def metric(port: int, name: str, value: float, timeout: float = 30) -> None:
    """Wait until a sample has a value."""
    seen: float | None = None
    for _ in range(int(timeout / 0.1)):
        seen = (await metrics(port))[name]
        if seen == value:
            return
        await pause(0.1)
    raise AssertionError(f"{name} is {seen}, not {value}, after {timeout} s")


def hello() -> bytes:
    """Return a ClientHello."""
    memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    memory.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        memory.do_handshake()
    return memory.bio_read(65536)


# -- Attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "max_per_address"), [("silent", None), ("garbage", None), ("both", 10)])
@reactor_test
async def test_attack(rabbitmq: RabbitMQ, lab: Lab, kind: str, max_per_address: int | None) -> None:
    """While ten addresses open a thousand silent or invalid connections a second, established devices are served, and other
    devices connect one after another. All limits hold, and the log does not grow with the attack.
    """
    http = free_port()
    gateway = await lab.gateway(
        rabbitmq.url, http=http, max_handshakes=HANDSHAKES, max_connections=1000, max_per_address=max_per_address
    )
    devices = [await lab.device(gateway, source=f"127.0.2.{number}") for number in range(1, 6)]
    established = [(device, await gateway.introduce(device)) for device in devices]
    with Attack(lab.folder, gateway.owsla.port, rate=1000, kind=kind) as attack:
        # The kernel holds silent connections back for some three seconds: wait until the attack has arrived.
        await attack.made(3500)
        seen = []
        for number in range(LATECOMERS):
            device, connection_id = established[number % len(established)]
            await round_trip(gateway, device, connection_id)
            latecomer = lab.waiting_device(gateway, source=f"127.0.3.{number + 1}")
            await gateway.round_trip(await latecomer.connect(60))
            seen.append(await metrics(http))
        await attack.made(6000)
        seen.append(await metrics(http))
        for device, connection_id in established:
            await round_trip(gateway, device, connection_id)
        assert attack.goes_on
    for sample in seen:
        assert sample["owsla_connections handshaking"] <= HANDSHAKES
        assert sample["owsla_connections accepted"] <= 4 * HANDSHAKES
    assert seen[-1]["owsla_handshakes_total default completed"] == len(established) + LATECOMERS
    if max_per_address is None:
        assert seen[-1]["owsla_silent_evicted_total default"] > 0
        await gateway.owsla.wait_for_line("Silent connections evicted: ")
    else:
        assert seen[-1]["owsla_turned_away_total default"] > 0
        assert seen[-1]["owsla_silent_evicted_total default"] == 0
        await gateway.owsla.wait_for_line(r"Turned away: .* the last one from 127\.0\.1\.")
    assert len(gateway.owsla.lines("Silent connections evicted|Turned away")) <= 10


async def round_trip(gateway: Gateway, device: Device, connection_id: str) -> None:
    """Check that a line of a known device arrives, and that an answer reaches it."""
    assert await gateway.introduce(device) == connection_id
    await gateway.send(connection_id, b"answer")
    assert await device.line() == b"answer"


# -- Bounds ------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_silent_ones_that_speak_at_once(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """When silent connections all send at once, the handshakes stay within the limit. The others wait for their turn."""
    http = free_port()
    gateway = await lab.gateway(embedded.url, http=http, max_handshakes=3)
    silent = [await lab.plain(gateway.owsla.port) for _ in range(10)]
    await metric(http, "owsla_connections accepted", 10)
    for plain in silent:
        plain.send_raw(hello())
    await metric(http, "owsla_connections waiting", 7)
    assert (await metrics(http))["owsla_connections handshaking"] == 3
    silent.pop(0).abort()
    await metric(http, "owsla_connections waiting", 6)
    assert (await metrics(http))["owsla_connections handshaking"] == 3
    for plain in silent:
        plain.abort()
    await gateway.round_trip(await lab.device(gateway))
    assert (await metrics(http))["owsla_connections waiting"] == 0


@reactor_test
async def test_stalled_handshakes(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """Stalled handshakes use all slots. A waiting device gets one long before --handshake-timeout."""
    http = free_port()
    gateway = await lab.gateway(embedded.url, http=http, max_handshakes=2, handshake_timeout="120s")
    stalled = [await lab.plain(gateway.owsla.port) for _ in range(2)]
    for plain in stalled:
        plain.send_raw(hello())
    await metric(http, "owsla_connections handshaking", 2)
    device = lab.waiting_device(gateway)
    device.begin(60)
    assert not device.is_ready
    await until(lambda: device.is_ready, 60, "a place among the handshakes")
    await gateway.round_trip(device)
    await gateway.owsla.wait_for_line("Handshake failed: .*its handshake stalled, and others waited for its place")


@reactor_test
async def test_first_bytes_of_a_hello(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """A TLS record with only the first byte of a ClientHello uses no handshake slot."""
    gateway = await lab.gateway(embedded.url, max_handshakes=1, handshake_timeout="120s")
    first = [await lab.plain(gateway.owsla.port) for _ in range(3)]
    for plain in first:
        plain.send_raw(b"\x16\x03\x01\x00\x01\x01")
    await gateway.round_trip(await lab.device(gateway))
    assert all(plain.is_open for plain in first)


@reactor_test
async def test_byte_by_byte(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """A ClientHello that arrives byte by byte, or stops half-way, uses no handshake slot. Such connections are closed in time.
    """
    gateway = await lab.gateway(embedded.url, max_handshakes=1, handshake_timeout="5s")
    slow = [await lab.plain(gateway.owsla.port) for _ in range(2)]
    for byte in hello()[:20]:
        for plain in slow:
            plain.send_raw(bytes([byte]))
        await pause(0.01)
    await gateway.round_trip(await lab.device(gateway))
    assert all(plain.is_open for plain in slow)
    for plain in slow:
        await plain.closed(30)


@reactor_test
async def test_max_per_address(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """With --max-per-address, a further connection from an address is closed at once. One from another address is not, nor one
    after another was closed.
    """
    http = free_port()
    gateway = await lab.gateway(embedded.url, http=http, max_per_address=2)
    inside = [await lab.device(gateway, source="127.0.3.1") for _ in range(2)]
    for _ in range(3):
        refused = await lab.plain(gateway.owsla.port, source="127.0.3.1")
        refused.send_raw(hello())
        await refused.closed()
    await gateway.round_trip(await lab.device(gateway, source="127.0.3.2"))
    for device in inside:
        await gateway.round_trip(device)
    line = await gateway.owsla.wait_for_line("Turned away")
    text = r"\d connections? from addresses at the limit of 2 \(--max-per-address\); the last one from 127\.0\.3\.1$"
    assert re.search(text, line.string)
    sample = await metrics(http)
    assert (sample["owsla_turned_away_total default"], sample["owsla_handshakes_total default failed"]) == (3, 0)
    await inside.pop().close()
    await metric(http, "owsla_connections open", 2)
    await gateway.round_trip(await lab.device(gateway, source="127.0.3.1"))
