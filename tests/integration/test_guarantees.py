"""Tests of the guarantees in docs/guarantees.md that the tests of faults, outages and draining do not cover."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pika import BasicProperties as Properties
from twisted.internet.defer import Deferred, gatherResults

from ._support.backend import Backend, Message
from ._support.batches import both_ways
from ._support.books import DEVICE_ACK
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.proxy import Proxy
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until


async def _send(gateway: Gateway, connection_id: str, seq: int | None, body: bytes, **more: Any) -> None:
    """Publish a line for a device. Headers and properties are keyword arguments."""
    properties = {name: more.pop(name) for name in ("reply_to", "correlation_id", "expiration", "user_id") if name in more}
    headers = {"connection_id": connection_id, **more}
    if seq is not None:
        headers["to_device_seq"] = seq
    await gateway.backend.publish(gateway.to_device, body, headers, **properties)


async def _reason(gateway: Gateway) -> tuple[bytes, str]:
    """Return the body of the next undeliverable message, and the reason."""
    record = await gateway.refused(30)
    return record.body, record.headers["owsla_reason"]


def _resident(gateway: Gateway) -> int:
    """Return the resident memory of an Owsla in bytes."""
    status = Path(f"/proc/{gateway.owsla.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def _devices(lab: Lab, gateway: Gateway, count: int) -> list[Device]:
    """Connect many devices, a few at a time."""
    devices = [lab.waiting_device(gateway) for _ in range(count)]
    for start in range(0, count, 50):
        await gatherResults([Deferred.fromCoroutine(device.connect(60)) for device in devices[start : start + 50]])
    return devices


async def _introduce(gateway: Gateway, devices: list[Device]) -> list[str]:
    """Let all devices send a line at the same time. Return their connection ids."""
    for number, device in enumerate(devices):
        device.send_line(b"%d" % number)
    messages = await gateway.messages(len(devices), 60)
    return [message.connection_id for message in sorted(messages, key=lambda message: int(message.body))]


# -- Acknowledgements to devices ---------------------------------------------------------------------------------------


@both_ways
@reactor_test
async def test_acknowledged_without_a_hole(broker: Broker, lab: Lab) -> None:
    """`--device-ack` acknowledges lines that the broker has confirmed, cumulatively, from the first line on and without a hole.
    """
    gateway = await lab.gateway(broker.url, device_ack=DEVICE_ACK)
    device = await lab.device(gateway)
    device.send_line(*(b"%d" % number for number in range(500)))
    told: list[int] = []
    while not told or told[-1] < 499:
        word, number = (await device.line()).split()
        assert word == b"ACK"
        told.append(int(number))
    assert told == sorted(set(told)), "an acknowledgement came twice, or went back"
    assert len(await gateway.messages(500)) == 500


@both_ways
@reactor_test
async def test_refused_lines_are_not_acknowledged(broker: Broker, lab: Lab) -> None:
    """Lines that a full queue refuses, and all lines behind them, are acknowledged only once the queue has accepted them."""
    name = f"full_{secrets.token_hex(4)}"
    setup = await lab.backend(broker.url)
    arguments = {"x-max-length": 8, "x-overflow": "reject-publish"}
    await setup.call(lambda channel: channel.queue_declare(name, durable=True, arguments=arguments))
    gateway = await lab.gateway(broker.url, backend=False, from_device=name, device_ack=DEVICE_ACK)
    device = await lab.device(gateway)
    for number in range(8):
        device.send_line(b"%d" % number)  # each in a message of its own, so that the queue is full
        assert await device.line() == b"ACK %d" % number
    for number in range(8, 30):
        device.send_line(b"%d" % number)
    await gateway.owsla.wait_for_line("Broker refused")
    taken: set[int] = set()
    acknowledged = 7
    while acknowledged < 29:
        for line in device.lines.clear():
            acknowledged = int(line.split()[1])
        for message in await setup.fetch_lines(name):
            assert int(message.body) == message.seq
            taken.add(message.seq)
        assert taken >= set(range(acknowledged + 1)), "acknowledged, and not in the queue"
        await pause(0.05)
    assert taken == set(range(30))


# -- The window --------------------------------------------------------------------------------------------------------


@both_ways
@reactor_test
async def test_window(broker: Broker, lab: Lab) -> None:
    """While the broker confirms nothing, devices are not read and memory does not grow. Then all devices continue in turn."""
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url, window=200, heartbeat="10m")
    talkative, *quiet = await _devices(lab, gateway, 21)
    await _introduce(gateway, [talkative, *quiet])
    before = _resident(gateway)
    proxy.hold()
    lines = 10_000
    talkative.send_line(*(b"%d %s" % (number, b"x" * 4000) for number in range(lines)))
    for number, device in enumerate(quiet):
        device.send_line(b"quiet %d" % number)
    await pause(2)
    assert _resident(gateway) - before < 20_000_000
    proxy.release()
    order = [message.body for message in await gateway.messages(lines + len(quiet), 120)]
    loud = [int(body.split()[0]) for body in order if not body.startswith(b"quiet")]
    assert loud == list(range(lines))
    assert {body for body in order if body.startswith(b"quiet")} == {b"quiet %d" % number for number in range(len(quiet))}
    last = max(place for place, body in enumerate(order) if body.startswith(b"quiet"))
    assert last < lines / 10, "the quiet ones waited for the talkative one"


@both_ways
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
@reactor_test
async def test_gone_while_not_read(broker: Broker, lab: Lab, reset: bool) -> None:
    """Devices that leave while they are not read free their slots within seconds. The lines that were read are published."""
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url, max_connections=3)
    devices = await _devices(lab, gateway, 3)
    ids = await _introduce(gateway, devices)
    start = gateway.owsla.mark()
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    for device in devices:
        device.send_line(b"read, and kept")
    await pause(0.5)
    for device in devices:
        device.send_line(b"perhaps not read")
        device.send_raw(b"never finished")
    await pause(0.2)
    for device in devices:
        if reset:
            device.abort()
        else:
            device.transport.loseConnection()  # sends close_notify, and waits for the answer
            device.transport.transport.loseConnection()  # does not wait
    # All three slots are used again while the broker is still away.
    successors = await _devices(lab, gateway, 3)
    await proxy.start()
    kept: set[str] = set()
    while kept != set(ids):
        message = await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"read, and kept", 60)
        assert message.seq == 1
        kept.add(message.connection_id)
    for device in successors:
        await gateway.round_trip(device)


def _leave(device: Device, reset: bool) -> None:
    """Close the connection of a device that has sent everything, without waiting."""
    if reset:
        device.abort()
    else:
        device.transport.loseConnection()  # sends close_notify, and waits for the answer
        device.transport.transport.loseConnection()  # does not wait


async def _outage(rabbitmq: RabbitMQ, gateway: Gateway, proxy: Proxy, way: str) -> Callable[[], Awaitable[object]]:
    """Begin an outage of the broker. Return the function that ends it."""
    start = gateway.owsla.mark()
    if way == "blocked":
        await rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
        device = await gateway.lab.device(gateway)
        device.send_line(b"RabbitMQ blocks those who publish")
        await gateway.owsla.wait_for_line("Broker blocked", 30, start=start)
        await device.close()
        return lambda: rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    if way == "stopped":
        rabbitmq.pause()

        async def resume() -> None:
            rabbitmq.resume()

        return resume
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    return proxy.start


@both_ways
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
@pytest.mark.parametrize("way", ["down", "blocked", "stopped"])
@reactor_test
async def test_comings_and_goings_in_an_outage(own_rabbitmq: RabbitMQ, lab: Lab, way: str, reset: bool) -> None:
    """Lines of devices that came and left during the outage, or left in it, are published in order when the broker is back."""
    proxy = await lab.proxy(own_rabbitmq.port)
    gateway = await lab.gateway(own_rabbitmq.url, broker=proxy.url, heartbeat="2s", window=1000)
    there = await _devices(lab, gateway, 3)
    await _introduce(gateway, there)
    end = await _outage(own_rabbitmq, gateway, proxy, way)
    start = gateway.owsla.mark()
    devices = there + await _devices(lab, gateway, 9)
    for chunk in range(5):
        for number, device in enumerate(devices):
            device.send_line(*(b"%d %d" % (number, line) for line in range(10 * chunk, 10 * chunk + 10)))
        await pause(0.1)
    try:
        for device in devices:
            _leave(device, reset)
        await until(lambda: len(gateway.owsla.lines("Device disconnected", start=start)) >= 12, 30, gateway.owsla.output)
    finally:
        await end()
    heard: dict[bytes, list[tuple[int, int]]] = {}
    wanted = {b"%d" % number: list(range(50)) for number in range(12)}

    def complete(message: Message) -> bool:
        number, _, line = message.body.partition(b" ")
        if number in wanted and line.isdigit():
            heard.setdefault(number, []).append((message.seq, int(line)))
        # Lines whose confirms were lost may be duplicated.
        return {number: list(dict(lines).values()) for number, lines in heard.items()} == wanted

    try:
        await gateway.backend.inbox[gateway.from_device].find(complete, 30)
    except AssertionError as error:
        raise AssertionError(f"{ {number: len(dict(lines)) for number, lines in heard.items()} }") from error
    assert not gateway.owsla.lines("Discarded"), gateway.owsla.output()


@both_ways
@reactor_test
async def test_more_than_the_window_can_spare(broker: Broker, lab: Lab) -> None:
    """Devices that come, send and leave in an outage use at most twice the window, each at most its share. The excess is
    counted.
    """
    proxy = await lab.proxy(broker.port)
    gateway = await lab.gateway(broker.url, broker=proxy.url, window=100)
    start = gateway.owsla.mark()
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    devices = await _devices(lab, gateway, 15)
    for number, device in enumerate(devices):
        device.send_line(*(b"%d %d" % (number, line) for line in range(100)))
        _leave(device, reset=False)
    await until(lambda: len(gateway.owsla.lines("Device disconnected", start=start)) == 15, 30, gateway.owsla.output)
    await gateway.owsla.wait_for_line("Discarded", 20)
    await proxy.start()
    last = await lab.device(gateway)
    last.send_line(b"the end")
    heard: dict[bytes, list[int]] = {}
    while (message := await gateway.message(60)).body != b"the end":
        name, line = message.body.split()
        heard.setdefault(name, []).append(int(line))
    assert all(lines == list(range(len(lines))) for lines in heard.values()), heard
    assert len(heard) > 7, "a few took all of the room"
    assert 100 <= sum(map(len, heard.values())) <= 220, heard


@both_ways
@reactor_test
async def test_max_rate(broker: Broker, lab: Lab) -> None:
    """A device that sends faster than --max-rate is slowed down, and none of its lines is lost."""
    gateway = await lab.gateway(broker.url, max_rate=20)
    fast, other = await _devices(lab, gateway, 2)
    began = time.monotonic()
    for number in range(80):
        fast.send_line(b"%d" % number)
        await pause(0.001)
    await gateway.round_trip(other)
    heard: list[bytes] = []
    gateway.backend.inbox[gateway.from_device].clear()
    late = await lab.device(gateway)
    late.send_line(b"*")
    while b"79" not in heard:
        heard.append((await gateway.message(30)).body)
    assert heard.index(b"*") < heard.index(b"79"), "the others waited for it"
    # The lines of one second are in the initial credit. The upper bound is loose, so that only a device that is too fast can
    # break it.
    assert time.monotonic() - began > 2


# -- Numbered messages -------------------------------------------------------------------------------------------------


@reactor_test
async def test_shuffled_and_doubled(broker: Broker, lab: Lab) -> None:
    """Numbered messages are written once and in order, even if they arrive shuffled and duplicated."""
    gateway = await lab.gateway(broker.url)
    device = await lab.device(gateway)
    device.send_line(b"hello")
    message = await gateway.message()
    for seq in [*range(30, -1, -1), *range(31)]:
        headers = {"connection_id": message.connection_id, "to_device_seq": seq}
        route = gateway.to_device if seq % 2 else message.properties.reply_to
        await gateway.backend.publish(route, b"%d" % seq, headers)
    assert await device.lines.take(31) == [b"%d" % seq for seq in range(31)]
    await gateway.send(message.connection_id, b"end")
    assert await device.line() == b"end"


@reactor_test
async def test_gap(broker: Broker, lab: Lab) -> None:
    """A number that is missing for --gap-timeout is skipped, with an event. If it arrives later, it is recorded as `late`."""
    gateway = await lab.gateway(broker.url, gap_timeout="300ms")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for seq in (2, 3, 5):
        await _send(gateway, connection_id, seq, b"%d" % seq)
    assert await device.lines.take(3) == [b"2", b"3", b"5"]
    pattern = f"Gap skipped: {connection_id}"
    await until(lambda: len(gateway.owsla.lines(pattern)) >= 2, what="both gaps in the log")
    skipped = gateway.owsla.lines(pattern)
    assert len(skipped) == 2
    assert "numbers 0 to 1" in skipped[0]
    assert "number 4" in skipped[1]
    for seq in (4, 0, 3, 6):
        await _send(gateway, connection_id, seq, b"%d" % seq)
    assert await device.line() == b"6"
    assert {await _reason(gateway), await _reason(gateway)} == {(b"4", "late"), (b"0", "late")}
    assert len(device.lines) == 0
    assert len(gateway.backend.inbox[gateway.undeliverable]) == 0, "3 was a duplicate"


@reactor_test
async def test_reorder_limit(broker: Broker, lab: Lab) -> None:
    """Beyond --reorder-limit a device stops waiting for missing numbers, at any time."""
    gateway = await lab.gateway(broker.url, gap_timeout="10m", reorder_limit=10)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for seq in range(1, 12):
        await _send(gateway, connection_id, seq, b"%d" % seq)
    assert await device.lines.take(11) == [b"%d" % seq for seq in range(1, 12)]


@reactor_test
async def test_a_date_for_a_number(broker: Broker, lab: Lab) -> None:
    """A number that a client took from a clock blocks no messages, however large it is. Skipped numbers are late."""
    gateway = await lab.gateway(broker.url, gap_timeout="100ms")
    devices = await _devices(lab, gateway, 2)
    (connection_id, _) = await _introduce(gateway, devices)
    headers: dict[str, Any] = {"connection_id": connection_id}
    await gateway.backend.publish(gateway.to_device, b"far", {**headers, "to_device_seq": 2**40})
    assert await devices[0].line() == b"far"
    for year in (9999, 2026):
        passed = {**headers, "to_device_seq": datetime(year, 1, 1, tzinfo=UTC)}
        await gateway.backend.publish(gateway.to_device, b"late", passed)
        record = await gateway.refused()
        assert (record.body, record.headers["owsla_reason"]) == (b"late", "late")
    await gateway.round_trip(devices[1])


@reactor_test
async def test_a_thousand_gaps(broker: Broker, lab: Lab) -> None:
    """Devices that all wait for a number that is further back than the prefetch are all served. Each message is delivered or
    recorded.
    """
    count = 500  # devices, each of which waits for two numbers
    gateway = await lab.gateway(broker.url, gap_timeout="10m", consumers=2, prefetch=50)
    devices = await _devices(lab, gateway, count)
    ids = await _introduce(gateway, devices)

    def publish(channel: Any) -> None:
        for seq in (2, 1, 0):
            for connection_id in ids:
                properties = Properties(headers={"connection_id": connection_id, "to_device_seq": seq})
                channel.basic_publish("", gateway.to_device, b"%d" % seq, properties)

    await gateway.backend.call(publish, 120)
    await gateway.backend.publish(gateway.to_device, b"end", {"connection_id": ids[0]})
    await until(lambda: all(len(device.lines) for device in devices), 60, "something for every device")
    await devices[0].lines.find(lambda line: line == b"end", 60)
    records = gateway.backend.inbox[gateway.undeliverable]
    await until(lambda: sum(len(device.lines) for device in devices) + len(records) >= 3 * count - 3, 60, "the rest")
    late: dict[str, set[bytes]] = {}
    for record in records.clear():
        assert record.headers["owsla_reason"] == "late"
        late.setdefault(record.connection_id, set()).add(record.body)
    for connection_id, device in list(zip(ids, devices, strict=True))[1:]:
        lines = device.lines.clear()
        assert lines == sorted(set(lines))
        assert set(lines) | late.get(connection_id, set()) == {b"0", b"1", b"2"}
        assert not set(lines) & late.get(connection_id, set())
    for device in devices:
        device.abort()


# -- Slow devices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"write_buffer": "64KiB"}, {"write_buffer": "64MiB", "write_timeout": "1s"}], ids=["buffer", "timeout"]
)
@reactor_test
async def test_slow_device(broker: Broker, lab: Lab, options: dict[str, Any]) -> None:
    """A device that stops reading is closed, and its waiting messages are recorded.

    Data already written is not discarded by a reset: the device gets it when it reads again. Other devices are not affected.
    """
    gateway = await lab.gateway(broker.url, **options)
    slow, other = await _devices(lab, gateway, 2)
    connection_id, other_id = await _introduce(gateway, [slow, other])
    slow.pause()
    sent = 0
    while not gateway.owsla.lines("Slow device"):
        for _ in range(20):
            await _send(gateway, connection_id, sent, b"%d %s" % (sent, b"x" * 10_000))
            sent += 1
        await _send(gateway, other_id, None, b"you are served")
        assert await other.line() == b"you are served"
        assert sent < 5000
    slow.resume()
    await slow.closed()
    await gateway.round_trip(other)
    records = gateway.backend.inbox[gateway.undeliverable]
    received = {int(line.split()[0]) for line in slow.lines.clear()}
    recorded: dict[int, str] = {}

    def all_accounted_for() -> bool:
        recorded.update((int(record.body.split()[0]), record.headers["owsla_reason"]) for record in records.clear())
        return len(received) + len(recorded) >= sent

    await until(all_accounted_for, 60, "a record of every message that was not received")
    assert "slow-device" in recorded.values()
    assert set(recorded.values()) <= {"slow-device", "unknown-connection", "connection-closed"}
    assert not received & set(recorded)
    assert received | set(recorded) == set(range(sent))


@reactor_test
async def test_acknowledgements_to_a_device_that_does_not_read(broker: Broker, lab: Lab) -> None:
    """A device that sends and does not read costs no memory for its acknowledgements, and is not closed for some time."""
    gateway = await lab.gateway(broker.url, device_ack="ACK {seq} " + "." * 2000, write_timeout="10m")
    device = await lab.device(gateway)
    before = _resident(gateway)
    device.pause()
    for _ in range(400):
        device.send_line(*(b"%d" % number for number in range(10)))
        await pause(0.005)
    await gateway.messages(4000, 60)
    assert _resident(gateway) - before < 30_000_000
    device.resume()
    await device.lines.find(lambda line: line.startswith(b"ACK 3999 "), 30)


@reactor_test
async def test_closed_by_the_back_end(broker: Broker, lab: Lab) -> None:
    """`owsla_close` closes a connection after its line, in the order of its messages. An empty body writes no line."""
    gateway = await lab.gateway(broker.url)
    first, second = await _devices(lab, gateway, 2)
    ids = await _introduce(gateway, [first, second])
    await _send(gateway, ids[0], 1, b"and goodbye", owsla_close=True)
    await _send(gateway, ids[0], 2, b"nobody hears this")
    await _send(gateway, ids[0], 0, b"hello")
    assert "cleanly" in (await first.closed()).getErrorMessage()
    assert first.lines.clear() == [b"hello", b"and goodbye"]
    assert await _reason(gateway) in [(b"nobody hears this", "connection-closed")]
    await _send(gateway, ids[1], None, b"", owsla_close=True)
    await second.closed()
    assert second.lines.clear() == []


# -- What is not delivered ---------------------------------------------------------------------------------------------


@reactor_test
async def test_delivery_reports(broker: Broker, lab: Lab) -> None:
    """A message with a reply_to gets a delivery report: an empty body, the correlation id and the connection id."""
    gateway = await lab.gateway(broker.url)
    reports = f"reports_{secrets.token_hex(4)}"
    await gateway.backend.call(lambda channel: channel.queue_declare(reports))
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    gone = connection_id[:9] + connection_id[9:].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    gone = gone[:14] + "8" + gone[15:19] + "8" + gone[20:]
    asked = {"reply_to": reports}
    await _send(gateway, connection_id, None, b"hi", correlation_id="delivered", **asked)
    await _send(gateway, connection_id, None, b"old", correlation_id="expired", expires_at=1, **asked)
    await _send(gateway, gone, None, b"whom?", correlation_id="unknown-connection", **asked)
    await _send(gateway, connection_id, None, b"a\nb", correlation_id="delimiter-in-body", **asked)
    assert await device.line() == b"hi"
    seen = {}
    for _ in range(4):
        report = await _fetched(gateway, reports)
        assert report.body == b""
        assert report.properties.correlation_id == report.headers["owsla_report"]
        seen[report.headers["owsla_report"]] = report.connection_id
    assert seen == {
        "delivered": connection_id,
        "expired": connection_id,
        "unknown-connection": gone,
        "delimiter-in-body": connection_id,
    }


async def _fetched(gateway: Gateway, queue: str) -> Any:
    """Take a message of a queue, and wait for one if there is none."""
    for _ in range(600):
        message = await gateway.backend.fetch(queue)
        if message is not None:
            return message
        await pause(0.05)
    raise AssertionError(f"nothing on {queue}")


@reactor_test
async def test_reports_to_nobody(broker: Broker, lab: Lab) -> None:
    """A report to a missing queue is dropped, and no report goes to a queue of Owsla. The message is delivered."""
    gateway = await lab.gateway(broker.url)
    device = await lab.device(gateway)
    device.send_line(b"hello")
    message = await gateway.message()
    for number, queue in enumerate(("nowhere", gateway.to_device, message.properties.reply_to)):
        await _send(gateway, message.connection_id, None, b"%d" % number, reply_to=queue)
        assert await device.line() == b"%d" % number
    await gateway.round_trip(device)
    await pause(0.3)
    assert len(gateway.backend.inbox[gateway.undeliverable]) == 0, "a report came back as a message"


@pytest.mark.parametrize(
    ("delimiter", "bad", "good"),
    [("\\n", [b"a\nb", b"a\rb", b"\n", b"a\r\n"], b"a|b"), ("|", [b"a|b", b"|"], b"a\r\nb")],
    ids=["default", "custom"],
)
@reactor_test
async def test_delimiter_in_body(broker: Broker, lab: Lab, delimiter: str, bad: list[bytes], good: bytes) -> None:
    """A body with a delimiter is refused, and its number is used up: the next messages are delivered."""
    gateway = await lab.gateway(broker.url, delimiter=delimiter)
    device = await lab.device(gateway, delimiter=b"|" if delimiter == "|" else b"\r\n")
    device.send_raw(b"hello" + (b"|" if delimiter == "|" else b"\n"))
    connection_id = (await gateway.message()).connection_id
    for seq, body in enumerate(bad):
        await _send(gateway, connection_id, seq, body)
        assert await _reason(gateway) == (body, "delimiter-in-body")
    await _send(gateway, connection_id, len(bad), good)
    assert await device.line() == good


@reactor_test
async def test_expired(broker: Broker, lab: Lab) -> None:
    """A message that has expired at its turn, by `expires_at` or `expiration`, is recorded and not sent. Others are sent."""
    gateway = await lab.gateway(broker.url, gap_timeout="1s")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    now = int(time.time() * 1000)
    await _send(gateway, connection_id, None, b"past", expires_at=now - 1)
    await _send(gateway, connection_id, None, b"future", expires_at=now + 600_000)
    assert await device.line() == b"future"
    assert await _reason(gateway) == (b"past", "expired")
    # Held for number 0, which is never sent.
    await _send(gateway, connection_id, 1, b"held too long", expiration="300")
    await _send(gateway, connection_id, 2, b"held long", expiration="600000")
    await _send(gateway, connection_id, 3, b"held too long as well", expires_at=int(time.time() * 1000) + 300)
    assert await device.line() == b"held long"
    assert await _reason(gateway) == (b"held too long", "expired")
    assert await _reason(gateway) == (b"held too long as well", "expired")


@reactor_test
async def test_undeliverable_full(broker: Broker, lab: Lab) -> None:
    """If the queue of undeliverable messages is full, further ones are acknowledged and logged with their reason. All else
    continues.
    """
    gateway = await lab.gateway(broker.url, backend=False, undeliverable_limit=5, drain_spread=0)
    backend = await lab.backend(broker.url, gateway.from_device)
    gateway._backend = backend
    device = await lab.device(gateway)
    for number in range(20):
        await backend.publish(gateway.to_device, b"%d" % number, {"connection_id": "nobody's"})
    await gateway.owsla.wait_for_line("Undeliverable and not recorded .*: bad-connection-id")
    await gateway.round_trip(device)
    assert await backend.count(gateway.undeliverable) == 5
    assert await gateway.owsla.terminate() == 0
    assert await backend.count(gateway.to_device) == 0


@reactor_test
async def test_undeliverable_deleted(broker: Broker, lab: Lab) -> None:
    """A deleted queue of undeliverable messages is declared again, and no message for it is lost."""
    gateway = await lab.gateway(broker.url, backend=False)
    backend = await lab.backend(broker.url, gateway.from_device)
    gateway._backend = backend
    device = await lab.device(gateway)
    await backend.call(lambda channel: channel.queue_delete(gateway.undeliverable))
    bodies = [b"%d" % number for number in range(20)]
    for body in bodies:
        await backend.publish(gateway.to_device, body, {"connection_id": "nobody's"})
    await gateway.round_trip(device)
    found = await _backend_of_a_queue_to_come(lab, broker, gateway.undeliverable)
    records = [(await found.get(gateway.undeliverable, 30)).body for _ in bodies]
    assert sorted(records) == sorted(bodies)


async def _backend_of_a_queue_to_come(lab: Lab, broker: Broker, queue: str) -> Backend:
    """Return a back end that consumes a queue, once that queue exists."""
    for _ in range(100):
        try:
            return await lab.backend(broker.url, queue)
        except AssertionError:
            await pause(0.1)
    raise AssertionError(f"{queue} does not come")


@reactor_test
async def test_record_that_closes_the_channel(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A message with a user_id, which only its publisher may publish, is recorded and delivered like any other."""
    gateway = await lab.gateway(rabbitmq.url)
    name = f"other-{secrets.token_hex(4)}"
    await rabbitmq.ctl("add_user", name, "secret")
    await rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    stranger = await lab.backend(rabbitmq.url.replace("guest:guest", f"{name}:secret"))
    await stranger.publish(gateway.to_device, b"of another user", {"connection_id": "nobody's"}, user_id=name)
    record = await gateway.refused()
    assert (record.body, record.headers["owsla_user_id"]) == (b"of another user", name)
    await stranger.publish(gateway.to_device, b"for the device", {"connection_id": connection_id}, user_id=name)
    assert await device.line() == b"for the device"
    await gateway.round_trip(device)


@pytest.mark.parametrize("large", ["x", "connection_id"])
@reactor_test
async def test_record_that_is_too_large(rabbitmq: RabbitMQ, lab: Lab, large: str) -> None:
    """A message whose headers do not fit into a frame with the added reason is recorded all the same."""
    gateway = await lab.gateway(rabbitmq.url)
    device = await lab.device(gateway)
    # A content header has to fit into one frame of 131,072 bytes.
    sizes = range(130_900, 131_000, 20)
    for size in sizes:
        await gateway.backend.publish(gateway.to_device, b"%d" % size, {"connection_id": "nobody's"} | {large: "x" * size})
    await gateway.send("nobody's", b"after them")
    bodies = {(await gateway.refused(30)).body for _ in range(len(sizes) + 1)}
    assert bodies == {b"after them", *(b"%d" % size for size in sizes)}
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Broker lost")
