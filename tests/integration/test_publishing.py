"""Tests of lines published to an exchange of the operator, with routing keys, and of queues with arguments, above all quorum
queues.
"""

from __future__ import annotations

import itertools
import secrets
import zlib
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import pika
import pytest
from cryptography import x509
from pika.exceptions import ChannelClosedByBroker

from ._support.backend import Backend, Message
from ._support.batches import both_ways
from ._support.certificates import Authority
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until

QUORUM = ["x-queue-type=quorum"]


class Layout:
    """Exchange of the operator, and its queues."""

    def __init__(self, lab: Lab, broker: Broker) -> None:
        self.lab = lab
        self.broker = broker
        self.exchange = f"lines_{secrets.token_hex(4)}"
        self._operator: Backend | None = None

    async def operator(self) -> Backend:
        if self._operator is None:
            self._operator = await self.lab.backend(self.broker.url)
        return self._operator

    async def declare(self, kind: str) -> None:
        operator = await self.operator()
        await operator.call(lambda channel: channel.exchange_declare(self.exchange, kind, durable=True))

    async def queue(self, key: str | None, **arguments: Any) -> str:
        """Declare a queue, and bind it with this key."""
        queue = f"{self.exchange}.{secrets.token_hex(4)}"
        operator = await self.operator()
        await operator.call(lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments))
        if key is not None:
            await self.bind(queue, key)
        return queue

    async def bind(self, queue: str, key: str) -> None:
        operator = await self.operator()
        await operator.call(lambda channel: channel.queue_bind(queue, self.exchange, key))

    async def remove(self) -> None:
        operator = await self.operator()
        await operator.call(lambda channel: channel.exchange_delete(self.exchange))

    async def gateway(self, **options: Any) -> Gateway:
        """Start an Owsla that publishes to the exchange."""
        return await self.lab.gateway(
            self.broker.url, backend=False, from_device=None, publish_exchange=self.exchange, **options
        )

    async def backend(self, *queues: str) -> Backend:
        return await self.lab.backend(self.broker.url, *queues)


