"""Tests of several nodes on one RabbitMQ: forwards, nodes that die, nodes that were cut off, and nodes that stop."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from pika.exceptions import UnroutableError
from twisted.internet.defer import ensureDeferred

from ._support.backend import Backend, Message
from ._support.device import Device
from ._support.lab import Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until

EVENTS = "connection_events"

RENEW = 20.0
"""Seconds after which a node renews its notice in the register."""

GRACE = 1.5
"""Seconds of --node-grace: short for the tests, and long enough for an answer of a busy machine."""


class Nodes:
    """Gateways on the same queues, and the messages that their back end receives."""

    def __init__(self, lab: Lab, broker: RabbitMQ, first: Gateway, options: dict[str, Any]) -> None:
        self.lab = lab
        self.broker = broker
        self.first = first
        self.options = options
        self.presence: list[Message] = []

    @staticmethod
    async def start(lab: Lab, broker: RabbitMQ, count: int = 2, **more: Any) -> Nodes:
        options = {"node_grace": f"{GRACE}s", "heartbeat": "2", "events": ["console", "amqp"]} | more
        first = await lab.gateway(options.pop("first_broker", broker.url), backend=False, **options)
        first.broker_url = broker.url
        nodes = Nodes(lab, broker, first, options)
        await nodes.listen()
        for _ in range(count - 1):
            await nodes.another()
        await nodes.registered(count)
        return nodes

    async def listen(self) -> None:
        """Connect a back end: again, after an outage of the broker."""
        self.collect()
        self.first._backend = await self.lab.backend(
            self.broker.url, self.first.from_device, self.first.undeliverable, EVENTS
        )

    @property
    def backend(self) -> Backend:
        return self.first.backend

    async def another(self, broker: str | None = None, **more: Any) -> Gateway:
        """Start one more gateway."""
        owsla = self.lab.new_owsla(
            **{
                **self.options,
                "broker": broker or self.broker.url,
                "from_device": self.first.from_device,
                "to_device": self.first.to_device,
                **more,
            }
        )
        await owsla.start()
        gateway = Gateway(self.lab, owsla, self.broker.url, self.first.from_device, self.first.to_device)
        gateway._backend = self.first._backend
        return gateway

    # -- what the broker has ---------------------------------------------------------------------------------------------

    @property
    def register(self) -> str:
        return f"{self.first.to_device}.nodes"

    def queue(self, node: str) -> str:
        return f"{self.first.to_device}.{node}"

    async def queues(self) -> dict[str, tuple[int, int, int]]:
        """Return every queue of the gateways: ready, unacknowledged, consumers."""
        said = await self.broker.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged", "consumers")
        rows = [line.split("\t") for line in said.splitlines() if line.startswith(self.first.to_device)]
        return {name: (int(ready), int(held), int(consumers)) for name, ready, held, consumers in rows}

    async def registered(self, count: int) -> None:
        """Wait until the register has this many notices, all held by the registrar."""
        await self.when(lambda queues: queues[self.register][:2] == (0, count), f"{count} nodes in the register")

    async def when(self, condition: Any, what: str) -> dict[str, tuple[int, int, int]]:
        queues: dict[str, tuple[int, int, int]] = {}
        for _ in range(200):
            queues = await self.queues()
            if condition(queues):
                return queues
            await pause(0.3)
        raise AssertionError(f"still waiting for {what}: {queues}")

    # -- what it hears ---------------------------------------------------------------------------------------------------

    def collect(self) -> list[Message]:
        """Collect all presence messages so far."""
        if self.first._backend is not None:
            self.presence += self.backend.inbox[EVENTS].clear()
        return self.presence

    def lost(self, node: str | None = None) -> list[Message]:
        """Return the node-lost messages so far, of one node or of all."""
        return [
            message
            for message in self.collect()
            if message.headers["event"] == "node-lost" and node in (None, message.headers["node"])
        ]

    async def introduce(self, device: Device) -> str:
        return await self.first.introduce(device)

    async def gone(self, node: str) -> None:
        """Wait until the node is announced as lost, and its queue and notice are gone."""
        await until(lambda: self.lost(node), what=f"node-lost of {node}")
        await self.when(lambda queues: self.queue(node) not in queues, f"the end of {node}'s queue")


@reactor_test
async def test_a_node_that_is_killed(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Messages in the queue of a killed node become undeliverable within the grace, with all their properties and a report. Its
    queue is deleted, back ends get one node-lost message with its name, and the register keeps only the survivor.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 2)
    second = await nodes.another()
    await nodes.registered(3)
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    node = connection_id[:8]
    reports = f"{nodes.first.to_device}_reports"
    await nodes.backend.call(lambda channel: channel.queue_declare(reports))
    second.owsla.process.signal(signal.SIGSTOP)  # so that it consumes no message
    for number in range(600):
        asks: dict[str, Any] = {"reply_to": reports} if number == 0 else {}
        await nodes.backend.publish(
            nodes.queue(node),
            b"%d" % number,
            {"connection_id": connection_id, "to_device_seq": number},
            message_id=f"m{number}",
            **asks,
        )
    second.owsla.kill()
    records = await nodes.backend.inbox[nodes.first.undeliverable].take(600)
    assert sorted(int(record.body) for record in records) == list(range(600))
    for record in records:
        assert record.headers["owsla_reason"] == "unknown-connection"
        assert record.headers["connection_id"] == connection_id
        assert record.properties.message_id == f"m{record.body.decode()}"
        assert record.headers["owsla_node"] != node
    report = await nodes.backend.fetch(reports)
    assert report is not None
    assert report.headers["owsla_report"] == "unknown-connection"
    await nodes.gone(node)
    (lost,) = nodes.lost(node)
    assert (lost.properties.message_id, lost.headers["node"]) == (node, node)
    assert json.loads(lost.body)["reported_by"] != node
    await nodes.registered(2)
    await nodes.first.owsla.wait_for_line("Node lost|Listening")
    assert len(nodes.lost()) == 1, "nobody else is"


@reactor_test
async def test_the_registrar_is_killed(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """When the first of three nodes, the registrar, is killed, the next one becomes registrar and announces the loss."""
    nodes = await Nodes.start(lab, own_rabbitmq, 3)
    device = await lab.device(nodes.first)
    node = (await nodes.introduce(device))[:8]
    nodes.first.owsla.kill()
    await nodes.gone(node)
    await nodes.registered(2)
    assert [message.headers["node"] for message in nodes.lost()] == [node]


@reactor_test
async def test_a_graceful_stop(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Nodes that stop in order, the registrar too, leave no queue and no notice, and are not announced as lost: each disconnect
    was announced. The last one leaves an empty register.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 2, drain_spread="0s")
    second = await nodes.another()
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    await nodes.registered(3)
    assert await second.owsla.terminate() == 0
    await nodes.registered(2)
    await nodes.when(lambda queues: nodes.queue(connection_id[:8]) not in queues, "the end of its queue")
    await until(
        lambda: [one for one in nodes.collect() if one.headers.get("connection_id") == connection_id][1:], what="disconnected"
    )
    assert await nodes.first.owsla.terminate() == 0
    await nodes.registered(1)
    (last,) = [owsla for owsla in lab._owslas if owsla.process.poll() is None]
    assert await last.terminate() == 0
    queues = await nodes.queues()
    assert set(queues) == {nodes.first.to_device, nodes.first.undeliverable, nodes.register}
    assert queues[nodes.register] == (0, 0, 0)
    await pause(GRACE)
    assert nodes.lost() == []


ROUNDS = 3
"""Number of orderly stops, and of kills, of nodes to which a back end publishes without a pause."""


class Stream:
    """Back end that publishes to the queue of one node, a hundred messages a second, each confirmed, until it is stopped."""

    def __init__(self, nodes: Nodes, connection_id: str) -> None:
        self.nodes = nodes
        self.connection_id = connection_id
        self.confirmed: list[bytes] = []
        self.returned = 0
        self._on = True
        self._running = ensureDeferred(self._run())

    async def _run(self) -> None:
        queue = self.nodes.queue(self.connection_id[:8])
        number = 0
        while self._on:
            number += 1
            body = f"{self.connection_id} {number}".encode()
            try:
                await self.nodes.backend.publish(queue, body, {"connection_id": self.connection_id}, delivery_mode=2)
            except UnroutableError:
                self.returned += 1
            else:
                self.confirmed.append(body)
            await pause(0.008)

    async def stop(self) -> None:
        self._on = False
        await self._running

    def unaccounted(self, device: Device) -> set[bytes]:
        """Return the confirmed messages that were neither delivered nor recorded."""
        records = self.nodes.backend.inbox[self.nodes.first.undeliverable].clear()
        return set(self.confirmed) - set(device.lines.clear()) - {record.body for record in records}


@pytest.mark.parametrize("how", ["stopped", "killed"])
@reactor_test
async def test_a_node_that_goes_while_a_back_end_sends(lab: Lab, own_rabbitmq: RabbitMQ, how: str) -> None:
    """If a node stops or is killed while a back end publishes to its queue, and for a moment after that, each confirmed message
    is delivered or recorded. Then the queue is deleted.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1, drain_spread="0s")
    for _ in range(ROUNDS):
        await _goes(nodes, how)


