"""Tests of messages that a broker accepts and that cause trouble for a consumer that reads or republishes them.

Such a message affects no other one: it is delivered or recorded, and no connection to the broker is lost.
"""

from __future__ import annotations

import base64
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ._support.device import Device
from ._support.lab import Gateway, Lab
from ._support.rabbitmq import RabbitMQ, installed
from ._support.waiting import block_on, pause, reactor_test, until
from ._support.wire import field_table, long_string

#: Largest frame that RabbitMQ may agree on in these tests: clients other than Owsla ask for it.
FRAME_MAX = 4 << 20

#: A header of 200,000 bytes, and one above the limit of Owsla for the headers of a message.
LARGE = [200_000, 3 << 20]


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ that agrees on large frames with clients that ask for them."""
    if not installed():
        pytest.skip("no RabbitMQ is installed")
    node = RabbitMQ(tmp_path_factory.mktemp("large-frames"), config=f"frame_max = {FRAME_MAX}\n")
    try:
        block_on(node.start())
        yield node
    finally:
        block_on(node.close())


async def publish_large(lab: Lab, broker: RabbitMQ, queue: str, body: bytes, size: int, **headers: Any) -> None:
    """Publish a message with this many bytes of headers in one frame."""
    wire = await lab.wire(broker.port, frame_max=FRAME_MAX)
    fields = {name: (b"S", long_string(str(value).encode())) for name, value in headers.items()}
    fields |= {"large": (b"x", long_string(bytes(size)))}
    await wire.publish(queue, body, {"headers": field_table(fields)})
    await wire.close()


async def publish_dead_lettered(gateway: Gateway, queue: str, body: bytes, headers: dict[str, Any]) -> None:
    """Publish a message with nearly a frame of headers that is dead-lettered to this queue when it expires on another one."""

    def declare(channel: Any) -> str:
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, "x-message-ttl": 100}
        name: str = channel.queue_declare("", auto_delete=True, arguments=arguments).method.queue
        return name

    waiting = await gateway.backend.call(declare)
    await gateway.backend.publish(waiting, body, headers | {"large": "x" * (130_900 - len(str(headers)))})


def no_loss(*gateways: Gateway) -> None:
    """Check that no gateway lost a connection to the broker, or logged a warning about one."""
    for gateway in gateways:
        assert gateway.owsla.lines("Broker lost|presence cannot|of nodes, .* cannot|ended:") == []


@pytest.mark.parametrize("size", [0, *LARGE])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@reactor_test
async def test_headers_larger_than_a_frame(rabbitmq: RabbitMQ, lab: Lab, own: bool, size: int) -> None:
    """A message with headers larger than a frame, on either queue, is delivered or recorded with its body. Messages around it
    are delivered, each once and in order.
    """
    gateway = await lab.gateway(rabbitmq.url)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    queue = f"{gateway.to_device}.{connection_id[:8]}" if own else gateway.to_device
    for number in range(20):
        if number == 10 and size:
            await publish_large(lab, rabbitmq, queue, b"large", size, connection_id=connection_id)
        elif number == 10:
            await publish_dead_lettered(gateway, queue, b"large", {"connection_id": connection_id})
        await gateway.backend.publish(queue, b"%d" % number, {"connection_id": connection_id, "to_device_seq": number})
    heard = [await device.line() for _ in range(20)]
    if size < 1 << 20:
        heard.append(await device.line())
        assert b"large" in heard
        heard.remove(b"large")
    else:
        record = await gateway.refused()
        assert (record.body, record.headers["owsla_reason"]) == (b"large", "bad-connection-id")
        assert "too large" in record.headers["owsla_note"]
    assert heard == [b"%d" % number for number in range(20)]
    await gateway.round_trip(device)
    no_loss(gateway)


@reactor_test
async def test_large_headers_on_record(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """An undeliverable message with more headers than fit into a frame is recorded with its body, its connection id and a note.
    """
    gateway = await lab.gateway(rabbitmq.url)
    for size in LARGE[:1] * 5:
        await publish_large(lab, rabbitmq, gateway.to_device, b"large", size, connection_id="nobody's")
    await publish_dead_lettered(gateway, gateway.to_device, b"large", {"connection_id": "nobody's"})
    for _ in range(6):
        record = await gateway.refused()
        assert (record.body, record.connection_id) == (b"large", "nobody's")
        assert record.headers["owsla_reason"] == "bad-connection-id"
        assert "do not fit" in record.headers["owsla_note"]
    no_loss(gateway)


@reactor_test
async def test_large_headers_in_the_register(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A message with large headers in the register of nodes is dropped with one warning. The registrar stays connected."""
    gateway = await lab.gateway(rabbitmq.url)
    for size in LARGE:
        await publish_large(lab, rabbitmq, f"{gateway.to_device}.nodes", b"nonsense", size)
    await gateway.owsla.wait_for_line("is not a notice of a node")
    await until_count(gateway, f"{gateway.to_device}.nodes", 0)
    no_loss(gateway)


async def until_count(gateway: Gateway, queue: str, count: int) -> None:
    for _ in range(50):
        if await gateway.backend.count(queue) == count:
            return
        await pause(0.1)
    raise AssertionError(f"{queue} has not {count} messages")


async def two(lab: Lab, broker: RabbitMQ) -> tuple[Gateway, Gateway]:
    """Return two gateways on the same queues. Messages for devices of the second one can arrive at the first one."""
    options: dict[str, Any] = {"node_grace": "1.5s", "heartbeat": "2"}
    first = await lab.gateway(broker.url, **options)
    owsla = lab.new_owsla(**options, broker=broker.url, from_device=first.from_device, to_device=first.to_device)
    await owsla.start()
    second = Gateway(lab, owsla, broker.url, first.from_device, first.to_device)
    second._backend = first._backend
    return first, second


