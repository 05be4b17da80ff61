"""Tests of broker outages: devices stay connected, no line is lost, and the order of lines is kept."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from ._support.backend import Message
from ._support.batches import both_ways
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Gateway, Lab
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until


def _first_occurrences(messages: list[Message]) -> list[Message]:
    """Return the lines that a back end keeps: the first occurrence of each (connection, number)."""
    seen: set[tuple[str, int]] = set()
    kept = []
    for message in messages:
        key = (message.connection_id, message.seq)
        if key not in seen:
            seen.add(key)
            kept.append(message)
    return kept


async def _hear(gateway: Gateway, last: bytes, heard: list[Message]) -> None:
    """Take messages up to the one with the body `last`."""
    await gateway.backend.inbox[gateway.from_device].find(
        lambda message: bool(heard.append(message) or message.body == last),  # type: ignore[func-returns-value]
        60,
    )


@both_ways
@reactor_test
async def test_broker_killed(own_broker: Broker, lab: Lab) -> None:
    """When a broker is killed and restarted, devices stay connected, and lines sent in the meantime arrive in order."""
    gateway = await lab.gateway(own_broker.url)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await gateway.backend.close()
    start = gateway.owsla.mark()
    await own_broker.kill()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    for number in range(200):
        device.send_line(b"%d" % number)
        await pause(0.005)
    await own_broker.start()
    await gateway.owsla.wait_for_line("Broker connected", 60, start=start)
    device.send_line(b"end")
    await gateway.connect_backend()
    heard: list[Message] = []
    await _hear(gateway, b"end", heard)
    kept = [message for message in _first_occurrences(heard) if message.seq]  # the greeting may come twice
    assert [message.body for message in kept] == [*(b"%d" % number for number in range(200)), b"end"]
    assert [message.seq for message in kept] == list(range(1, 202))
    assert {message.connection_id for message in kept} == {connection_id}
    await gateway.send(connection_id, b"welcome back")
    assert await device.line(30) == b"welcome back"
    assert device.is_open


@both_ways
@reactor_test
async def test_connections_cut(broker: Broker, lab: Lab) -> None:
    """When broker connections are cut under load, several times, no line is lost, and lines of a device stay in order."""
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url)
    devices = [await lab.device(gateway) for _ in range(5)]
    ids = [await gateway.introduce(device) for device in devices]
    for number in range(300):
        if number % 100 == 40:
            proxy.hold()  # Lines must be unconfirmed when the connections are cut.
        if number % 100 == 50:
            proxy.cut()
            proxy.held.clear()
            proxy.release()
        for device in devices:
            device.send_line(b"%d" % number)
        await pause(0.003)
    heard: list[Message] = []
    ends = {b"end %d" % number for number in range(len(devices))}
    for number, device in enumerate(devices):
        device.send_line(b"end %d" % number)
    while ends:
        message = await gateway.message(60)
        heard.append(message)
        ends.discard(message.body)
    kept = _first_occurrences(heard)
    for number, connection_id in enumerate(ids):
        mine = [message for message in kept if message.connection_id == connection_id and message.seq]
        assert [message.body for message in mine] == [*(b"%d" % line for line in range(300)), b"end %d" % number]
        assert [message.seq for message in mine] == list(range(1, 302))
    for device, connection_id in zip(devices, ids, strict=True):
        assert device.is_open
        await gateway.send(connection_id, b"still there")
        assert await device.line(30) == b"still there"


@both_ways
@reactor_test
async def test_acknowledgements_are_lost(broker: Broker, lab: Lab) -> None:
    """Messages whose acknowledgements were lost are redelivered after their devices have left. None of them is recorded as
    undeliverable, and no report contradicts the delivery.
    """
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url)
    reports = f"{gateway.to_device}_reports"
    await gateway.backend.call(lambda channel: channel.queue_declare(reports))
    devices = [await lab.device(gateway) for _ in range(3)]
    ids = [await gateway.introduce(device) for device in devices]
    proxy.hold(one_way=True)
    asked: dict[str, Any] = {"reply_to": reports}
    for number in range(20):
        for connection_id in ids:
            headers = {"connection_id": connection_id}
            text = b"%d" % number
            await gateway.backend.publish(gateway.to_device, text, {**headers, "to_device_seq": number}, **asked)
            await gateway.backend.publish(gateway.to_device, b"plain " + text, headers)
            await gateway.backend.publish(gateway.to_device, b"asks " + text, headers, message_id=f"{number}", **asked)
    for device in devices:
        assert len(await device.lines.take(60)) == 60
    await gateway.backend.publish(gateway.to_device, b"", {"connection_id": ids[0], "owsla_close": True}, **asked)
    await devices[0].closed()
    for device in devices[1:]:
        device.abort()
    start = gateway.owsla.mark()
    await until(lambda: len(gateway.owsla.lines("disconnected")) >= 3, what="the end of the devices")
    proxy.cut()
    proxy.held.clear()
    proxy.release()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    last = await lab.device(gateway)
    connection_id = await gateway.introduce(last)
    await gateway.send(connection_id, b"all came again before this")
    assert await last.line(60) == b"all came again before this"
    await gateway.send("nobody", b"mark")
    assert (await gateway.refused()).body == b"mark"
    outcomes: Counter[str] = Counter()
    while (report := await gateway.backend.fetch(reports)) is not None:
        outcomes[report.headers["owsla_report"]] += 1
    assert outcomes == {"delivered": 60 + 60 + 60 + 2, "duplicate": 60}


@reactor_test
async def test_idle_while_the_broker_is_away(broker: Broker, lab: Lab) -> None:
    """During an outage devices are not closed as idle, and their lines carry the time at which they were received."""
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url, idle_timeout="1s")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    start = gateway.owsla.mark()
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    device.send_line(b"while away")
    await pause(3)
    assert device.is_open
    over = time.time()
    await proxy.start()
    message = await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"while away", 60)
    assert message.connection_id == connection_id
    assert message.properties.timestamp <= over - 1


@reactor_test
async def test_same_node_queue_after_a_reconnect(broker: Broker, lab: Lab) -> None:
    """After a reconnect the node consumes its old queue: an answer to an old reply_to arrives, also one sent during the outage.
    """
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url)
    device = await lab.device(gateway)
    device.send_line(b"question")
    message = await gateway.message()
    start = gateway.owsla.mark()
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    headers = {"connection_id": message.connection_id}
    await gateway.backend.publish(message.properties.reply_to, b"answer", headers, mandatory=True)
    await proxy.start()
    assert await device.line(60) == b"answer"


@both_ways
@reactor_test
async def test_restart_in_good_order(own_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """After an orderly restart of RabbitMQ, queued answers reach their device."""
    gateway = await lab.gateway(own_rabbitmq.url)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await gateway.backend.close()
    start = gateway.owsla.mark()
    await own_rabbitmq.restart()
    await gateway.owsla.wait_for_line("Broker connected", 60, start=start)
    await gateway.connect_backend()
    await gateway.send(connection_id, b"after the restart")
    assert await device.line(30) == b"after the restart"
    await gateway.round_trip(device)
    assert len(gateway.owsla.lines("Broker lost", start=start)) <= 3, "said once for each of its connections at most"


@both_ways
@reactor_test
async def test_broker_comes_later(own_broker: Broker, lab: Lab) -> None:
    """Owsla may start before its broker. The device port opens only once the queues are declared."""
    await own_broker.kill()
    owsla = lab.new_owsla(broker=own_broker.url, from_device="later_from", to_device="later_to")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    await pause(1)
    assert not owsla.lines("Listening for devices")
    assert owsla.process.poll() is None
    await own_broker.start()
    await owsla.listening(60)
    gateway = Gateway(lab, owsla, own_broker.url, "later_from", "later_to")
    await gateway.connect_backend()
    await gateway.round_trip(await lab.device(gateway))


# -- Logins ------------------------------------------------------------------------------------------------------------


_PASSWORD = "not-the-password"


async def _refused(lab: Lab, login: str, port: int) -> None:
    """Check that Owsla logs the reason once, retries with growing pauses, and keeps running."""
    proxy = await lab.proxy(port)
    user, _, vhost = login.partition("/")
    owsla = lab.new_owsla(broker=f"amqp://{user}@127.0.0.1:{proxy.port}/{vhost}")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    await until(lambda: proxy.count >= 12, 60, lambda: owsla.output())
    before = proxy.count
    await pause(3)
    assert proxy.count - before <= 12, "this is no backing off"
    assert len(owsla.lines("Broker unavailable")) <= 3, owsla.output()
    assert owsla.process.poll() is None
    assert not owsla.lines("Listening for devices")
    assert _PASSWORD not in owsla.output()


@reactor_test
async def test_wrong_password(broker: Broker, lab: Lab) -> None:
    """A refused login is logged once and retried with growing pauses. The process keeps running with its device port closed."""
    await _refused(lab, f"guest:{_PASSWORD}/%2f", broker.port)


@reactor_test
async def test_wrong_vhost(broker: Broker, lab: Lab) -> None:
    """A missing virtual host is treated like a refused login."""
    await _refused(lab, "guest:guest/nowhere", broker.port)


@reactor_test
async def test_nobody_there(lab: Lab) -> None:
    """A broker that does not listen is treated like a refused login."""
    await _refused(lab, "guest:guest/%2f", free_port())


@reactor_test
async def test_login_allowed_later(own_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Owsla connects by itself once the login is allowed."""
    owsla = lab.new_owsla(broker=f"amqp://later:{_PASSWORD}@127.0.0.1:{own_rabbitmq.port}/%2f")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    await own_rabbitmq.ctl("add_user", "later", _PASSWORD)
    await own_rabbitmq.ctl("set_permissions", "later", ".*", ".*", ".*")
    await owsla.listening(60)


@reactor_test
async def test_several_hosts(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """With several --broker options, the next one is tried when one does not listen."""
    dead = f"amqp://guest:guest@127.0.0.1:{free_port()}/%2f"
    gateway = await lab.gateway(embedded.url, broker=[dead, embedded.url])
    await gateway.round_trip(await lab.device(gateway))


@pytest.mark.parametrize("way", ["from_device", "to_device"])
@reactor_test
async def test_queue_with_other_arguments(broker: Broker, lab: Lab, way: str) -> None:
    """A queue that exists with other arguments is used unchanged, with a warning."""
    name = f"other_{free_port()}"
    setup = await lab.backend(broker.url)
    await setup.call(lambda channel: channel.queue_declare(name, durable=True, arguments={"x-max-length": 1000}))
    options: dict[str, Any] = {"from_device": f"{name}_from", "to_device": f"{name}_to", way: name}
    gateway = await lab.gateway(broker.url, **options)
    await gateway.owsla.wait_for_line(f"Broker: .*{name}")
    await gateway.round_trip(await lab.device(gateway))
