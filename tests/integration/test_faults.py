"""Faults of every kind while devices send and a back end answers: afterwards the books balance.

Each run has an Owsla, twenty devices that keep unacknowledged lines, and a back end whose answers are shuffled and duplicated
(see `_support.books`). OWSLA_FAULT_SEED repeats the choices of a run, but not its timing.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from ._support.batches import both_ways
from ._support.books import DEVICE_ACK, AnsweringBackend, Books, Fleet, chosen_seed, clear_up
from ._support.lab import Lab
from ._support.owsla import Owsla
from ._support.proxy import Proxy
from ._support.rabbitmq import RabbitMQ, installed
from ._support.waiting import block_on, pause, reactor_test, until

#: Seconds. A third of it would do on an idle machine; on a busy one RabbitMQ itself is sometimes late.
HEARTBEAT = 6

#: Heartbeat of runs in which none is missed.
LONG_HEARTBEAT = "60s"

#: Lines between two faults: some seconds of traffic.
SOME = 300


class Run:
    """One Owsla under faults, its books, and the log lines that the faults must cause."""

    def __init__(self, rabbitmq: RabbitMQ, lab: Lab) -> None:
        self.rabbitmq = rabbitmq
        self.lab = lab
        self.seed = chosen_seed()
        self.rng = random.Random(self.seed)
        name = secrets.token_hex(4)
        self.from_device = f"from_{name}"
        self.to_device = f"to_{name}"
        self.outages = 0
        """Number of broker outages since Owsla was started."""
        self.proxy: Proxy
        self.owsla: Owsla
        self._fleet: Fleet | None = None
        self._backend: AnsweringBackend | None = None

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    @property
    def backend(self) -> AnsweringBackend:
        assert self._backend is not None
        return self._backend

    async def declare(self, queue: str, arguments: dict[str, Any]) -> None:
        """Declare a queue before Owsla does."""
        backend = await self.lab.backend(self.rabbitmq.url)
        await backend.call(lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments))
        await backend.close()

    async def start(self, *, moody: float = 0.0, prefetch: int = 200, withhold: float = 0.3, **options: Any) -> None:
        """Start everything, and wait until each device is served."""
        self.proxy = await self.lab.proxy(self.rabbitmq.port)
        settings: dict[str, Any] = {
            "broker": self.proxy.url,
            "from_device": self.from_device,
            "to_device": self.to_device,
            "device_ack": DEVICE_ACK,
            "heartbeat": f"{HEARTBEAT}s",
            # So that no number is skipped, however long an outage lasts: the missing ones arrive.
            "gap_timeout": "60s",
            "reorder_limit": 5000,
            "prefetch": 20000,
            "drain_spread": "500ms",
        }
        self.owsla = self.lab.new_owsla(**(settings | options))
        await self.owsla.start()
        self._fleet = Fleet(self.lab, self.owsla, seed=self.seed, moody=moody)
        self._backend = AnsweringBackend(
            self.rabbitmq.url, self.from_device, self.to_device, self.seed, prefetch=prefetch, withhold=withhold
        )
        await self.backend.start()
        await self.fleet.start()

    async def faults(self, *faults: Callable[[Run], Awaitable[None]]) -> None:
        """Run these faults in an order that the seed determines, with traffic between them."""
        order = list(faults)
        self.rng.shuffle(order)
        for fault in order:
            print(f"{fault.__name__}")
            await self.fleet.talk(SOME)
            await fault(self)
        await self.fleet.talk(SOME)

    async def recovered(self, start: int) -> None:
        """Wait until Owsla has lost the broker and is connected again. Count the outage."""
        self.outages += 1
        await self.owsla.wait_for_line("Broker lost", 60, start=start)
        await self.owsla.wait_for_line("Broker connected", 90, start=start)

    async def finish(self, *, in_order: bool, skips: bool = False) -> Books:
        """Wait until all is quiet, check that devices are served, stop Owsla, and compare the books."""
        await self.fleet.hush()
        await self.backend.settled()
        books = Books(self.fleet, self.backend)
        try:
            await until(lambda: not books.outstanding(), 1 if skips else 40, lambda: f"{books.outstanding()}")
        except AssertionError as missing:
            if not skips:
                print(missing)  # the books show this and more
        await self._queues_are_empty()
        await self.fleet.stop()
        fresh = await self.lab.device(self.owsla)
        fresh.send_line(b"fresh 0 0 ")
        await fresh.lines.find(lambda line: line == b"re fresh 0 0", 30)
        await self.backend.stop()
        self.backend.heard = [heard for heard in self.backend.heard if not heard[2].startswith(b"fresh")]
        self.check_log()
        assert await self.owsla.terminate() == 0, self.owsla.output()
        names = (await self.rabbitmq.ctl("list_queues", "name")).split()
        mine = [name for name in names if name.startswith((self.from_device, self.to_device))]
        books.remains = clear_up(self.rabbitmq.url, mine, self.from_device, self.to_device)
        differences = books.differences(in_order=in_order, skips=skips)
        assert not differences, "\n".join(differences)
        print(f"{self.fleet.said} messages, {len(self.fleet.sessions)} connections, {len(self.backend.heard)} lines heard, ")
        print(
            f"{sum(self.backend.published.values())} answers, {len(books.remains.undeliverable)} on record, "
            f"{len(books.remains.stranded)} in the queues of nodes that were killed"
        )
        return books

    async def _queues_are_empty(self) -> None:
        """Wait until the queues of lines and of the live node hold no messages, ready or unacknowledged."""
        node = self.backend.heard[-1][0][:8]
        lines = {self.from_device, self.to_device, f"{self.to_device}.{node}"}
        for _ in range(150):
            listed = await self.rabbitmq.ctl("list_queues", "name", "messages")
            counts = {name: int(count) for name, count in (line.split() for line in listed.splitlines())}
            left = {name: count for name, count in counts.items() if count and name in lines}
            if not left:
                return
            await pause(0.3)
        raise AssertionError(f"left in queues: {left}")

    async def end(self) -> None:
        """End everything that the lab does not own, also after a failure."""
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet.abort()
        if self._backend is not None:
            await self._backend.stop()

    def check_log(self) -> None:
        """Check that each outage was logged once, and that no exception was unhandled."""
        self.owsla.assert_tidy()
        lost = self.owsla.lines("Broker lost")
        assert len(lost) == self.outages, "\n".join(lost)


@pytest.fixture(scope="module")
def rough_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ that closes channels with unacknowledged deliveries when it checks them (once a minute)."""
    if not installed():
        pytest.skip("no RabbitMQ is installed")
    node = RabbitMQ(tmp_path_factory.mktemp("rough-rabbitmq"), config="consumer_timeout = 1\n")
    try:
        block_on(node.start())
        yield node
    finally:
        block_on(node.close())