@reactor_test
async def test_large_headers_forwarded(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A message with large headers that arrives at the wrong node is forwarded and delivered."""
    first, second = await two(lab, rabbitmq)
    devices: list[Device] = []
    for gateway in (first, second):
        device = await lab.device(gateway)
        connection_id = await gateway.introduce(device)
        devices.append(device)
        for _ in range(4):  # each node consumes some of them
            await publish_large(lab, rabbitmq, first.to_device, b"large", LARGE[0], connection_id=connection_id)
    for device in devices:
        assert [await device.line() for _ in range(4)] == [b"large"] * 4
    no_loss(first, second)


@reactor_test
async def test_large_headers_in_a_dead_nodes_queue(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Messages in the queue of a lost node are recorded, also those with large headers, and the queue is deleted."""
    first, second = await two(lab, rabbitmq)
    device = await lab.device(second)
    connection_id = await second.introduce(device)
    queue = f"{first.to_device}.{connection_id[:8]}"
    second.owsla.process.signal(signal.SIGSTOP)
    for number in range(10):
        await first.backend.publish(queue, b"%d" % number, {"connection_id": connection_id})
    for size in LARGE:
        await publish_large(lab, rabbitmq, queue, b"large", size, connection_id=connection_id)
    second.owsla.kill()
    records = await first.backend.inbox[first.undeliverable].take(12, 60)
    assert sorted(record.body for record in records) == sorted([b"large"] * 2 + [b"%d" % number for number in range(10)])
    await first.owsla.wait_for_line("Node lost|node .* lost")
    no_loss(first)


# -- Reports -----------------------------------------------------------------------------------------------------------


@reactor_test
async def test_reports_to_names_of_direct_reply_to(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A `reply_to` that RabbitMQ's direct reply-to cannot decode loses its own report only. A valid one gets its report."""
    gateway = await lab.gateway(rabbitmq.url)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    names = ["", "nonsense", "no.name", "bm90IGEgcHJvY2Vzcw==.a2V5", "g1gAAAA=.a2V5", "a.b.c", "!.!"]
    for number in range(50):
        reply_to = f"amq.rabbitmq.reply-to.{names[number % len(names)]}"
        await gateway.send(connection_id, b"%d" % number, reply_to=reply_to)
        await gateway.send("nobody's", b"%d" % number, reply_to=reply_to)
    assert [await device.line() for _ in range(50)] == [b"%d" % number for number in range(50)]
    assert [(await gateway.refused()).body for _ in range(50)] == [b"%d" % number for number in range(50)]
    no_loss(gateway)
    reports: list[Any] = []

    def ask(channel: Any) -> None:
        channel.basic_consume("amq.rabbitmq.reply-to", lambda *report: reports.append(report[2]), auto_ack=True)

    asking = await lab.backend(rabbitmq.url)
    await asking.call(ask)
    await asking.publish(
        gateway.to_device, b"ask", {"connection_id": connection_id}, reply_to="amq.rabbitmq.reply-to", correlation_id="7"
    )
    assert await device.line() == b"ask"
    await until(lambda: bool(reports), what="a report by direct reply-to")
    assert (reports[0].headers["owsla_report"], reports[0].correlation_id) == ("delivered", "7")
    no_loss(gateway)


@reactor_test
async def test_direct_reply_to_a_node_that_is_gone(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A valid direct reply-to name of a node that is not running costs at most a reconnect, and records pass in the meantime.
    """
    gateway = await lab.gateway(rabbitmq.url)
    process = b"\x83\x58w\x07reply@1" + bytes(12)
    for number in range(50):
        reply_to = f"amq.rabbitmq.reply-to.{base64.b64encode(process).decode()}.{number}"
        await gateway.send("nobody's", b"%d" % number, reply_to=reply_to)
    await gateway.send("nobody's", b"last")
    missing = {b"last", *(b"%d" % number for number in range(50))}
    while missing:  # a record may be duplicated
        missing.discard((await gateway.refused(30)).body)
    assert len(gateway.owsla.lines("Broker lost")) <= 2


# -- Permissions -------------------------------------------------------------------------------------------------------


@reactor_test
async def test_permissions_taken_away_for_a_while(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """While Owsla has no permission to publish, nothing is recorded. With the permission every message is recorded, with its
    own headers.
    """
    user = f"owsla-{secrets.token_hex(4)}"
    await rabbitmq.ctl("add_user", user, "secret")
    await rabbitmq.ctl("set_permissions", user, ".*", ".*", ".*")
    gateway = await lab.gateway(rabbitmq.url.replace("guest:guest", f"{user}:secret"), backend=False)
    gateway.broker_url = rabbitmq.url
    await gateway.connect_backend()
    await rabbitmq.ctl("set_permissions", user, ".*", "", ".*")
    await rabbitmq.ctl("close_all_user_connections", user, "fresh permissions")
    for number in range(40):
        await gateway.backend.publish(gateway.to_device, b"%d" % number, {"connection_id": "nobody's", "own": number})
    await gateway.owsla.wait_for_line("Broker lost.*ACCESS_REFUSED")
    await pause(4)  # Owsla reconnects and is refused, several times
    assert await gateway.backend.count(gateway.undeliverable) == 0
    await rabbitmq.ctl("set_permissions", user, ".*", ".*", ".*")
    records = await gateway.backend.inbox[gateway.undeliverable].take(40, 60)
    assert {record.body: record.headers["own"] for record in records} == {b"%d" % number: number for number in range(40)}
    assert gateway.owsla.lines("not recorded") == []
