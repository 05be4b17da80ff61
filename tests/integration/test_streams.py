"""Tests of lines in streams of RabbitMQ: complete and in order through outages, replayed from the beginning, in partitions.

They hold for RabbitMQ 3.10 and 4.0.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest

from owsla.batch_format import HEADER, decode

from ._support.backend import Backend, Message
from ._support.commands import Commands
from ._support.device import Device
from ._support.lab import Lab
from ._support.page import Page
from ._support.process import ChildProcess, free_port
from ._support.rabbitmq import Cluster, RabbitMQ, installed
from ._support.waiting import block_on, pause, reactor_test, until

STREAM: dict[str, Any] = {"x-queue-type": "stream"}

LIMITED = ["x-queue-type=stream", "x-max-age=7D", "x-max-length-bytes=1000000000", "x-stream-max-segment-size-bytes=1000000"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ with super streams, for the tests of this module. A test may kill it, if it starts it again."""
    request.getfixturevalue("own_rabbitmq") if not installed() else None  # which skips or fails the test
    listener = f"stream.listeners.tcp.1 = 127.0.0.1:{free_port()}\n"
    node = RabbitMQ(tmp_path_factory.mktemp("streams"), config=listener, plugins=["rabbitmq_stream"])
    try:
        block_on(node.start())
        block_on(_prepare(node))
        yield node
    finally:
        block_on(node.close())


async def settle(*nodes: RabbitMQ) -> None:
    """Have nodes write down which replicated queues they have.

    RabbitMQ 3.10 does so a moment after their declaration, and not at all if it is killed before. That concerns the first
    stream of a node: without its coordinator no stream can be used after that (404).
    """
    for node in nodes:
        await node.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")


async def _prepare(node: RabbitMQ) -> None:
    """Declare a first stream."""
    backend = await Backend(node.url).start()
    await declare(backend, "first")
    await backend.close()
    await settle(node)


async def declare(backend: Backend, name: str, **arguments: Any) -> None:
    """Declare a stream. The dashes in the names of arguments are underscores here."""
    given = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    await backend.call(lambda channel: channel.queue_declare(name, durable=True, arguments={**STREAM, **given}))


async def delete(backend: Backend, *names: str) -> None:
    for name in names:
        await backend.call(partial(lambda name, channel: channel.queue_delete(name), name))


def split(message: Message) -> list[Message]:
    """Return a message for each line of a batch, or a message that is none."""
    if HEADER not in message.headers:
        return [message]
    return [
        Message(
            message.queue,
            line.line,
            pika.BasicProperties(headers={"connection_id": line.connection_id.decode(), "from_device_seq": line.seq}),
        )
        for line in decode(message.body)
    ]


