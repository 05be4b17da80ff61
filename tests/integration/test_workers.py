"""Tests of `--workers`: several processes on one port, and their parent."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.internet.defer import Deferred, gatherResults

from ._support.device import Device
from ._support.lab import Gateway, Lab
from ._support.owsla import Owsla, environment
from ._support.process import ChildProcess, accepts, free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until
from .test_http import ask

#: Seconds in which a worker is restarted: the start of an interpreter, and its connections to the broker.
RESTART = 30


async def processes(owsla: Owsla, count: int, start: int = 0) -> dict[str, int]:
    """Wait until this number of workers have opened the port since `start`. Return the process id of each."""

    def ready() -> bool:
        return len(set(re.findall(r"\[owsla\.(worker-\d+)#info\] Listening", owsla.process.output()[start:]))) >= count

    await until(ready, RESTART, lambda: f"{count} workers: {owsla.output()}")
    return pids(owsla)


def pids(owsla: Owsla) -> dict[str, int]:
    """Return the newest process id of each worker."""
    return {name: int(pid) for name, pid in re.findall(r"(worker-\d+) is process (\d+)", owsla.process.output())}


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def node_queues(rabbitmq: RabbitMQ, gateway: Gateway) -> list[str]:
    """Return the queues of nodes of this gateway."""
    queues = (await rabbitmq.ctl("list_queues", "name")).split()
    return [queue for queue in queues if re.fullmatch(rf"{gateway.to_device}\.[0-9a-f]{{8}}", queue)]


async def tidied_up(lab: Lab, rabbitmq: RabbitMQ, gateway: Gateway) -> None:
    """Check that the next node to start deletes the queues of nodes that all stopped in order, and announces no loss."""
    owsla = lab.new_owsla(broker=rabbitmq.url, from_device=gateway.from_device, to_device=gateway.to_device)
    await owsla.start()
    for _ in range(120):
        if len(await node_queues(rabbitmq, gateway)) == 1:
            break
        await pause(0.5)
    else:
        raise AssertionError("the queues of nodes that stopped are left")
    assert not owsla.lines("Node lost"), "they did not stop in order"


async def devices_on_each(gateway: Gateway, lab: Lab, nodes: int) -> dict[str, list[tuple[Device, str]]]:
    """Connect devices until every node has one. Return, by node, each device with its connection id."""
    found: dict[str, list[tuple[Device, str]]] = {}
    for _ in range(100):
        device = await lab.device(gateway)
        connection_id = await gateway.introduce(device)
        found.setdefault(connection_id[:8], []).append((device, connection_id))
        if len(found) == nodes:
            return found
    raise AssertionError(f"100 devices are on {len(found)} of {nodes} nodes")


async def served(gateway: Gateway, device: Device, connection_id: str) -> None:
    """Check that a message on to_device reaches this device, whichever worker consumes it, and that a line of it arrives."""
    for number in range(4):
        await gateway.send(connection_id, b"to %d" % number)
    assert sorted([await device.line() for _ in range(4)]) == [b"to %d" % number for number in range(4)]
    await gateway.introduce(device)


@reactor_test
async def test_each_device_is_found(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Each worker is a node and gets devices. Messages reach their devices, whichever worker consumes them."""
    gateway = await lab.gateway(rabbitmq.url, workers=3)
    await processes(gateway.owsla, 3)
    found = await devices_on_each(gateway, lab, 3)
    for devices in found.values():
        for device, connection_id in devices:
            await served(gateway, device, connection_id)
    assert await gateway.owsla.terminate() == 0
    await tidied_up(lab, rabbitmq, gateway)
    gateway.owsla.assert_tidy()


