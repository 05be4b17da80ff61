"""Tests of lines in batches that are not those of lines: what a message has, and when a batch does not wait."""

from __future__ import annotations

from ._support.lab import Broker, Gateway, Lab
from ._support.waiting import pause, reactor_test

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
