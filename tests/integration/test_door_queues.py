"""Tests of doors that publish to queues and exchanges of their own: a fault of one concerns no device of the others."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from ._support.backend import Backend, Message
from ._support.batches import both_ways
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.waiting import pause, reactor_test, until
from .test_doors import port_of


class Places:
    """A queue of the first door, a queue of the door `meters`, and an exchange with a queue of the door `tracks`."""

    def __init__(self, lab: Lab, broker: Broker) -> None:
        self.lab = lab
        self.broker = broker
        name = secrets.token_hex(4)
        self.first, self.meters, self.exchange, self.tracks = (f"{kind}_{name}" for kind in ("first", "meters", "x", "tracks"))
        self._operator: Backend | None = None

    async def declare(self, **arguments: Any) -> None:
        """Declare the queue of meters with these arguments, and the exchange with its queue."""
        await self.call(lambda channel: channel.queue_declare(self.meters, durable=True, arguments=arguments))
        await self.declare_exchange()

    async def declare_exchange(self) -> None:
        await self.call(lambda channel: channel.exchange_declare(self.exchange, "direct", durable=True))
        await self.call(lambda channel: channel.queue_declare(self.tracks, durable=True))
        await self.call(lambda channel: channel.queue_bind(self.tracks, self.exchange, "all"))

    async def call(self, function: Any) -> Any:
        if self._operator is None:
            self._operator = await self.lab.backend(self.broker.url)
        return await self._operator.call(function)

    async def reconnect(self) -> None:
        """Connect again, after an outage of the broker."""
        self._operator = await self.lab.backend(self.broker.url)

    async def gateway(self, **options: Any) -> Gateway:
        """Start an Owsla with the three doors."""
        return await self.lab.gateway(
            self.broker.url,
            from_device=self.first,
            device_ack="ACK {seq}",
            listen=[
                f"tls:0:name=meters:interface=127.0.0.1:from-device={self.meters}",
                f"tls:0:name=tracks:interface=127.0.0.1:publish-exchange={self.exchange}:routing-key=all",
            ],
            **options,
        )

    async def device(self, gateway: Gateway, door: str) -> Device:
        return await self.lab.device(gateway, port=await port_of(gateway.owsla, door))

    async def backend(self, *queues: str) -> Backend:
        return await self.lab.backend(self.broker.url, *queues)


async def flows(gateway: Gateway, device: Device, start: int, count: int = 20) -> None:
    """Check that lines of a device of the first door arrive and are acknowledged, one after another."""
    for number in range(start, start + count):
        device.send_line(b"%d" % number)
        assert (await gateway.message()).body == b"%d" % number
        assert await device.line() == b"ACK %d" % number


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]


@both_ways
@reactor_test
async def test_each_door_has_its_place(lab: Lab, broker: Broker) -> None:
    """Lines go to the queue or the exchange of their door, and name the door in a header. Answers reach all devices."""
    places = Places(lab, broker)
    await places.declare()
    gateway = await places.gateway()
    backend = await places.backend(places.meters, places.tracks)
    devices = {
        "default": await lab.device(gateway),
        "meters": await places.device(gateway, "meters"),
        "tracks": await places.device(gateway, "tracks"),
    }
    for door, device in devices.items():
        device.send_line(b"line of " + door.encode())
        message = await (gateway.message() if door == "default" else backend.get(getattr(places, door)))
        assert (message.body, message.headers["door"]) == (b"line of " + door.encode(), door)
        assert list(message.headers) == ["connection_id", "door", "from_device_seq"]
        assert await device.line() == b"ACK 0"
        await gateway.send(message.connection_id, b"answer to " + door.encode())
        assert await device.line() == b"answer to " + door.encode()


@reactor_test
async def test_one_door(lab: Lab, broker: Broker) -> None:
    """With one door, messages have the headers that they had before there were doors, also in presence."""
    gateway = await lab.gateway(broker.url, events=["console", "amqp"])
    backend = await lab.backend(broker.url, "connection_events")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    device.send_line(b"again")
    assert list((await gateway.message()).headers) == ["connection_id", "from_device_seq"]
    announced = await backend.inbox["connection_events"].find(
        lambda message: message.headers.get("connection_id") == connection_id
    )
    assert set(announced.headers) == {"event", "connection_id", "node"}
    assert b"door" not in announced.body


@reactor_test
async def test_presence_of_several_doors(lab: Lab, broker: Broker) -> None:
    """With several doors, presence names the door of a connection, the first one too."""
    places = Places(lab, broker)
    await places.declare()
    gateway = await places.gateway(events=["console", "amqp"])
    backend = await places.backend("connection_events", places.meters)
    await gateway.introduce(await lab.device(gateway))
    await places.device(gateway, "meters")
    node = (await gateway.owsla.wait_for_line(r"Device connected: ([0-9a-f]{8}).*\(door meters\)"))[1]
    found: dict[str, Message] = {}
    while set(found) != {"default", "meters"}:
        message = await backend.get("connection_events")
        if message.headers["node"] == node and message.headers["event"] == "connected":
            found[message.headers["door"]] = message
    assert b'"door": "meters"' in found["meters"].body


@both_ways
@reactor_test
async def test_a_full_queue(lab: Lab, broker: Broker) -> None:
    """While the queue of a door refuses lines, its devices wait, and those of other doors do not, although more lines are
    refused than the window has room for. Nothing is lost.
    """
    places = Places(lab, broker)
    await places.declare(**{"x-max-length": 1, "x-overflow": "reject-publish"})
    gateway = await places.gateway(window=16)
    first = await lab.device(gateway)
    meters = [await places.device(gateway, "meters") for _ in range(5)]
    for meter in meters:
        meter.send_line(*(b"%d" % number for number in range(10)))
    await gateway.owsla.wait_for_line(rf"Broker refused .* \(door meters\): the queue {places.meters} is full")
    await flows(gateway, first, 0)
    await pause(1)
    await flows(gateway, first, 20)
    backend = await places.backend(places.meters)
    seen: dict[str, dict[int, bytes]] = {}

    def all_came() -> bool:
        for message in backend.inbox[places.meters].clear():
            seen.setdefault(message.connection_id, {})[message.seq] = message.body
        return sum(map(len, seen.values())) == 50

    await until(all_came, 60, lambda: f"the lines of the full queue: {seen}")
    for lines in seen.values():
        assert [lines[seq] for seq in range(10)] == [b"%d" % number for number in range(10)]
    for meter in meters:
        await meter.lines.find(lambda line: line == b"ACK 9", 30)
    assert not gateway.owsla.lines("Broker lost")


@both_ways
@reactor_test
async def test_a_missing_exchange(lab: Lab, broker: Broker) -> None:
    """Owsla serves the other doors while the exchange of one is not there: at the start, and when it is deleted later. The
    devices of this door wait, and nothing is lost.
    """
    places = Places(lab, broker)
    gateway = await places.gateway()
    missing = rf"Broker refuses lines \(door tracks\): exchange {places.exchange}: NOT_FOUND"
    await gateway.owsla.wait_for_line(missing)
    first, track = await lab.device(gateway), await places.device(gateway, "tracks")
    track.send_line(b"0")
    await flows(gateway, first, 0)
    await places.declare_exchange()
    assert await track.line(30) == b"ACK 0"
    await gateway.owsla.wait_for_line(rf"Broker accepts lines again \(door tracks\): exchange {places.exchange}")
    await places.call(lambda channel: channel.exchange_delete(places.exchange))
    start = gateway.owsla.mark()
    track.send_line(b"1", b"2")
    await gateway.owsla.wait_for_line(missing, start=start)
    await flows(gateway, first, 20)
    await places.declare_exchange()
    await track.lines.find(lambda line: line == b"ACK 2", 30)
    backend = await places.backend(places.tracks)
    assert bodies(await backend.inbox[places.tracks].take(3)) == [b"0", b"1", b"2"]
    assert not gateway.owsla.lines("Broker lost")


@both_ways
@reactor_test
async def test_a_queue_that_is_deleted(lab: Lab, broker: Broker) -> None:
    """A queue of a door that is deleted is declared again, and nothing is lost of lines that come after that."""
    places = Places(lab, broker)
    await places.declare()
    gateway = await places.gateway()
    first, meter = await lab.device(gateway), await places.device(gateway, "meters")
    await places.call(lambda channel: channel.queue_delete(places.meters))
    meter.send_line(b"0")
    await gateway.owsla.wait_for_line(rf"Broker refused 1 line \(door meters\): there is no queue {places.meters}")
    assert await meter.line(30) == b"ACK 0"
    backend = await places.backend(places.meters)
    assert (await backend.get(places.meters)).body == b"0"
    await flows(gateway, first, 0, 3)


@both_ways
@reactor_test
async def test_a_restart_of_the_broker(lab: Lab, own_broker: Broker) -> None:
    """After a restart of the broker, each door publishes what was not confirmed, in order, to its own place."""
    places = Places(lab, own_broker)
    await places.declare()
    gateway = await places.gateway()
    first, meter, track = (
        await lab.device(gateway),
        await places.device(gateway, "meters"),
        await places.device(gateway, "tracks"),
    )
    devices = (first, meter, track)
    for device in devices:
        device.send_line(b"0")
        assert await device.line() == b"ACK 0"
    await own_broker.kill()
    await gateway.owsla.wait_for_line("Broker lost")
    start = gateway.owsla.mark()
    for device in devices:
        device.send_line(b"1", b"2")
    await own_broker.start()
    await gateway.owsla.wait_for_line("Broker connected", 60, start=start)
    await places.reconnect()
    await places.declare_exchange()
    for device in devices:
        await device.lines.find(lambda line: line == b"ACK 2", 60)
    backend = await places.backend(places.first, places.meters, places.tracks)
    for queue in (places.first, places.meters, places.tracks):
        found: dict[int, bytes] = {}

        def came(queue: str = queue, found: dict[int, bytes] = found) -> bool:
            found.update({message.seq: message.body for message in backend.inbox[queue].clear()})
            return {1, 2} <= set(found)

        await until(came, 30, f"the lines of {queue}")
        assert (found[1], found[2]) == (b"1", b"2")
