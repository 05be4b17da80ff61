"""Tests with several hosts: two gateways and a broker with their own addresses, and a network between them that fails."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pika.exceptions import UnroutableError
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from ._support.backend import Backend, Message
from ._support.books import DEVICE_ACK, AnsweringBackend, Books, Fleet, TalkingDevice, chosen_seed, clear_up
from ._support.device import Device
from ._support.hosts import HostLab, HostOwsla, HostRabbitMQ, Network, Unavailable, check, check_rough
from ._support.waiting import PATIENCE, block_on, current_reactor, pause, reactor_test, until
from .conftest import _REQUIRED, _require_rabbitmq

#: Seconds. Used by the host that is cut off; the other one has the default, so that only the tested behaviour shows.
HEARTBEAT = 2

#: Seconds within which every part has noticed, also on a busy machine.
NOTICED = 30

#: Queue of --events amqp.
PRESENCE = "connection_events"

#: Devices of a fleet on each host.
HALF = 6

#: Lines of talk, for some seconds.
SOME = 100


class Site:
    """An Owsla on each of the two hosts, on the same queues, and the traffic between devices and a back end."""

    def __init__(self, network: Network, rabbitmq: HostRabbitMQ, lab: HostLab) -> None:
        self.network = network
        self.rabbitmq = rabbitmq
        self.lab = lab
        self.seed = chosen_seed()
        self.rng = random.Random(self.seed)
        name = secrets.token_hex(4)
        self.from_device = f"from_{name}"
        self.to_device = f"to_{name}"
        self.a: HostOwsla
        self.b: HostOwsla
        self.backend: Backend
        self.heard: list[Message] = []
        """Lines that the back end of the test received."""
        self._fleet: Fleet | None = None
        self._books_backend: AnsweringBackend | None = None

    # -- with a back end of the test's own -----------------------------------------------------------------------------------

    async def start(self, *, heartbeat: float = HEARTBEAT, **options: Any) -> None:
        """Start both, a first, so that a does the work that one node does for all."""
        settings: dict[str, Any] = {
            "broker": self.rabbitmq.url,
            "from_device": self.from_device,
            "to_device": self.to_device,
            "events": ["console", "amqp"],
            "drain_spread": "500ms",
            # So that no number is skipped, however long an outage lasts: the missing ones arrive.
            "gap_timeout": "60s",
            "reorder_limit": 5000,
            "prefetch": 20000,
        } | options
        self.a = self.lab.owsla_on(self.network.a, **(settings | {"heartbeat": f"{heartbeat}s"}))
        self.b = self.lab.owsla_on(self.network.b, **settings)
        await self.a.start()
        await self.b.start()

    async def connect_backend(self) -> None:
        """Consume lines, undeliverable messages and presence."""
        queues = (self.from_device, f"{self.to_device}.undeliverable", PRESENCE)
        self.backend = await self.lab.backend(self.rabbitmq.url, *queues)

    async def hear(self, line: bytes, timeout: float = PATIENCE) -> Message:
        """Wait for a line. Lines before it are kept in `heard` too."""
        while True:
            message = await self.backend.get(self.from_device, timeout)
            self.heard.append(message)
            if message.body == line:
                return message

    async def introduce(self, device: Device) -> Message:
        """Let a device send a line, and return its message."""
        greeting = secrets.token_hex(8).encode()
        device.send_line(greeting)
        return await self.hear(greeting)

    async def undisturbed(self, device: Device, greeting: Message) -> None:
        """Check that a line of a device arrives, and the answers to it over both queues."""
        for route in (self.to_device, greeting.properties.reply_to):
            await self.introduce(device)
            answer = secrets.token_hex(8).encode()
            await self.backend.publish(route, answer, {"connection_id": greeting.connection_id})
            assert await device.line() == answer

    # -- with books ----------------------------------------------------------------------------------------------------------

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    @property
    def answers(self) -> AnsweringBackend:
        assert self._books_backend is not None
        return self._books_backend

    def devices_of(self, owsla: HostOwsla) -> list[TalkingDevice]:
        """Return the devices of the fleet that are connected to this host."""
        return self.fleet.devices[:HALF] if owsla is self.a else self.fleet.devices[HALF:]

    async def talk(self) -> None:
        """Connect half of a fleet to each host, and a back end that answers. Wait until each device is served."""
        fleet = self._fleet = Fleet(self.lab, self.a, seed=self.seed, count=0)
        fleet.devices = [
            TalkingDevice(self.lab, owsla, f"{owsla.host.name}{number}", random.Random(f"{self.seed}/{number}"), moody=0.0)
            for owsla in (self.a, self.b)
            for number in range(HALF)
        ]
        self._books_backend = AnsweringBackend(self.rabbitmq.url, self.from_device, self.to_device, self.seed)
        await self.answers.start()
        await fleet.start()

    async def said_by(self, owsla: HostOwsla, lines: int, timeout: float = 60) -> None:
        """Wait until the devices of one host have sent this many lines more, all acknowledged."""
        devices = self.devices_of(owsla)
        goal = sum(len(device.acknowledged) for device in devices) + lines
        await until(
            lambda: sum(len(device.acknowledged) for device in devices) >= goal, timeout, f"lines of host {owsla.host.name}"
        )

    async def finish(self, *, skips: bool = False) -> Books:
        """Wait until all is quiet, stop everything, and return the books, not yet compared."""
        await self.fleet.hush()
        await self.answers.settled()
        books = Books(self.fleet, self.answers)
        if not skips:
            await until(lambda: not books.outstanding(), 60, lambda: f"{books.outstanding()}")
        await self._queues_are_empty()
        await self.fleet.stop()
        await self.answers.stop()
        assert len(self.fleet.sessions) == len(self.fleet.devices), "devices stay connected whatever the network does"
        for owsla in (self.a, self.b):
            assert await owsla.terminate() == 0, owsla.output()
        books.remains = clear_up(self.rabbitmq.url, await self._queues(), self.from_device, self.to_device)
        print(
            f"{self.fleet.said} messages, {len(self.answers.heard)} lines heard, "
            f"{sum(self.answers.published.values())} answers, {len(books.remains.undeliverable)} on record"
        )
        return books

    async def _queues(self) -> dict[str, int]:
        """Return the number of messages in each queue of this site, ready or unacknowledged."""
        listed = await self.rabbitmq.ctl("list_queues", "name", "messages")
        counts = {name: int(count) for name, count in (line.split() for line in listed.splitlines())}
        register = f"{self.to_device}.nodes"
        return {
            name: count
            for name, count in counts.items()
            if name.startswith((self.from_device, self.to_device)) and name != register
        }

    async def _queues_are_empty(self) -> None:
        for _ in range(200):
            counts = await self._queues()
            left = {name: count for name, count in counts.items() if count and not name.endswith(".undeliverable")}
            if not left:
                return
            await pause(0.3)
        raise AssertionError(f"left in queues: {left}")

    async def queue_is_deleted(self, queue: str) -> None:
        """Wait until the registrar has deleted a queue, which has then received no message for some time."""
        for _ in range(200):
            if queue not in await self._queues():
                return
            await pause(0.3)
        raise AssertionError(f"{queue} is still there")

    async def end(self) -> None:
        """End everything that the lab does not own, also after a failure, and repair the network."""
        self.network.a.restore()
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet.abort()
        if self._books_backend is not None:
            await self._books_backend.stop()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Return the hosts of this module, with nothing running in them."""
    try:
        check()
    except Unavailable as why:
        if why.missing and _REQUIRED:
            pytest.fail(f"OWSLA_REQUIRE_RABBITMQ=1, and {why}")
        pytest.skip(str(why))
    one = Network(tmp_path_factory.mktemp("network"))
    try:
        block_on(one.start())
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def far_rabbitmq(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostRabbitMQ]:
    """Return a RabbitMQ on the host of the broker."""
    _require_rabbitmq()
    node = HostRabbitMQ(network.broker, network.broker_address, tmp_path_factory.mktemp("far-rabbitmq"))
    try:
        block_on(node.start())
        yield node
    finally:
        block_on(node.close())


