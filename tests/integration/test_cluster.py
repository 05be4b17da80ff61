"""Tests with a cluster of three RabbitMQ nodes on this machine, which are killed while devices send: nothing is lost.

With quorum queues the gateway continues on the two remaining nodes. A classic queue is on one node: while that node is down,
the gateway logs it, waits, and continues when it is back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
import pytest
from pika.exceptions import NackError, UnroutableError

from ._support.books import DEVICE_ACK, AnsweringBackend, Books, Fleet, chosen_seed, clear_up
from ._support.lab import Lab
from ._support.owsla import Owsla
from ._support.process import free_port
from ._support.rabbitmq import Cluster, RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until

QUORUM = {f"{queue}_argument": "x-queue-type=quorum" for queue in ("from_device", "to_device", "undeliverable", "node_queue")}

#: Lines between two faults: some seconds of traffic.
SOME = 300

#: Tenths of a second within which a quorum queue elects a new leader. It takes five.
ELECTION = 300


class TriedRoutes:
    """Publisher for `AnsweringBackend`: the first message to each queue uses a confirm, the rest the transactional channel.

    If a channel uses a quorum queue for the first time while its leader is dead, RabbitMQ 3.10 refuses every publish to that
    queue on that channel until the dead node is back, even after a new leader was elected; and it commits a transaction that
    was refused. So a new connection begins with a confirmed publish, on a channel of its own.
    """

    def __init__(self, channel: Any, returned: Callable[[Any, Any, Any, bytes], None]) -> None:
        """Use `channel` for transactions, and call `returned` for returned messages, with the arguments of pika."""
        self._channel = channel
        self._returned = returned
        self._tried: set[str] = set()

    def basic_publish(self, exchange: str, queue: str, body: bytes, properties: Any, *, mandatory: bool) -> None:
        if queue in self._tried:
            self._channel.basic_publish(exchange, queue, body, properties, mandatory=mandatory)
            return
        for _ in range(ELECTION):
            trial = self._channel.connection.channel()
            trial.confirm_delivery()
            try:
                trial.basic_publish(exchange, queue, body, properties, mandatory=mandatory)
            except UnroutableError as error:
                for message in error.messages:
                    self._returned(trial, message.method, message.properties, message.body)
            except NackError:
                time.sleep(0.1)  # `BlockingConnection.sleep` would process the next lines in the middle of this.
                continue
            else:
                self._tried.add(queue)
            finally:
                trial.close()
            return
        raise AssertionError(f"{queue} refuses everything")


class ClusterBackend(AnsweringBackend):
    """Back end that knows several nodes, and uses no transaction before a queue has a leader."""

    def __init__(self, urls: Sequence[str], from_device: str, to_device: str, seed: int) -> None:
        super().__init__(urls[0], from_device, to_device, seed)
        self._parameters = [pika.URLParameters(url) for url in urls]  # pika tries them in order
        for parameters in self._parameters:
            parameters.heartbeat = 0
            parameters.socket_timeout = 10
            parameters.stack_timeout = 30
        self.reports_arguments = {"x-queue-type": "quorum"}
        self._routes: TriedRoutes | None = None

    def _serve(self) -> None:
        self._routes = None
        super()._serve()

    def _publish(self, channel: Any) -> None:
        if self._routes is None:
            self._routes = TriedRoutes(channel, self._on_return)
        super()._publish(self._routes)


class Run:
    """One Owsla on a cluster, devices, a back end, and their books."""

    def __init__(self, cluster: Cluster, lab: Lab) -> None:
        self.cluster = cluster
        self.lab = lab
        self.seed = chosen_seed()
        name = secrets.token_hex(4)
        self.from_device = f"from_{name}"
        self.to_device = f"to_{name}"
        self.owsla: Owsla
        self._fleet: Fleet | None = None
        self._backend: ClusterBackend | None = None

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    @property
    def backend(self) -> ClusterBackend:
        assert self._backend is not None
        return self._backend

    async def start(self, **options: Any) -> None:
        """Start everything, and wait until each device is served."""
        settings: dict[str, Any] = {
            "broker": self.cluster.urls,
            "from_device": self.from_device,
            "to_device": self.to_device,
            "device_ack": DEVICE_ACK,
            # So that no number is skipped, however long an outage lasts: the missing ones arrive.
            "gap_timeout": "60s",
            "reorder_limit": 5000,
            "prefetch": 20000,
            "drain_spread": "500ms",
        }
        self.owsla = self.lab.new_owsla(**(settings | options))
        await self.owsla.start()
        self._fleet = Fleet(self.lab, self.owsla, seed=self.seed)
        self._backend = ClusterBackend(self.cluster.urls[::-1], self.from_device, self.to_device, self.seed)
        await self.backend.start()
        await self.fleet.start()

    async def kill(self, node: RabbitMQ) -> None:
        """Kill a broker node without a shutdown, under load."""
        await self.fleet.talk(SOME)
        await node.kill()

    async def leader(self, queue: str) -> RabbitMQ:
        """Return the node that leads a quorum queue."""
        for node in self.cluster.nodes:
            if node.running:
                listed = await node.ctl("list_queues", "name", "leader")
                leaders = dict(line.split() for line in listed.splitlines() if line.startswith(f"{queue}\t"))
                return next(node for node in self.cluster.nodes if node.node == leaders[queue])
        raise AssertionError("no node runs")

    async def finish(self, *, in_order: bool) -> Books:
        """Wait until all is quiet, stop Owsla, and compare the books."""
        await self.fleet.hush()
        await self.backend.settled()
        books = Books(self.fleet, self.backend)
        await until(lambda: not books.outstanding(), 60, lambda: f"{books.outstanding()}")
        await self.fleet.stop()
        await self.backend.stop()
        assert len(self.fleet.sessions) == len(self.fleet.devices), "devices stay connected whatever the broker does"
        self.owsla.assert_tidy()
        assert await self.owsla.terminate() == 0, self.owsla.output()
        node = self.cluster.nodes[0]
        names = (await node.ctl("list_queues", "name")).split()
        # The register of nodes holds no messages of the test.
        mine = [name for name in names if name.startswith((self.from_device, self.to_device)) and not name.endswith(".nodes")]
        books.remains = clear_up(node.url, mine, self.from_device, self.to_device)
        differences = books.differences(in_order=in_order)
        assert not differences, "\n".join(differences)
        assert not books.remains.undeliverable
        print(
            f"{self.fleet.said} messages, {len(self.backend.heard)} lines heard, {sum(self.backend.published.values())} answers"
        )
        return books

    async def end(self) -> None:
        """End everything that the lab does not own, and start all nodes again, also after a failure."""
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet.abort()
        if self._backend is not None:
            await self._backend.stop()
        for node in self.cluster.nodes:
            if not node.running:
                await node.start()


@pytest.fixture
def run(cluster: Cluster, lab: Lab) -> Iterator[Run]:
    """Return a run that is not started."""
    run = Run(cluster, lab)
    yield run
    block_on(run.end())


@reactor_test
async def test_quorum_queues_survive(run: Run) -> None:
    """With quorum queues any one node may die under load: the gateway continues, and nothing is lost."""
    await run.start(**QUORUM)
    first, second, _ = run.cluster.nodes
    assert await run.leader(run.from_device) is first, "it was declared there, so the worst is to come"

    # The node to which Owsla is connected, and which leads all of its queues.
    start = run.owsla.mark()
    await run.kill(first)
    await run.owsla.wait_for_line("Broker lost", 30, start=start)
    await run.owsla.wait_for_line(f"Broker connected: .*:{second.port}/", 60, start=start)
    await run.fleet.talk(SOME)
    await run.fleet.hush()  # The other two accept everything, also on a channel that was opened while there was no leader.
    run.fleet.talk_on()
    await first.start()

    # The present leader of the queue of lines, whether or not Owsla is connected to it.
    leader = await run.leader(run.from_device)
    assert leader is not first
    start = run.owsla.mark()
    await run.kill(leader)
    if leader is second:
        await run.owsla.wait_for_line("Broker connected", 60, start=start)
    await run.fleet.talk(SOME)
    await leader.start()
    await run.fleet.talk(SOME)
    # Order is not checked: RabbitMQ refuses lines (nack) while a queue has no leader. If the node of the back end itself died,
    # messages on their way to it are redelivered behind later ones.
    await run.finish(in_order=False)


@reactor_test
async def test_classic_queues_wait(run: Run) -> None:
    """A classic queue is on one node. While that node is down, the gateway logs where it tried to connect and waits; devices
    stay connected.
    """
    await run.start()
    home, *others = run.cluster.nodes
    start = run.owsla.mark()
    await run.kill(home)
    # RabbitMQ 4 answers only after more than a minute: the answer of one node will do.
    for node in others[:1] if await others[0].version() >= (4, 0) else others:
        await run.owsla.wait_for_line(
            rf"Broker unavailable: .*:{node.port}/.*: NOT_FOUND - "
            rf"(home node '{home.node}' of durable queue .* is down|failed to perform operation on queue .* due to timeout)",
            100,
            start=start,
        )
    await pause(2)
    said = run.owsla.lines("Broker unavailable", start=start)
    assert len(said) == len(set(said))
    assert not run.owsla.lines("Broker connected", start=start)
    await home.start()
    await run.owsla.wait_for_line("Broker connected", 60, start=start)
    await run.fleet.talk(SOME)
    await run.finish(in_order=True)


@reactor_test
async def test_the_first_host_is_down(cluster: Cluster, lab: Lab) -> None:
    """If the first of several brokers is down at the start, the next one is used."""
    dead = f"amqp://127.0.0.1:{free_port()}"
    gateway = await lab.gateway(cluster.urls[1], broker=[dead, *cluster.urls[1:]])
    await gateway.round_trip(await lab.device(gateway))
    assert len(gateway.owsla.lines("Broker unavailable")) == 1