class Reader:
    """Back end that reads streams from the beginning."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.messages: dict[str, list[Message]] = defaultdict(list)

    async def read(self, stream: str) -> None:
        """Begin to read a stream."""

        def consume(channel: Any) -> None:
            # A stream needs a prefetch and acknowledgements, by which the broker limits what is in flight.
            channel.basic_qos(prefetch_count=100)
            channel.basic_consume(stream, arrived, arguments={"x-stream-offset": "first"})

        def arrived(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            self.messages[stream] += split(Message(stream, body, properties))
            channel.basic_ack(method.delivery_tag)

        await self._backend.call(consume)

    async def find(self, stream: str, bodies: set[bytes], timeout: float = 60) -> list[Message]:
        """Wait until these bodies have arrived. Return all messages so far."""

        def missing() -> set[bytes]:
            return bodies - {message.body for message in self.messages[stream]}

        await until(lambda: not missing(), timeout, lambda: f"{missing()} in {stream}")
        return list(self.messages[stream])


async def read(lab: Lab, url: str, *streams: str) -> Reader:
    """Read streams from the beginning."""
    reader = Reader(await lab.backend(url))
    for stream in streams:
        await reader.read(stream)
    return reader


def first_occurrences(messages: list[Message]) -> dict[str, list[tuple[int, bytes]]]:
    """Return numbers and bodies of the lines of each connection, in the order of the stream, without repeats."""
    lines: dict[str, dict[int, bytes]] = defaultdict(dict)
    for message in messages:
        lines[message.connection_id].setdefault(message.seq, message.body)
    return {connection_id: list(numbered.items()) for connection_id, numbered in lines.items()}


async def send(devices: list[Device], first: int, count: int) -> None:
    """Let each device send numbered lines."""
    for number in range(first, first + count):
        for which, device in enumerate(devices):
            device.send_line(b"%d %d" % (which, number))
        await pause(0.003)


async def acknowledged(device: Device, seq: int) -> None:
    """Wait until a device has been told that its lines up to this number are safe."""
    while int((await device.line(60)).split()[1]) < seq:
        pass


def assert_complete(messages: list[Message], devices: int, count: int) -> None:
    """Check that the lines of all devices are there, in their order."""
    found = first_occurrences(messages)
    assert sorted(int(lines[0][1].split()[0]) for lines in found.values()) == [*range(devices)]
    for lines in found.values():
        which = lines[0][1].split()[0]
        assert lines == [(number, b"%s %d" % (which, number)) for number in range(count)]


# -- One stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "batch"), [("killed", 1), ("restarted", 1), ("suspended", 1), ("killed", 50)])
@reactor_test
async def test_outage(node: RabbitMQ, lab: Lab, how: str, batch: int) -> None:
    """When RabbitMQ is killed, restarted or suspended in the middle of lines, the stream has all of them in order, and each
    device gets all acknowledgements. A line may be in the stream twice. A second reader finds the same once more.
    """
    gateway = await lab.gateway(
        node.url, backend=False, from_device_argument=LIMITED, device_ack="ACK {seq}", batch=batch, heartbeat="2s"
    )
    devices = [await lab.device(gateway) for _ in range(4)]
    await send(devices, 0, 100)
    start = gateway.owsla.mark()
    if how == "killed":
        await node.kill()
    elif how == "suspended":
        node.pause()
    else:
        await node.stop()
    await send(devices, 100, 100)
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    if how == "suspended":
        node.resume()
    else:
        await node.start()
    await send(devices, 200, 100)
    for device in devices:
        await acknowledged(device, 299)
    last = {b"%d 299" % which for which in range(4)}
    found = await (await read(lab, node.url, gateway.from_device)).find(gateway.from_device, last)
    assert_complete(found, 4, 300)
    again = await (await read(lab, node.url, gateway.from_device)).find(gateway.from_device, last)
    assert [message.body for message in again] == [message.body for message in found]


@reactor_test
async def test_loss_of_the_leader(cluster: Cluster, lab: Lab) -> None:
    """When the host of a stream's leader dies, another one takes over: no line is lost, and the order is kept. Without a
    majority of its hosts the stream confirms nothing; devices wait.
    """
    first, second, third = cluster.nodes
    backend = await lab.backend(first.url)
    await declare(backend, "lines", queue_leader_locator="client-local")
    await backend.close()
    gateway = await lab.gateway(
        second.url,
        backend=False,
        from_device="lines",
        from_device_argument=["x-queue-type=stream", "x-queue-leader-locator=client-local"],
        to_device_argument="x-queue-type=quorum",
        node_queue_argument="x-queue-type=quorum",
        undeliverable_argument="x-queue-type=quorum",
        device_ack="ACK {seq}",
    )
    devices = [await lab.device(gateway) for _ in range(2)]
    await send(devices, 0, 100)
    await settle(*cluster.nodes)
    await first.kill()
    await send(devices, 100, 100)
    for device in devices:
        await acknowledged(device, 199)
    await third.kill()
    await send(devices, 200, 50)
    await pause(2)
    assert all(not len(device.lines) for device in devices), "no majority has these lines"
    await first.start()
    for device in devices:
        await acknowledged(device, 249)
    reader = await read(lab, second.url, "lines")
    assert_complete(await reader.find("lines", {b"0 249", b"1 249"}), 2, 250)
    await third.start()


@reactor_test
async def test_door(node: RabbitMQ, lab: Lab) -> None:
    """A door can have a stream of its own, beside a classic queue for the lines of another."""
    gateway = await lab.gateway(
        node.url, listen="tcp:0:name=meters:from-device=meters:from-device-argument=x-queue-type=stream"
    )
    match = await gateway.owsla.wait_for_line(r"Listening for devices on port (\d+) .*\(door meters\)")
    meter = await lab.plain(int(match[1]))
    meter.send_line(b"21 kWh")
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    (message,) = await (await read(lab, node.url, "meters")).find("meters", {b"21 kWh"})
    assert message.headers["door"] == "meters"


# -- Super streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 50])
@reactor_test
async def test_super_stream(node: RabbitMQ, lab: Lab, batch: int) -> None:
    """Lines go to the partitions of a super stream by `{shard:N}`: those of a device to one, in their order."""
    name = f"readings-{batch}"
    await node.streams("add_super_stream", name, "--partitions", "3")
    partitions = [f"{name}-{number}" for number in range(3)]
    gateway = await lab.gateway(
        node.url,
        backend=False,
        from_device=None,
        publish_exchange=name,
        batch=batch,
        routing_key="{shard:3}",
        device_ack="ACK {seq}",
    )
    devices = [await lab.device(gateway) for _ in range(12)]
    await send(devices, 0, 50)
    start = gateway.owsla.mark()
    await node.kill()
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    await node.start()
    await send(devices, 50, 50)
    for device in devices:
        await acknowledged(device, 99)
    reader = await read(lab, node.url, *partitions)
    await until(
        lambda: sum(message.seq == 99 for found in reader.messages.values() for message in found) >= 12, 60, "all last lines"
    )
    assert_complete([message for partition in partitions for message in reader.messages[partition]], 12, 100)
    for number, partition in enumerate(partitions):
        for message in reader.messages[partition]:
            assert zlib.crc32(message.connection_id.encode()) % 3 == number


# -- Streams in other places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".nodes"])
@pytest.mark.parametrize("limits", [{}, {"max_length_bytes": 1_000_000}], ids=["", "limited"])
@reactor_test
async def test_consumed_stream(node: RabbitMQ, lab: Lab, suffix: str, limits: dict[str, int]) -> None:
    """A stream that Owsla would consume is refused with one line: each of its consumers would deliver every message. RabbitMQ
    compares the size limit of a stream before its type.
    """
    backend = await lab.backend(node.url)
    name = f"commands{suffix}"
    await declare(backend, name, **limits)
    owsla = lab.new_owsla(broker=node.url, to_device="commands")
    owsla.launch()
    text = f"the queue {name} is a stream, which Owsla cannot consume"
    await owsla.wait_for_line(text, 60)
    await pause(3)
    assert len(owsla.lines(text)) == 1, owsla.output()
    assert owsla.lines("used as it is") == []
    await delete(backend, name)
    await owsla.listening()
    assert await owsla.terminate() == 0
    await delete(backend, "commands", "commands.nodes")


@reactor_test
async def test_consumed_stream_without_permission(node: RabbitMQ, lab: Lab) -> None:
    """The same for a user who may not declare the queue, and cannot learn its type in this way. `--check` finds it, too."""
    backend = await lab.backend(node.url)
    await declare(backend, "orders")
    await node.ctl("add_user", "limited", "secret")
    await node.ctl("set_permissions", "limited", r"^(from_.*|orders\..*)$", ".*", ".*")
    url = node.url.replace("guest:guest", "limited:secret")
    owsla = lab.new_owsla(broker=url, from_device="from_limited", to_device="orders")
    owsla.launch()
    text = "the queue orders is a stream, which Owsla cannot consume"
    await owsla.wait_for_line(text, 60)
    await pause(3)
    assert len(owsla.lines(text)) == 1, owsla.output()
    assert owsla.lines("a consumer of orders ended") == [], owsla.output()
    await owsla.terminate()
    argv = ["owsla", "--check", f"--broker={url}", "--from-device=from_limited", "--to-device=orders"]
    check = lab.new_owsla(argv=[*argv, f"--certs-dir={lab.certs_dir}"])
    check.launch()
    assert await check.exited(60) == 1
    assert "FAIL  queue         orders: it is a stream; Owsla cannot use such a queue" in check.output()


@reactor_test
async def test_records_and_presence(node: RabbitMQ, lab: Lab) -> None:
    """Streams of the operator for undeliverable messages and for connects and disconnects are used as they are."""
    backend = await lab.backend(node.url)
    for name in ("jobs.undeliverable", "connection_events"):
        await declare(backend, name)
    gateway = await lab.gateway(node.url, backend=False, to_device="jobs", events=["console", "amqp"])
    await lab.device(gateway)
    await backend.publish("jobs", b"whose?", {"connection_id": "00000000-0000-8000-8000-000000000000"})
    reader = await read(lab, node.url, "jobs.undeliverable", "connection_events")
    (record,) = await reader.find("jobs.undeliverable", {b"whose?"})
    assert record.headers["owsla_reason"] == "unknown-connection"
    await until(lambda: any(one.headers["event"] == "connected" for one in reader.messages["connection_events"]), 30, "event")


def _check_lines(output: str) -> list[str]:
    return [" ".join(line.split()) for line in output.splitlines() if ": a stream" in line]


@reactor_test
async def test_check(node: RabbitMQ, lab: Lab) -> None:
    """`--check` says how long a stream keeps lines, and warns of one that grows until the disk is full."""
    backend = await lab.backend(node.url)
    await declare(backend, "short", max_age="7D")
    await declare(backend, "endless")

    async def check(name: str, *options: str) -> list[str]:
        given = [f"--from-device={name}", "--from-device-argument=x-queue-type=stream", *options]
        owsla = lab.new_owsla(argv=["owsla", "--check", f"--broker={node.url}", f"--certs-dir={lab.certs_dir}", *given])
        owsla.launch()
        assert await owsla.exited(60) == 0, owsla.output()
        return _check_lines(owsla.output())

    assert await check("short", "--from-device-argument=x-max-age=7D") == [
        "ok queue short: a stream that drops its oldest messages, read or not: its argument x-max-age=7D"
    ]
    (line,) = await check("endless")
    assert line.startswith("warn queue endless: a stream without x-max-age and x-max-length-bytes, unless a policy limits it")


# -- Commands ----------------------------------------------------------------------------------------------------------


@reactor_test
async def test_tail(node: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """`owsla tail --offset` shows the lines of a stream from a position on, also through a restart of the broker. Without a
    position it says how to read a stream. A queue is not read in this way.
    """
    gateway = await lab.gateway(node.url, backend=False, from_device_argument=LIMITED, device_ack="ACK {seq}")
    devices = [await lab.device(gateway)]
    await send(devices, 0, 3)
    await acknowledged(devices[0], 2)
    arguments = f"--broker={node.url}", f"--from-device={gateway.from_device}"
    tail = commands.start("tail", "--offset=first", "--json", *arguments)
    await tail.shown(3)
    start = gateway.owsla.mark()
    await node.restart()
    await gateway.owsla.wait_for_line("Broker connected", 60, start=start)
    await send(devices, 3, 2)
    lines = [json.loads(line) for line in await tail.shown(5)]
    assert [line["body"] for line in lines] == [f"0 {number}" for number in range(5)]
    assert await tail.interrupt() == 0
    later = commands.start("tail", f"--offset={lines[3]['offset']}", "--count=2", *arguments)
    assert [line.split(" ", 4)[4] for line in await later.shown(2)] == ["0 3", "0 4"]
    assert await later.ended() == 0
    for wrong, what, reason in (
        ((), gateway.from_device, "is a stream, which is read from a position: use --offset"),
        (("--take",), gateway.from_device, "is a stream, from which nothing is taken: use --offset"),
        (("--offset=1h",), gateway.to_device, "is not a stream: --offset is for streams only"),
        (("--offset=1h",), "nowhere", "there is no stream nowhere"),
    ):
        failed = commands.start("tail", *wrong, f"--broker={node.url}", f"--from-device={what}")
        assert await failed.ended() == 1
        assert reason in failed.errors()
        assert len(failed.errors().splitlines()) == 1, failed.errors()


@reactor_test
async def test_echo(node: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """`owsla echo` answers the lines of a stream, each once, also those that came while it had no connection."""
    gateway = await lab.gateway(node.url, backend=False, from_device_argument="x-queue-type=stream")
    proxy = await lab.proxy(node.port)
    echo = commands.start(
        "echo", f"--broker={proxy.url}", f"--from-device={gateway.from_device}", f"--to-device={gateway.to_device}"
    )
    await echo.said("answering the lines")
    (device,) = devices = [await lab.device(gateway)]
    await send(devices, 0, 3)
    assert [await device.line() for _ in range(3)] == [b"0 %d" % number for number in range(3)]
    await proxy.refuse()
    proxy.cut()
    await echo.said("trying again")
    await send(devices, 3, 3)
    await proxy.start()
    assert [await device.line(60) for _ in range(3)] == [b"0 %d" % number for number in range(3, 6)]
    assert await echo.interrupt() == 0
    assert "used as it is" not in echo.output() + echo.errors(), "a stream is nothing to warn about"


@pytest.mark.parametrize("command", ["echo", "tail"])
@reactor_test
async def test_broken_before_the_first_message(node: RabbitMQ, lab: Lab, commands: Commands, command: str) -> None:
    """The lines that come after the start of `owsla echo` or `owsla tail --offset next` are answered or shown, also if the
    connection breaks before the first of them, and more than once.
    """
    gateway = await lab.gateway(
        node.url, backend=False, from_device_argument="x-queue-type=stream", batch=50, device_ack="ACK {seq}"
    )
    proxy = await lab.proxy(node.port)
    queues = f"--broker={proxy.url}", f"--from-device={gateway.from_device}"
    if command == "echo":
        reader = commands.start("echo", *queues, f"--to-device={gateway.to_device}")
        ready = "answering the lines"
    else:
        reader = commands.start("tail", "--offset=next", "--json", *queues)
        ready = "reading the stream"
    await reader.said(ready)
    (device,) = devices = [await lab.device(gateway)]
    proxy.cut()
    await until(lambda: reader.errors().count(ready) == 2, what=reader.errors)
    await proxy.refuse()
    proxy.cut()
    await until(lambda: reader.errors().count("lost the broker") == 2, what=reader.errors)
    for number in range(3):  # each in a chunk of its own
        await send(devices, number, 1)
        await acknowledged(device, number)
    await proxy.start()
    if command == "echo":
        assert [await device.line(60) for _ in range(3)] == [b"0 %d" % number for number in range(3)]
    else:
        assert [json.loads(line)["body"] for line in await reader.shown(3)] == [f"0 {number}" for number in range(3)]
    assert await reader.interrupt() == 0


@pytest.mark.parametrize("batch", ["off", "50"])
@reactor_test
async def test_reader_of_the_page(node: RabbitMQ, lab: Lab, tmp_path: Path, batch: str) -> None:
    """The reader of docs/backends.md stores each line once. Killed and started again, it goes on behind its place."""
    gateway = await lab.gateway(node.url, backend=False, from_device_argument=["x-queue-type=stream"], batch=batch)
    device = await lab.device(gateway)
    replace = {"amqp://guest:guest@127.0.0.1:5672/%2f": node.url, '"from_device"': f'"{gateway.from_device}"'}
    program = tmp_path / "reader.py"
    program.write_text(Page("backends.md", tmp_path / "page").block("python", "lines.db", replace))

    def stored() -> list[tuple[int, bytes]]:
        with closing(sqlite3.connect(tmp_path / "lines.db", timeout=10)) as database:
            try:
                return database.execute("SELECT seq, body FROM lines ORDER BY seq").fetchall()
            except sqlite3.OperationalError:  # no table yet
                return []

    def place() -> int:
        with closing(sqlite3.connect(tmp_path / "lines.db", timeout=10)) as database:
            offset: int = database.execute("SELECT stream_offset FROM place").fetchone()[0]
            return offset

    async def run(lines: list[bytes], output: Path) -> None:
        """Start the program, wait until it has stored all these lines, and kill it."""
        process = ChildProcess([sys.executable, str(program)], output=output, cwd=tmp_path)

        async def end() -> None:
            process.kill()

        lab.ends(end)
        await until(lambda: len(stored()) == len(lines), 60, lambda: f"{len(stored())} lines: {process.output()}")
        assert process.poll() is None, process.output()
        process.kill()
        assert stored() == list(enumerate(lines))

    sent: list[bytes] = []
    places: list[int] = []
    for which in range(3):
        lines = [b"%d %d \xff" % (which, number) for number in range(100)]
        device.send_line(*lines)
        sent += lines
        await run(sent, tmp_path / f"output-{which}")
        places.append(place())
    assert places == sorted(set(places))
