"""The `owsla` command as a user runs it: real processes, with a gateway, a broker and devices."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ._support.backend import Backend
from ._support.certificates import Authority
from ._support.commands import Commands, owsla_command
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Gateway, Lab
from ._support.owsla import environment
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until, within

NOBODY = "01234567-89ab-8cde-8f01-23456789abcd"
"""A connection id of no connection."""


class Place:
    """A gateway without a back end, and the arguments with which a command finds its queues."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.from_device = ["--broker", gateway.broker_url, "--from-device", gateway.from_device]
        self.to_device = ["--broker", gateway.broker_url, "--to-device", gateway.to_device]
        self.both = [*self.from_device, "--to-device", gateway.to_device]


@pytest.fixture(scope="module")
def shared_place(broker: Broker, module_lab: Lab) -> Place:
    return Place(block_on(module_lab.gateway(broker.url, backend=False)))


@pytest.fixture
def place(shared_place: Place) -> Iterator[Place]:
    """Gateway of the module: every test takes the messages that it publishes."""
    yield shared_place
    shared_place.gateway.owsla.assert_tidy()


async def introduced(place: Place, lab: Lab, commands: Commands) -> tuple[Any, str]:
    """Return a device and its connection id."""
    device = await lab.device(place.gateway)
    hello = f"hello {secrets.token_hex(4)}"
    device.send_line(hello.encode())
    while True:  # messages of another test may come first
        tail = commands.start("tail", "--take", "--json", "--count=1", *place.from_device)
        assert await tail.ended() == 0
        message = json.loads(tail.output())
        if message["body"] == hello:
            return device, message["connection_id"]


async def arrived(backend: Backend, queue: str, count: int) -> None:
    """Wait until `count` messages are in a queue."""

    async def look() -> None:
        while await backend.count(queue) < count:
            await pause(0.05)  # leaves time for the other processes on a single core

    await within(look(), what=f"{count} messages in {queue}")


# -- echo --------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_echo(place: Place, lab: Lab, commands: Commands) -> None:
    """Every line comes back to its device, in order, byte for byte."""
    echo = commands.start("echo", *place.both)
    await echo.said("answering the lines")
    devices = [await lab.device(place.gateway) for _ in range(3)]
    lines = {device: [b"%d \xff %d" % (which, number) for number in range(400)] for which, device in enumerate(devices)}
    for device in devices:
        lines[device].insert(7, b"")
        device.send_line(*lines[device])
    for device in devices:
        assert await device.lines.take(len(lines[device])) == lines[device]
    assert await echo.interrupt() == 0
    assert echo.errors().count("\n") == 1


@reactor_test
async def test_echo_takes_every_line_once(place: Place, lab: Lab, commands: Commands) -> None:
    """Answered lines are acknowledged: the broker does not deliver them again after the end of echo."""
    echo = commands.start("echo", "--prefix=> ", *place.both)
    device = await lab.device(place.gateway)
    for number in range(50):
        device.send_line(b"%d" % number)
        assert await device.line() == b"> %d" % number
    assert await echo.interrupt(signal.SIGTERM) == 0
    backend = await lab.backend(place.gateway.broker_url)
    # The device may get the last answer before echo gets its confirm; that line is then delivered again.
    assert await backend.count(place.gateway.from_device) <= 1
    await backend.call(lambda channel: channel.queue_purge(place.gateway.from_device))


@reactor_test
async def test_echo_without_the_nodes_queue(place: Place, lab: Lab, commands: Commands) -> None:
    """An answer goes to to_device if the line has no reply_to, or one whose queue does not exist."""
    device, connection_id = await introduced(place, lab, commands)
    commands.start("echo", *place.both)
    backend = await lab.backend(place.gateway.broker_url)
    for seq, reply_to in ((1, None), (2, "nowhere")):
        headers = {"connection_id": connection_id, "from_device_seq": seq}
        await backend.publish(place.gateway.from_device, b"%d" % seq, headers, reply_to=reply_to)
    # Line 0 was not answered, so the gateway first waits for its answer for a while.
    assert await device.lines.take(2) == [b"1", b"2"]