@pytest.fixture
def lab(tmp_path: Path, certs_dir: Path) -> Iterator[HostLab]:
    one = HostLab(tmp_path, certs_dir)
    yield one
    block_on(one.close())


@pytest.fixture
def site(network: Network, far_rabbitmq: HostRabbitMQ, lab: HostLab) -> Iterator[Site]:
    """Return two gateways that are not started."""
    one = Site(network, far_rabbitmq, lab)
    yield one
    block_on(one.end())


@implementer(IPushProducer)
class Flood:
    """Producer that sends numbered lines on the connection of a device as fast as it is read."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._taken = False
        self.sent: list[bytes] = []
        device.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """Send, since the transport has room."""
        self._taken = True
        self._pour()

    def pauseProducing(self) -> None:
        """Stop sending: the transport has no room."""
        self._taken = False

    def stopProducing(self) -> None:
        """Stop sending for good."""
        self._taken = False

    def _pour(self) -> None:
        if self._taken:
            lines = [b"line %d %s" % (number, b"." * 1000) for number in range(len(self.sent), len(self.sent) + 10)]
            self.sent += lines
            self._device.send_line(*lines)
            current_reactor().callLater(0.001, self._pour)

    async def stalled(self) -> None:
        """Wait until nothing was sent for three seconds: a busy host may read nothing for one."""
        since, seen = 0.0, -1

        def still() -> bool:
            nonlocal since, seen
            now = current_reactor().seconds()
            if self._taken or len(self.sent) != seen:
                since, seen = now, len(self.sent)
            return bool(now - since > 3)

        await until(still, 30, "a device to feel that nothing it sends is taken")

    def end(self) -> None:
        """Stop sending."""
        self.stopProducing()
        self._device.transport.unregisterProducer()


# -- All is well -------------------------------------------------------------------------------------------------------


@reactor_test
async def test_found_on_any_host(site: Site) -> None:
    """One back end reaches devices on two hosts, whichever host consumes its messages. Numbered messages stay in order over
    hops.
    """
    await site.start()
    await site.connect_backend()
    devices = [await site.lab.device(owsla) for owsla in (site.a, site.b) for _ in range(3)]
    greetings = [await site.introduce(device) for device in devices]
    assert [greeting.connection_id[:8] for greeting in greetings] == [
        greeting.properties.reply_to.removeprefix(f"{site.to_device}.") for greeting in greetings
    ]
    assert len({greeting.properties.reply_to for greeting in greetings}) == 2
    # Half of the messages on to_device reach the wrong host; those on reply_to overtake them.
    order = [(greeting, number) for greeting in greetings for number in range(40)]
    site.rng.shuffle(order)
    for greeting, number in order:
        route = site.rng.choice((site.to_device, site.to_device, greeting.properties.reply_to))
        headers = {"connection_id": greeting.connection_id, "to_device_seq": number}
        await site.backend.publish(route, f"{greeting.connection_id} {number}".encode(), headers)
    for device, greeting in zip(devices, greetings, strict=True):
        expected = [f"{greeting.connection_id} {number}".encode() for number in range(40)]
        assert [await device.line() for _ in range(40)] == expected
    for owsla in (site.b, site.a):
        assert await owsla.terminate() == 0
    assert not any(len(device.lines) for device in devices)
    assert not len(site.backend.inbox[f"{site.to_device}.undeliverable"])


# -- A host is cut off, and brought back -------------------------------------------------------------------------------


@reactor_test
async def test_cut_off_host_reads_no_more(site: Site) -> None:
    """A host that cannot publish stops reading, and the other one is not affected. When the network is back, all lines arrive.
    """
    await site.start(window=500, node_grace="60s")
    await site.connect_backend()
    talker, other, silent = await site.lab.device(site.a), await site.lab.device(site.b), await site.lab.device(site.a)
    greeting, others = await site.introduce(talker), await site.introduce(other)
    flood = Flood(talker)
    await until(lambda: len(flood.sent) > 1000, what="a device that sends without a pause")
    await site.hear(flood.sent[500])
    mark = site.a.mark()
    site.network.a.cut()
    await flood.stalled()
    taken = len(flood.sent)
    await site.a.wait_for_line("Broker lost.*heartbeat", NOTICED, start=mark)
    # No device of this host is read now, and no message for one is lost.
    silent.send_line(b"said while cut off")
    headers = {"connection_id": greeting.connection_id}
    for number in range(10):
        route = (site.to_device, greeting.properties.reply_to)[number % 2]
        await site.backend.publish(route, b"%d" % number, headers | {"to_device_seq": number})
    await site.undisturbed(other, others)
    assert not any(message.body == b"said while cut off" for message in site.heard)
    assert len(flood.sent) == taken
    assert not len(talker.lines)

    site.network.a.mend()
    await site.a.wait_for_line("Broker connected", NOTICED, start=mark)
    assert [await talker.line(NOTICED) for _ in range(10)] == [b"%d" % number for number in range(10)]
    await until(lambda: len(flood.sent) > taken + 1000, NOTICED, "the flood to go on")
    flood.end()
    await site.hear(flood.sent[-1], NOTICED)
    if not any(message.body == b"said while cut off" for message in site.heard):
        await site.hear(b"said while cut off")
    # Lines that were on their way at the cut may be duplicated: the first one of each counts.
    first = {message.seq: message.body for message in reversed(site.heard) if message.connection_id == greeting.connection_id}
    firsts = list(dict.fromkeys(message.seq for message in site.heard if message.connection_id == greeting.connection_id))
    assert firsts == list(range(len(flood.sent) + 1))
    assert [first[seq] for seq in firsts[1:]] == flood.sent
    assert talker.is_open
    assert not site.b.lines("Broker lost")


@reactor_test
async def test_back_within_the_grace(site: Site) -> None:
    """If a host is back before its grace is over, its devices stay connected, nothing is lost, and order is kept."""
    await site.start(device_ack=DEVICE_ACK, node_grace="90s")
    await site.talk()
    for broker_noticed in (False, True):
        await site.said_by(site.a, SOME)
        mark, log = site.a.mark(), site.rabbitmq.mark()
        site.network.a.cut()
        await site.a.wait_for_line("Broker lost.*heartbeat", NOTICED, start=mark)
        if broker_noticed:
            await site.rabbitmq.wait_for_line("missed heartbeats from client", NOTICED, start=log)
            await site.said_by(site.b, SOME)
        # Otherwise the broker still has the old connections, and the unacknowledged messages on them.
        site.network.a.mend()
        await site.a.wait_for_line("Broker connected", NOTICED, start=mark)
    await site.said_by(site.a, SOME)
    books = await site.finish()
    differences = books.differences(in_order=True)
    assert not differences, "\n".join(differences)
    assert not books.remains.undeliverable
    for owsla in (site.a, site.b):
        assert not owsla.lines("Node lost")
    assert not site.b.lines("Broker lost")


@reactor_test
async def test_back_after_the_grace(site: Site) -> None:
    """A host that is cut off for longer is announced as lost, once. When it is back, its devices are announced again."""
    # Numbers are waited for longer than the broker needs to requeue the messages of a host that does not answer.
    await site.start(device_ack=DEVICE_ACK, node_grace="2s", gap_timeout="10s")
    await site.talk()
    await site.said_by(site.a, SOME)
    site.answers.gate.clear()
    await site.said_by(site.a, SOME)
    presence = (await site.lab.backend(site.rabbitmq.url, PRESENCE)).inbox[PRESENCE]
    ids = {name: connection_id for (name, _), connection_id in Books(site.fleet, site.answers).connections()[0].items()}
    cut_off = {ids[device.name] for device in site.devices_of(site.a)}
    (node,) = {connection_id[:8] for connection_id in cut_off}
    mark = site.a.mark()
    site.network.a.cut()
    site.answers.gate.set()  # the answers arrive now, and their node is gone
    await site.b.wait_for_line(f"Node lost: {node}", NOTICED)
    lost = await presence.find(lambda message: message.headers["event"] == "node-lost")
    assert lost.headers["node"] == node
    assert lost.properties.message_id == node
    await site.said_by(site.b, SOME)

    site.network.a.mend()
    await site.a.wait_for_line("Broker connected", NOTICED, start=mark)
    announced: set[str] = set()
    while not cut_off <= announced:
        message = await presence.find(lambda message: message.headers.get("resync") is True, NOTICED)
        announced.add(message.connection_id)
    await site.said_by(site.a, SOME)
    books = await site.finish(skips=True)
    # Messages for devices of a lost node are recorded though the devices are connected again, also a second copy of a received
    # message. All else is unchanged.
    reasons = [reason for (connection_id, _), reason in books.remains.undeliverable if connection_id in cut_off]
    assert len(reasons) >= SOME
    assert set(reasons) == {"unknown-connection"}
    assert len(reasons) == len(books.remains.undeliverable)
    names = [session.name for session in site.fleet.sessions if ids[session.device] in cut_off]
    words = " is connected, and on record are", ": received, and on record too"
    explained = tuple(f"{name}{word}" for name in names for word in words)
    differences = [one for one in books.differences(in_order=True, skips=True) if not one.startswith(explained)]
    assert not differences, "\n".join(differences)
    assert len(site.b.lines("Node lost")) == 1
    assert not site.a.lines("Node lost")
    assert not any(message.headers["event"] == "node-lost" for message in presence.clear())


# -- A host dies -------------------------------------------------------------------------------------------------------


@reactor_test
async def test_a_host_dies(site: Site) -> None:
    """When a host dies, messages for its devices are undeliverable, back ends are told once, and the other host continues."""
    await site.start(node_grace="2s")
    await site.connect_backend()
    device, other = await site.lab.device(site.a), await site.lab.device(site.b)
    greeting, others = await site.introduce(device), await site.introduce(other)
    node = greeting.connection_id[:8]
    undeliverable, presence = site.backend.inbox[f"{site.to_device}.undeliverable"], site.backend.inbox[PRESENCE]
    site.network.a.go_dark()
    site.a.kill()
    headers = {"connection_id": greeting.connection_id}
    sent = [b"%d" % number for number in range(20)]
    for number, body in enumerate(sent):
        await site.backend.publish((site.to_device, greeting.properties.reply_to)[number % 2], body, headers)
    records = await undeliverable.take(len(sent), NOTICED)
    assert sorted((record.body for record in records), key=int) == sent
    assert {record.headers["owsla_reason"] for record in records} == {"unknown-connection"}
    lost = await presence.find(lambda message: message.headers["event"] == "node-lost")
    assert (lost.headers["node"], lost.properties.message_id) == (node, node)
    await site.b.wait_for_line(f"Node lost: {node}")
    # The node is known to be lost now, so no message waits any more.
    await site.backend.publish(site.to_device, b"too late", headers)
    assert (await undeliverable.get()).body == b"too late"
    await site.queue_is_deleted(greeting.properties.reply_to)
    with pytest.raises(UnroutableError):
        await site.backend.publish(greeting.properties.reply_to, b"too late", headers)
    await site.undisturbed(other, others)
    assert other.is_open
    device.abort()
    assert not site.b.lines("Broker lost")
    assert await site.b.terminate() == 0
    assert len(site.b.lines("Node lost")) == 1
    assert not len(undeliverable)


# -- A bad line --------------------------------------------------------------------------------------------------------


@reactor_test
async def test_a_bad_line(site: Site) -> None:
    """With 50 ms of delay in each direction and one percent of packet loss to the broker, all is slower, and the books balance.
    """
    try:
        check_rough()
    except Unavailable as why:
        pytest.skip(str(why))
    await site.start(heartbeat=30, device_ack=DEVICE_ACK)
    cable = site.network.a.roughen(site.rng, delay=0.05, loss=0.01)
    await site.talk()
    await site.said_by(site.a, 3 * SOME)
    books = await site.finish()
    differences = books.differences(in_order=True)
    assert not differences, "\n".join(differences)
    assert not books.remains.undeliverable
    for owsla in (site.a, site.b):
        assert not owsla.lines("Broker lost")
    print(f"{cable.passed} packets passed, {cable.lost} were lost")
    assert cable.lost