@pytest.fixture
def run(rough_rabbitmq: RabbitMQ, lab: Lab) -> Iterator[Run]:
    """Return a run that is not started."""
    run = Run(rough_rabbitmq, lab)
    yield run
    block_on(run.end())


# -- Faults that refuse nothing ----------------------------------------------------------------------------------------


async def broker_killed(run: Run) -> None:
    """Kill RabbitMQ without a shutdown, and start it again."""
    start = run.owsla.mark()
    await run.rabbitmq.kill()
    await run.owsla.wait_for_line("Broker lost", start=start)
    await run.rabbitmq.start()
    await run.recovered(start)


async def broker_stopped(run: Run) -> None:
    """Stop RabbitMQ (SIGSTOP) until Owsla has noticed, then continue it."""
    start = run.owsla.mark()
    run.rabbitmq.pause()
    try:
        await run.owsla.wait_for_line("Broker lost", 6 * HEARTBEAT, start=start)
        await pause(HEARTBEAT)  # each of its connections has noticed
    finally:
        run.rabbitmq.resume()
    await run.recovered(start)


async def broker_hiccup(run: Run) -> None:
    """Stop RabbitMQ for a time that is too short to be noticed."""
    run.rabbitmq.pause()
    await pause(0.3)
    run.rabbitmq.resume()


async def connections_cut(run: Run) -> None:
    """Reset all TCP connections to the broker, twice."""
    for _ in range(2):
        await pause(run.rng.random())
        start = run.owsla.mark()
        run.proxy.cut()
        await run.recovered(start)


async def one_connection_cut(run: Run) -> None:
    """Reset one TCP connection to the broker, at random.

    Not that of the role `broadcast`, which Owsla can do without: its loss alone is not the loss of the broker.
    """
    start = run.owsla.mark()
    listed = await run.rabbitmq.ctl("list_connections", "peer_port", "client_properties")
    optional = {int(line.split("\t")[0]) for line in listed.splitlines() if "broadcast" in line}
    run.rng.choice([side for side in run.proxy.servers if side.port not in optional]).abort()
    await run.recovered(start)


async def alarm(run: Run) -> None:
    """Raise the memory alarm of RabbitMQ, which blocks publishers."""
    start = run.owsla.mark()
    await run.rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        await run.owsla.wait_for_line("Broker blocked", 30, start=start)
        await pause(1)
    finally:
        await run.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    await run.owsla.wait_for_line("Broker unblocked", 30, start=start)
    assert len(run.owsla.lines("Broker blocked", start=start)) == 1


