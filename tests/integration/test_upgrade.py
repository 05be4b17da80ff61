"""Changes of a running system: an update from an earlier version as docs/operations.md describes it, and one from lines to
batches and back. The books balance.

    OWSLA_UPGRADE_FROM=14aef64 pytest tests/integration/test_upgrade.py -s

updates from that commit, or from the wheel at that path, to the present checkout. It needs the network, for pip. Each host has
a virtual environment of its own, and starts with the earlier version. While devices send and a back end answers, the hosts are
updated one after another. In between a host of each version is killed, and a node of the other version notices. Without an
earlier version, the hosts only change from lines to batches and back.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pika
import pytest
from twisted.internet.threads import deferToThread

from ._support.backend import Backend, Message
from ._support.batches import BATCHES, lines_of
from ._support.books import DEVICE_ACK, AnsweringBackend, Books, Fleet, chosen_seed, clear_up
from ._support.commands import owsla_command
from ._support.lab import Lab
from ._support.owsla import Owsla, command_line, environment
from ._support.process import ChildProcess
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until
from .test_doors import port_of

EARLIER: Final = os.environ.pop("OWSLA_UPGRADE_FROM", "")

CHECKOUT: Final = Path(__file__).parents[2]

EVENTS: Final = "connection_events"

SOME: Final = 500
"""Lines of devices between two steps."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command. Return its output; raise AssertionError if it fails."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(source: Path, folder: Path) -> Path:
    """Build the wheel of a source folder."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def earlier_wheel(folder: Path) -> Path:
    """Return the wheel of the earlier version."""
    if EARLIER.endswith(".whl"):
        return Path(EARLIER).resolve()
    if subprocess.run(["git", "cat-file", "-e", f"{EARLIER}^{{commit}}"], cwd=CHECKOUT, check=False).returncode:
        pytest.skip(f"this clone does not have the commit {EARLIER}")
    source = folder / "source"
    source.mkdir(parents=True)
    run("git", "archive", "--output", folder / "source.tar", EARLIER, cwd=CHECKOUT)
    run("tar", "--extract", "--file", folder / "source.tar", cwd=source)
    return build(source, folder)


def rows(output: str) -> list[list[str]]:
    """Return the columns of a list of rabbitmqctl."""
    return [line.split("\t") for line in output.splitlines()]


class Host:
    """A host: a gateway with a file of settings, and its virtual environment if it has one of its own."""

    def __init__(self, folder: Path, owsla: Owsla, options: dict[str, Any]) -> None:
        self.folder = folder
        self.owsla = owsla
        self.options = options
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write the file of settings, which the gateway reads when it starts, and its workers when they are replaced."""
        lines = [f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in settings.items()]
        self.options["config"].write_text("".join(lines))

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def make(self, wheel: Path) -> None:
        """Make the virtual environment with a version."""
        run(sys.executable, "-m", "venv", self.folder)
        run(self.program("pip"), "install", "--quiet", wheel)

    def install(self, wheel: Path) -> None:
        """Install another version. To pip, versions with equal numbers are equal."""
        run(self.program("pip"), "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
        run(self.program("pip"), "install", "--quiet", wheel)  # new dependencies

    def check(self) -> str:
        """Run `--check` of the installed version with the options of the gateway."""
        return run(self.program("twistd"), "owsla", *command_line(self.options), "--check", cwd=self.folder)


class Upgrade:
    """The system: hosts on one broker, devices at each of them, a back end, and the books of both."""

    def __init__(self, lab: Lab, rabbitmq: RabbitMQ, folder: Path) -> None:
        self.lab = lab
        self.rabbitmq = rabbitmq
        self.folder = folder
        self.seed = chosen_seed()
        name = secrets.token_hex(4)
        self.from_device, self.to_device, self.from_swarm = f"from_{name}", f"to_{name}", f"swarm_{name}"
        self.backend = AnsweringBackend(rabbitmq.url, self.from_device, self.to_device, self.seed)
        self.hosts: list[Host] = []
        self.acknowledged = 0
        """Lines that were acknowledged to swarms."""
        self.presence: list[Message] = []
        self._watching: Backend | None = None
        self._fleet: Fleet | None = None

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    def host(self, name: str, wheel: Path | None = None, **more: Any) -> Host:
        """Make a host with a version, by default that of this process. Its gateway is not started."""
        options = {
            "config": self.folder / f"{name}.toml",
            "watch": "off",
            "broker": self.rabbitmq.url,
            "from_device": self.from_device,
            "to_device": self.to_device,
            "listen": [f"tls:0:name=swarm:interface=127.0.0.1:from-device={self.from_swarm}"],
            "device_ack": DEVICE_ACK,
            "events": ["console", "amqp"],
            "heartbeat": "4s",
            "node_grace": "3s",
            # No number is skipped: a message that a host had when it was killed comes again.
            "gap_timeout": "60s",
            "reorder_limit": 5000,
            "prefetch": 20000,
            "drain_spread": "1s",
        } | more
        folder = self.folder / name
        twistd = None if wheel is None else str(folder / "bin" / "twistd")
        host = Host(folder, self.lab.new_owsla(twistd=twistd, **options), options)
        if wheel is not None:
            host.make(wheel)
        self.hosts.append(host)
        return host

    async def start(self, *hosts: Host) -> None:
        """Start these hosts in this order, and all else."""
        for host in hosts:
            await host.owsla.start()
        self._watching = await self.lab.backend(self.rabbitmq.url, EVENTS)
        self._fleet = Fleet(self.lab, *(host.owsla for host in hosts), seed=self.seed, count=45)
        await self.backend.start()
        await self.fleet.start()

    async def step(self, text: str) -> None:
        """Report a step, after some more traffic."""
        await self.fleet.talk(SOME)
        answers = sum(self.backend.published.values())
        counts = f"{self.fleet.said:6} sent, {len(self.backend.heard):6} heard, {answers:6} answers"
        print(f"{counts}; registrar {await self.registrar()}: {text}")

    async def arriving(self) -> Counter[str]:
        """Return the kinds of messages that arrive from now on with some more traffic, after all before have arrived."""
        await self.fleet.hush()
        await until(lambda: len(self.backend.first) >= self.fleet.said, 60, "all lines at the back end")
        before = self.backend.messages.copy()
        self.fleet.talk_on()
        await self.step("these messages are counted")
        await self.fleet.hush()
        await until(lambda: len(self.backend.first) >= self.fleet.said, 60, "all lines at the back end")
        self.fleet.talk_on()
        return self.backend.messages - before

    async def registrar(self) -> str:
        """Return the node that is the registrar."""
        for _ in range(100):
            consumers = rows(await self.rabbitmq.ctl("list_consumers", "queue_name", "channel_pid", "active"))
            channels = dict(rows(await self.rabbitmq.ctl("list_channels", "pid", "connection")))
            connections = dict(rows(await self.rabbitmq.ctl("list_connections", "pid", "client_properties")))
            for queue, channel, active in consumers:
                found = re.search(r"owsla (\w{8}) roster", connections.get(channels.get(channel, ""), ""))
                if (queue, active) == (f"{self.to_device}.nodes", "true") and found is not None:
                    return found[1]
            await pause(0.1)
        raise AssertionError("there is no registrar")

    def nodes(self, host: Host) -> set[str]:
        """Return the nodes of a host, as the connections of its devices name them."""
        ids, _ = Books(self.fleet, self.backend).connections()
        sessions = [one for one in self.fleet.sessions if one.open and one.owsla is host.owsla and one.name in ids]
        return {ids[one.name][:8] for one in sessions}

    async def is_registrar(self, host: Host) -> bool:
        registrar = await self.registrar()
        return registrar in self.nodes(host)

    def lost(self) -> list[str]:
        """Return the nodes that were announced as lost. A node may be announced more than once."""
        assert self._watching is not None
        self.presence += self._watching.inbox[EVENTS].clear()
        return [message.headers["node"] for message in self.presence if message.headers["event"] == "node-lost"]

    # -- steps -----------------------------------------------------------------------------------------------------------

    async def install(self, host: Host, wheel: Path) -> None:
        """Install a version under the running gateway, and check the settings with it."""
        await deferToThread(host.install, wheel)
        print((await deferToThread(host.check)).splitlines()[-1])

    async def restart(self, host: Host) -> None:
        """Restart a gateway."""
        assert await host.owsla.terminate() == 0, host.owsla.output()
        self.check_log(host)
        await host.owsla.start()

    async def replace_workers(self, host: Host) -> None:
        """Replace the workers of a gateway by a rolling restart."""
        mark = host.owsla.mark()
        host.owsla.process.signal(signal.SIGUSR2)
        await host.owsla.wait_for_line("All 2 workers were replaced", 120, start=mark)

    async def kill(self, host: Host) -> None:
        """Kill a host. Another node announces that it is lost."""
        (node,) = self.nodes(host)
        assert await self.registrar() != node
        host.owsla.kill()
        self.fleet.owsla_died(host.owsla)
        await until(lambda: node in self.lost(), 30, "node-lost")

    def check_log(self, host: Host) -> None:
        host.owsla.assert_tidy()
        assert not host.owsla.lines("is not a notice of a node|is used as it is|vanish")

    # -- the swarm -------------------------------------------------------------------------------------------------------

    async def swarm(self, host: Host) -> ChildProcess:
        """Start a swarm at the second door of a host, and wait until it sends."""
        port = await port_of(host.owsla, "swarm")
        number = len(list(self.folder.glob("swarm-*")))
        command = [
            *owsla_command(), "swarm", "--mode", "flood", "--port", str(port), "--ca", str(host.owsla.ca), "--json",
            "--server-name", "localhost", "--connections", "200", "--rate", "400", "--seconds", "60",
            "--device-ack", DEVICE_ACK,
        ]  # fmt: skip
        output, errors = self.folder / f"swarm-{number}", self.folder / f"errors-{number}"
        process = ChildProcess(command, output=output, errors=errors, env=environment())
        before = await self._swarmed()
        for _ in range(300):
            if await self._swarmed() > before:
                return process
            await pause(0.1)
        raise AssertionError(f"the swarm sends nothing: {errors.read_text()}")

    async def _swarmed(self) -> int:
        listed = dict(rows(await self.rabbitmq.ctl("list_queues", "name", "messages")))
        return int(listed.get(self.from_swarm, 0))

    async def swarm_ends(self, process: ChildProcess) -> None:
        """Wait for the end of a swarm, and count the lines that were acknowledged to it. Its connections were closed."""
        assert await process.wait(60) == 2
        lines = json.loads(process.output())["lines"]
        print(f"swarm: {lines}")
        self.acknowledged += lines["acknowledged"]

    def swarm_books(self) -> tuple[int, int]:
        """Return the number of lines of swarms that the queue has, each counted once, and that of duplicates."""
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbitmq.url))
        try:
            channel = connection.channel()
            keys = []
            while (found := channel.basic_get(self.from_swarm, auto_ack=True))[0] is not None:
                headers = [line.headers for line, _ in lines_of(found[1], found[2])]
                keys += [(header["connection_id"], header["from_device_seq"]) for header in headers]
            channel.queue_delete(self.from_swarm)
        finally:
            connection.close()
        return len(set(keys)), len(keys) - len(set(keys))

    # -- the end ---------------------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Wait until all is quiet, stop all, and compare the books."""
        await self.fleet.hush()
        await self.backend.settled()
        books = Books(self.fleet, self.backend)
        await until(lambda: not books.outstanding(), 60, lambda: f"{books.outstanding()}")
        await self.fleet.stop()
        running = [host for host in self.hosts if host.owsla.process.poll() is None]
        for host in running:
            assert await host.owsla.terminate() == 0, host.owsla.output()
            self.check_log(host)
        await self.backend.stop()
        names = [name for (name,) in rows(await self.rabbitmq.ctl("list_queues", "name"))]
        mine = [name for name in names if name.startswith((self.from_device, self.to_device))]
        books.remains = clear_up(self.rabbitmq.url, mine, self.from_device, self.to_device)
        differences = [*books.differences(in_order=True), *books.order_of_devices()]
        assert not differences, "\n".join(differences)
        repeated = len(self.backend.heard) - len(self.backend.first)
        print(f"{self.fleet.said} messages on {len(self.fleet.sessions)} connections, all acknowledged and in the queue; "
              f"{repeated} lines twice; {sum(self.backend.published.values())} answers, {len(books.remains.undeliverable)} "
              f"on record, {len(books.remains.stranded)} left in queues of nodes")  # fmt: skip
        lines, repeated = self.swarm_books()
        print(f"swarms: {self.acknowledged} lines acknowledged, {lines} in the queue, {repeated} twice")
        assert lines >= self.acknowledged

    async def end(self) -> None:
        """End everything that the lab does not own, also after a failure."""
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet.abort()
        await self.backend.stop()