async def _goes(nodes: Nodes, how: str) -> None:
    gateway = await nodes.another()
    device = await nodes.lab.device(gateway)
    connection_id = await nodes.introduce(device)
    queue = nodes.queue(connection_id[:8])
    stream = Stream(nodes, connection_id)
    await until(lambda: len(stream.confirmed) > 50, what="the stream")
    if how == "stopped":
        assert await gateway.owsla.terminate() == 0
        assert gateway.owsla.lines("Stopped: 1 device closed, everything confirmed"), gateway.owsla.output()
    else:
        gateway.owsla.kill()
        await until(lambda: nodes.lost(connection_id[:8]), what="node-lost")
    await pause(1.5)
    assert not stream.returned, "the queue was deleted while somebody sent to it"
    await stream.stop()
    await nodes.when(lambda queues: queue not in queues, "the end of the node's queue")
    assert stream.unaccounted(device) == set()


@reactor_test
async def test_a_back_end_that_never_stops(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """While a back end continues to publish to a lost node, its messages are recorded, the node is announced as lost, and the
    next lost node is cleaned up all the same.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    second, third = await nodes.another(), await nodes.another()
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    other = (await nodes.introduce(await lab.device(third)))[:8]
    await nodes.registered(3)
    stream = Stream(nodes, connection_id)
    second.owsla.kill()
    await until(lambda: nodes.lost(connection_id[:8]), what="node-lost")
    third.owsla.kill()
    await nodes.gone(other)
    assert nodes.queue(connection_id[:8]) in await nodes.queues()
    await stream.stop()
    await nodes.gone(connection_id[:8])
    assert stream.unaccounted(device) == set()


@reactor_test
async def test_the_only_node_stops_while_a_back_end_sends(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """If no other node is left and a back end continues to publish, the queue stays. The next node to start records its
    messages and deletes it. The stop ends within --drain-timeout all the same.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1, drain_spread="0s", drain_timeout="3s")
    device = await lab.device(nodes.first)
    connection_id = await nodes.introduce(device)
    stream = Stream(nodes, connection_id)
    await until(lambda: len(stream.confirmed) > 50, what="the stream")
    assert await nodes.first.owsla.terminate(15) == 0
    at_the_end = len(stream.confirmed)
    await until(lambda: len(stream.confirmed) > at_the_end + 20, what="more messages")
    await stream.stop()
    assert not stream.returned
    await nodes.another()
    await nodes.when(lambda queues: nodes.queue(connection_id[:8]) not in queues, "the end of the node's queue")
    assert stream.unaccounted(device) == set()
    assert nodes.lost() == []