def batch(*lines: tuple[str, int, bytes], device_id: str | None = None) -> bytes:
    """Return the body of a batch, of lines with a connection id, a number and their bytes."""
    return b"".join(msgpack.packb((name, seq, 1_763_805_600_000 + seq, device_id, line)) for name, seq, line in lines)


@reactor_test
async def test_echo_of_batches(place: Place, lab: Lab, commands: Commands) -> None:
    """Echo answers each line of a batch. A batch that cannot be decoded is dropped with one line, and stops nothing."""
    devices = [await introduced(place, lab, commands) for _ in range(2)]
    echo = commands.start("echo", *place.both)
    await echo.said("answering the lines")
    backend = await lab.backend(place.gateway.broker_url)
    lines = [(connection_id, seq, b"%d \xff" % seq) for seq in range(1500) for _, connection_id in devices]
    headers = {"owsla_batch": 3}
    await backend.publish(place.gateway.from_device, b"\xc1", headers)
    for start in range(0, len(lines), 300):
        await backend.publish(place.gateway.from_device, batch(*lines[start : start + 300]), headers, reply_to="nowhere")
    for device, _ in devices:
        # Line 0 is that of the introduction, too.
        assert await device.lines.take(1500) == [b"%d \xff" % seq for seq in range(1500)]
    assert "dropped a batch that cannot be decoded: byte 0: an array is expected" in echo.errors()
    assert await echo.interrupt() == 0
    assert echo.errors().count("\n") == 2
    await backend.call(lambda channel: channel.queue_purge(place.gateway.from_device))


@reactor_test
async def test_commands_for_a_gateway_with_batches(broker: Broker, lab: Lab, commands: Commands) -> None:
    """Tail shows the lines of a gateway with `--batch` as those of another one, and echo answers all of them, in order."""
    place = Place(await lab.gateway(broker.url, backend=False, batch=50, batch_delay="20ms"))
    devices = [await lab.device(place.gateway) for _ in range(3)]
    lines = [b"", b"\xff\xfe", b"\x00" * 16384, *(b"%d" % number for number in range(400))]
    for device in devices:
        device.send_line(*lines)
    tail = commands.start("tail", "--take", "--json", "--count=1", *place.from_device)
    assert await tail.ended() == 0
    first = json.loads(tail.output().splitlines()[0])
    assert (first["seq"], first["body"], first["device_id"]) == (0, "", None)
    assert first["reply_to"].startswith(place.gateway.to_device)
    echo = commands.start("echo", *place.both)
    await echo.said("answering the lines")
    late = [await lab.device(place.gateway) for _ in range(3)]
    for device in late:
        device.send_line(*lines)
    for device in late:
        assert await device.lines.take(len(lines)) == lines
    assert await echo.interrupt() == 0
    assert echo.errors().count("\n") == 1


@reactor_test
async def test_echo_before_its_broker(tmp_path: Path, commands: Commands) -> None:
    """Echo tries again if there is no broker yet or no longer, and says so in one line each."""
    broker = EmbeddedBrokerProcess(tmp_path / "broker")
    broker.port = free_port()
    echo = commands.start("echo", OWSLA_BROKER=broker.url)
    await echo.said("trying again")
    assert echo.errors().count("\n") == 1
    try:
        await broker.start()
        await echo.said("answering the lines")
        await broker.kill()
        await echo.said("lost the broker")
        await until(lambda: echo.errors().count("trying again") == 3, what="the third line of a loss")
    finally:
        await broker.close()
    assert await echo.interrupt() == 0


