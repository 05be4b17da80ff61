"""Tests of what RabbitMQ does to queues by its own rules: policies, delivery limits, types by default, deprecated features.

They hold for RabbitMQ 3.10 and 4.0. What only one of them has is skipped on the other.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ._support.backend import Message
from ._support.certificates import Authority
from ._support.commands import Commands
from ._support.lab import Lab
from ._support.owsla import Owsla
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ, installed
from ._support.waiting import block_on, pause, reactor_test, until

LIMIT = 20
"""Returns after which RabbitMQ 4 drops a message of a quorum queue, unless told otherwise."""

NAMES: dict[str, Any] = {"from_device": "from_device", "to_device": "to_device"}
"""Queues of a gateway that has a virtual host of its own."""

_SECRET = "let-me-in"


class Managed:
    """A RabbitMQ with the management plugin."""

    def __init__(self, folder: Path, *, config: str = "") -> None:
        self.management = free_port()
        listener = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management}\n"
        soon = "collect_statistics_interval = 1000\n"
        self.node = RabbitMQ(folder, config=listener + soon + config, plugins=["rabbitmq_management"])
        self.version = (0, 0)

    async def start(self) -> None:
        await self.node.start()
        self.version = await self.node.version()

    async def vhost(self, **metadata: str) -> Vhost:
        """Make a virtual host with a user that has the tag `management`."""
        vhost = Vhost(self, secrets.token_hex(4))
        options = [text for name, value in metadata.items() for text in (f"--{name.replace('_', '-')}", value)]
        await self.node.ctl("add_vhost", vhost.name, *options)
        await self.node.ctl("add_user", vhost.name, _SECRET)
        await self.node.ctl("set_user_tags", vhost.name, "management")
        await self.node.ctl("set_permissions", "-p", vhost.name, vhost.name, ".*", ".*", ".*")
        return vhost


class Vhost:
    """A virtual host, and its user of the same name."""

    def __init__(self, managed: Managed, name: str) -> None:
        self.managed = managed
        self.name = name
        self.url = self.url_at(managed.node.port)
        self.management = f"http://127.0.0.1:{managed.management}"

    def url_at(self, port: int) -> str:
        return f"amqp://{self.name}:{_SECRET}@127.0.0.1:{port}/{self.name}"

    async def set_policy(
        self, name: str, pattern: str, *, command: str = "set_policy", apply_to: str = "queues", **rules: Any
    ) -> None:
        definition = json.dumps({key.replace("_", "-"): value for key, value in rules.items()})
        await self.managed.node.ctl(command, "-p", self.name, name, pattern, definition, "--apply-to", apply_to)

    async def clear_policy(self, name: str) -> None:
        await self.managed.node.ctl("clear_policy", "-p", self.name, name)

    async def arguments(self, queue: str) -> str:
        """Return the arguments of a queue, as RabbitMQ lists them."""
        listed = await self.managed.node.ctl("list_queues", "-p", self.name, "name", "arguments")
        return next(line.split("\t", 1)[1] for line in listed.splitlines() if line.startswith(f"{queue}\t"))


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Managed]:
    request.getfixturevalue("own_rabbitmq") if not installed() else None  # which skips or fails the test
    managed = Managed(tmp_path_factory.mktemp("managed"))
    try:
        block_on(managed.start())
        yield managed
    finally:
        block_on(managed.node.close())


@pytest.fixture
def vhost(managed: Managed) -> Iterator[Vhost]:
    vhost = block_on(managed.vhost())
    yield vhost
    block_on(managed.node.ctl("delete_vhost", vhost.name))
    block_on(managed.node.ctl("delete_user", vhost.name))


def warnings(owsla: Owsla) -> list[str]:
    """Return the warnings about rules of queues, without what is before them."""
    return [line.split("Broker: ", 1)[1] for line in owsla.lines(r"Broker: .*(; remedy: |policies of queues)")]


# -- Policies ----------------------------------------------------------------------------------------------------------


@reactor_test
async def test_blanket_policy(vhost: Vhost, lab: Lab) -> None:
    """A policy that breaks promises is named at the start: a line for each queue and rule. Devices are served meanwhile."""
    await vhost.set_policy("blanket", ".*", message_ttl=3_600_000, max_length=1000)
    await vhost.set_policy("theirs", "^to_device$", command="set_operator_policy", expires=7_200_000)
    gateway = await lab.gateway(
        vhost.url, **NAMES, broker_management=vhost.management, events=["console", "amqp"]
    )
    owsla = gateway.owsla
    await gateway.round_trip(await lab.device(gateway))
    more = [r"to_device\.[0-9a-f]{8}", "to_device.nodes", "to_device.undeliverable", "connection_events"]
    queues = ["from_device", "to_device", *more]
    for queue in queues:
        by = "policy 'blanket' or operator policy 'theirs'" if queue == "to_device" else "policy 'blanket'"
        await owsla.wait_for_line(f"Broker: {queue}: {by} sets message-ttl=3600000: .*; remedy: ", 60)
        if queue != "to_device.undeliverable":  # it has reject-publish as its argument
            await owsla.wait_for_line(f"Broker: {queue}: {by} sets max-length=1000: .*; remedy: ")
    await owsla.wait_for_line("Broker: to_device: .* sets expires=7200000: RabbitMQ deletes the queue")
    assert len(warnings(owsla)) == 2 * len(queues), "\n".join(warnings(owsla))
    assert _SECRET not in owsla.output()
    assert "actory" not in owsla.output(), "Twisted's own lines about connections"


@reactor_test
async def test_no_policy(vhost: Vhost, lab: Lab) -> None:
    """Where nothing breaks a promise, one line says so."""
    await vhost.set_policy("harmless", ".*", max_length=1_000_000, overflow="reject-publish")
    owsla = lab.new_owsla(broker=vhost.url, broker_management=vhost.management)
    await owsla.start()
    await owsla.wait_for_line(f"Policies checked at {vhost.management}: none breaks a promise", 60)
    assert warnings(owsla) == []


@reactor_test
async def test_looked_at_again(vhost: Vhost, lab: Lab) -> None:
    """A policy that is set later is noticed with the next connection, and each fault is reported once."""
    proxy = await lab.proxy(vhost.managed.node.port)
    gateway = await lab.gateway(vhost.url_at(proxy.port), backend=False, broker_management=vhost.management)
    owsla = gateway.owsla
    checked = "Policies checked at .*: none breaks a promise"
    await owsla.wait_for_line(checked, 60)
    await vhost.set_policy("blanket", f"^{gateway.to_device}$", message_ttl=3_600_000)

    async def reconnect_until(condition: Callable[[], object]) -> None:
        for _ in range(30):  # RabbitMQ shows a policy some seconds later
            start = owsla.mark()
            proxy.cut()
            await owsla.wait_for_line("Broker connected", 60, start=start)
            if condition():
                return
            await pause(0.5)
        raise AssertionError(owsla.output())

    await reconnect_until(lambda: warnings(owsla))
    start = owsla.mark()
    await vhost.clear_policy("blanket")
    await reconnect_until(lambda: owsla.lines(checked, start=start))
    assert len(warnings(owsla)) == 1


@reactor_test
async def test_workers(vhost: Vhost, lab: Lab) -> None:
    """Several workers have one line for each fault."""
    await vhost.set_policy("blanket", "^to_device$", message_ttl=3_600_000)
    gateway = await lab.gateway(
        vhost.url, **NAMES, broker_management=vhost.management, workers=2
    )
    await gateway.owsla.wait_for_line("Broker: to_device: policy 'blanket' sets message-ttl", 60)
    await pause(2)
    assert len(warnings(gateway.owsla)) == 1


@reactor_test
async def test_management_api_comes_late(vhost: Vhost, lab: Lab) -> None:
    """A management API that is not there, refuses the user, or never answers, is named once, and delays nothing. Policies are
    looked at once it answers.
    """
    await vhost.set_policy("blanket", "^to_device$", message_ttl=3_600_000)
    proxy = await lab.proxy(vhost.managed.management)
    await proxy.refuse()
    owsla = lab.new_owsla(
        broker=vhost.url, **NAMES, broker_management=f"http://127.0.0.1:{proxy.port}"
    )
    await owsla.start()
    await owsla.wait_for_line(
        rf"policies of queues are not checked, trying again: http://127.0.0.1:{proxy.port}: Connection refused", 30
    )
    await proxy.start()
    await owsla.wait_for_line("Broker: to_device: policy 'blanket' sets message-ttl", 60)
    assert len(warnings(owsla)) == 2
    proxy.hold()
    silent = lab.new_owsla(broker=vhost.url, broker_management=f"http://127.0.0.1:{proxy.port}")
    await silent.start()
    assert await silent.terminate() == 0, "a stop does not wait for the answer either"
    stranger = f"http://nobody:{_SECRET}@127.0.0.1:{vhost.managed.management}"
    refused = lab.new_owsla(broker=vhost.url, broker_management=stranger)
    await refused.start()
    await refused.wait_for_line(r"http://nobody@127.0.0.1:\d+ refuses the user nobody \(401\): wrong password, or the", 30)
    assert _SECRET not in refused.output()


@reactor_test
async def test_user_without_the_tag(vhost: Vhost, lab: Lab) -> None:
    """A user of the broker without the tag `management` is told what is missing."""
    await vhost.managed.node.ctl("set_user_tags", vhost.name)
    owsla = lab.new_owsla(broker=vhost.url, broker_management=vhost.management)
    await owsla.start()
    await owsla.wait_for_line(f"lacks the tag management .rabbitmqctl set_user_tags {vhost.name} management", 30)


@reactor_test
async def test_over_tls(vhost: Vhost, lab: Lab) -> None:
    """With https the certificate is verified with the authorities for the broker."""
    authority = Authority(lab.folder / "authority")
    await vhost.set_policy("blanket", "^to_device$", message_ttl=3_600_000)
    proxy = await lab.proxy(vhost.managed.management, authority.issue("management"))
    for trusted, line in (
        (authority, "Broker: to_device: policy 'blanket' sets message-ttl"),
        (Authority(lab.folder / "other"), "policies of queues are not checked.*refused: its authority is not trusted"),
    ):
        owsla = lab.new_owsla(
            broker=vhost.url,
            from_device="from_device",
            to_device="to_device",
            broker_ca=trusted.ca,
            broker_management=f"https://localhost:{proxy.port}",
        )
        await owsla.start()
        await owsla.wait_for_line(line, 60)
        assert await owsla.terminate() == 0


@reactor_test
async def test_check(vhost: Vhost, lab: Lab) -> None:
    """`twistd owsla --check` finds the same: in policies with the management API, in arguments without it."""
    backend = await lab.backend(vhost.url)
    await backend.call(lambda channel: channel.queue_declare("from_device", durable=True, arguments={"x-max-length": 5}))
    await backend.call(lambda channel: channel.queue_declare("to_device", durable=True))
    await vhost.set_policy("blanket", "^to_device$", message_ttl=3_600_000)

    async def check(*options: str) -> str:
        argv = ["owsla", "--check", f"--broker={vhost.url}", f"--certs-dir={lab.certs_dir}", *options]
        owsla = lab.new_owsla(argv=argv)
        owsla.launch()
        assert await owsla.exited(60) == 0, owsla.output()
        assert _SECRET not in owsla.output()
        return owsla.output()

    output = await check()
    assert re.search(r"^skip  policies +not checked without --broker-management", output, re.MULTILINE), output
    assert re.search(r"^warn  policies +from_device: its argument x-max-length=5: ", output, re.MULTILINE), output
    assert "blanket" not in output
    for _ in range(20):
        output = await check(f"--broker-management={vhost.management}")
        if "does not show them, or not yet" not in output:
            break
        await pause(1)
    assert re.search(r"^warn  policies +from_device: its argument x-max-length=5: ", output, re.MULTILINE), output
    assert re.search(r"^warn  policies +to_device: policy 'blanket' sets message-ttl=3600000: ", output, re.MULTILINE), output
    output = await check(f"--broker-management=http://127.0.0.1:{free_port()}")
    assert re.search(r"^warn  policies +not checked: http://127.0.0.1:\d+: Connection refused", output, re.MULTILINE), output


# -- Delivery limits ---------------------------------------------------------------------------------------------------


def quorum(vhost: Vhost) -> dict[str, Any]:
    """Return the arguments of a quorum queue with the delivery limit that RabbitMQ 4 has by default."""
    return {"x-queue-type": "quorum"} | ({} if vhost.managed.version >= (4, 0) else {"x-delivery-limit": LIMIT})


async def return_often(lab: Lab, vhost: Vhost, queue: str) -> None:
    """Consume a queue, and lose the connection without an acknowledgement, one time more than the limit allows."""
    for _ in range(LIMIT + 1):
        consumer = await lab.backend(vhost.url)
        got: list[bytes] = []

        def consume(channel: Any, got: list[bytes] = got) -> None:
            channel.basic_consume(queue, lambda channel, method, properties, body: got.append(body))

        await consumer.call(consume)
        await until(lambda got=got: bool(got), what="the message, again")  # type: ignore[misc]
        await consumer.close()


async def declare(lab: Lab, vhost: Vhost, queue: str, arguments: dict[str, Any]) -> None:
    backend = await lab.backend(vhost.url)
    await backend.call(lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments))
    await backend.close()


@reactor_test
async def test_default_limit(vhost: Vhost, lab: Lab) -> None:
    """A message that came back 21 times is gone, in the queue as RabbitMQ declares it by default. Owsla names that at the
    start, with the remedy, over AMQP too.
    """
    await declare(lab, vhost, "to_device", quorum(vhost))
    backend = await lab.backend(vhost.url)
    await backend.publish("to_device", b"unlucky", {"connection_id": "00000000-0000-8000-8000-000000000000"})
    await return_often(lab, vhost, "to_device")
    assert await backend.fetch("to_device") is None
    gateway = await lab.gateway(
        vhost.url, **NAMES, to_device_argument="x-queue-type=quorum"
    )
    default, argument = "quorum queues have a delivery-limit of 20", "its argument x-delivery-limit=20"
    limit = default if vhost.managed.version >= (4, 0) else argument
    await gateway.owsla.wait_for_line(f"Broker: to_device: {limit}.*: after that many returns.*; remedy: ", 30)
    assert len(warnings(gateway.owsla)) == 1
    assert gateway.backend.inbox[gateway.undeliverable].clear() == []


@pytest.mark.parametrize("safe", [False, True], ids=["at-most-once", "at-least-once"])
@reactor_test
async def test_dead_letters(vhost: Vhost, lab: Lab, safe: bool) -> None:
    """With dead letters to the undeliverable queue, such a message is readable there, with the reason of RabbitMQ."""
    await declare(lab, vhost, "to_device", quorum(vhost))
    rules = {"dead_letter_exchange": "", "dead_letter_routing_key": "to_device.undeliverable"}
    rules |= {"dead_letter_strategy": "at-least-once", "overflow": "reject-publish"} if safe else {}
    await vhost.set_policy("dead", "^to_device$", **rules)
    owsla = lab.new_owsla(
        broker=vhost.url, to_device="to_device", to_device_argument="x-queue-type=quorum", broker_management=vhost.management
    )
    await owsla.start()  # it declares the undeliverable queue
    await owsla.wait_for_line("Policies checked at .*: none breaks a promise", 60)
    assert await owsla.terminate() == 0
    backend = await lab.backend(vhost.url)
    headers = {"connection_id": "00000000-0000-8000-8000-000000000000", "to_device_seq": 7}
    await backend.publish("to_device", b"unlucky", headers)
    await return_often(lab, vhost, "to_device")
    record = await fetch(backend, "to_device.undeliverable")
    assert record.body == b"unlucky"
    assert {key: record.headers[key] for key in headers} == headers
    assert "owsla_reason" not in record.headers
    assert record.headers["x-first-death-reason"] == "delivery_limit"
    assert record.headers["x-first-death-queue"] == "to_device"


async def fetch(backend: Any, queue: str) -> Message:
    """Take a message that arrives soon."""
    for _ in range(150):
        message: Message | None = await backend.fetch(queue)
        if message is not None:
            return message
        await pause(0.1)
    raise AssertionError(f"nothing in {queue}")


@reactor_test
async def test_no_limit(vhost: Vhost, lab: Lab) -> None:
    """A message that Owsla holds for a missing number survives 21 lost connections of the consumers, and is written to its
    device once and in order. Nothing is said about the queues.
    """
    if vhost.managed.version >= (4, 0):
        await vhost.set_policy("no-limit", "^to_device", apply_to="quorum_queues", delivery_limit=-1)
    options: dict[str, Any] = {
        f"{name}_argument": "x-queue-type=quorum" for name in ("from_device", "to_device", "undeliverable", "node_queue")
    }
    gateway = await lab.gateway(
        vhost.url,
        **NAMES,
        gap_timeout="1h",
        broker_management=vhost.management,
        **options,
    )
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await gateway.backend.publish("to_device", b"second", {"connection_id": connection_id, "to_device_seq": 1})
    node = vhost.managed.node
    for _ in range(LIMIT + 1):
        start = gateway.owsla.mark()
        await held(node, vhost)
        await cut_consumers(node, vhost)
        await gateway.owsla.wait_for_line("Broker connected", 60, start=start)
    await held(node, vhost)
    await gateway.backend.publish("to_device", b"first", {"connection_id": connection_id, "to_device_seq": 0})
    assert [await device.line(), await device.line()] == [b"first", b"second"]
    assert gateway.backend.inbox[gateway.undeliverable].clear() == []
    assert warnings(gateway.owsla) == []


async def held(node: RabbitMQ, vhost: Vhost) -> str:
    """Wait until the consumers hold the message of to_device. Return their channel."""
    for _ in range(300):
        listed = await node.ctl("list_channels", "pid", "vhost", "messages_unacknowledged", "consumer_count")
        for line in listed.splitlines():
            channel, *rest = line.split("\t")
            if rest == [vhost.name, "1", "8"]:
                return channel
        await pause(0.1)
    raise AssertionError(listed)


async def cut_consumers(node: RabbitMQ, vhost: Vhost) -> None:
    """Close the connection of Owsla that consumes to_device."""
    listed = await node.ctl("list_connections", "pid", "vhost", "client_properties")
    pids = [line.split("\t")[0] for line in listed.splitlines() if vhost.name in line and " consumers (" in line]
    assert len(pids) == 1, listed
    await node.ctl("close_connection", pids[0], "the test cuts it")


# -- Types by default, consumer time-outs ------------------------------------------------------------------------------


@pytest.fixture
def four(managed: Managed) -> Managed:
    """Return a RabbitMQ 4."""
    if managed.version < (4, 0):
        pytest.skip(f"RabbitMQ {managed.version[0]}.{managed.version[1]} does not have this")
    return managed


@reactor_test
async def test_quorum_by_default(four: Managed, lab: Lab) -> None:
    """Where quorum queues are the default of the virtual host, everything works. The queues of Owsla have no delivery limit;
    that of to_device, which back ends declare too, is named.
    """
    vhost = await four.vhost(default_queue_type="quorum")
    gateway = await lab.gateway(
        vhost.url,
        **NAMES,
        broker_management=vhost.management,
        events=["console", "amqp"],
    )
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await gateway.send("00000000-0000-8000-8000-000000000000", b"nobody")
    assert (await gateway.refused(30)).headers["owsla_reason"] == "unknown-connection"
    connection_id = await gateway.introduce(device)
    node = connection_id[:8]
    for queue in (f"to_device.{node}", "to_device.nodes", "to_device.undeliverable"):
        arguments = await vhost.arguments(queue)
        assert '"x-queue-type","quorum"' in arguments
        assert '"x-delivery-limit",-1' in arguments
    for queue in ("from_device", "to_device", "connection_events"):
        arguments = await vhost.arguments(queue)
        assert '"x-queue-type","quorum"' in arguments
        assert "x-delivery-limit" not in arguments
    await gateway.owsla.wait_for_line("Broker: to_device: quorum queues have a delivery-limit of 20 by default: ", 60)
    await pause(2)
    assert len(warnings(gateway.owsla)) == 1
    second = await lab.gateway(vhost.url, backend=False, **NAMES)
    assert second.owsla.lines("used as it is") == []
    mark = second.owsla.mark()
    gateway.owsla.kill()
    await second.owsla.wait_for_line(f"Node lost: {node}", 60, start=mark)


@reactor_test
async def test_a_stream(managed: Managed, vhost: Vhost, lab: Lab) -> None:
    """Lines go to a stream like to any queue, and are acknowledged when it has them."""
    gateway = await lab.gateway(
        vhost.url,
        backend=False,
        **NAMES,
        from_device_argument="x-queue-type=stream",
        device_ack="ACK {seq}",
        broker_management=vhost.management,
    )
    device = await lab.device(gateway)
    device.send_line(b"one")
    assert await device.line() == b"ACK 0"
    device.send_line(b"two")
    assert await device.line() == b"ACK 1"
    backend = await lab.backend(vhost.url)
    got: list[bytes] = []

    def consume(channel: Any) -> None:
        channel.basic_qos(prefetch_count=10)
        take = lambda channel, method, properties, body: got.append(body)  # noqa: E731
        channel.basic_consume("from_device", take, arguments={"x-stream-offset": "first"})

    await backend.call(consume)
    await until(lambda: len(got) == 2, what="both lines")
    assert got == [b"one", b"two"]
    assert warnings(gateway.owsla) == []


@reactor_test
async def test_consumer_timeout_of_a_queue(four: Managed, vhost: Vhost, lab: Lab) -> None:
    """A short consumer time-out of one queue closes the channel that holds a message. Owsla consumes again, once for each
    time-out; the message is written once, and the fault is named.
    """
    await vhost.set_policy("hasty", "^to_device$", consumer_timeout=1000)
    gateway = await lab.gateway(
        vhost.url, **NAMES, gap_timeout="1h", broker_management=vhost.management
    )
    owsla = gateway.owsla
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await owsla.wait_for_line("Broker: to_device: policy 'hasty' sets consumer-timeout=1000: ", 60)
    await gateway.backend.publish("to_device", b"second", {"connection_id": connection_id, "to_device_seq": 1})
    node = vhost.managed.node
    for _ in range(2):
        await until_timed_out(node, await held(node, vhost))
    await held(node, vhost)
    await gateway.backend.publish("to_device", b"first", {"connection_id": connection_id, "to_device_seq": 0})
    assert [await device.line(), await device.line()] == [b"first", b"second"]
    await gateway.round_trip(device)
    assert len(owsla.lines("a consumer of to_device ended: .* timed out")) == 1, "the same warning, once a minute"
    assert owsla.lines("Broker lost") == []


async def until_timed_out(node: RabbitMQ, channel: str) -> None:
    """Have RabbitMQ look at a channel, which it does once a minute, until it has closed it."""
    for _ in range(100):
        if channel not in await node.ctl("list_channels", "pid"):
            return
        await node.ctl("eval", f'rabbit_misc:string_to_pid("{channel}") ! tick.')
        await pause(0.3)
    raise AssertionError("the channel was not closed")


# -- Limits and deprecated features ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, managed: Managed) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ with small limits. RabbitMQ 4 has Khepri in place of Mnesia, and denies all that is deprecated."""
    config = "frame_max = 8192\nchannel_max = 16\n"
    if managed.version >= (4, 0):
        config += "consumer_max_per_channel = 8\n" + "".join(
            f"deprecated_features.permit.{name} = false\n"
            for name in (
                "amqp_address_v1",
                "global_qos",
                "management_metrics_collection",
                "queue_master_locator",
                "ram_node_type",
                "transient_nonexcl_queues",
            )
        )
    node = RabbitMQ(tmp_path_factory.mktemp("strict"), config=config)
    try:
        block_on(node.start())
        if managed.version >= (4, 0):
            block_on(node.ctl("enable_feature_flag", "--experimental", "khepri_db"))
        yield node
    finally:
        block_on(node.close())