@reactor_test
async def test_evenly_spread(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Devices that connect one after another, or all at once, are spread evenly, also after the death of a worker."""
    gateway = await lab.gateway(rabbitmq.url, workers=3)
    before = await processes(gateway.owsla, 3)

    async def spread() -> list[int]:
        counts: dict[str, int] = {}
        for device in devices:
            if device.is_open:
                node = (await gateway.introduce(device))[:8]
                counts[node] = counts.get(node, 0) + 1
        return sorted(counts.values())

    devices = [await lab.device(gateway) for _ in range(30)]
    counts = await spread()
    assert len(counts) == 3
    assert counts[0] >= 7, counts
    more = [lab.waiting_device(gateway.owsla) for _ in range(60)]
    await gatherResults([Deferred.fromCoroutine(device.connect()) for device in more])
    devices += more
    counts = await spread()
    # The distribution is not exact: a worker that gets no CPU for five milliseconds is not waited for.
    assert counts[0] >= 15, counts
    mark = gateway.owsla.mark()
    os.kill(before["worker-2"], signal.SIGKILL)
    await processes(gateway.owsla, 1, mark)
    devices += [await lab.device(gateway) for _ in range(30)]
    counts = await spread()
    assert len(counts) == 3
    assert counts[0] >= 15, counts


@reactor_test
async def test_one_is_killed(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A killed worker is restarted, only its own devices are affected, and its node is announced as lost at once."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, node_grace="60s")
    before = await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    os.kill(before["worker-1"], signal.SIGKILL)
    await gateway.owsla.wait_for_line(r"worker-1 ended.*SIGKILL")
    await until(lambda: pids(gateway.owsla)["worker-1"] != before["worker-1"], RESTART, "the next worker-1")
    assert pids(gateway.owsla)["worker-2"] == before["worker-2"]
    lost = [node for node, devices in found.items() if not devices[0][0].is_open]
    if not lost:
        await until(lambda: any(not devices[0][0].is_open for devices in found.values()), what="the end of its devices")
        lost = [node for node, devices in found.items() if not devices[0][0].is_open]
    (dead,) = lost
    (living,) = [node for node in found if node != dead]
    for device, connection_id in found[living]:
        await served(gateway, device, connection_id)
    # The parent has announced the loss long before the grace is over.
    await gateway.send(found[dead][0][1], b"too late")
    refused = await gateway.refused(20)
    assert refused.headers["owsla_reason"] == "unknown-connection"
    assert refused.body == b"too late"
    for _ in range(20):
        left = await node_queues(rabbitmq, gateway)
        if f"{gateway.to_device}.{dead}" not in left:
            break
        await pause(0.5)
    else:
        raise AssertionError("the queue of the dead node is left")
    fresh = await devices_on_each(gateway, lab, 2)
    assert dead not in fresh
    assert await gateway.owsla.terminate() == 0


@reactor_test
async def test_parent_is_killed(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """After kill -9 of the parent, its workers stop in order and soon. The port is free at once."""
    gateway = await lab.gateway(rabbitmq.url, workers=2)
    workers = await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    os.kill(gateway.owsla.pid, signal.SIGKILL)
    await until(lambda: not accepts(gateway.owsla.port), 5, "the port to close")
    await until(lambda: not any(alive(pid) for pid in workers.values()), 15, "the end of the workers")
    for devices in found.values():
        await devices[0][0].closed()
    await tidied_up(lab, rabbitmq, gateway)


@reactor_test
async def test_parent_stands_still(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A parent that does not read (SIGSTOP) delays no line, however much its workers have to report."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, events=["console", f"json:{tmp_path / 'events.json'}"])
    await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    gateway.owsla.process.signal(signal.SIGSTOP)
    try:
        for _ in range(50):  # each causes some lines in the log and the file
            await (await lab.device(gateway)).close()
        for devices in found.values():
            await served(gateway, *devices[0])
    finally:
        gateway.owsla.process.signal(signal.SIGCONT)
    assert await gateway.owsla.terminate() == 0
    events = [json.loads(line) for line in (tmp_path / "events.json").read_text().splitlines()]
    assert len([event for event in events if event["event"] == "device-connected"]) >= 52


@reactor_test
async def test_stopped_in_the_terminal(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """Ctrl-C reaches parent and workers: all stop in order, once, with status 0."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_spread="2s")
    workers = await processes(gateway.owsla, 2)
    await devices_on_each(gateway, lab, 2)
    os.killpg(os.getpgid(gateway.owsla.pid), signal.SIGINT)
    assert await gateway.owsla.exited(30) == 0
    assert not any(alive(pid) for pid in workers.values())
    assert not gateway.owsla.lines("stopping at once"), gateway.owsla.output()
    assert len(gateway.owsla.lines("Stopped: [0-9]+ devices? closed, everything confirmed")) == 2
    gateway.owsla.assert_tidy()


@reactor_test
async def test_unit_is_stopped(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """systemd sends SIGTERM to every process of a unit: all stop in order, with status 0, and no worker is restarted."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_spread="1s")
    workers = await processes(gateway.owsla, 2)
    for pid in [*workers.values(), gateway.owsla.pid]:
        os.kill(pid, signal.SIGTERM)
    assert await gateway.owsla.exited(30) == 0
    assert pids(gateway.owsla) == workers, "a worker was started again"
    gateway.owsla.assert_tidy()


@reactor_test
async def test_second_signal(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """A second SIGTERM ends the drain in all workers."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_spread="30s", drain_timeout="60s")
    await processes(gateway.owsla, 2)
    await devices_on_each(gateway, lab, 2)
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line(r"worker-2#info\] Stopping: \d+ devices?")
    gateway.owsla.process.signal(signal.SIGTERM)
    assert await gateway.owsla.exited(15) == 0


@reactor_test
async def test_second_signal_to_one_that_hangs(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """A second SIGTERM also ends a worker that hangs: it is killed, and the rest ends in order."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_timeout="60s")
    workers = await processes(gateway.owsla, 2)
    os.kill(workers["worker-1"], signal.SIGSTOP)
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line("Stopping 2 workers")
    gateway.owsla.process.signal(signal.SIGTERM)
    assert await gateway.owsla.exited(20) == 0
    assert gateway.owsla.lines("worker-1 .* does not stop, and is killed")
    assert not any(alive(pid) for pid in workers.values())


@reactor_test
async def test_stopped_while_a_restart_waits(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """During a stop, a worker that waits for its restart is not started on the closed port."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_spread="3s")
    await processes(gateway.owsla, 2)
    await devices_on_each(gateway, lab, 2)
    killed = 0
    for restart in range(1, 6):  # the last restart waits for half a second
        await until(lambda last=killed: pids(gateway.owsla)["worker-1"] != last, RESTART, "the next worker-1")  # type: ignore[misc]
        killed = pids(gateway.owsla)["worker-1"]
        os.kill(killed, signal.SIGKILL)
        await gateway.owsla.wait_for_line(rf"Restarting owsla/worker-1.*\(restart {restart}\)")
    gateway.owsla.process.signal(signal.SIGTERM)
    assert await gateway.owsla.exited(30) == 0
    assert not gateway.owsla.lines("gave up|Bad file descriptor"), gateway.owsla.output()
    gateway.owsla.assert_tidy()


@reactor_test
async def test_helper_is_left(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A worker that dies is restarted at once, even if a child process of its dialect still holds its standard streams."""
    (tmp_path / "helped.py").write_text(
        "import pathlib, subprocess\n"
        "from owsla.dialects import Dialect\n"
        "class Helped(Dialect):\n"
        "    @classmethod\n"
        "    def configured(cls, settings):\n"
        "        helper = subprocess.Popen(['sleep', '60'])\n"
        f"        with open({str(tmp_path / 'helpers')!r}, 'a') as file: file.write(f'{{helper.pid}}\\n')\n"
        "        return cls\n"
    )
    try:
        owsla = lab.new_owsla(
            broker=rabbitmq.url, workers=2, dialect="helped:Helped", drain_spread=0, env={"PYTHONPATH": str(tmp_path)}
        )
        owsla.launch()
        before = await processes(owsla, 2)
        os.kill(before["worker-1"], signal.SIGKILL)
        await owsla.wait_for_line("worker-1 ended .*SIGKILL", 10)
        await until(lambda: pids(owsla)["worker-1"] != before["worker-1"], RESTART, "the next worker-1")
        assert await owsla.terminate() == 0
    finally:
        for pid in (tmp_path / "helpers").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@reactor_test
async def test_signals_at_its_start(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Signals of a terminal or of systemd to all processes do not end a worker that is still importing modules."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Sender:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'twisted':\n"
        "            for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGINT): os.kill(os.getpid(), number)\n"
        "if 'owsla.worker' in sys.orig_argv: sys.meta_path.insert(0, Sender())\n"
    )
    owsla = lab.new_owsla(broker=rabbitmq.url, workers=2, env={"PYTHONPATH": str(tmp_path)})
    owsla.launch()
    await processes(owsla, 2)
    assert not owsla.lines("worker-[12] ended"), owsla.output()
    assert await owsla.terminate() == 0


@reactor_test
async def test_dies_at_its_start(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Workers that die repeatedly at their start end the whole with status 70, and one line with the reason."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'owsla.worker' in sys.orig_argv:\n    sys.stderr.write('no such luck\\n')\n    os._exit(9)\n"
    )
    owsla = lab.new_owsla(broker=rabbitmq.url, workers=2, env={"PYTHONPATH": str(tmp_path)})
    owsla.launch()
    assert await owsla.exited(60) == os.EX_SOFTWARE
    assert re.search(r"^owsla: owsla gave up: .*worker-[12].* it ended with status 9", owsla.errors(), re.MULTILINE)
    assert owsla.lines(r"worker-1#warn\] no such luck"), "what a worker says on standard error is not in the log"
    owsla.assert_tidy()


@reactor_test
async def test_user_errors(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """An invalid setting is one line and status 1, as with one process."""
    for options, line in (
        ({"workers": 0}, r"--workers: '0' is not a number \(1 to 256\)"),
        ({"workers": "many"}, r"--workers: 'many' is not a number"),
        ({"workers": 2, "cert": "/nowhere.pem", "key": "/nowhere.pem"}, "--cert: /nowhere.pem: no such file"),
    ):
        owsla = lab.new_owsla(broker=rabbitmq.url, **options)
        owsla.launch()
        assert await owsla.exited() == 1
        assert re.search(f"^owsla: {line}", owsla.errors(), re.MULTILINE), owsla.errors()
        assert owsla.errors().count("\n") == 1, owsla.errors()


@reactor_test
async def test_user_error_that_workers_find(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """An error in the settings that only workers find is one line and status 1, too. No worker is restarted."""
    owsla = lab.new_owsla(broker=rabbitmq.url, workers=2, dialect="login")
    owsla.launch()
    assert await owsla.exited() == 1
    assert owsla.errors() == "owsla: --dialect: the login dialect needs --login-checker, such as file:/etc/owsla/devices\n"
    assert not owsla.lines("Restarting|restarting|gave up"), owsla.output()
    owsla.assert_tidy()


def refused_connects(port: int, folder: Path) -> ChildProcess:
    """Connect to a port as fast as possible, until stopped. Each refused connection is one line of output."""
    script = (
        "import socket, sys\n"
        "while True:\n"
        f"    try: socket.create_connection(('127.0.0.1', {port}), 5).close()\n"
        "    except OSError as error: print('refused', error, flush=True)\n"
    )
    return ChildProcess([sys.executable, "-c", script], output=folder / "connects", env=environment())


@reactor_test
async def test_rolling_restart(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """SIGUSR2 replaces the workers by new processes with the present settings, one after another. No connection is refused, no
    line is lost.
    """
    settings = tmp_path / "owsla.toml"
    settings.write_text("device-ack = 'OLD {seq}'\n")
    gateway = await lab.gateway(rabbitmq.url, workers=2, config=settings, drain_spread="1s")
    before = await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    settings.write_text("device-ack = 'NEW {seq}'\n")
    connects = refused_connects(gateway.owsla.port, tmp_path)
    mark = gateway.owsla.mark()
    gateway.owsla.process.signal(signal.SIGUSR2)
    try:
        await gateway.owsla.wait_for_line("All 2 workers were replaced", 90, start=mark)
    finally:
        connects.kill()
    assert connects.output() == ""
    after = pids(gateway.owsla)
    assert not set(after.values()) & set(before.values())
    assert not any(alive(pid) for pid in before.values())
    for devices in found.values():
        for device, _ in devices:
            await device.closed()
    fresh = await devices_on_each(gateway, lab, 2)
    assert not set(fresh) & set(found)
    for devices in fresh.values():
        assert await devices[0][0].line() == b"NEW 0"
    assert len(gateway.owsla.lines("everything confirmed", start=mark)) == 2
    assert await gateway.owsla.terminate() == 0
    gateway.owsla.assert_tidy()


@reactor_test
async def test_rolling_restart_while_the_broker_is_blocked(lab: Lab, own_rabbitmq: RabbitMQ) -> None:
    """While the broker is blocked no worker is replaced: the new one opens no port, and the old one keeps its devices and their
    lines. Afterwards the restart continues, and no line is lost.
    """
    gateway = await lab.gateway(own_rabbitmq.url, workers=2, drain_spread="1s", device_ack="ACK {seq}")
    before = await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    devices = [devices[0][0] for devices in found.values()]
    mark = gateway.owsla.mark()
    await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        for device in devices:
            device.send_line(b"while blocked")
        await gateway.owsla.wait_for_line("Broker blocked", start=mark)
        gateway.owsla.process.signal(signal.SIGUSR2)
        await until(lambda: pids(gateway.owsla)["worker-1"] != before["worker-1"], what="the fresh worker-1")
        await until(lambda: len(gateway.owsla.lines("worker-1.*Broker blocked", start=mark)) == 2, RESTART, "its being blocked")
        await pause(5)
        assert not gateway.owsla.lines("Stopping: the parent stops this worker", start=mark), gateway.owsla.output()
        assert all(device.is_open for device in devices)
    finally:
        await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    await gateway.owsla.wait_for_line("All 2 workers were replaced", 90, start=mark)
    said = [message.body for message in await gateway.messages(2) if message.body == b"while blocked"]
    assert len(said) == 2
    assert len(gateway.owsla.lines("everything confirmed", start=mark)) == 2, gateway.owsla.output()
    assert await gateway.owsla.terminate() == 0


@reactor_test
async def test_longer_drain_timeout(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """After a rolling restart with a longer --drain-timeout, a stop may take that long, although the parent has the older
    value.
    """
    settings = tmp_path / "owsla.toml"
    settings.write_text("drain-timeout = 0\n")
    gateway = await lab.gateway(rabbitmq.url, workers=2, config=settings, drain_spread="13s")
    await processes(gateway.owsla, 2)
    settings.write_text("drain-timeout = '40s'\n")
    gateway.owsla.process.signal(signal.SIGUSR2)
    await gateway.owsla.wait_for_line("All 2 workers were replaced", 60)
    device = await lab.device(gateway)
    mark = gateway.owsla.mark()
    assert await gateway.owsla.terminate() == 0
    await device.closed()
    assert not gateway.owsla.lines("is killed"), gateway.owsla.output()
    assert len(gateway.owsla.lines("Stopped: [01] devices? closed, everything confirmed", start=mark)) == 2
    gateway.owsla.assert_tidy()


@reactor_test
async def test_stopped_while_workers_are_replaced(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """A stop during a rolling restart stops old and new workers, without a warning."""
    gateway = await lab.gateway(rabbitmq.url, workers=2, drain_spread="0s")
    before = await processes(gateway.owsla, 2)
    gateway.owsla.process.signal(signal.SIGUSR2)
    await until(lambda: pids(gateway.owsla)["worker-1"] != before["worker-1"], what="the fresh worker-1")
    assert await gateway.owsla.terminate() == 0
    assert not gateway.owsla.lines("not replaced|workers were replaced"), gateway.owsla.output()
    gateway.owsla.assert_tidy()


@reactor_test
async def test_rolling_restart_with_a_mistake(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """With an invalid setting in the file no worker is replaced, and the log says why. The next SIGUSR2 works, and gives the
    new workers the corrected settings.
    """
    settings = tmp_path / "owsla.toml"
    settings.write_text("max-line = 1000\n")
    gateway = await lab.gateway(rabbitmq.url, workers=2, config=settings, drain_spread="0s")
    before = await processes(gateway.owsla, 2)
    device = await lab.device(gateway)
    settings.write_text("max-line = 'long'\n")
    gateway.owsla.process.signal(signal.SIGUSR2)
    await gateway.owsla.wait_for_line(r"Reload failed, and nothing was changed: .*owsla.toml: max-line: 'long' is not a size")
    await gateway.owsla.wait_for_line("The workers are not replaced")
    assert all(alive(pid) for pid in before.values())
    await gateway.round_trip(device)
    settings.write_text("max-line = 5\n")
    mark = gateway.owsla.mark()
    gateway.owsla.process.signal(signal.SIGUSR2)
    await gateway.owsla.wait_for_line("All 2 workers were replaced", 60, start=mark)
    device = await lab.device(gateway)
    device.send_line(b"longer")
    await device.closed()
    assert await gateway.owsla.terminate() == 0
    gateway.owsla.assert_tidy()


@reactor_test
async def test_sigusr2_alone(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """SIGUSR2 does no harm to a single process."""
    gateway = await lab.gateway(rabbitmq.url)
    gateway.owsla.process.signal(signal.SIGUSR2)
    await gateway.owsla.wait_for_line("SIGUSR2 ignored")
    device = await lab.device(gateway)
    await gateway.round_trip(device)


@reactor_test
async def test_secrets(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """The password of the broker is in no argument of a worker and in no line of the log."""
    url = rabbitmq.url.replace("guest:guest", "guest:g%75est")
    gateway = await lab.gateway(rabbitmq.url, workers=2, broker=url)
    workers = await processes(gateway.owsla, 2)
    for name, pid in workers.items():
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert arguments[1:-1] == ["-P", "-m", "owsla.worker", name]
        assert Path(f"/proc/{pid}/comm").read_text().strip() == f"owsla {name}"[:15]
    assert "g%75est" not in gateway.owsla.output()


@reactor_test
async def test_events_of_all(lab: Lab, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """One file has the events of all workers, each with its node, and is opened again on SIGHUP."""
    file = tmp_path / "events.json"
    gateway = await lab.gateway(rabbitmq.url, workers=2, events=["console", f"json:{file}"])
    await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)
    ids = {connection_id for devices in found.values() for _, connection_id in devices}

    def connected(path: Path) -> dict[str, str]:
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {event["connection_id"]: event["node"] for event in events if event["event"] == "device-connected"}

    await until(lambda: ids <= set(connected(file)), what="the events of all devices")
    assert all(node == connection_id[:8] for connection_id, node in connected(file).items())
    moved = file.rename(tmp_path / "moved.json")
    gateway.owsla.process.signal(signal.SIGHUP)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await until(lambda: connection_id in connected(file), what="the event in the new file")
    assert connection_id not in connected(moved)
    assert await gateway.owsla.terminate() == 0
    ends = [json.loads(line) for line in file.read_text().splitlines()]
    assert len([event for event in ends if event["event"] == "device-disconnected"]) == len(ids) + 1


@reactor_test
async def test_http_for_all(lab: Lab, rabbitmq: RabbitMQ) -> None:
    """The pages of the parent cover all workers: metrics by worker, readiness, and the tree of each worker."""
    port = free_port()
    gateway = await lab.gateway(rabbitmq.url, workers=2, http=port, drain_spread="5s")
    workers = await processes(gateway.owsla, 2)
    found = await devices_on_each(gateway, lab, 2)

    async def metric(name: str) -> dict[str, float]:
        _, text = await ask(port, "/metrics")
        samples = [sample for family in parse(text) for sample in family.samples]
        return {sample.labels["worker"]: sample.value for sample in samples if sample.name == name}

    lines = await metric("owsla_lines_confirmed_total")
    assert {worker: lines[worker] for worker in ("1", "2")}.keys() == {"1", "2"}
    assert lines["1"] + lines["2"] == sum(map(len, found.values()))
    assert (await metric("owsla_worker_up")) == {"1": 1.0, "2": 1.0}
    status, _ = await ask(port, "/readyz")
    assert status == 200
    _, text = await ask(port, "/tree")
    below: Any = json.loads(text)
    of_workers = [child for child in below["children"] if child["id"].startswith("worker-")]
    assert [child["id"] for child in of_workers] == ["worker-1", "worker-2"]
    for child in of_workers:
        (node,) = child["children"]
        assert "broker" in [each["id"] for each in node["children"]]
    # One worker is suspended: the answers of the others are shown all the same.
    os.kill(workers["worker-1"], signal.SIGSTOP)
    try:
        assert (await metric("owsla_worker_up")) == {"1": 0.0, "2": 1.0}
        status, _ = await ask(port, "/readyz")
        assert status == 200
    finally:
        os.kill(workers["worker-1"], signal.SIGCONT)
    gateway.owsla.process.signal(signal.SIGTERM)
    await gateway.owsla.wait_for_line("Stopping 2 workers")
    status, _ = await ask(port, "/readyz")
    assert status == 503
    assert await gateway.owsla.exited(30) == 0


@pytest.mark.parametrize("wanted", [["worker-1"], ["worker-1", "worker-2"]])
@reactor_test
async def test_embedded(lab: Lab, wanted: Sequence[str]) -> None:
    """The parent runs the embedded broker, which all its workers use."""
    port = free_port()
    gateway = await lab.gateway(f"amqp://guest:guest@127.0.0.1:{port}/%2f", broker="embedded", embedded_port=port, workers=2)
    before = await processes(gateway.owsla, 2)
    mark = gateway.owsla.mark()
    for name in wanted:
        os.kill(before[name], signal.SIGKILL)
    await processes(gateway.owsla, len(wanted), mark)
    found = await devices_on_each(gateway, lab, 2)
    for devices in found.values():
        await served(gateway, *devices[0])
