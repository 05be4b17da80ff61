"""Tests of lines in batches that are not those of lines: what a message has, and when a batch does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import ensureDeferred

from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ, installed
from ._support.waiting import block_on, pause, reactor_test
from .test_http import http_port, metrics

DEVICE_ACK = "ACK {seq}"

LONG = "10s"
"""Delay of batches that a test would notice."""

SOON = 6.0
"""Seconds within which a line comes that does not wait for that delay."""


async def ready(gateway: Gateway, expected: int) -> None:
    """Wait until as many messages are in the queue of lines, which has no consumer."""
    backend = await gateway.lab.backend(gateway.broker_url)
    for _ in range(200):
        found = await backend.count(gateway.from_device)
        if found >= expected:
            break
        await pause(0.05)
    assert found == expected


@reactor_test
async def test_few_messages(broker: Broker, lab: Lab) -> None:
    """Lines that a device writes together share messages of at most --batch lines, and the order is theirs."""
    gateway = await lab.gateway(broker.url, backend=False, batch=50, batch_delay=LONG, device_ack=DEVICE_ACK)
    device = await lab.device(gateway)
    device.send_line(*[b"%d" % number for number in range(150)])
    await device.lines.find(lambda line: line == b"ACK 149")
    await ready(gateway, 3)
    await gateway.connect_backend()
    messages = await gateway.messages(150)
    assert [(message.seq, message.body) for message in messages] == [(number, b"%d" % number) for number in range(150)]


@reactor_test
async def test_stop_with_open_batches(broker: Broker, lab: Lab) -> None:
    """A line that waits in a batch when Owsla is stopped is published, confirmed and acknowledged at once."""
    gateway = await lab.gateway(broker.url, batch=50, batch_delay=LONG, device_ack=DEVICE_ACK, drain_spread=0, http=0)
    port = await http_port(gateway.owsla)
    device = await lab.device(gateway)
    await gateway.introduce(device)
    assert await device.line() == b"ACK 0"
    device.send_line(b"waits")
    while (await metrics(port))['owsla_window_lines{door="default"}'] < 1:
        await pause(0.05)
    ending = ensureDeferred(gateway.owsla.terminate())
    assert (await gateway.message(SOON)).body == b"waits"
    assert await ending == 0
    assert await device.line() == b"ACK 1"


@reactor_test
async def test_device_that_ends(broker: Broker, lab: Lab) -> None:
    """A device that ends, or stands still in the middle of a line, delays no batch: its complete lines are in the next one."""
    gateway = await lab.gateway(broker.url, batch=50, batch_delay="200ms")
    other, still, ending = [await lab.device(gateway) for _ in range(3)]
    await gateway.introduce(other)
    still.send_raw(b"whole\nhal")
    ending.send_line(b"last")
    await ending.close()
    other.send_line(b"other")
    bodies = {message.body for message in await gateway.messages(3, SOON)}
    assert bodies == {b"whole", b"last", b"other"}
    still.send_raw(b"f\n")
    assert (await gateway.message(SOON)).body == b"half"


@pytest.fixture(scope="module")
def narrow_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ that accepts messages of at most 4,000 bytes."""
    if not installed():
        pytest.skip("no RabbitMQ is installed")
    folder: Path = tmp_path_factory.mktemp("narrow-rabbitmq")
    node = RabbitMQ(folder, config="max_message_size = 4000\n")
    try:
        block_on(node.start())
        yield node
    finally:
        block_on(node.close())


@reactor_test
async def test_size_limit_of_the_broker(narrow_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Batches are cut to the size limit of the broker: nothing is lost or out of order, and no device is closed. Only a line
    that exceeds the limit by itself is given up, with its connection.
    """
    gateway = await lab.gateway(narrow_rabbitmq.url, batch=200, device_ack=DEVICE_ACK)
    one, other = await lab.device(gateway), await lab.device(gateway)
    lines = [b"%d " % number + b"x" * 100 for number in range(200)]
    for device in (one, other):
        device.send_line(*lines)
    for device in (one, other):
        await device.lines.find(lambda line: line == b"ACK 199", 60)
    # Batches that were not confirmed when the channel was closed come twice.
    first_copies: dict[str, dict[int, bytes]] = {}
    while sum(map(len, first_copies.values())) < 400:
        message = await gateway.message(60)
        first_copies.setdefault(message.connection_id, {}).setdefault(message.seq, message.body)
    assert [list(found.values()) for found in first_copies.values()] == [lines, lines]
    other.send_line(b"y" * 5000)
    one.send_line(b"later")
    await other.closed()
    await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"later", 60)
    assert one.is_open