@reactor_test
async def test_strict(strict: RabbitMQ, lab: Lab) -> None:
    """Everything works with the smallest frames that RabbitMQ 4 allows, few channels, Khepri, and without deprecated features:
    long lines, messages by name and for many devices, records, presence, a node that dies, a broker that restarts.
    """
    names: dict[str, Any] = {**NAMES, "events": ["console", "amqp"]}
    gateway = await lab.gateway(strict.url, max_line=100_000, **names)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    long = b"x" * 50_000
    device.send_line(long)
    message = await gateway.message()
    assert message.body == long
    await gateway.send(message.connection_id, long)
    assert await device.line() == long
    await gateway.backend.publish("to_device", long, {"owsla_to": "all"}, expiration="60000")
    assert await device.line() == long
    await gateway.send("00000000-0000-8000-8000-000000000000", long)
    record = await gateway.refused(30)
    assert (record.body, record.headers["owsla_reason"]) == (long, "unknown-connection")
    second = await lab.gateway(strict.url, backend=False, **names)
    dead = message.connection_id[:8]
    gateway.owsla.kill()
    await second.owsla.wait_for_line(f"Node lost: {dead}", 60)
    await strict.restart()
    await second.owsla.wait_for_line("Broker connected", 60, start=second.owsla.mark())
    await second.connect_backend()
    await second.round_trip(await lab.device(second))