# -- tail --------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_tail(place: Place, lab: Lab, commands: Commands) -> None:
    """Tail --take shows messages as they arrive, one per line, and says that it takes them."""
    tail = commands.start("tail", "--take", *place.from_device)
    await tail.said("taking the messages")
    device = await lab.device(place.gateway)
    device.send_line(b"one \x1b \xff")
    (first,) = await tail.shown(1)
    device.send_line(b"", "zwölf".encode())
    lines = await tail.shown(3)
    connection_id = first.split()[1]
    assert [line.split(" ", 1)[1] for line in lines] == [
        f"{connection_id} 0 - one \\x1b \\xff",
        f"{connection_id} 1 - ",
        f"{connection_id} 2 - zwölf",
    ]
    assert await tail.interrupt() == 0
    backend = await lab.backend(place.gateway.broker_url)
    assert await backend.count(place.gateway.from_device) == 0


@reactor_test
async def test_tail_so_many(place: Place, lab: Lab, commands: Commands) -> None:
    """`--take --count N` takes N messages and leaves the rest in the queue, in order."""
    device = await lab.device(place.gateway)
    device.send_line(*(b"%d" % number for number in range(1300)))
    for start, count in ((0, 7), (7, 1), (8, 600), (608, 692)):  # 600 and more go beyond the prefetch
        tail = commands.start("tail", "--take", "--json", f"--count={count}", *place.from_device)
        assert await tail.ended() == 0
        assert [json.loads(line)["body"] for line in tail.output().splitlines()] == [
            str(number) for number in range(start, start + count)
        ]


@reactor_test
async def test_peek(place: Place, lab: Lab, commands: Commands) -> None:
    """Tail shows at most `--count` messages and gives them back to the queue."""
    device = await lab.device(place.gateway)
    device.send_line(*(b"%d" % number for number in range(5)))
    backend = await lab.backend(place.gateway.broker_url)

    async def peek(*arguments: str) -> list[str]:
        command = commands.start("tail", "--json", *arguments, *place.from_device)
        assert await command.ended() == 0, command.errors()
        assert "given back" in command.errors()
        return [json.loads(line)["body"] for line in command.output().splitlines()]

    await arrived(backend, place.gateway.from_device, 5)
    assert await peek("--count=3") == ["0", "1", "2"]
    assert await peek() == ["0", "1", "2", "3", "4"]
    tail = commands.start("tail", "--take", "--json", "--count=5", *place.from_device)
    assert await tail.ended() == 0
    taken = [json.loads(line) for line in tail.output().splitlines()]
    assert [message["body"] for message in taken] == ["0", "1", "2", "3", "4"]
    assert all(message["redelivered"] for message in taken)
    assert await peek() == []


