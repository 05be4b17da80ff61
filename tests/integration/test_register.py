"""Tests of the register of nodes: whatever removes notices, they are back within a minute, and lost nodes are announced."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults

from ._support.lab import Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until
from .test_nodes import Nodes

LISTED = 6.0
"""Seconds after which all nodes know the nodes of the register: the registrar lists them every 5 seconds if they change."""

QUORUM = {"node_queue_argument": ["x-queue-type=quorum"]}


class Cluster:
    """Three nodes, of which the first is the registrar; a device is connected to each."""

    def __init__(self, nodes: Nodes, gateways: list[Gateway], names: list[str]) -> None:
        self.nodes = nodes
        self.gateways = gateways
        self.names = names
        self.heard = [nodes]
        """The back ends that get the presence messages: those of several clusters share the queue."""

    @staticmethod
    async def start(lab: Lab, broker: RabbitMQ, policy: Mapping[str, Any] | None = None, **options: Any) -> Cluster:
        """Start the nodes, with a policy for everything of this cluster."""
        prefix = f"to_{secrets.token_hex(4)}"
        if policy is not None:
            await broker.ctl("set_policy", "--apply-to", "all", prefix, f"^{prefix}", json.dumps(policy))
        options["to_device"] = prefix
        nodes = await Nodes.start(lab, broker, 1, **options)
        gateways = [nodes.first, await nodes.another(), await nodes.another()]
        names = [(await nodes.introduce(await lab.device(gateway)))[:8] for gateway in gateways]
        await nodes.registered(3)
        return Cluster(nodes, gateways, names)

    def kill(self, *numbers: int) -> None:
        for number in numbers:
            self.gateways[number].owsla.kill()

    async def lost(self, *numbers: int) -> None:
        """Wait until these nodes are announced as lost, each once, and the notices of the other ones are in the register."""
        names = {self.names[number] for number in numbers}
        await until(lambda: names <= set(self.told()), 60, what=f"node-lost of {names}")
        await self.nodes.registered(3 - len(numbers))
        assert sorted(self.told()) == sorted(names)

    def told(self) -> list[str]:
        """Return the nodes of this cluster that were announced as lost."""
        lost = [message.headers["node"] for nodes in self.heard for message in nodes.lost()]
        return [name for name in lost if name in self.names]

    def timed_out(self) -> list[Gateway]:
        """Return the gateways from which the broker took the notices back."""
        return [gateway for gateway in self.gateways if gateway.owsla.lines("delivery acknowledgement .* timed out")]

    def warnings(self) -> list[str]:
        """Return the warnings of lost notices."""
        return [line for gateway in self.gateways for line in gateway.owsla.lines("notices vanish from")]


@reactor_test
async def test_policies_on_everything(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """Policies that drop what returns to the queues hide neither the end of the registrar, nor that of another node at the same
    moment. The next registrar warns of them once.
    """
    policies: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"message-ttl": 0}, {}),
        ({"max-length": 1, "overflow": "drop-head"}, {}),
        ({"max-length": 1, "overflow": "reject-publish"}, {}),
        ({"delivery-limit": 0}, QUORUM),
    ]
    clusters = [await Cluster.start(lab, own_rabbitmq, policy, **options) for policy, options in policies]
    await pause(LISTED)
    for cluster in clusters:
        cluster.heard = [one.nodes for one in clusters]
        cluster.kill(0, 1)
    await gatherResults([ensureDeferred(cluster.lost(0, 1)) for cluster in clusters])
    assert [len(cluster.warnings()) for cluster in clusters] == [1, 1, 0, 1]
    assert all("message-ttl" in line and cluster.nodes.register in line for cluster in clusters for line in cluster.warnings())


@reactor_test
async def test_notices_that_an_operator_takes(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """While all nodes are suspended, an operator takes one notice without an acknowledgement, and purges the others. The nodes
    that continue are in the register again, and the one that does not is announced as lost.
    """
    cluster = await Cluster.start(lab, own_rabbitmq)
    nodes = cluster.nodes
    await pause(LISTED)
    for gateway in cluster.gateways:
        gateway.owsla.process.signal(signal.SIGSTOP)
    await nodes.when(lambda queues: queues[nodes.register] == (3, 0, 0), "the notices, back in the queue")
    operator = await lab.backend(own_rabbitmq.url)
    taken = await operator.call(lambda channel: channel.basic_get(nodes.register, auto_ack=False))
    assert json.loads(taken[2])["state"] == "here"
    await own_rabbitmq.ctl("purge_queue", nodes.register)
    await nodes.when(lambda queues: queues[nodes.register] == (0, 1, 0), "the notice that the operator holds")
    cluster.kill(1)
    for number in (0, 2):
        cluster.gateways[number].owsla.process.signal(signal.SIGCONT)
    await until(lambda: cluster.names[1] in cluster.told(), 60, what="node-lost")
    await nodes.when(lambda queues: queues[nodes.register] == (0, 3, 2), "two nodes in the register, and a notice elsewhere")
    await operator.close()
    await cluster.lost(1)
    assert len(cluster.warnings()) == 1


@reactor_test
async def test_the_register_is_deleted(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """A node that dies just before the register is deleted is announced as lost, by the node that knew it. The others are in
    the new register.
    """
    cluster = await Cluster.start(lab, own_rabbitmq, node_grace="5s")
    await pause(LISTED)
    cluster.kill(1)
    await own_rabbitmq.ctl("delete_queue", cluster.nodes.register)
    await cluster.lost(1)
    assert cluster.warnings() == []
    assert cluster.gateways[0].owsla.lines(f"the queue {cluster.nodes.register} is gone")


@reactor_test
async def test_consumer_timeouts(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """If the broker takes the notices back every few seconds, and drops them, nodes are still known, and lost ones are
    announced. Two of three nodes are killed: often one of them is the registrar.
    """
    await own_rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
    await own_rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 12000).")
    try:
        cluster = await Cluster.start(lab, own_rabbitmq, {"delivery-limit": 0}, **QUORUM)
        await until(lambda: len(cluster.timed_out()) > 1, 90, what="two registrars whose notices are taken back")
        cluster.kill(0, 1)
        await until(lambda: {*cluster.names[:2]} <= {*cluster.told()}, 60, what="both node-lost")
    finally:
        await own_rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")
        await own_rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
    await cluster.lost(0, 1)