@reactor_test
async def test_too_many_consumers(four: Managed, strict: RabbitMQ, lab: Lab) -> None:
    """More `--consumers` than RabbitMQ allows on a channel are named, with the option to change."""
    owsla = lab.new_owsla(broker=strict.url, consumers=9)
    owsla.launch()
    await owsla.wait_for_line("reached maximum .8. of consumers per channel .530.: give fewer --consumers, or the broker", 30)
    assert "Listening" not in owsla.output()


@reactor_test
async def test_commands(strict: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """The commands for messages work with such a RabbitMQ."""
    gateway = await lab.gateway(strict.url, from_device="from_commands", to_device="to_commands")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    where = ("--broker", strict.url)
    send = commands.start("send", *where, "--to-device", "to_commands", connection_id, "hello")
    assert await send.ended() == 0, send.errors()
    assert await device.line() == b"hello"
    report = commands.start("send", "--report", *where, "--to-device", "to_commands", connection_id, "hello")
    assert await report.ended() == 0, report.errors()
    assert await device.line() == b"hello"
    found = commands.start("who-has", *where, "--to-device", "to_commands", "nobody")
    assert await found.ended() == 1, "no node has it"
    assert found.output() == "nobody - - - - -\n"
    device.send_line(b"a line")
    assert (await gateway.message()).body == b"a line"
    await gateway.backend.close()
    device.send_line(b"another")
    for options in (("tail",), ("tail", "--take", "--count=1")):
        tail = commands.start(*options, *where, "--from-device", "from_commands")
        (line,) = await tail.shown(1)
        assert line.endswith(" another")
        assert await tail.ended() == 0, tail.errors()
    commands.start("echo", *where, "--from-device", "from_commands", "--to-device", "to_commands")
    device.send_line(b"echoed")
    assert await device.line() == b"echoed"
