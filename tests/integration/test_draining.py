"""Tests of SIGTERM: nothing is lost, devices do not reconnect all at once, and the process ends in time."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import ssl
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from ._support.batches import both_ways
from ._support.books import DEVICE_ACK, AnsweringBackend, Books, Fleet, chosen_seed, clear_up
from ._support.lab import Gateway, Lab
from ._support.process import accepts
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until


def _node_queue(gateway: Gateway, connection_id: str) -> str:
    return f"{gateway.to_device}.{connection_id[:8]}"


def _seconds_between(gateway: Gateway, first: str, last: str) -> float:
    """Return the seconds between two lines in the log."""
    (begun,), (ended,) = gateway.owsla.lines(first), gateway.owsla.lines(last)
    return _time(ended) - _time(begun)


def _time(line: str) -> float:
    return datetime.strptime(line.split(" ", 1)[0], "%Y-%m-%dT%H:%M:%S%z").timestamp()


@both_ways
@reactor_test
async def test_stopped_in_the_middle_of_talk(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """After a stop under load, every line that was read is published and acknowledged, and every answer is delivered or
    recorded. The status is 0.
    """
    seed = chosen_seed()
    name = secrets.token_hex(4)
    from_device, to_device = f"from_{name}", f"to_{name}"
    owsla = lab.new_owsla(
        broker=rabbitmq.url,
        from_device=from_device,
        to_device=to_device,
        device_ack=DEVICE_ACK,
        drain_spread="3s",
        gap_timeout="30s",
        reorder_limit=1000,
    )
    await owsla.start()
    fleet = Fleet(lab, owsla, seed=seed, count=30)
    backend = AnsweringBackend(rabbitmq.url, from_device, to_device, seed)
    try:
        await backend.start()
        await fleet.start()
        await fleet.talk(300)
        start = owsla.mark()
        assert await owsla.terminate() == 0, owsla.output()
        ends = [_time(line) for line in owsla.lines("Device disconnected", start=start)]
        assert len(ends) == 30
        assert max(ends) - min(ends) >= 1, "all were closed in one instant"
        assert owsla.lines("Stopped: 30 devices closed, everything confirmed", start=start), owsla.output()
        await until(lambda: not any(session.open for session in fleet.sessions), what="the devices to notice")
        await backend.settled()
        await pause(0.5)
    finally:
        await fleet.stop()
        await backend.stop()
    remains = clear_up(
        rabbitmq.url, [from_device, to_device, f"{to_device}.undeliverable", f"{to_device}_reports"], from_device, to_device
    )
    books = Books(fleet, backend, remains)
    # A device has kept its unacknowledged lines, and Owsla has not read them.
    differences = [one for one in books.differences(in_order=True) if ": said " not in one]
    assert not differences, "\n".join(differences)
    ids, _ = books.connections()
    for session in fleet.sessions:
        published = [seq for connection_id, seq in backend.first if connection_id == ids[session.name]]
        assert len(published) == session.acknowledged, f"{session.name} was not told of everything that is safe"
    queues = [line.split() for line in (await rabbitmq.ctl("list_queues", "name", "messages")).splitlines()]
    left = [queue for queue in queues if queue[0].startswith(f"{to_device}.")]
    assert left == [[f"{to_device}.nodes", "0"]], "the node's own queue is left, or it did not say goodbye"


@reactor_test
async def test_served_until_its_turn(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """The port closes at once. Each device is served in both directions until its turn; later messages for it are recorded."""
    gateway = await lab.gateway(rabbitmq.url, drain_spread="8s", drain_timeout="20s")
    devices = {}
    for _ in range(4):
        device = await lab.device(gateway)
        devices[await gateway.introduce(device)] = device
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line("Stopping")
    await until(lambda: not accepts(gateway.owsla.port), what="the port to close")
    await until(lambda: any(not device.is_open for device in devices.values()), what="the first device's end")
    gone = next(connection_id for connection_id, device in devices.items() if not device.is_open)
    left = [device for device in devices.values() if device.is_open]
    assert left, "all were closed at once"
    await gateway.round_trip(left[-1])
    await gateway.send(gone, b"too late")
    assert (await gateway.refused()).headers["owsla_reason"] == "unknown-connection"
    assert await gateway.owsla.exited(30) == 0


@reactor_test
async def test_own_queue_is_gone(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """After a stop the queue of the node is deleted: an answer sent there is returned, and one on to_device is recorded by
    another node.
    """
    gateway = await lab.gateway(rabbitmq.url, drain_spread=0)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    queue = _node_queue(gateway, connection_id)
    assert await gateway.backend.count(queue) == 0
    assert await gateway.owsla.terminate() == 0
    await device.closed()
    with pytest.raises(UnroutableError):
        await gateway.backend.publish(queue, b"an answer", {"connection_id": connection_id})
    await gateway.send(connection_id, b"to whom?")
    other = lab.new_owsla(broker=rabbitmq.url, from_device=gateway.from_device, to_device=gateway.to_device, node_grace="500ms")
    await other.start()
    refused = await gateway.refused(30)
    assert (refused.body, refused.headers["owsla_reason"]) == (b"to whom?", "unknown-connection")
    with pytest.raises(ChannelClosedByBroker):
        await gateway.backend.count(queue)


@reactor_test
async def test_held_and_waiting_messages(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """At its turn a device gets the messages that were held for a missing number, and close_notify after its last line."""
    gateway = await lab.gateway(rabbitmq.url, drain_spread=0, gap_timeout="60s")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for seq in (1, 2):
        headers = {"connection_id": connection_id, "to_device_seq": seq}
        await gateway.backend.publish(gateway.to_device, b"held %d" % seq, headers)
    await gateway.send(connection_id, b"not numbered")
    assert await device.line() == b"not numbered"
    assert await gateway.owsla.terminate() == 0
    assert await device.lines.take(2) == [b"held 1", b"held 2"]
    ended = await device.closed()
    assert "cleanly" in ended.getErrorMessage(), ended


@both_ways
@reactor_test
async def test_unfinished_talk(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """If a device sent many lines and half a line, every line that was read is published in order, and acknowledged."""
    gateway = await lab.gateway(rabbitmq.url, drain_spread=0, device_ack=DEVICE_ACK, window=100)
    device = await lab.device(gateway)
    lines = [b"%d" % number for number in range(5000)]
    device.send_raw(b"\n".join(lines) + b"\nhalf a li")
    await device.line()
    assert await gateway.owsla.terminate() == 0
    await device.closed()
    acknowledged = max(int(line.split()[1]) for line in device.lines.clear())
    await gateway.backend.publish(gateway.from_device, b"all there is")
    bodies = []
    while (body := (await gateway.message()).body) != b"all there is":
        bodies.append(body)
    assert bodies == lines[: len(bodies)]
    assert acknowledged == len(bodies) - 1


def _talk_until_the_end(port: int, ca: Path, number: int, stopped: threading.Event) -> int:
    """Send lines until the connection ends. Return the number of lines sent before the device noticed."""
    context = ssl.create_default_context(cafile=str(ca))
    said = 0
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="localhost") as tls:
        while not stopped.is_set():
            tls.settimeout(10)
            tls.sendall(b"".join(b"%d %d\n" % (number, line) for line in range(said, said + 5)))
            said += 5
            tls.settimeout(0.01)
            try:
                assert tls.recv(100) == b"", "close_notify"
                return said
            except TimeoutError:
                pass
    raise AssertionError("the connection does not end")


async def _heard(gateway: Gateway, lines: int, timeout: float = 30) -> list[list[int]]:
    """Return the lines of such devices that a back end received, in order."""
    heard: list[list[int]] = []
    for message in await gateway.messages(lines, timeout):
        number, line = message.body.split()
        while len(heard) <= int(number):
            heard.append([])
        heard[int(number)].append(int(line))
    return heard


@both_ways
@pytest.mark.parametrize("window", [10_000, 50], ids=["", "slow broker"])
@reactor_test
async def test_nothing_is_left_unread(rabbitmq: RabbitMQ, lab: Lab, window: int) -> None:
    """Without acknowledgements a device is read until it has closed: all lines that it sent before it noticed the end arrive.
    """
    proxy = await lab.proxy(rabbitmq.port)
    gateway = await lab.gateway(rabbitmq.url, broker=proxy.url, drain_spread="1s", window=window)
    port, ca, over = gateway.owsla.port, gateway.owsla.ca, threading.Event()
    talks = [deferToThread(_talk_until_the_end, port, ca, number, over) for number in range(8)]
    await until(lambda: len(gateway.owsla.lines("Device connected")) == 8, what="the devices")
    await pause(0.5)
    if window < 100:
        proxy.hold()  # the number must be far above the window
        await pause(1)
    try:
        gateway.owsla.process.signal(signal.SIGTERM)
        await gateway.owsla.wait_for_line("Stopping")
        if window < 100:
            await pause(2)
            proxy.release()
        assert await gateway.owsla.exited(60) == 0, gateway.owsla.output()
    finally:
        over.set()
    said = await gatherResults(talks)
    assert gateway.owsla.lines("Stopped: 8 devices closed, everything confirmed"), gateway.owsla.output()
    assert await _heard(gateway, sum(said)) == [list(range(lines)) for lines in said]


@both_ways
@reactor_test
async def test_counted_truly(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """If the deadline comes first, the last log line counts the lines that devices had sent and that are lost."""
    proxy = await lab.proxy(rabbitmq.port)
    gateway = await lab.gateway(rabbitmq.url, broker=proxy.url, drain_spread=0, drain_timeout="2s", heartbeat="30s", window=10)
    device = await lab.device(gateway)
    await gateway.introduce(device)
    proxy.hold()
    device.send_line(*(b"%d" % number for number in range(9)))
    await until(lambda: any(data.endswith(b"8\xce") for _, data in proxy.held), what="the lines")
    device.send_line(b"read, and perhaps not published")
    await pause(0.3)
    device.send_line(*[b"x" * 1000] * 40)
    await pause(0.3)
    assert await gateway.owsla.terminate(20) == 0
    (last,) = gateway.owsla.lines("Stopped at the deadline")
    counted = re.search("gave up ([0-9]+) lines? .* left ([0-9]+) bytes? of devices unread", last)
    assert counted, last
    # The last line that was read may be incomplete, and the confirm of the first line may have come too late.
    assert 40_000 - 1500 < (int(counted[1]) - 10) * 1001 + int(counted[2]) < 40_040 + 2500, last


# -- Limits ------------------------------------------------------------------------------------------------------------


async def _with_unconfirmed_lines(rabbitmq: RabbitMQ, lab: Lab, **options: Any) -> tuple[Gateway, Any]:
    """Start an Owsla whose broker confirms nothing, with three unconfirmed lines of a device."""
    proxy = await lab.proxy(rabbitmq.port)
    gateway = await lab.gateway(
        rabbitmq.url, broker=proxy.url, drain_spread=0, heartbeat="30s", device_ack=DEVICE_ACK, **options
    )
    device = await lab.device(gateway)
    await gateway.introduce(device)
    assert await device.line() == b"ACK 0"
    proxy.hold()
    device.send_line(b"1", b"2", b"3")
    await until(lambda: any(data.endswith(b"3\xce") for _, data in proxy.held), what="the lines")
    return gateway, proxy


@reactor_test
async def test_second_signal(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A second signal ends every wait. The last log line counts the lines that were given up."""
    gateway, _ = await _with_unconfirmed_lines(rabbitmq, lab, drain_timeout="10m")
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line("Stopping")
    await pause(1)
    assert gateway.owsla.process.poll() is None
    gateway.owsla.process.signal(signal.SIGTERM)
    assert await gateway.owsla.exited() == 0
    assert gateway.owsla.lines("gave up 3 lines"), gateway.owsla.output()
    assert _seconds_between(gateway, "Received SIGTERM again", "Stopped") < 12