async def consumer_channels_closed(run: Run) -> None:
    """Let RabbitMQ close consumer channels of Owsla with deliveries not acknowledged within `consumer_timeout`."""
    start = run.owsla.mark()
    listed = await run.rabbitmq.ctl("list_consumers", "queue_name", "channel_pid")
    consumers = [line.split() for line in listed.splitlines()]
    # Close each channel only once.
    pids = sorted({pid for queue, pid in consumers if queue.startswith(run.to_device) and not queue.endswith("_reports")})
    chosen = run.rng.sample(pids, run.rng.randint(1, len(pids)))
    looks = ", ".join(f'rabbit_misc:string_to_pid("{pid}") ! tick' for pid in chosen)
    for _ in range(100):
        await run.rabbitmq.ctl("eval", f"{looks}, ok.")
        await pause(0.3)
        if run.owsla.lines("a consumer of .* ended|the register of nodes, .*, cannot be used", start=start):
            return
    raise AssertionError("no channel was closed")


@both_ways
@reactor_test
async def test_outages(run: Run) -> None:
    """In any outage of the broker nothing is lost, nothing is out of order, and each outage is logged once."""
    await run.start()
    await run.faults(
        broker_killed, broker_stopped, broker_hiccup, connections_cut, one_connection_cut, alarm, consumer_channels_closed
    )
    books = await run.finish(in_order=True)
    assert len(run.fleet.sessions) == len(run.fleet.devices), "devices stay connected whatever the broker does"
    assert not books.remains.undeliverable


# -- Faults in which the broker refuses --------------------------------------------------------------------------------


async def from_device_deleted(run: Run) -> None:
    """Delete from_device while it is empty: lines are returned, and the queue is declared again.

    No device sends at that time: RabbitMQ confirms messages that reach a queue at the moment of its deletion, and drops them.
    """
    start = run.owsla.mark()
    before = run.backend.connections
    await run.fleet.hush()
    await _delete_when_empty(run, run.from_device)
    run.fleet.talk_on()
    await run.owsla.wait_for_line("Broker refused .* lines?", 30, start=start)
    await until(lambda: run.backend.connections > before, 30, "from_device to be there again")
    # A nack of a queue that was full may still have been on its way.
    refusals = run.owsla.lines("Broker refused .*there is no queue", start=start)
    assert len(refusals) == 1, refusals


async def to_device_deleted(run: Run) -> None:
    """Delete to_device while it is empty: its consumers are cancelled, and it is declared again."""
    start = run.owsla.mark()
    await run.fleet.hush()
    await run.backend.settled()
    books = Books(run.fleet, run.backend)
    await until(lambda: not books.outstanding(), 30, lambda: f"{books.outstanding()}")
    await _delete_when_empty(run, run.to_device)
    run.fleet.talk_on()
    await _consumed_again(run, run.to_device)
    await run.fleet.talk(SOME)
    # The same warning is not repeated within a minute.
    assert run.owsla.lines("a consumer of .* ended")
    assert len(run.owsla.lines("a consumer of .* ended", start=start)) <= 1


async def _consumed_again(run: Run, queue: str) -> None:
    """Wait until a queue that was deleted exists and has a consumer."""

    def consumers() -> int:
        connection = pika.BlockingConnection(pika.URLParameters(run.rabbitmq.url))
        try:
            return int(connection.channel().queue_declare(queue, passive=True).method.consumer_count)
        except ChannelClosedByBroker:
            return 0
        finally:
            if connection.is_open:
                connection.close()

    for _ in range(300):
        if await deferToThread(consumers):
            return
        await pause(0.1)
    raise AssertionError(f"{queue} has no consumer again")


async def _delete_when_empty(run: Run, queue: str) -> None:
    def delete() -> bool:
        connection = pika.BlockingConnection(pika.URLParameters(run.rabbitmq.url))
        try:
            connection.channel().queue_delete(queue, if_empty=True)
        except ChannelClosedByBroker:
            return False
        finally:
            if connection.is_open:
                connection.close()
        return True

    for _ in range(200):
        if await deferToThread(delete):
            return
        await pause(0.02)
    raise AssertionError(f"{queue} is never empty")


async def from_device_full(run: Run) -> None:
    """Let from_device fill until it refuses messages, then consume it."""
    start = run.owsla.mark()
    run.backend.gate.clear()
    try:
        await run.owsla.wait_for_line("Broker refused .* lines?", 30, start=start)
        await pause(1)
        assert len(run.owsla.lines("Broker refused", start=start)) == 1
    finally:
        run.backend.gate.set()


