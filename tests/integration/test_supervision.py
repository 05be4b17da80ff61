"""Tests of the supervision of a running gateway: a defect restarts the child that has it, a failure from outside restarts
nothing.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import deferToThread

from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway
from ._support.mischief import MischiefLab, MischievousOwsla, When
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until
from .test_faults import HEARTBEAT, LONG_HEARTBEAT, Run
from .test_http import ask, http_port, in_thread, tree_command

#: EX_SOFTWARE: see docs/supervision.md.
EXIT_STATUS = 70

CONSUMERS = "owsla/broker/consumers"
PRODUCER = "owsla/broker/producer"
COURIER = "owsla/broker/courier"
ROSTER = "owsla/broker/roster"
BROADCAST = "owsla/broker/broadcast"
BROKER = {CONSUMERS, PRODUCER, COURIER, ROSTER, BROADCAST}
PORT = "owsla/listener/port"
SOCKETS = "owsla/listener/sockets"
ENDPOINTS = "owsla/listener/endpoints"
HTTP = "owsla/http"
CERTIFICATE = "owsla/certificate"

#: Number of lines that the twenty devices send after a failure, to show that it is overcome.
LINES_AFTERWARDS = 100

#: Number of connections that drop at once. Six were enough to end the original.
MANY = 5000


@pytest.fixture
def lab(tmp_path: Path, certs_dir: Path) -> Iterator[MischiefLab]:
    """Start gateways whose methods can be made to fail."""
    one = MischiefLab(tmp_path, certs_dir)
    yield one
    block_on(one.close())


@pytest.fixture
def run(rabbitmq: RabbitMQ, lab: MischiefLab) -> Iterator[Run]:
    """Provide devices that talk, a back end that answers, and the record of both; not started."""
    one = Run(rabbitmq, lab)
    yield one
    block_on(one.end())


class Tree:
    """Snapshot of the supervision tree, from /tree."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self._add(root, "")

    def _add(self, node: dict[str, Any], above: str) -> None:
        path = f"{above}{node['id']}"
        self.nodes[path] = node
        for child in node.get("children", []):
            self._add(child, f"{path}/")

    @property
    def restarts(self) -> dict[str, int]:
        """Number of restarts of each child that was restarted."""
        return {path: node["restarts"] for path, node in self.nodes.items() if node["restarts"]}

    @property
    def failures(self) -> int:
        """Number of connections that ended with a defect."""
        return int(self.nodes[ENDPOINTS]["failures"])

    @property
    def devices(self) -> int:
        return int(self.nodes[ENDPOINTS]["count"])

    @property
    def all_run(self) -> bool:
        return all(node["state"] == "running" for node in self.nodes.values())


async def tree_of(owsla: MischievousOwsla) -> Tree:
    """Return the present tree."""
    status, text = await ask(await http_port(owsla), "/tree")
    assert status == 200
    return Tree(json.loads(text))


async def tree_when(owsla: MischievousOwsla, wanted: Callable[[Tree], bool], timeout: float = 20) -> Tree:
    """Return the tree as soon as it meets a condition."""
    for _ in range(int(timeout / 0.1)):
        tree = await tree_of(owsla)
        if wanted(tree):
            return tree
        await pause(0.1)
    raise AssertionError(f"the tree stays {tree.nodes}")