@reactor_test
async def test_tail_and_the_log_of_the_broker(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """A look at a plain queue, which is no stream, is no error in the log of the broker."""
    gateway = await lab.gateway(embedded.url, backend=False)
    await (await lab.device(gateway)).close()
    before = embedded.output().count("PRECONDITION_FAILED")
    arguments = ["--broker", embedded.url, "--from-device", gateway.from_device]
    assert await commands.start("tail", *arguments).ended() == 0
    take = commands.start("tail", "--take", *arguments)
    await take.said("no other back end gets them")
    assert embedded.output().count("PRECONDITION_FAILED") == before


@reactor_test
async def test_tail_of_batches(place: Place, lab: Lab, commands: Commands) -> None:
    """Tail shows each line of a batch on a line of its own. `--count` counts lines, and a batch is shown and taken as a whole.
    One that cannot be decoded is shown as one line with a warning, and stops nothing.
    """
    backend = await lab.backend(place.gateway.broker_url)
    queue = place.gateway.from_device
    for batched in (batch((NOBODY, 0, b"0"), (NOBODY, 1, b"")), batch((NOBODY, 2, b"2"), device_id="a b"), b"\xff"):
        await backend.publish(queue, batched, {"owsla_batch": 2}, reply_to="to_device.01234567")
    await backend.publish(queue, b"last", {"connection_id": NOBODY, "from_device_seq": 3})

    async def tail(*arguments: str) -> list[str]:
        command = commands.start("tail", *arguments, *place.from_device, TZ="UTC0")
        assert await command.ended() == 0, command.errors()
        if "--take" not in arguments:
            assert "given back" in command.errors()
        assert command.errors().count("cannot be decoded") == command.output().count("\\xff")
        return command.output().splitlines()

    first = [f"2025-11-22T10:00:00 {NOBODY} {seq} - {text}" for seq, text in ((0, "0"), (1, ""))]
    rest = [f"2025-11-22T10:00:00 {NOBODY} 2 a\\x20b 2", "- - - - \\xff", f"- {NOBODY} 3 - last"]
    assert await tail("--count=1") == first
    assert await tail("--count=3") == first + rest[:1]
    assert await tail() == first + rest
    assert await tail("--take", "--count=1") == first
    assert await tail("--take", "--count=2") == rest[:2]
    assert await tail("--take", "--count=1") == rest[2:]
    assert await backend.count(queue) == 0


@reactor_test
async def test_peek_at_a_quorum_queue(rabbitmq: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """Tail refuses to show a quorum queue with a delivery limit, except with `--force`."""
    name = f"quorum-{secrets.token_hex(4)}"
    where = ["--broker", rabbitmq.url, "--from-device", name]
    backend = await lab.backend(rabbitmq.url)
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2, "x-max-length": 1000}  # compared before the type
    await backend.call(lambda channel: channel.queue_declare(name, durable=True, arguments=arguments))
    for number in range(3):
        await backend.publish(name, b"%d" % number, {})
    for _ in range(4):
        tail = commands.start("tail", *where)
        assert await tail.ended() == 1
        assert "delivery limit" in tail.errors()
        assert tail.output() == ""
    tail = commands.start("tail", "--json", "--force", *where)
    assert await tail.ended() == 0
    assert [json.loads(line)["body"] for line in tail.output().splitlines()] == ["0", "1", "2"]
    await arrived(backend, name, 3)
    missing = commands.start("tail", "--broker", rabbitmq.url, "--from-device", f"no-{name}")
    assert await missing.ended() == 1
    assert f"there is no queue no-{name}" in missing.errors()


@reactor_test
async def test_peek_at_a_quorum_queue_without_a_limit(rabbitmq: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """On RabbitMQ 4 a delivery limit of -1 means no limit, and the queue is shown. RabbitMQ 3 drops such messages when they
    are given back for the first time, so the queue is refused there.
    """
    name = f"quorum-{secrets.token_hex(4)}"
    backend = await lab.backend(rabbitmq.url)
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": -1}
    await backend.call(lambda channel: channel.queue_declare(name, durable=True, arguments=arguments))
    await backend.publish(name, b"looked at", {})
    await arrived(backend, name, 1)
    version = await rabbitmq.ctl("version")
    for _ in range(2):
        tail = commands.start("tail", "--json", "--broker", rabbitmq.url, "--from-device", name)
        if int(version.split(".")[0]) < 4:
            assert await tail.ended() == 1
            assert "delivery limit" in tail.errors()
        else:
            assert await tail.ended() == 0
            assert [json.loads(line)["body"] for line in tail.output().splitlines()] == ["looked at"]
        await arrived(backend, name, 1)


@reactor_test
async def test_tail_of_large_headers(rabbitmq: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """A message with headers larger than a frame is shown like any other, and the messages before it once."""
    name = f"large-{secrets.token_hex(4)}"
    backend = await lab.backend(rabbitmq.url)
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-message-ttl": 1}
    await backend.call(lambda channel: channel.queue_declare(name, durable=True))
    await backend.call(lambda channel: channel.queue_declare(f"{name}-dead", auto_delete=True, arguments=dead))
    await backend.publish(name, b"before", {})
    await backend.publish(f"{name}-dead", b"large", {"large": "x" * 130_990})
    await arrived(backend, name, 2)
    await backend.publish(name, b"after", {})
    for arguments in ([], ["--take", "--count=3"]):
        tail = commands.start("tail", "--json", *arguments, "--broker", rabbitmq.url, "--from-device", name)
        assert await tail.ended() == 0
        assert [json.loads(line)["body"] for line in tail.output().splitlines()] == ["before", "large", "after"]


@reactor_test
async def test_tail_of_which_nobody_reads_more(place: Place, lab: Lab, commands: Commands) -> None:
    """`owsla tail | head` ends silently when head closes the pipe, and does not wait for the next message."""
    tail = commands.shell("@ | head -1", "tail", "--take", *place.from_device)
    device = await lab.device(place.gateway)
    device.send_line(b"hello")
    assert await tail.ended() == 0
    assert "hello" in tail.output()
    assert tail.errors().count("\n") == 1


@reactor_test
async def test_output_that_is_full(place: Place, lab: Lab, commands: Commands) -> None:
    """A message that cannot be written is not acknowledged, and the error is one line, with status 1."""
    device = await lab.device(place.gateway)
    device.send_line(b"hello")
    tail = commands.shell("exec @ > /dev/full", "tail", "--take", *place.from_device)
    assert await tail.ended() == 1
    assert "standard output: no space left on device" in tail.errors()
    tail = commands.start("tail", "--take", "--json", "--count=1", *place.from_device)
    assert await tail.ended() == 0
    assert json.loads(tail.output())["redelivered"]


@reactor_test
async def test_tree_that_is_full(lab: Lab, embedded: EmbeddedBrokerProcess, commands: Commands) -> None:
    """A tree that cannot be written is an error in one line."""
    http = free_port()
    await lab.gateway(embedded.url, http=http)
    tree = commands.shell("exec @ > /dev/full", "tree", f"--http=http://127.0.0.1:{http}")
    assert await tree.ended() == 1
    assert tree.errors() == "owsla: standard output: no space left on device\n"


# -- send --------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_send(place: Place, lab: Lab, commands: Commands) -> None:
    """The line reaches the device, nothing is printed, and the status is 0."""
    device, connection_id = await introduced(place, lab, commands)
    send = commands.start("send", connection_id, "a line, zwölf", *place.to_device)
    assert await send.ended() == 0
    assert await device.line() == "a line, zwölf".encode()
    assert send.output() + send.errors() == ""


@reactor_test
async def test_send_with_a_number(place: Place, lab: Lab, commands: Commands) -> None:
    """`--seq` numbers the line: the device gets each number once."""
    device, connection_id = await introduced(place, lab, commands)
    for seq, text in ((0, "first"), (0, "again"), (1, "second")):
        send = commands.start("send", f"--seq={seq}", connection_id, text, *place.to_device)
        assert await send.ended() == 0
    assert await device.lines.take(2) == [b"first", b"second"]


@reactor_test
async def test_send_standard_input(place: Place, lab: Lab, commands: Commands) -> None:
    """With `-` each line of standard input is sent. Numbered from `--seq` on, they arrive in order; `--close` comes last."""
    device, connection_id = await introduced(place, lab, commands)
    send = commands.shell("seq 300 | @", "send", "--seq=0", "--close", connection_id, "-", *place.to_device)
    assert await send.ended() == 0
    assert await device.lines.take(300) == [b"%d" % number for number in range(1, 301)]
    await device.closed()


@reactor_test
async def test_send_from_a_terminal(place: Place, lab: Lab, commands: Commands) -> None:
    """Lines of standard input are sent as they arrive; `--timeout` does not run while none arrives."""
    device, connection_id = await introduced(place, lab, commands)
    typing = "echo one; sleep 4; echo two; exec sleep 1000"
    commands.shell(f"({typing}) | @", "send", "--timeout=1.5", connection_id, "-", *place.to_device)
    assert await device.lines.take(2) == [b"one", b"two"]


@reactor_test
async def test_send_and_close(place: Place, lab: Lab, commands: Commands) -> None:
    """`--close` closes the connection of the device after the line."""
    device, connection_id = await introduced(place, lab, commands)
    send = commands.start("send", "--close", "--expires=60", connection_id, "bye", *place.to_device)
    assert await send.ended() == 0
    assert await device.line() == b"bye"
    await device.closed()


@reactor_test
async def test_report(place: Place, lab: Lab, commands: Commands) -> None:
    """`--report` prints the outcome, with status 0 for `delivered` and 1 for anything else."""
    device, connection_id = await introduced(place, lab, commands)
    send = commands.start("send", "--report", connection_id, "a line", *place.to_device)
    assert await send.ended() == 0
    assert send.output() == "delivered\n"
    assert await device.line() == b"a line"
    gone = connection_id[:8] + NOBODY[8:]
    send = commands.start("send", "--report", gone, "a line", *place.to_device)
    assert await send.ended() == 1
    assert send.output() == "unknown-connection\n"


@reactor_test
async def test_reports_of_many(place: Place, lab: Lab, commands: Commands) -> None:
    """Each line of standard input has its report, in order; one undelivered line makes the status 1."""
    device, connection_id = await introduced(place, lab, commands)
    send = commands.shell("printf 'one\\n%20000d\\nthree' 2 | @", "send", "--report", connection_id, "-", *place.to_device)
    assert await send.ended() == 1
    assert send.output() == "delivered\ntoo-long\ndelivered\n"
    assert await device.lines.take(2) == [b"one", b"three"]


@reactor_test
async def test_no_report(broker: Broker, lab: Lab, commands: Commands) -> None:
    """Without a report within `--timeout` the status is 1; Ctrl-C ends the wait with status 130."""
    name = f"to_{secrets.token_hex(4)}"
    backend = await lab.backend(broker.url)
    await backend.call(lambda channel: channel.queue_declare(name, durable=True))
    where = ("--report", NOBODY, "x", "--broker", broker.url, "--to-device", name)
    send = commands.start("send", "--timeout=2", *where)
    assert await send.ended() == 1
    assert send.errors() == (
        "owsla send: there is no delivery report: is the gateway running, and its --node-grace over? (waited 2 s)\n"
    )
    send = commands.start("send", "--timeout=1000", *where)
    await arrived(backend, name, 2)
    assert await send.interrupt() == 130
    assert send.output() + send.errors() == ""


@reactor_test
async def test_no_queue(broker: Broker, commands: Commands) -> None:
    """A missing to_device is an error in one line, with status 1."""
    send = commands.start("send", NOBODY, "x", "--broker", broker.url, "--to-device", "nowhere")
    assert await send.ended() == 1
    assert send.errors() == "owsla send: there is no queue nowhere: is the gateway running, on this broker?\n"


# -- devices by name ---------------------------------------------------------------------------------------------------


@reactor_test
async def test_by_name(broker: Broker, lab: Lab, commands: Commands, tmp_path: Path) -> None:
    """`who-has` finds a device that is connected, and `send` reaches it by its name, or with all others."""
    authority = Authority(tmp_path / "authority")
    gateway = await lab.gateway(broker.url, backend=False, client_ca=authority.ca, device_timeout="300ms")
    where = ("--broker", broker.url, "--to-device", gateway.to_device)
    device = await lab.device(gateway, certificate=authority.credentials("door 7"))
    await until(lambda: gateway.owsla.lines("connected"))
    send = commands.start("send", "--report", "--device", "door 7", "hello", *where)
    assert await send.ended() == 0, send.errors()
    assert await device.line() == b"hello"
    outcome, connection_id = send.output().split()
    assert outcome == "delivered"
    for _ in range(20):  # the port is open a moment before the node can be asked
        who_has = commands.start("who-has", "--json", "door 7", "door 8", *where)
        if await who_has.ended() == 0:
            break
    found, missing = map(json.loads, who_has.output().splitlines())
    assert (found["connection_id"], found["node"]) == (connection_id, connection_id[:8])
    assert missing == {"device_id": "door 8", **dict.fromkeys(("connection_id", "node", "since", "age", "door"))}
    who_has = commands.start("who-has", "door 7", *where)
    assert await who_has.ended() == 0
    assert who_has.output().startswith(f"door\\x207 {connection_id} {connection_id[:8]} 20")
    who_has = commands.start("who-has", "--wait=0.5", "door 8", *where)
    assert (await who_has.ended(), who_has.output()) == (1, "door\\x208 - - - - -\n")
    send = commands.start("send", "--report", "--device=door 8", "hello", *where)
    assert (await send.ended(), send.output()) == (1, "unknown-device\n")
    send = commands.start("send", "--report", "--to=prefix:door", "--expires=3", "all", *where)
    assert await send.ended() == 0, send.errors()
    assert send.output() == f"fanned-out on node {connection_id[:8]}: 1 handed over, 0 missed\n"
    assert await device.line() == b"all"
    send = commands.start("send", "--report", "--to=doors", "--expires=3", "all", *where)
    assert (await send.ended(), send.output().split()[0]) == (1, "bad-selector")


@reactor_test
async def test_who_has_without_a_gateway(broker: Broker, commands: Commands) -> None:
    """Without a gateway, `who-has` ends with an error in one line and status 1."""
    who_has = commands.start("who-has", "door-7", "--broker", broker.url, "--to-device", "nowhere")
    assert await who_has.ended() == 1
    assert who_has.errors() == (
        "owsla who-has: nobody listens to the exchange nowhere.all: is the gateway running, on this broker?\n"
    )


# -- The broker --------------------------------------------------------------------------------------------------------


@reactor_test
async def test_no_broker(commands: Commands) -> None:
    """Without a broker, send and tail end with an error in one line and status 1."""
    where = ("--broker", f"amqp://127.0.0.1:{free_port()}")
    for arguments in (("send", NOBODY, "x"), ("tail",), ("who-has", "x")):
        command = commands.start(*arguments, *where)
        assert await command.ended() == 1
        assert command.errors().startswith(f"owsla {arguments[0]}: broker amqp://guest@127.0.0.1:")
        assert command.errors().count("\n") == 1


@reactor_test
async def test_refused(broker: Broker, commands: Commands) -> None:
    """A refused login is an error in one line, without the password."""
    url = broker.url.replace("guest:guest", "guest:wrong")
    send = commands.start("send", NOBODY, "x", OWSLA_BROKER=url)
    assert await send.ended() == 1
    assert send.errors().count("\n") == 1
    assert "wrong" not in send.errors()


@reactor_test
async def test_password_is_hidden(broker: Broker, commands: Commands) -> None:
    """A password on the command line is not in the process list, once the command runs."""
    url = broker.url.replace("guest:guest", "guest:s3cret")
    echo = commands.start("echo", "--broker", url, program=True)
    await echo.said("trying again")
    shown = Path(f"/proc/{echo.process.pid}/cmdline").read_bytes()
    assert b"s3cret" not in shown
    assert b"amqp://guest:***@" in shown


@reactor_test
async def test_queue_of_other_arguments(rabbitmq: RabbitMQ, lab: Lab, commands: Commands) -> None:
    """A queue declared with other arguments is used as it is, with a message."""
    name = f"from_{secrets.token_hex(4)}"
    backend = await lab.backend(rabbitmq.url)
    await backend.call(lambda channel: channel.queue_declare(name, durable=True, arguments={"x-max-length": 5}))
    await backend.publish(name, b"from somewhere else")
    tail = commands.start("tail", "--take", "--count=1", "--broker", rabbitmq.url, "--from-device", name)
    assert await tail.ended() == 0
    assert tail.output() == "- - - - from somewhere else\n"
    assert f"the queue {name} is used as it is" in tail.errors()


# -- Without a broker --------------------------------------------------------------------------------------------------


def test_closed_streams() -> None:
    """With all standard streams closed, no output goes to another file or socket."""
    script = f"exec {shlex.join([*owsla_command(), 'send', NOBODY, 'x', '--broker', 'amqp://127.0.0.1:1'])} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", script], env=environment(), timeout=30, check=False).returncode == 1


def test_help_that_nobody_reads() -> None:
    """Writing to a pipe that the reader has closed is not an error."""
    env = environment()
    del env["PYTHONUNBUFFERED"]  # with it, argparse itself drops the error
    reader, writer = os.pipe()
    os.close(reader)
    try:
        argv = [*owsla_command(), "--help"]
        done = subprocess.run(argv, env=env, timeout=30, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