@reactor_test
async def test_a_register_that_loses_notices(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """If a policy makes the register drop notices, they are back soon, and lost nodes are announced."""
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    await nodes.another()
    third = await nodes.another()
    node = (await nodes.introduce(await lab.device(third)))[:8]
    await nodes.registered(3)
    await own_rabbitmq.ctl("set_policy", "--apply-to", "queues", nodes.register, f"^{nodes.register}$", '{"max-length": 1}')
    try:
        assert await nodes.first.owsla.terminate() == 0  # its notices are requeued, and exceed the limit
        await pause(RENEW + 3)  # all nodes have renewed their notices
        await nodes.registered(2)
        third.owsla.kill()
        await nodes.gone(node)
    finally:
        await own_rabbitmq.ctl("clear_policy", nodes.register)


@reactor_test
async def test_forged_notices(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Forged notices of a back end are ignored: unknown nodes are not announced as lost, a real loss is announced, and no
    connection is announced again.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    second = await nodes.another()
    await nodes.registered(2)
    here = await nodes.introduce(await lab.device(nodes.first))
    node = (await nodes.introduce(await lab.device(second)))[:8]
    await own_rabbitmq.ctl("add_user", "backend", "backend")
    await own_rabbitmq.ctl("set_permissions", "backend", ".*", ".*", ".*")
    forger = await lab.backend(own_rabbitmq.url.replace("guest:guest", "backend:backend"))
    for who in (nodes.backend, forger):
        properties: dict[str, Any] = {"user_id": "backend"} if who is forger else {}
        for number in range(20):
            forged = {"node": f"{number:08x}", "state": "here", "origin": "first"}
            await who.publish(nodes.register, json.dumps(forged).encode(), **properties)
        forged = {"node": node, "state": "left", "origin": "first"}
        await who.publish(nodes.register, json.dumps(forged).encode(), **properties)
        await who.publish(nodes.queue(here[:8]), b"", {"owsla_notice": "lost"}, **properties)
    refused = await nodes.backend.inbox[nodes.first.undeliverable].take(2)
    assert {one.headers["owsla_reason"] for one in refused} == {"no-connection-id"}
    second.owsla.kill()
    await nodes.gone(node)
    await pause(2 * GRACE)
    assert [message.headers["node"] for message in nodes.lost()] == [node]
    assert not [message for message in nodes.collect() if message.headers.get("resync")]
    assert nodes.first.owsla.lines("was written by backend, and not by a node")


@reactor_test
async def test_forwards(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A message that arrives at the wrong node is forwarded with its properties, and then acknowledged. Numbered messages reach
    the device in order, over to_device with or without a hop, or over the node queue.
    """
    # A hop takes longer than none: without these options a busy machine lets more messages overtake one than may wait for it.
    nodes = await Nodes.start(lab, own_rabbitmq, 3, reorder_limit=300, gap_timeout="10m")
    device = await lab.device(nodes.first)
    connection_id = await nodes.introduce(device)
    reports = f"{nodes.first.to_device}_reports"
    await nodes.backend.call(lambda channel: channel.queue_declare(reports))
    for number in range(300):
        queue = nodes.queue(connection_id[:8]) if number % 3 == 0 else nodes.first.to_device
        await nodes.backend.publish(
            queue,
            b"line %d" % number,
            {"connection_id": connection_id, "to_device_seq": number},
            reply_to=reports,
            correlation_id=str(number),
        )
    assert [await device.line() for _ in range(300)] == [b"line %d" % number for number in range(300)]
    found = await nodes.when(
        lambda queues: queues[reports][0] == 300 and not any(ready + held for ready, held, _ in _lines(nodes, queues)),
        "300 reports, and nothing else left",
    )
    assert found[nodes.first.undeliverable][0] == 0


def _lines(nodes: Nodes, queues: dict[str, tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    reports = f"{nodes.first.to_device}_reports"
    return [counts for name, counts in queues.items() if name not in (nodes.register, reports)]


@reactor_test
async def test_numbers_of_what_cannot_be_sent(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A numbered message that cannot be sent uses up its number at whichever node it arrives first: no device waits for it."""
    nodes = await Nodes.start(lab, own_rabbitmq, 2, gap_timeout="10m", max_line="100")
    device = await lab.device(nodes.first)
    connection_id = await nodes.introduce(device)
    bad: list[tuple[str, bytes, dict[str, Any]]] = [
        ("too-long", b"x" * 101, {}),
        ("delimiter-in-body", b"one\ntwo", {}),
        ("expired", b"old", {"expires_at": 1}),
        ("bad-expires-at", b"soon", {"expires_at": "soon"}),
    ] * 5
    for number, (_, body, headers) in enumerate(bad):
        for seq, text, more in ((2 * number, body, headers), (2 * number + 1, b"good %d" % number, {})):
            headers = {"connection_id": connection_id, "to_device_seq": seq, **more}
            await nodes.backend.publish(nodes.first.to_device, text, headers)
    assert await device.lines.take(len(bad)) == [b"good %d" % number for number in range(len(bad))]
    records = [await nodes.first.refused() for _ in bad]
    assert sorted(record.headers["owsla_reason"] for record in records) == sorted(reason for reason, _, _ in bad)


@reactor_test
async def test_acknowledgements_are_lost(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Delivered messages whose acknowledgements were lost are redelivered, to their node and to others, after their device has
    left. None of them is recorded.
    """
    proxy = await lab.proxy(own_rabbitmq.port)
    nodes = await Nodes.start(lab, own_rabbitmq, 2, first_broker=proxy.url, node_grace="20s", heartbeat="10")
    device = await lab.device(nodes.first)
    connection_id = await nodes.introduce(device)
    headers = {"connection_id": connection_id}
    proxy.hold(one_way=True)
    for number in range(100):
        text = b"%d" % number
        await nodes.backend.publish(nodes.first.to_device, text, {**headers, "to_device_seq": number})
        await nodes.backend.publish(nodes.first.to_device, b"plain " + text, headers, expiration="3600000")
    assert len(await device.lines.take(200)) == 200
    start = nodes.first.owsla.mark()
    device.abort()
    await nodes.first.owsla.wait_for_line("disconnected", start=start)
    proxy.cut()
    proxy.held.clear()
    proxy.release()
    await nodes.first.owsla.wait_for_line("Broker lost", start=start)
    await nodes.when(
        lambda queues: not any(ready + held for name, (ready, held, _) in queues.items() if name != nodes.register),
        "the end of what comes again",
    )
    assert nodes.backend.inbox[nodes.first.undeliverable].clear() == []


@reactor_test
async def test_no_loop(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A message in a node queue for a connection of another node is recorded, and not forwarded again."""
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    second = await nodes.another()
    mine, other = await lab.device(nodes.first), await lab.device(second)
    here, there = await nodes.introduce(mine), await nodes.introduce(other)
    await nodes.backend.publish(nodes.queue(here[:8]), b"lost", {"connection_id": there})
    record = await nodes.first.refused()
    assert (record.body, record.headers["owsla_reason"]) == (b"lost", "unknown-connection")
    assert record.headers["owsla_node"] == here[:8]


@reactor_test
async def test_the_broker_restarts(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A restart of the broker breaks the connection of every node at once. No node is announced as lost, and messages in their
    queues are delivered.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 3)
    device = await lab.device(nodes.first)
    connection_id = await nodes.introduce(device)
    nodes.first.owsla.process.signal(signal.SIGSTOP)  # otherwise the node takes the message before the broker stops
    later = {"connection_id": connection_id, "to_device_seq": 0}  # may have been delivered, and is delivered again
    await nodes.backend.publish(nodes.queue(connection_id[:8]), b"later", later, delivery_mode=2)
    await nodes.broker.kill()
    nodes.first.owsla.process.signal(signal.SIGCONT)
    await nodes.broker.start()
    await nodes.listen()
    assert await device.line(30) == b"later"
    await nodes.registered(3)
    await pause(8 + GRACE)  # as long as the registrar waits for others, plus the grace
    assert nodes.lost() == []
    await nodes.first.round_trip(device)


@reactor_test
async def test_a_node_that_stood_still(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A node that was suspended for longer than heartbeats and grace is announced as lost. When it continues, it registers
    under its old name and announces its connections again.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    second = await nodes.another()
    await nodes.registered(2)
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    node = connection_id[:8]
    second.owsla.process.signal(signal.SIGSTOP)
    await nodes.backend.publish(nodes.queue(node), b"too late", {"connection_id": connection_id})
    assert (await nodes.first.refused(30)).body == b"too late"
    await nodes.gone(node)
    second.owsla.process.signal(signal.SIGCONT)
    await until(lambda: _resynced(nodes, connection_id), what="the connection's second announcement")
    await nodes.registered(2)
    assert device.is_open
    await nodes.backend.publish(nodes.queue(node), b"welcome back", {"connection_id": connection_id})
    await device.lines.find(lambda line: line == b"welcome back")
    assert len(nodes.lost(node)) == 1


def _resynced(nodes: Nodes, connection_id: str) -> bool:
    """Return whether the last announcements of a connection and of its node say that they are connected."""
    told = [one.headers for one in nodes.collect() if one.headers["node"] == connection_id[:8]]
    return bool(told) and told[-1]["event"] == "connected" and told[-1].get("resync") is True


@reactor_test
async def test_a_node_that_was_cut_off(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A node that was cut off for a moment consumes its queue again. After more than the grace it is announced as lost, and
    registers again all the same. Its devices stay connected.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    proxy = await lab.proxy(own_rabbitmq.port)
    second = await nodes.another(proxy.url)
    await nodes.registered(2)
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    node = connection_id[:8]
    proxy.cut()
    await nodes.backend.publish(nodes.queue(node), b"kept", {"connection_id": connection_id})
    assert await device.line() == b"kept"
    await nodes.when(lambda queues: queues[nodes.queue(node)] == (0, 0, 1), "its acknowledgement")
    assert nodes.lost() == []
    await proxy.refuse()
    proxy.cut()
    await nodes.backend.publish(nodes.queue(node), b"buried", {"connection_id": connection_id})
    assert (await nodes.first.refused(30)).body == b"buried"
    await nodes.gone(node)
    await proxy.start()
    await until(lambda: _resynced(nodes, connection_id), what="the connection's second announcement")
    assert device.is_open
    await second.round_trip(device)


@reactor_test
async def test_announced_when_it_can_be_sent_to(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A node that comes back after it was announced as lost reports the end of connections at once. It announces a device as
    connected when it consumes its own queue, so that a back end can send to the device at once.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1)
    proxy = await lab.proxy(own_rabbitmq.port)
    second = await nodes.another(proxy.url)
    await nodes.registered(2)
    leaving = await lab.device(second)
    node = (await nodes.introduce(leaving))[:8]
    proxy.hold()
    device = await lab.device(second)  # its announcement is lost, and so repeated at once
    address = f"127.0.0.1:{device.local_port}"
    connection_id = (await second.owsla.wait_for_line(rf"Device connected: (\S+) from {address}"))[1]
    await proxy.refuse()
    proxy.cut()
    await nodes.gone(node)
    proxy.held.clear()
    proxy.release()
    proxy.unwanted = b" consumers ("
    await proxy.start()
    await leaving.close()
    await until(lambda: nodes.collect()[-1].headers["event"] == "disconnected", what="the end of a connection")
    await pause(1)
    told = [message.headers["event"] for message in nodes.collect() if message.headers["node"] == node]
    assert told[told.index("node-lost") :] == ["node-lost", "disconnected"]
    proxy.unwanted = b""
    await until(lambda: _resynced(nodes, connection_id), what="the announcement of the device")
    await nodes.first.send(connection_id, b"at once")
    assert await device.line() == b"at once"


@reactor_test
async def test_a_queue_that_is_somebody_elses(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """If another client consumes its queue, a node that comes back takes another name. It closes its devices once their lines
    are confirmed, and serves devices that reconnect.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1, first_broker=(proxy := await lab.proxy(own_rabbitmq.port)).url,
                              heartbeat="1", drain_spread="0s", device_ack="ACK {seq}")  # fmt: skip
    device = await lab.device(nodes.first)
    device.send_line(b"hello")
    connection_id = (await nodes.first.message()).connection_id
    assert await device.line() == b"ACK 0"
    await proxy.refuse()
    proxy.cut()
    thief = await lab.backend(own_rabbitmq.url)
    thief.inbox[nodes.queue(connection_id[:8])] = nodes.backend.inbox[EVENTS]
    await thief.call(lambda channel: channel.basic_consume(nodes.queue(connection_id[:8]), lambda *_: None))
    device.send_line(b"kept")
    await proxy.start()
    renamed = await nodes.first.owsla.wait_for_line(r"Node renamed: (\w+) is now (\w+)", 30)
    assert renamed[1] == connection_id[:8] != renamed[2]
    assert await device.line() == b"ACK 1"
    await device.closed()
    again = await lab.device(nodes.first)
    again.send_line(b"hello")
    heard = await nodes.backend.inbox[nodes.first.from_device].find(lambda one: one.connection_id != connection_id)
    assert heard.connection_id[:8] == renamed[2]
    assert heard.properties.reply_to == nodes.queue(renamed[2])
    await nodes.backend.publish(nodes.queue(renamed[2]), b"hello yourself", {"connection_id": heard.connection_id})
    assert await again.lines.find(lambda line: not line.startswith(b"ACK")) == b"hello yourself"
    assert nodes.lost() == []


@reactor_test
async def test_a_dead_node_with_a_quorum_queue(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """The same holds if the node queues are quorum queues, which can neither be read without a consumer nor deleted on a
    condition.
    """
    nodes = await Nodes.start(lab, own_rabbitmq, 1, node_queue_argument=["x-queue-type=quorum"])
    second = await nodes.another()
    device = await lab.device(second)
    connection_id = await nodes.introduce(device)
    node = connection_id[:8]
    await nodes.registered(2)
    second.owsla.process.signal(signal.SIGSTOP)
    for number in range(300):
        await nodes.backend.publish(nodes.queue(node), b"%d" % number, {"connection_id": connection_id})
    second.owsla.kill()
    records = await nodes.backend.inbox[nodes.first.undeliverable].take(300, 30)
    assert sorted(int(record.body) for record in records) == list(range(300))
    await nodes.gone(node)
    await nodes.registered(1)
    assert [message.headers["node"] for message in nodes.lost()] == [node]
    assert await nodes.first.owsla.terminate() == 0
    assert nodes.queue("") not in [name[:-8] for name in await nodes.queues() if len(name) == len(nodes.queue(node))]