class Trial:
    """Run with one failure after another, and the restarts that the tree has to show."""

    def __init__(self, run: Run) -> None:
        self.run = run
        assert isinstance(run.owsla, MischievousOwsla)
        self.owsla = run.owsla
        self.restarts: dict[str, int] = {}
        self.failures = 0
        self.lost_devices = 0

    async def fails(
        self,
        target: str,
        restarted: str,
        *,
        when: When = "before",
        provoke: Callable[[], object] | None = None,
        role: str | None = None,
    ) -> None:
        """Let a method raise once. One child is restarted, and no other; every device stays connected, and is served."""
        fault = await self.owsla.fail(target, when=when, only={"role.name": role} if role else None)
        if provoke is not None:
            provoke()
        await fault.strikes()
        self.restarts[restarted] = self.restarts.get(restarted, 0) + 1
        await self.as_expected(fault.text)

    async def fails_somewhere(self, target: str, among: set[str]) -> None:
        """Let a method that several children have raise once. One of them is restarted."""
        fault = await self.owsla.fail(target)
        await fault.strikes()
        tree = await tree_when(self.owsla, lambda tree: tree.restarts != self.restarts)
        restarted = [path for path in tree.restarts if tree.restarts[path] != self.restarts.get(path)]
        assert len(restarted) == 1
        assert set(restarted) <= among
        self.restarts = tree.restarts
        await self.as_expected(fault.text)

    async def ends_one(self, target: str, when: When = "before") -> None:
        """Let a method of one connection raise. That connection ends, and nothing is restarted."""
        # A confirm may come when the connection has ended already: a failure then would end nothing.
        fault = await self.owsla.fail(target, when=when, only={"closing": False})
        await fault.strikes()
        self.failures += 1
        self.lost_devices += 1
        await self.as_expected(fault.text)

    async def as_expected(self, text: str) -> None:
        """Check that the tree is as expected, that all devices and a new one are served, and that there is one traceback."""
        fleet = self.run.fleet
        count = len(fleet.devices)

        def recovered(tree: Tree) -> bool:
            return tree.all_run and tree.restarts == self.restarts and tree.failures == self.failures

        await tree_when(self.owsla, lambda tree: recovered(tree) and tree.devices == count)
        await self.served()
        assert len(fleet.sessions) == count + self.lost_devices, text
        tree = await tree_when(self.owsla, lambda tree: tree.devices == count)
        assert recovered(tree)
        found = self.owsla.entries_with_traceback(f"Mischief: {text}\n")
        assert len(found) == 1, f"{text}: {len(found)} tracebacks\n" + "".join(found)

    async def served(self) -> None:
        """Check that every device is served, and a new one too."""
        fleet = self.run.fleet
        before = [len(device.acknowledged) for device in fleet.devices]
        await until(
            lambda: all(len(one.acknowledged) > known for one, known in zip(fleet.devices, before, strict=True)),
            30,
            "acknowledgements for every device",
        )
        await fleet.talk(LINES_AFTERWARDS)
        fresh = await self.run.lab.device(self.owsla)
        fresh.send_line(b"fresh 0 0 ")
        await fresh.lines.find(lambda line: line == b"re fresh 0 0", 30)
        await fresh.close()

    async def finish(self) -> None:
        """Check that nothing was lost, duplicated or out of order."""
        run = self.run
        await run.fleet.hush()
        await run.backend.settled()
        run.backend.heard = [heard for heard in run.backend.heard if not heard[2].startswith(b"fresh")]
        for session in run.fleet.sessions:
            session.uncertain = not session.open  # messages that were written to it may not have been read
        run.outages = len(run.owsla.lines("Broker lost"))  # a connection that failed is not a lost broker
        await run.finish(in_order=True)


async def trial(run: Run, **options: Any) -> Trial:
    """Start a run."""
    await run.start(**{"heartbeat": LONG_HEARTBEAT, **options})
    return Trial(run)


# -- Each child, in each method ----------------------------------------------------------------------------------------


@reactor_test
async def test_broker_handlers(run: Run) -> None:
    """A failure in a handler of the consumers, the producer or the courier restarts that one; nothing is lost."""
    it = await trial(run)
    await it.fails("owsla.broker.consumer:Consumer.deliver", CONSUMERS)
    await it.fails("owsla.broker.door_publisher:DoorPublisher.confirmed", PRODUCER)
    await it.fails("owsla.broker.courier:CourierRole.messages_confirmed", COURIER)
    await it.fails("owsla.broker.consumer:Consumer.deliver", CONSUMERS, when="after")
    await it.fails("owsla.broker.courier:CourierRole._continue", COURIER)
    await it.finish()


@reactor_test
async def test_broker_connections(run: Run) -> None:
    """A failure at any step of a connection's coroutine after a loss restarts that connection alone."""
    it = await trial(run)
    cut = run.proxy.cut
    await it.fails("owsla.broker.connection:BrokerConnection._wait", PRODUCER, provoke=cut, role="producer")
    await it.fails("owsla.broker.connection:BrokerConnection._connect", COURIER, provoke=cut, role="courier")
    await it.fails("owsla.broker.consumers:Consumers.up", CONSUMERS, provoke=cut)
    await it.fails("owsla.broker.door_publisher:DoorPublisher.up", PRODUCER, provoke=cut, when="after")
    await it.fails("owsla.broker.consumers:Consumers.down", CONSUMERS, provoke=cut)
    await it.finish()