@pytest.fixture
def upgrade(lab: Lab, own_rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Upgrade]:
    """Return a system that is not started."""
    upgrade = Upgrade(lab, own_rabbitmq, tmp_path / "hosts")
    upgrade.folder.mkdir()
    yield upgrade
    block_on(upgrade.end())


@pytest.mark.skipif(not EARLIER, reason="OWSLA_UPGRADE_FROM does not name a commit or a wheel")
@reactor_test
async def test_upgrade(upgrade: Upgrade, tmp_path: Path) -> None:
    """While hosts are updated one after another, no acknowledged line is lost, and each numbered message is delivered or
    recorded. Old and new nodes work together, and notice each other's death.
    """
    old = earlier_wheel(tmp_path / "old")
    new = build(CHECKOUT, tmp_path / "new")
    assert old.read_bytes() != new.read_bytes()
    first = upgrade.host("first", old)
    workers = upgrade.host("workers", old, workers=2)
    last = upgrade.host("last", old)
    await upgrade.start(first, workers, last)
    await upgrade.step("all are old")

    swarm = await upgrade.swarm(first)
    await upgrade.install(first, new)
    await upgrade.restart(first)
    await upgrade.swarm_ends(swarm)
    await upgrade.step("the first one is new, and the registrar old")
    assert await upgrade.is_registrar(workers)
    await upgrade.kill(first)
    await first.owsla.start()
    await upgrade.step("the first one was killed, and noticed by an old node")

    swarm = await upgrade.swarm(workers)
    await upgrade.install(workers, new)
    await upgrade.replace_workers(workers)
    await upgrade.swarm_ends(swarm)
    await upgrade.step("the workers are new, under their old parent")
    assert await upgrade.is_registrar(last)

    swarm = await upgrade.swarm(last)
    await upgrade.install(last, new)
    await upgrade.restart(last)
    await upgrade.swarm_ends(swarm)
    await upgrade.step("the last one is new, and the registrar, too")
    assert not await upgrade.is_registrar(last)

    await deferToThread(last.install, old)
    await upgrade.restart(last)
    await upgrade.step("the last one is old again")
    await upgrade.kill(last)
    await deferToThread(last.install, new)
    await last.owsla.start()
    await upgrade.step("it was killed, and noticed by a new node; now it is new")

    await upgrade.restart(workers)
    await upgrade.step("the parent of the workers is new")
    await to_batches_and_back(upgrade, first, workers, last)
    await upgrade.finish()
    assert len(set(upgrade.lost())) == 3