@both_ways
@reactor_test
async def test_refusals(run: Run) -> None:
    """With full or deleted queues, and outages in the meantime, no acknowledged line is lost and none is duplicated."""
    await run.declare(run.from_device, {"x-max-length": 150, "x-overflow": "reject-publish"})
    await run.start(prefetch=30, heartbeat=LONG_HEARTBEAT)
    await run.faults(from_device_full, to_device_deleted, connections_cut)
    # Declared again without arguments, the queue refuses nothing.
    await run.faults(from_device_deleted, one_connection_cut)
    await run.faults(from_device_deleted, to_device_deleted)
    books = await run.finish(in_order=False)
    assert len(run.fleet.sessions) == len(run.fleet.devices), "devices stay connected whatever the broker does"
    assert not books.remains.undeliverable


# -- Sudden ends, and answers that come late ---------------------------------------------------------------------------


async def owsla_killed(run: Run) -> None:
    """Kill Owsla, and start it again: devices reconnect, and repeat their unacknowledged lines."""
    run.check_log()
    run.fleet.owsla_died(run.owsla)
    run.owsla.kill()
    run.outages = 0
    await run.owsla.start()


@both_ways
@reactor_test
async def test_sudden_ends(run: Run) -> None:
    """When Owsla is killed and devices reset their connections all the time, each acknowledged line is published once per
    number.
    """
    await run.start(moody=0.03)
    await run.faults(owsla_killed, owsla_killed, one_connection_cut)
    books = await run.finish(in_order=True)
    assert len(run.fleet.sessions) > 3 * len(run.fleet.devices)
    reasons = {reason for _, reason in books.remains.undeliverable}
    assert reasons <= {"unknown-connection", "connection-closed"}


async def worker_killed(run: Run) -> None:
    """Kill one of several workers: it is restarted, its devices reconnect, and all other devices stay connected."""
    output = run.owsla.output()
    name = run.rng.choice(("worker-1", "worker-2"))
    pid = int(re.findall(rf"{name} is process (\d+)", output)[-1])
    node = re.findall(rf"{name}#info\] This is node (\w+)", output)[-1]
    ids, _ = Books(run.fleet, run.backend).connections()
    for session in run.fleet.sessions:
        if session.open and ids.get(session.name, node)[:8] == node:
            session.uncertain = session.killed = True
    mark = run.owsla.mark()
    os.kill(pid, signal.SIGKILL)
    await run.owsla.wait_for_line(rf"{name}#info\] Listening", 30, start=mark)


@both_ways
@reactor_test
async def test_a_worker_is_killed(run: Run) -> None:
    """When workers are killed under load, acknowledged lines are published in order, and only devices of those workers
    reconnect.
    """
    await run.start(workers=2)
    await run.faults(worker_killed, one_connection_cut, worker_killed, worker_killed)
    # A device of the last killed worker may not have noticed yet.
    await until(lambda: all(session.open or session.killed for session in run.fleet.sessions), what="only those of the killed")
    assert any(session.killed for session in run.fleet.sessions)
    books = await run.finish(in_order=True)
    assert {reason for _, reason in books.remains.undeliverable} <= {"unknown-connection", "connection-closed"}
    assert not books.remains.stranded, "what was in the queue of a killed worker's node is left there"


@reactor_test
async def test_late_answers(run: Run) -> None:
    """Answers that are missing for longer than --gap-timeout are skipped, and recorded when they arrive."""
    await run.start(gap_timeout="100ms", withhold=0.8, heartbeat=LONG_HEARTBEAT)
    await run.faults(one_connection_cut, consumer_channels_closed)
    books = await run.finish(in_order=True, skips=True)
    assert {reason for _, reason in books.remains.undeliverable} == {"late"}


# -- What the broker's memory alarm does to devices --------------------------------------------------------------------


@reactor_test
async def test_idle_while_blocked(rough_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """While the broker is blocked, devices are not closed as idle, and their lines arrive afterwards."""
    gateway = await lab.gateway(rough_rabbitmq.url, idle_timeout="1s")
    device = await lab.device(gateway)
    start = gateway.owsla.mark()
    connection_id = await gateway.introduce(device)
    alarm = ensureDeferred(rough_rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001"))
    try:
        # Send until the broker blocks: an idle device would be closed before that. The broker sends `connection.blocked` only
        # to connections that publish.
        for _ in range(300):
            if gateway.owsla.lines("Broker blocked", start=start):
                break
            device.send_line(b"does it block?")
            await pause(0.1)
        else:
            raise AssertionError("the broker did not block")
        await alarm
        device.send_line(b"while blocked")
        await pause(3)
        assert device.is_open
    finally:
        await rough_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    await gateway.owsla.wait_for_line("Broker unblocked", 30, start=start)
    message = await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"while blocked", 30)
    assert message.connection_id == connection_id
    assert not gateway.owsla.lines("Device disconnected")