@reactor_test
async def test_broker_timers(run: Run) -> None:
    """A failure in a timer of a broker connection, in the writes at the end of a turn, or in the registrar restarts that one;
    nothing is lost.
    """
    it = await trial(run, heartbeat=HEARTBEAT)
    await it.fails_somewhere("owsla.broker.client:BrokerClient._check_heartbeat", BROKER)
    await it.fails_somewhere("owsla.broker.socket_writer:SocketWriter.write", BROKER)
    await it.fails("owsla.cluster.register:Register._inspect_all", ROSTER)
    await it.fails("owsla.cluster.register:Register.deliver", ROSTER, provoke=run.proxy.cut)
    await it.finish()


@reactor_test
async def test_listener(run: Run) -> None:
    """A failure in a timer of the sockets, or while the port accepts, restarts one of them alone: devices stay connected."""
    it = await trial(run)
    await it.fails("owsla.device.connected_sockets:ConnectedSockets._tick", SOCKETS)
    await it.fails("owsla.device.connected_sockets:ConnectedSockets._sweep", SOCKETS, when="after")
    await it.fails("owsla.device.hangup:HangupWatch.tick", SOCKETS)

    def knock() -> None:
        with socket.create_connection(("127.0.0.1", run.owsla.port)) as visitor:
            visitor.sendall(b"hello")

    await it.fails("owsla.device.admission:Admission.accepted", PORT, when="after", provoke=knock)
    await it.finish()


@reactor_test
async def test_hangup_watch(run: Run) -> None:
    """A failure in the watch of paused connections restarts the service of the sockets, which owns it."""
    it = await trial(run)

    mark = run.owsla.mark()
    fault = await it.owsla.fail("owsla.device.hangup:HangupWatch._poll")
    await run.proxy.refuse()
    run.proxy.cut()
    await run.owsla.wait_for_line("Broker lost", start=mark)
    await pause(1)  # by then each device has sent lines, and is paused
    run.fleet.devices[0].abort()
    await fault.strikes()
    await run.proxy.start()
    it.lost_devices += 1
    it.restarts[SOCKETS] = 1
    await it.as_expected(fault.text)
    await it.finish()


@reactor_test
async def test_certificate_watch(run: Run) -> None:
    """A failure in the certificate watch restarts it alone: devices stay connected."""
    it = await trial(run)
    await it.fails("owsla.tls.expiry:ExpiryWatch._check", CERTIFICATE)
    await it.finish()


@reactor_test
async def test_http(lab: MischiefLab, embedded: EmbeddedBrokerProcess) -> None:
    """A failure in a timer of the HTTP server restarts it on its port. One in a page is a response 500, and no restart."""
    gateway = await lab.gateway(embedded.url)
    owsla = mischievous(gateway)
    device = await lab.device(gateway)
    port = await http_port(owsla)
    page = await owsla.fail("owsla.http._collector:OwslaCollector.collect")
    assert (await ask(port, "/metrics"))[0] == 500
    await page.strikes()
    assert (await tree_of(owsla)).restarts == {}
    assert (await ask(port, "/metrics"))[0] == 200
    timer = await owsla.fail("owsla.http._service:HttpService._sweep")
    await timer.strikes()
    await tree_when(owsla, lambda tree: tree.all_run and tree.restarts == {HTTP: 1})
    assert (await ask(port, "/metrics"))[0] == 200
    await gateway.round_trip(device)


@reactor_test
async def test_endpoints(run: Run) -> None:
    """A failure in a connection closes that one, and is counted. Nothing is restarted, nothing is lost."""
    it = await trial(run)
    await it.ends_one("owsla.device.protocol:DeviceProtocol.dataReceived")
    await it.ends_one("owsla.device.protocol:DeviceProtocol.lineReceived", when="after")
    await it.ends_one("owsla.device.protocol:DeviceProtocol._flush")
    await it.ends_one("owsla.device.protocol:DeviceProtocol._acknowledge")
    await it.finish()


@reactor_test
async def test_a_message_that_hurts(run: Run) -> None:
    """A failure while a message or an acknowledgement is sent to a device ends that connection alone."""
    it = await trial(run)
    await it.ends_one("owsla.device.protocol:DeviceProtocol.send")
    await it.ends_one("owsla.device.protocol:DeviceProtocol.confirmed")
    await it.finish()


