"""Devices addressed by name: messages with a `device_id` alone, to devices on several nodes, and faults in the middle of it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from ._support.by_name import LONGEST, NOTICED, TOKEN, Site
from ._support.lab import Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until

QUORUM = {f"{queue}_argument": "x-queue-type=quorum" for queue in ("from_device", "undeliverable", "node_queue")}

#: A quorum queue with one active consumer: one node takes all messages, and their order is that of the queue.
ONE_TAKER = {"to_device_argument": ["x-queue-type=quorum", "x-single-active-consumer=true"]}

#: Seconds for which nodes ask for a device in the tests with faults: longer than a device needs to reconnect.
ASKED_FOR = 5

#: Seconds. Nodes notice a broker that does not answer within one and a half times this.
HEARTBEAT = 2


class NotUTF8(str):
    """Text that pika sends as a long string of other bytes."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


# -- All is well -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["embedded", "workers", "quorum"])
def site(request: pytest.FixtureRequest, module_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return two gateways: on the embedded broker; on RabbitMQ, one with two workers; and on quorum queues, where one node
    takes all messages, and a device has one connection in the cluster.
    """
    broker = request.getfixturevalue("embedded" if request.param == "embedded" else "rabbitmq")
    options = QUORUM | ONE_TAKER | {"on_duplicate": "replace"} if request.param == "quorum" else {}
    one = Site(module_lab, broker.url, tmp_path_factory.mktemp("site"), **options)
    block_on(one.start({"workers": 2} if request.param == "workers" else {}, {}))
    yield one
    block_on(one.stop())


@reactor_test
async def test_reaches_devices_on_any_node(site: Site, lab: Lab) -> None:
    """A message with a device id alone reaches the device wherever it is, once; reports name the connection. With both headers
    it is for the connection. `owsla_close` closes. The first messages come all at once, while nobody knows the devices yet.
    """
    await site.connect(lab)
    devices = [await site.log_in(lab, owsla, site.name()) for owsla in site.nodes]
    bodies = [b"%d" % number for number in range(40)]
    await site.send_all([(device.name, body) for body in bodies for device in devices])
    for device in devices:
        assert sorted(await device.lines(40), key=int) == bodies
    for device in devices:
        for number in range(4):
            body = f"{device.name}-{number}".encode()
            await site.send(device.name, body, reply_to=site.reports)
            assert await site.report(body) == ("delivered", device.connection_id)
            assert await device.lines(1) == [body]
    here, there = devices
    for number in range(4):
        await site.send(here.name, b"both %d" % number, {"connection_id": there.connection_id})
    assert sorted(await there.lines(4)) == [b"both %d" % number for number in range(4)]
    longest = await site.log_in(lab, site.nodes[1], LONGEST)
    await site.send(LONGEST, b"to the longest")
    assert await longest.lines(1) == [b"to the longest"]
    for device in devices:
        await site.send(device.name, b"goodbye", {"owsla_close": True})
        assert await device.lines(1) == [b"goodbye"]
        await device.device.closed()
    assert not any(len(device.device.lines) for device in (*devices, longest))
    site.nothing_else_on_record()


@reactor_test
async def test_undeliverable(site: Site, lab: Lab) -> None:
    """What cannot be delivered is on record with its reason, once, and reported if a report was requested; ids that no device
    can have are not asked for.
    """
    await site.connect(lab)
    device = await site.log_in(lab, site.nodes[1], site.name())
    soon = {"expires_at": int(time.time() * 1000) + 400}
    cases: dict[bytes, tuple[object, dict[str, Any], str]] = {
        b"unknown": ("nobody", {}, "unknown-device"),
        b"expired while asked for": ("nobody else", soon, "expired"),
        b"too long": ("x" * 256, {}, "unknown-device"),
        b"not UTF-8": (NotUTF8("?"), {}, "unknown-device"),
        b"empty": ("", {}, "bad-device-id"),
        b"number": (7, {}, "bad-device-id"),
        b"boolean": (True, {}, "bad-device-id"),
        b"list": ([device.name], {}, "bad-device-id"),
        b"table": ({"device_id": device.name}, {}, "bad-device-id"),
        b"numbered": (device.name, {"to_device_seq": 0}, "bad-seq"),
        b"two lines\n": (device.name, {}, "delimiter-in-body"),
    }
    sent = time.monotonic()
    for body, (name, more, _) in cases.items():
        await site.send(name, body, more, reply_to=site.reports)
    for body, (_, _, reason) in cases.items():
        record = await site.record(body)
        assert record.headers["owsla_reason"] == reason, body
        word, _ = await site.report(body)
        assert word == reason, body
    assert time.monotonic() - sent > 1, "a device is asked for during a second"
    await site.send(device.name, b"still served")
    assert await device.lines(1) == [b"still served"]
    assert not site.left(site.reports)
    site.nothing_else_on_record()


@reactor_test
async def test_two_connections_of_a_device(site: Site, lab: Lab) -> None:
    """Of two connections of a device on one node, the newest is its address; when it has closed, the one before it is, unless
    that was replaced.
    """
    await site.connect(lab)
    owsla, name = site.nodes[1], site.name()
    earlier, newer = await site.log_in(lab, owsla, name), await site.log_in(lab, owsla, name)
    bodies = [b"%d" % number for number in range(8)]
    await site.send_all([(name, body) for body in bodies])
    assert sorted(await newer.lines(8)) == bodies
    await newer.device.close()
    await owsla.wait_for_line(f"Device disconnected: {newer.connection_id}")
    await site.send(name, b"next", reply_to=site.reports)
    if site.options.get("on_duplicate") == "replace":
        await earlier.device.closed()
        assert (await site.record(b"next")).headers["owsla_reason"] == "unknown-device"
    else:
        assert await site.report(b"next") == ("delivered", earlier.connection_id)
        assert await earlier.lines(1) == [b"next"]
    assert not len(earlier.device.lines)
    site.nothing_else_on_record()


@reactor_test
async def test_order_while_a_device_moves(site: Site, lab: Lab) -> None:
    """Messages that one node took reach a device in order, on whichever connection, while the device moves between nodes."""
    if "to_device_argument" not in site.options:
        pytest.skip("several nodes take messages here")
    await site.connect(lab)
    name = site.name()
    connections = [await site.log_in(lab, site.nodes[0], name)]
    sent = 0
    for move in range(1, 6):
        moving = Deferred.fromCoroutine(site.log_in(lab, site.nodes[move % 2], name))
        for _ in range(10):
            await site.send_all([(name, b"%d" % number) for number in range(sent, sent + 10)])
            sent += 10
        connections.append(await moving)
    await site.send_all([(name, b"last")])
    got: list[list[bytes]] = [[] for _ in connections]

    def received() -> bool:
        for lines, connection in zip(got, connections, strict=True):
            lines.extend(connection.device.lines.clear())
        return any(b"last" in lines for lines in got)

    await until(received, what=lambda: f"the last message; so far {got}")
    expected = [b"%d" % number for number in range(sent)] + [b"last"]
    assert [line for lines in got for line in lines] == expected
    assert sum(map(bool, got)) > 1, "all messages came over one connection"
    site.nothing_else_on_record()


# -- Faults ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trio(own_rabbitmq: RabbitMQ, module_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a gateway with one process and one with two workers, which ask for a device for some seconds."""
    one = Site(
        module_lab,
        own_rabbitmq.url,
        tmp_path_factory.mktemp("trio"),
        on_duplicate="replace",
        device_timeout=f"{ASKED_FOR}s",
        heartbeat=f"{HEARTBEAT}s",
    )
    block_on(one.start({}, {"workers": 2}))
    yield one
    block_on(one.stop())


@reactor_test
async def test_a_device_that_comes_while_it_is_asked_for(trio: Site, lab: Lab) -> None:
    """With a `--device-timeout` longer than a reconnect, messages for a device that is away wait for it, in the meantime other
    devices are served, and a message that expires while it waits is on record.
    """
    await trio.connect(lab)
    other = await trio.log_in(lab, trio.nodes[1], trio.name())
    name = trio.name()
    bodies = [b"%d" % number for number in range(6)]
    for body in bodies:
        await trio.send(name, body)
    await trio.send(name, b"short-lived", {"expires_at": int(time.time() * 1000) + 300}, reply_to=trio.reports)
    await trio.send(other.name, b"meanwhile")
    assert await other.lines(1) == [b"meanwhile"]
    await pause(0.5)
    device = await trio.log_in(lab, trio.nodes[1], name)
    assert sorted(await device.lines(6, ASKED_FOR)) == bodies
    assert (await trio.record(b"short-lived")).headers["owsla_reason"] == "expired"
    assert (await trio.report(b"short-lived"))[0] == "expired"
    trio.nothing_else_on_record()


@reactor_test
async def test_ten_thousand_unknown_ids(trio: Site, lab: Lab) -> None:
    """A back end that sends to ten thousand devices that do not exist delays no message for others, and each of its messages is
    on record.
    """
    await trio.connect(lab)
    devices = [await trio.log_in(lab, owsla, trio.name()) for owsla in trio.nodes]
    strangers = [(f"nobody-{number}", b"%d" % number) for number in range(10_000)]
    for part in range(0, len(strangers), 1000):
        await trio.send_all(strangers[part : part + 1000])
    sent = time.monotonic()
    for device in devices:
        await trio.send(device.name, b"meanwhile")
    for device in devices:
        assert await device.lines(1, NOTICED) == [b"meanwhile"]
    print(f"other devices were served after {time.monotonic() - sent:.2f} s")
    records = await trio.backend.inbox[trio.undeliverable].take(len(strangers), 60)
    print(f"all were on record after {time.monotonic() - sent:.2f} s")
    assert {message.headers["owsla_reason"] for message in records} == {"unknown-device"}
    assert sorted(int(message.body) for message in records) == list(range(len(strangers)))
    trio.nothing_else_on_record()


@reactor_test
async def test_a_worker_is_killed_with_messages_in_its_queue(trio: Site, lab: Lab) -> None:
    """Messages by name in the queue of a worker that is killed reach the device at its next node."""
    await trio.connect(lab)
    owsla = trio.nodes[1]
    device = await trio.log_in(lab, owsla, trio.name())
    for number in range(4):  # All nodes remember where it is.
        await trio.send(device.name, b"%d" % number)
    await device.lines(4)
    (worker,) = {
        match[1]
        for line in owsla.lines(f"Device connected: {device.connection_id}")
        if (match := re.search(r"\[owsla\.(worker-\d)", line))
    }
    pid = int(re.findall(rf"{worker} is process (\d+)", owsla.output())[-1])
    os.kill(pid, signal.SIGSTOP)
    bodies = [b"%d" % number for number in range(10, 30)]
    mark = owsla.mark()
    await trio.send_all([(device.name, body) for body in bodies])
    await trio.empty()
    os.kill(pid, signal.SIGKILL)
    await device.device.closed()
    again = await trio.log_in(lab, trio.nodes[0], device.name)
    lines = await again.lines(len(bodies), NOTICED)
    # The worker may have been stopped between writing an early message and acknowledging it: that one is sent again, too.
    early = [line for line in lines if int(line) < 10]
    assert len(early) == len(set(early))
    lines += await again.lines(len(early), NOTICED)
    assert sorted(set(lines) - set(early), key=int) == bodies
    await owsla.wait_for_line(rf"{worker}#info\] Listening", NOTICED, start=mark)
    trio.nothing_else_on_record()


@reactor_test
async def test_a_node_is_cut_off_the_broker(trio: Site, lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """While the connections between one node and the broker are cut again and again, messages by name reach its devices, and
    those of other nodes.
    """
    await trio.connect(lab)
    proxy = await lab.proxy(own_rabbitmq.port)
    owsla = lab.new_owsla(**(trio.options | {"broker": proxy.url}))
    await owsla.start()
    devices = [await trio.log_in(lab, one, trio.name()) for one in (owsla, *trio.nodes)]
    bodies: list[bytes] = []
    for cut in range(4):
        mark = owsla.mark()
        bodies += [b"%d" % number for number in range(50 * cut, 50 * cut + 50)]
        await trio.send_all([(device.name, body) for body in bodies[-50:] for device in devices])
        proxy.cut()
        await owsla.wait_for_line("Broker connected", NOTICED, start=mark)
    for device in devices:
        missing = set(bodies)
        while missing:
            missing -= set(await device.lines(1, NOTICED))
    trio.nothing_else_on_record()
    assert await owsla.terminate() == 0


@pytest.mark.parametrize("fault", ["stopped", "killed"])
@reactor_test
async def test_the_broker_fails_while_devices_are_asked_for(trio: Site, lab: Lab, own_rabbitmq: RabbitMQ, fault: str) -> None:
    """The time in which the broker is away does not count as time in which a device was asked for. Afterwards a device that has
    connected meanwhile gets its messages, on whichever node it is, and a device that nobody has is on record.
    """
    await trio.connect(lab)
    marks = [owsla.mark() for owsla in trio.nodes]
    names = [trio.name() for _ in range(4)]
    bodies = [b"%d" % number for number in range(8)]
    await trio.send_all([(name, body) for body in bodies for name in names])
    await trio.send("nobody", b"for nobody")
    await trio.empty()
    if fault == "stopped":
        own_rabbitmq.pause()
    else:
        await own_rabbitmq.kill()
    for owsla, mark in zip(trio.nodes, marks, strict=True):
        await owsla.wait_for_line("Broker lost", NOTICED, start=mark)
    sockets = [await lab.device(trio.nodes[number % 2]) for number in range(len(names))]
    for name, device in zip(names, sockets, strict=True):
        device.send_line(f"HELLO {name} {TOKEN}".encode())
    await pause(ASKED_FOR)
    if fault == "stopped":
        own_rabbitmq.resume()
    else:
        await own_rabbitmq.start()
    await trio.reconnect(lab)
    for name, device in zip(names, sockets, strict=True):
        assert await device.line(NOTICED) == b"WELCOME " + name.encode()
        missing = set(bodies)
        while missing:
            missing.discard(await device.line(NOTICED))
    assert (await trio.record(b"for nobody", NOTICED)).headers["owsla_reason"] == "unknown-device"
    trio.nothing_else_on_record()


@reactor_test
async def test_a_broker_that_is_slow(own_rabbitmq: RabbitMQ, lab: Lab, tmp_path: Path) -> None:
    """While the broker passes no question on, though no heartbeat is missing yet, the time for which devices are asked for
    stands still: the devices of another node are not unknown.
    """
    proxy = await lab.proxy(own_rabbitmq.port)
    site = Site(lab, own_rabbitmq.url, tmp_path, **ONE_TAKER)
    await site.start({"broker": proxy.url}, {})
    await site.connect(lab)
    device = await site.log_in(lab, site.nodes[1], site.name())
    proxy.hold(one_way=True)  # The first node takes the messages, and its questions wait.
    bodies = [b"%d" % number for number in range(5)]
    await site.send_all([(device.name, body) for body in bodies] + [("nobody", b"for nobody")])
    await site.empty()
    await pause(3)
    site.nothing_else_on_record()
    proxy.release()
    assert await device.lines(len(bodies)) == bodies
    assert (await site.record(b"for nobody")).headers["owsla_reason"] == "unknown-device"
    site.nothing_else_on_record()
    await site.stop()