class Named:
    """Devices with certificates."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.authority = Authority(folder / "authority")

    async def device(self, gateway: Gateway, name: str, hosts: Sequence[x509.GeneralName] | None = None) -> Device:
        certificate, key = self.authority.issue(name[:40], hosts=hosts)
        both = certificate.with_suffix(".both")
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return await self.lab.device(gateway, certificate=both)


@pytest.fixture
def named(lab: Lab, tmp_path: Path) -> Named:
    return Named(lab, tmp_path)


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]


# -- The routing key ---------------------------------------------------------------------------------------------------


@both_ways
@reactor_test
async def test_a_topic_exchange(lab: Lab, broker: Broker, named: Named) -> None:
    """Lines go to the exchange with the routing key of their connection: node, device, and the connection where there is no
    device.
    """
    layout = Layout(lab, broker)
    await layout.declare("topic")
    of_door, of_rest, of_all = [await layout.queue(key) for key in ("*.door-7.*", "*.*.anybody", "#")]
    gateway = await layout.gateway(
        client_ca=named.authority.ca, client_cert="optional", routing_key="{node}.{device_id}.{connection_id}"
    )
    backend = await layout.backend(of_door, of_all)
    door, stranger = await named.device(gateway, "door-7"), await lab.device(gateway)
    door.send_line(b"open")
    message = await backend.get(of_door)
    assert (message.body, message.headers["device_id"]) == (b"open", "door-7")
    assert (await backend.get(of_all)).body == b"open"
    stranger.send_line(b"hello")
    message = await backend.get(of_all)
    assert "device_id" not in message.headers
    node, connection_id = message.connection_id[:8], message.connection_id
    of_stranger = await layout.queue(f"{node}.{connection_id}.{connection_id}")
    stranger.send_line(b"again")
    assert (await (await layout.backend(of_stranger)).get(of_stranger)).body == b"again"
    assert await backend.count(of_rest) == 0
    # The opposite direction is unchanged.
    await backend.publish(message.properties.reply_to, b"welcome", {"connection_id": connection_id, "to_device_seq": 0})
    assert await stranger.line() == b"welcome"


@both_ways
@reactor_test
async def test_shards(lab: Lab, broker: Broker, named: Named) -> None:
    """A shard is the CRC-32 of the device id, or of the connection id, modulo the number of shards, so that any client can
    compute it.
    """
    layout = Layout(lab, broker)
    await layout.declare("direct")
    queues = [await layout.queue(f"shard-{number}") for number in range(3)]
    gateway = await layout.gateway(client_ca=named.authority.ca, client_cert="optional", routing_key="shard-{shard:3}")
    backend = await layout.backend(*queues)
    for name in ("a", "b", "c", "d"):
        (await named.device(gateway, name)).send_line(name.encode())
        assert (await backend.get(queues[zlib.crc32(name.encode()) % 3])).body == name.encode()
    for number in range(4):
        body = f"nameless {number}".encode()
        (await lab.device(gateway)).send_line(body)
        shard = await until(lambda: next((n for n, queue in enumerate(queues, 1) if len(backend.inbox[queue])), 0)) - 1
        message = await backend.get(queues[shard])
        assert (message.body, zlib.crc32(message.connection_id.encode()) % 3) == (body, shard)


@both_ways
@reactor_test
async def test_a_login_decides_the_key(lab: Lab, broker: Broker, tmp_path: Path) -> None:
    """The device id of a login determines the routing key of all lines, also of those that arrived with the login."""
    (tmp_path / "devices").write_text("door-7:secret\n")
    layout = Layout(lab, broker)
    await layout.declare("direct")
    of_door = await layout.queue("door-7")
    gateway = await layout.gateway(dialect="login", login_checker=f"file:{tmp_path / 'devices'}", routing_key="{device_id}")
    backend = await layout.backend(of_door)
    device = await lab.device(gateway)
    device.send_line(b"HELLO door-7 secret", b"1", b"2")
    assert await device.line() == b"WELCOME door-7"
    device.send_line(b"3")
    assert bodies(await backend.inbox[of_door].take(3)) == [b"1", b"2", b"3"]


@both_ways
@reactor_test
async def test_a_key_that_is_too_long(lab: Lab, broker: Broker, named: Named) -> None:
    """A device id that makes the routing key too long for AMQP closes its own connection only, with one line in the log."""
    layout = Layout(lab, broker)
    await layout.declare("fanout")
    queue = await layout.queue("")
    gateway = await layout.gateway(
        client_ca=named.authority.ca, device_id="san-uri", routing_key="lines.{device_id}", device_ack="ACK {seq}"
    )
    backend = await layout.backend(queue)
    good = await named.device(gateway, "good", [x509.UniformResourceIdentifier("urn:good")])
    bad = await named.device(gateway, "bad", [x509.UniformResourceIdentifier("urn:" + "x" * 246)])
    bad.send_line(b"1", b"2")
    await bad.closed()
    assert bad.lines.clear() == []
    reason = "the routing key would be 256 bytes long, and AMQP allows 255"
    await gateway.owsla.wait_for_line(f"Device disconnected.*{reason}")
    assert len(gateway.owsla.lines(f"Broker: lines of connection .* cannot be published: {reason}; closing it")) == 1
    good.send_line(b"3")
    assert (await backend.get(queue)).body == b"3"
    assert await good.line() == b"ACK 0"


# -- The exchange ------------------------------------------------------------------------------------------------------


@reactor_test
async def test_the_exchange_is_not_there(lab: Lab, broker: Broker) -> None:
    """Without the exchange, one line is logged and the port stays closed until the exchange is declared. from_device is not
    declared.
    """
    layout = Layout(lab, broker)
    # Another test on this broker may have left one.
    await (await lab.backend(broker.url)).call(lambda channel: channel.queue_delete("from_device"))
    owsla = lab.new_owsla(
        broker=broker.url, publish_exchange=layout.exchange, to_device=f"to_{layout.exchange}", drain_spread="0"
    )
    owsla.launch()
    await owsla.wait_for_line(f"Broker unavailable: .*no exchange '{layout.exchange}'")
    await pause(1)
    assert len(owsla.lines("Broker unavailable")) == 1
    assert not owsla.lines("[Ll]istening for devices")
    await layout.declare("fanout")
    queue = await layout.queue("")
    await owsla.listening()
    device = await lab.device(owsla)
    device.send_line(b"hello")
    assert (await (await layout.backend(queue)).get(queue)).body == b"hello"
    with pytest.raises(ChannelClosedByBroker, match="no queue 'from_device'"):
        await (await lab.backend(broker.url)).count("from_device")
    assert await owsla.terminate() == 0


@both_ways
@reactor_test
async def test_the_exchange_is_deleted(lab: Lab, broker: Broker) -> None:
    """When the exchange is deleted, nothing is lost: one line is logged, and devices wait until it is declared again."""
    layout = Layout(lab, broker)
    await layout.declare("fanout")
    queue = await layout.queue("")
    gateway = await layout.gateway(device_ack="ACK {seq}")
    backend = await layout.backend(queue)
    device = await lab.device(gateway)
    device.send_line(b"0")
    assert await device.line() == b"ACK 0"
    await layout.remove()
    start = gateway.owsla.mark()
    device.send_line(b"1")
    await gateway.owsla.wait_for_line(f"Broker lost.*no exchange '{layout.exchange}'", start=start)
    device.send_line(b"2")
    await gateway.owsla.wait_for_line(f"Broker unavailable.*no exchange '{layout.exchange}'", start=start)
    await layout.declare("fanout")
    await layout.bind(queue, "")
    await device.lines.find(lambda line: line == b"ACK 2", 30)
    assert bodies(await backend.inbox[queue].take(3)) == [b"0", b"1", b"2"]


@both_ways
@reactor_test
async def test_nowhere_to_go(lab: Lab, broker: Broker) -> None:
    """Lines without a bound queue are not acknowledged, which is logged once with exchange and key. With a queue they arrive in
    order.
    """
    layout = Layout(lab, broker)
    await layout.declare("direct")
    gateway = await layout.gateway(device_ack="ACK {seq}", routing_key="lines")
    device = await lab.device(gateway)
    device.send_line(*(b"%d" % number for number in range(20)))
    await gateway.owsla.wait_for_line(
        f"Broker refused .* lines?: the exchange {layout.exchange} has no queue for the routing key 'lines'"
    )
    device.send_line(*(b"%d" % number for number in range(20, 40)))
    await pause(0.5)
    assert device.lines.clear() == []
    queue = await layout.queue("lines")
    messages = await (await layout.backend(queue)).inbox[queue].take(40)
    assert bodies(messages) == [b"%d" % number for number in range(40)]
    assert [message.seq for message in messages] == list(range(40))
    await device.lines.find(lambda line: line == b"ACK 39")
    assert len(gateway.owsla.lines("Broker refused")) == 1


@both_ways
@reactor_test
async def test_only_those_wait_that_are_concerned(lab: Lab, broker: Broker, named: Named) -> None:
    """A key without a queue, or with a full queue, pauses the connections with that key, and no others."""
    layout = Layout(lab, broker)
    await layout.declare("direct")
    good = await layout.queue("good")
    full = await layout.queue("full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    gateway = await layout.gateway(
        client_ca=named.authority.ca, routing_key="{device_id}", device_ack="ACK {seq}", idle_timeout="1s"
    )
    backend = await layout.backend(good)
    devices = {name: await named.device(gateway, name) for name in ("good", "full", "lost")}
    devices["full"].send_line(b"0")
    assert await devices["full"].line() == b"ACK 0"
    devices["full"].send_line(b"1", b"2")
    devices["lost"].send_line(b"0", b"1", b"2")
    await gateway.owsla.wait_for_line("Broker refused .* lines?: .* no queue for the routing key 'lost'")
    reason = f"a queue behind the exchange {layout.exchange} is full or unavailable"
    await gateway.owsla.wait_for_line(f"Broker refused .* lines?: {reason}")
    # They wait for longer than the idle timeout, and are not closed as idle: they are not read.
    for number in range(25):
        devices["good"].send_line(b"%d" % number)
        assert (await backend.get(good)).body == b"%d" % number
        await pause(0.1)
    devices["full"].send_line(b"3")
    devices["lost"].send_line(b"3")
    assert devices["lost"].is_open
    assert devices["lost"].lines.clear() == []
    assert len(gateway.owsla.lines("Broker refused")) == 2
    lost = await layout.queue("lost")
    others = await layout.backend(lost, full)
    expected = [b"0", b"1", b"2", b"3"]
    assert bodies(await others.inbox[lost].take(4)) == expected
    seen: dict[int, bytes] = {}

    def all_came() -> bool:
        seen.update({message.seq: message.body for message in others.inbox[full].clear()})
        return len(seen) == 4

    await until(all_came, 30, lambda: f"the lines of the full queue: {seen}")
    assert [seen[seq] for seq in range(4)] == expected
    for name in ("full", "lost"):
        await devices[name].lines.find(lambda line: line == b"ACK 3")


@both_ways
@reactor_test
async def test_stopping_while_some_wait(lab: Lab, broker: Broker, named: Named) -> None:
    """At its deadline a stop gives up unroutable lines, and logs that. They were not acknowledged."""
    layout = Layout(lab, broker)
    await layout.declare("direct")
    gateway = await layout.gateway(
        client_ca=named.authority.ca,
        routing_key="{device_id}",
        device_ack="ACK {seq}",
        drain_timeout="2s",
        drain_spread="100ms",
    )
    device = await named.device(gateway, "lost")
    device.send_line(b"0", b"1")
    await gateway.owsla.wait_for_line("Broker refused")
    assert await gateway.owsla.terminate() == 0
    assert device.lines.clear() == []
    await gateway.owsla.wait_for_line("Stopped at the deadline.*2 lines")


@both_ways
@reactor_test
async def test_consistent_hash(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """RabbitMQ's consistent-hash exchange spreads connections over queues. All lines of a connection are in one queue, in
    order.
    """
    layout = Layout(lab, rabbitmq)
    await layout.declare("x-consistent-hash")
    queues = [await layout.queue("10") for _ in range(4)]
    gateway = await layout.gateway()
    backend = await layout.backend(*queues)
    devices = [await lab.device(gateway) for _ in range(16)]
    for start in range(0, 60, 20):
        for device in devices:
            device.send_line(*(b"%d" % number for number in range(start, start + 20)))
    heard: dict[str, list[Message]] = {queue: [] for queue in queues}

    def count() -> bool:
        for queue in queues:
            heard[queue] += backend.inbox[queue].clear()
        return sum(map(len, heard.values())) == 16 * 60

    await until(count, 30, lambda: f"the lines: { {queue: len(found) for queue, found in heard.items()} }")
    where: dict[str, str] = {}
    for queue, messages in heard.items():
        for connection_id, lines in itertools.groupby(
            sorted(messages, key=lambda message: message.connection_id), lambda message: message.connection_id
        ):
            assert where.setdefault(connection_id, queue) == queue, "its lines are on one queue"
            assert [message.seq for message in lines] == list(range(60))
    assert len(where) == 16
    assert len(set(where.values())) > 1


# -- Arguments of queues -----------------------------------------------------------------------------------------------


@both_ways
@reactor_test
async def test_quorum_queues(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """All queues of Owsla may be quorum queues: for lines, ordered answers, records, and the node queue, which is deleted at
    the end.
    """
    gateway = await lab.gateway(
        rabbitmq.url,
        from_device_argument=QUORUM,
        to_device_argument=QUORUM,
        undeliverable_argument=QUORUM,
        node_queue_argument=QUORUM,
        device_ack="ACK {seq}",
        reorder_limit=64,
        drain_spread="0",
    )
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    assert await device.line() == b"ACK 0"
    own = f"{gateway.to_device}.{connection_id[:8]}"
    listed = await rabbitmq.ctl("list_queues", "name", "type")
    mine = dict(line.split() for line in listed.splitlines() if gateway.from_device in line or gateway.to_device in line)
    for queue in (gateway.from_device, gateway.to_device, gateway.undeliverable, own):
        assert mine[queue] == "quorum"

    # Answers over both queues arrive in order.
    def answer(channel: Any) -> None:
        for seq, queue in zip(range(600), itertools.cycle((gateway.to_device, own)), strict=False):
            headers = {"connection_id": connection_id, "to_device_seq": seq}
            channel.basic_publish("", queue, b"%d" % seq, pika.BasicProperties(headers=headers), mandatory=True)

    await gateway.backend.call(answer, 60)
    assert await device.lines.take(600, 30) == [b"%d" % seq for seq in range(600)]
    assert not gateway.owsla.lines("Gap|skipped")
    await gateway.send(f"{connection_id[:8]}-0000-8000-8000-000000000000", b"for nobody")
    assert (await gateway.refused()).headers["owsla_reason"] == "unknown-connection"
    assert await gateway.owsla.terminate() == 0
    listed = await rabbitmq.ctl("list_queues", "name")
    assert own not in listed.split()
    # RabbitMQ 4 limits the deliveries of `to_device`, whose arguments are the operator's.
    limited = [] if await rabbitmq.version() < (4, 0) else [f"Broker: {gateway.to_device}: quorum queues have a delivery-limit"]
    found = gateway.owsla.lines("Broker lost|Broker:")
    assert len(found) == len(limited)
    assert all(expected in line for expected, line in zip(limited, found, strict=True))


@reactor_test
async def test_arguments(lab: Lab, broker: Broker) -> None:
    """Numbers, booleans and text are declared with their types: a plain declaration with the same arguments matches."""
    gateway = await lab.gateway(
        broker.url,
        from_device_argument=["x-max-length=5", "x-overflow=reject-publish", "x-single-active-consumer=false"],
        undeliverable_argument=["x-overflow=drop-head", "x-message-ttl=60000"],
    )
    operator = await lab.backend(broker.url)
    for queue, arguments in (
        (gateway.from_device, {"x-max-length": 5, "x-overflow": "reject-publish", "x-single-active-consumer": False}),
        (gateway.to_device, None),
        (gateway.undeliverable, {"x-max-length": 100000, "x-overflow": "drop-head", "x-message-ttl": 60000}),
    ):
        await operator.call(methodcaller("queue_declare", queue, durable=True, arguments=arguments))
    assert not gateway.owsla.lines("used as it is")


@reactor_test
async def test_arguments_that_the_broker_refuses(lab: Lab, broker: Broker) -> None:
    """Arguments that the broker refuses are one line in the log, and retried. The process keeps running."""
    name = secrets.token_hex(4)
    owsla = lab.new_owsla(
        broker=broker.url, from_device=f"from_{name}", to_device=f"to_{name}", from_device_argument="x-queue-type=round"
    )
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable: .*x-queue-type")
    await pause(1)
    assert len(owsla.lines("Broker unavailable")) == 1
    assert not owsla.lines("[Ll]istening for devices")
    assert await owsla.terminate() == 0