@both_ways
@reactor_test
async def test_deadline_with_a_broker_that_hangs(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A broker that does not answer delays the end by --drain-timeout at most. The last log line counts the lines that were
    given up.
    """
    gateway, _ = await _with_unconfirmed_lines(rabbitmq, lab, drain_timeout="2s")
    assert await gateway.owsla.terminate(20) == 0
    assert gateway.owsla.lines("gave up 3 lines"), gateway.owsla.output()
    assert _seconds_between(gateway, "Received SIGTERM", "Stopped") < 12, "--drain-timeout bounds all of it"


@reactor_test
async def test_a_broker_that_answers_nothing(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A broker that stops answering after the login delays the end by --drain-timeout at most, long before its heartbeats are
    missed. A second signal ends the wait. No line is unconfirmed: the stop itself sends requests.
    """
    for drain_timeout, signals in (("2s", 1), ("10m", 2)):
        proxy = await lab.proxy(rabbitmq.port)
        gateway = await lab.gateway(
            rabbitmq.url, broker=proxy.url, drain_spread=0, drain_timeout=drain_timeout, heartbeat="60s"
        )
        await gateway.round_trip(await lab.device(gateway))
        proxy.hold()
        gateway.owsla.process.signal(signal.SIGTERM)
        await gateway.owsla.wait_for_line("Received SIGTERM")
        if signals == 2:
            await pause(2)
            assert gateway.owsla.process.poll() is None
            gateway.owsla.process.signal(signal.SIGTERM)
        assert await gateway.owsla.exited(20) == 0
        last = "Received SIGTERM again" if signals == 2 else "Received SIGTERM"
        assert _seconds_between(gateway, last, "Stopped") < 12, gateway.owsla.output()


@reactor_test
async def test_deadline_without_a_broker(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """The same limit holds if the broker is gone."""
    gateway, proxy = await _with_unconfirmed_lines(rabbitmq, lab, drain_timeout="2s")
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost")
    assert await gateway.owsla.terminate(20) == 0
    last = [line for line in gateway.owsla.lines("owsla#") if "gave up" in line]
    assert last, gateway.owsla.output()
    assert re.search("gave up 3 lines", last[-1])


@both_ways
@reactor_test
async def test_broker_back_in_time(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A broker that comes back before the deadline gets every line."""
    gateway, proxy = await _with_unconfirmed_lines(rabbitmq, lab, drain_timeout="60s")
    await proxy.refuse()
    proxy.cut()
    proxy.holding = False
    proxy.held.clear()
    await gateway.owsla.wait_for_line("Broker lost")
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line("Stopping")
    await proxy.start()
    assert await gateway.owsla.exited(60) == 0
    assert gateway.owsla.lines("everything confirmed"), gateway.owsla.output()
    bodies = [message.body for message in await gateway.messages(3)]
    assert bodies == [b"1", b"2", b"3"]


@reactor_test
async def test_device_that_does_not_read(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A device that does not read delays the end by --drain-timeout at most. Messages for it are recorded, or stay in the
    queue.
    """
    gateway = await lab.gateway(
        rabbitmq.url, drain_spread=0, drain_timeout="3s", write_timeout="10m", write_buffer="64MiB", prefetch=5000
    )
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    device.pause()
    for _ in range(600):
        await gateway.send(connection_id, b"x" * 16000)
    assert await gateway.owsla.terminate(30) == 0
    assert gateway.owsla.lines("closed 1 device before their turn"), gateway.owsla.output()
    records = gateway.backend.inbox[gateway.undeliverable]
    # Some of the first messages went into the socket buffers.
    await until(lambda: len(records) or gateway.owsla.lines("gave up .* [1-9][0-9]* messages"), what="a word of the messages")
    assert len(records) + await gateway.backend.count(gateway.to_device) > 0
    device.abort()