async def to_batches_and_back(upgrade: Upgrade, first: Host, workers: Host, killed: Host) -> None:
    """Have three hosts publish lines in batches, one after another, and back. The last one is killed with batches."""
    assert set(await upgrade.arriving()) == {"lines"}
    first.configure(**BATCHES)
    await upgrade.restart(first)
    assert set(await upgrade.arriving()) == {"lines", "batches"}
    workers.configure(**BATCHES)
    await upgrade.replace_workers(workers)
    killed.configure(**BATCHES)
    await upgrade.restart(killed)
    assert set(await upgrade.arriving()) == {"batches"}

    workers.configure()
    await upgrade.replace_workers(workers)
    assert set(await upgrade.arriving()) == {"lines", "batches"}
    await upgrade.kill(killed)
    killed.configure()
    await killed.owsla.start()
    first.configure()
    await upgrade.restart(first)
    assert set(await upgrade.arriving()) == {"lines"}


@reactor_test
async def test_to_batches_and_back(upgrade: Upgrade) -> None:
    """While hosts change from lines to batches and back, no line is lost, and those of a device stay in order. Hosts with and
    without batches work together, and a back end that reads both forms needs no change.
    """
    hosts = upgrade.host("first"), upgrade.host("workers", workers=2), upgrade.host("killed")
    await upgrade.start(*hosts)
    await to_batches_and_back(upgrade, *hosts)
    await upgrade.finish()
    assert len(set(upgrade.lost())) == 1