@reactor_test
async def test_resumed(run: Run) -> None:
    """A failure of one connection that resumes after an outage ends that one; the others resume."""
    it = await trial(run)
    fault = await it.owsla.fail("owsla.device.protocol:DeviceProtocol.resume")
    run.proxy.cut()
    await fault.strikes()
    it.failures += 1
    it.lost_devices += 1
    await it.as_expected(fault.text)
    await it.finish()


@reactor_test
async def test_an_end_that_fails(run: Run) -> None:
    """A failure while a connection is cleaned up is counted, and leaves neither a child nor a used slot behind."""
    it = await trial(run)
    fault = await it.owsla.fail("owsla.device.protocol:DeviceProtocol._publish_rest")
    run.fleet.devices[0].abort()
    await fault.strikes()
    it.failures += 1
    it.lost_devices += 1
    await it.as_expected(fault.text)
    await it.finish()


# -- Giving up ---------------------------------------------------------------------------------------------------------


def mischievous(gateway: Gateway) -> MischievousOwsla:
    """Return the process of a gateway."""
    assert isinstance(gateway.owsla, MischievousOwsla)
    return gateway.owsla


@pytest.mark.parametrize(
    ("target", "child"),
    [
        ("owsla.device.connected_sockets:ConnectedSockets._tick", "listener gave up: sockets failed 6 times within 60 s"),
        (
            "owsla.broker.connection:BrokerConnection._connect",
            r"broker gave up: 6 failures within 60 s, \d of \w+, the last one",
        ),
        ("owsla.broker.consumer:Consumer.deliver", "broker gave up: consumers failed 6 times within 60 s"),
    ],
    ids=["listener", "connections", "consumers"],
)
@reactor_test
async def test_give_up(lab: MischiefLab, embedded: EmbeddedBrokerProcess, target: str, child: str) -> None:
    """Repeated failures end the process with status 70 and one line with child, count and reason; the pid file is removed."""
    proxy = await lab.proxy(embedded.port)
    gateway = await lab.gateway(proxy.url, backend=False)
    backend = await lab.backend(embedded.url, gateway.from_device)
    gateway._backend = backend
    owsla = mischievous(gateway)
    devices = [await lab.device(gateway) for _ in range(20)]
    connection_id = await gateway.introduce(devices[0])
    assert owsla.pidfile.read_text() == str(owsla.pid)
    fault = await owsla.fail(target, times=-1)
    began = time.monotonic()
    if "connection" in target:
        proxy.cut()
    await gateway.send(connection_id, b"hello")
    await fault.strikes()
    await until(lambda: owsla.lines("owsla gave up"), 60, "the root to give up")
    gave_up = time.monotonic()
    status = await owsla.exited(30)
    ended = time.monotonic()
    print(f"gave up after {gave_up - began:.1f} s, ended {ended - gave_up:.1f} s later")
    fault.struck = len(owsla.entries_with_traceback(f"Mischief: {fault.text}\n"))
    # Connections are made beside each other: another one may fail in the turn in which the last supervisor gives up.
    assert fault.struck == 36 or ("connection" in target and fault.struck == 37)
    assert status == EXIT_STATUS
    lines = owsla.errors().splitlines()
    assert len(lines) == 1, owsla.errors()
    name = target.partition(".")[2].split(".")[0].replace("device", "listener")
    assert re.fullmatch(
        rf"owsla: owsla gave up: {name} failed 6 times within 60 s: owsla/{child}: Mischief: {fault.text}", lines[0]
    ), lines[0]
    assert not owsla.pidfile.exists()
    assert ended - gave_up < 10
    for device in devices:
        await device.closed(1)


# -- Failures from outside ---------------------------------------------------------------------------------------------


def connect(port: int, ca: Path, count: int) -> list[ssl.SSLSocket]:
    """Connect this number of devices."""
    context = ssl.create_default_context(cafile=ca)

    def one(_: int) -> ssl.SSLSocket:
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30), server_hostname="localhost")

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def drop(sockets: list[ssl.SSLSocket]) -> None:
    """Drop all connections, every second one with a reset."""
    for number, one in enumerate(sockets):
        if number % 2:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()


def fail_handshakes(port: int, count: int) -> None:
    """Begin this number of handshakes that fail: other protocols, half a ClientHello, silence; with and without a reset."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

    def one(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 30) as visitor:
            said = (b"GET / HTTP/1.1\r\n\r\n", hello, hello + bytes(600), b"")[number % 4]
            visitor.sendall(said)
            if number % 3 == 0:
                visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


@reactor_test
async def test_many_drop(lab: MischiefLab, embedded: EmbeddedBrokerProcess) -> None:
    """5,000 connections that drop at once, and as many failed handshakes, restart nothing and are no failures."""
    gateway = await lab.gateway(embedded.url, max_connections=MANY + 1000)
    owsla = mischievous(gateway)
    device = await lab.device(gateway)
    sockets: list[ssl.SSLSocket] = await deferToThread(connect, owsla.port, owsla.ca, MANY)
    before = await tree_when(owsla, lambda tree: tree.devices == MANY + 1)
    assert before.restarts == {}
    await in_thread(drop, sockets)
    await gateway.round_trip(device)
    await tree_when(owsla, lambda tree: tree.devices == 1)
    failing = deferToThread(fail_handshakes, owsla.port, MANY)
    served = 0
    while not failing.called:
        await gateway.round_trip(device)
        served += 1
    await failing
    fresh = await lab.device(gateway)
    await gateway.round_trip(fresh)
    after = await tree_when(owsla, lambda tree: tree.devices == 2)
    assert served > 1
    assert (after.restarts, after.failures, after.all_run) == ({}, 0, True)
    assert {path: node["failure"] for path, node in after.nodes.items() if node["failure"]} == {}
    for path, node in after.nodes.items():
        assert node["uptime"] > before.nodes[path]["uptime"], path


@reactor_test
async def test_outage(lab: MischiefLab, embedded: EmbeddedBrokerProcess) -> None:
    """A broker that refuses connections, and then accepts them and hangs, restarts nothing."""
    proxy = await lab.proxy(embedded.port)
    gateway = await lab.gateway(proxy.url, backend=False, heartbeat="2s")
    gateway._backend = await lab.backend(embedded.url, gateway.from_device)
    owsla = mischievous(gateway)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await pause(0.5)  # so that this answer is acknowledged, and does not come again
    await proxy.refuse()
    proxy.cut()
    await pause(10)
    mark = owsla.mark()
    proxy.hold()
    await proxy.start()
    await pause(10)
    during = await tree_of(owsla)
    proxy.cut()
    proxy.held.clear()
    proxy.release()
    await owsla.wait_for_line("Broker connected", 45, start=mark)
    await gateway.round_trip(device)
    for tree in (during, await tree_of(owsla)):
        assert (tree.restarts, tree.failures, tree.all_run, tree.devices) == ({}, 0, True, 1)


# -- The tree command --------------------------------------------------------------------------------------------------


@reactor_test
async def test_looked_at(lab: MischiefLab, embedded: EmbeddedBrokerProcess) -> None:
    """`owsla tree` shows the whole tree, and after a failure the number of restarts and the reason."""
    gateway = await lab.gateway(embedded.url)
    owsla = mischievous(gateway)
    await lab.device(gateway)
    await lab.device(gateway)
    await (await owsla.fail("owsla.device.housekeeping:Housekeeping.tick")).strikes()
    await tree_when(owsla, lambda tree: tree.all_run and tree.restarts == {SOCKETS: 1})
    status, shown, errors = await tree_command("--http", str(await http_port(owsla)))
    assert (status, errors) == (0, "")
    print(shown)
    assert re.sub(r"running \d+\.\d s", "running", shown).replace("5 restarts in 60 s", "OFTEN") == TREE


TREE = """\
owsla (one_for_one, OFTEN): running
├── events (permanent, one_for_one, OFTEN): running
│   ├── console (permanent): running
│   └── duplicates (permanent): running
├── http (permanent): running
├── samples (permanent): running
├── broker (permanent, one_for_one, OFTEN): running
│   ├── courier (permanent): running
│   ├── roster (permanent): running
│   ├── broadcast (permanent): running
│   ├── producer (permanent): running
│   └── consumers (permanent): running
├── listener (permanent, one_for_one, OFTEN): running
│   ├── endpoints (permanent, simple_one_for_one): running, 2 children
│   ├── sockets (permanent): running, restarted once, last: Mischief: mischief 0, in Housekeeping.tick
│   └── port (permanent): running
├── certificate (permanent): running
├── queues (permanent): running
└── reload (permanent): running
"""
