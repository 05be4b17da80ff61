"""Tests of docs/contract.md and docs/backends.md: their programs in Python are used as they are, except for the broker, the
names of queues, and times that are shorter here.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ._support.certificates import Authority
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.page import Page
from ._support.process import ChildProcess
from ._support.waiting import reactor_test, until

RETRY = 3
"""Seconds after which the back end of these tests sends a command without a report again."""


class Site:
    """Nodes on the same queues, devices with certificates, and the programs of the page."""

    def __init__(self, lab: Lab, broker: Broker, folder: Path) -> None:
        self.lab = lab
        self.broker = broker
        self.contract = Page("contract.md", folder / "contract")
        self.backends = Page("backends.md", folder / "backends")
        self.authority = Authority(folder / "authority")
        self.folder = folder / "back-end"
        self.folder.mkdir()
        self.nodes: list[Gateway] = []
        self._process: ChildProcess | None = None
        self._runs = 0

    async def node(self, **options: Any) -> Gateway:
        """Start another node."""
        if self.nodes:
            first = self.nodes[0]
            options = {"from_device": first.from_device, "to_device": first.to_device, "backend": False, **options}
        options = {"client_ca": self.authority.ca, "events": ["console", "amqp"], "device_timeout": "300ms", **options}
        node = await self.lab.gateway(self.broker.url, **options)
        self.nodes.append(node)
        return node

    async def device(self, name: str, node: Gateway | None = None) -> Device:
        """Connect a device."""
        node = node or self.nodes[0]
        return await self.lab.device(node, certificate=self.authority.credentials(name))

    @property
    def to_device(self) -> str:
        return self.nodes[0].to_device

    # -- who-has -----------------------------------------------------------------------------------------------------------

    async def who_has(self, *device_ids: str) -> dict[str, dict[str, Any]]:
        """Run the function of the page as a program, and return its result."""
        block = self.contract.block("python", "def who_has(", {'"to_device.all"': f'"{self.to_device}.all"'})
        script = self.folder / "who_has.py"
        script.write_text(
            f"{block}\n\nimport sys\nconnection = pika.BlockingConnection(pika.URLParameters({self.broker.url!r}))\n"
            "print(json.dumps(who_has(connection.channel(), sys.argv[1:])))\n"
        )
        process = self._run(script, *device_ids)
        assert await process.wait() == 0, process.output()
        found: dict[str, dict[str, Any]] = json.loads(process.output())
        return found

    # -- commands ----------------------------------------------------------------------------------------------------------

    def back_end(self) -> None:
        """Start the back end that keeps commands."""
        replace = {
            "amqp://guest:guest@127.0.0.1:5672/%2f": self.broker.url,
            '"command_reports"': f'"reports_{self.to_device}"',
            'routing_key="to_device"': f'routing_key="{self.to_device}"',
            "RETRY = 60": f"RETRY = {RETRY}",
        }
        script = self.folder / "commands.py"
        script.write_text(self.backends.block("python", "CREATE TABLE IF NOT EXISTS commands", replace))
        self._process = self._run(script)

    def kill_back_end(self) -> None:
        """Kill the back end."""
        assert self._process is not None
        assert self._process.poll() is None, self._process.output()
        self._process.kill()

    def add(self, device_id: str, text: str, seconds: float = 600) -> None:
        """Add a command, as the page says."""
        subprocess.run([sys.executable, "commands.py", device_id, str(seconds), text], cwd=self.folder, check=True, timeout=60)

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows of a query of the back end's store."""
        with closing(sqlite3.connect(self.folder / "commands.db", timeout=10)) as database, database:
            return database.execute(sql, values).fetchall()

    def states(self) -> list[tuple[str, str | None]]:
        """Return state and outcome of each command."""
        return self.query("SELECT state, outcome FROM commands ORDER BY id")

    async def become(self, *states: tuple[str, str | None]) -> None:
        """Wait until the commands have these states."""
        await until(lambda: self.states() == list(states), what=lambda: f"{states}: {self.states()} {self._output()}")

    def _output(self) -> str:
        return self._process.output() if self._process is not None else ""

    def _run(self, script: Path, *arguments: str) -> ChildProcess:
        self._runs += 1
        process = ChildProcess(
            [sys.executable, str(script), *arguments], output=self.folder / f"output-{self._runs}", cwd=self.folder
        )

        async def end() -> None:
            process.kill()

        self.lab.ends(end)
        return process


DELIVERED = ("done", "delivered")
AWAY = ("away", None)


@pytest.fixture
def site(lab: Lab, broker: Broker, tmp_path: Path) -> Site:
    """Return a site without nodes."""
    return Site(lab, broker, tmp_path)


# -- Is a device connected? ----------------------------------------------------------------------------------------------------


@reactor_test
async def test_who_has(site: Site) -> None:
    """Each node answers for its own devices, and nobody for a device that is away."""
    one, two = await site.node(), await site.node()
    ids = {}
    for name, node in (("door-1", one), ("door-2", two), ("dör 3", two)):
        ids[name] = await one.introduce(await site.device(name, node))
    for _ in range(20):  # a node may open its port before it can be asked
        if (await site.who_has(*ids)).keys() == ids.keys():
            break
    found = await site.who_has(*ids, "door-4")
    assert {name: claim["connection_id"] for name, claim in found.items()} == ids
    for claim in found.values():
        assert claim["door"] == "default"
        assert 0 <= claim["age"] < 600_000
        assert abs(claim["since"] + claim["age"] - time.time() * 1000) < 60_000


# -- Commands for devices that are away ----------------------------------------------------------------------------------------


@reactor_test
async def test_commands(site: Site) -> None:
    """A command for a connected device is handed over at once. One for a device that is away waits for it; commands of a device
    keep their order, and one that expires is never sent.
    """
    await site.node()
    site.back_end()
    here = await site.device("door-1")
    await until(lambda: (site.folder / "commands.db").exists())
    site.add("door-1", "open")
    assert await here.line() == b"1 open"
    await site.become(DELIVERED)
    site.add("door-2", "expired", seconds=1.5)
    await site.become(DELIVERED, AWAY)
    site.add("door-2", "open")
    site.add("door-2", "close")
    await site.become(DELIVERED, ("done", "expired"), AWAY, ("new", None))
    away = await site.device("door-2")
    assert await away.lines.take(2) == [b"3 open", b"4 close"]
    await site.become(DELIVERED, ("done", "expired"), DELIVERED, DELIVERED)
    site.add("door-1", "far too long" * 2000)
    await site.become(DELIVERED, ("done", "expired"), DELIVERED, DELIVERED, ("done", "too-long"))


@reactor_test
async def test_back_end_is_killed(site: Site) -> None:
    """Commands and events that come while the back end is down are not forgotten."""
    await site.node()
    site.back_end()
    await until(lambda: (site.folder / "commands.db").exists())
    site.add("door-1", "one")
    await site.become(AWAY)
    site.kill_back_end()
    device = await site.device("door-1")
    site.add("door-1", "two")
    assert site.states() == [AWAY, ("new", None)]
    site.back_end()
    assert await device.lines.take(2) == [b"1 one", b"2 two"]
    await site.become(DELIVERED, DELIVERED)


@reactor_test
async def test_back_end_is_killed_in_between(site: Site) -> None:
    """A command whose report comes while the back end is down is handed over once. One that was marked as sent and was not
    published is sent when its report is overdue.
    """
    node = await site.node()
    site.back_end()
    device = await site.device("door-1")
    await until(lambda: (site.folder / "commands.db").exists())
    node.owsla.process.signal(signal.SIGSTOP)
    site.add("door-1", "one")
    await until(lambda: site.states() == [("sent", None)])
    # A command is marked before it is published. When the next one is marked, it has been published.
    site.add("door-2", "nobody there")
    await until(lambda: site.states() == [("sent", None), ("sent", None)])
    site.kill_back_end()
    node.owsla.process.signal(signal.SIGCONT)
    assert await device.line() == b"1 one"
    assert site.states() == [("sent", None), ("sent", None)]
    site.back_end()
    await site.become(DELIVERED, AWAY)
    site.kill_back_end()
    site.add("door-1", "two")
    site.query("UPDATE commands SET state = 'sent', sent_at = ? WHERE id = 3", time.time())
    site.back_end()
    assert await device.line() == b"3 two"
    await site.become(DELIVERED, AWAY, DELIVERED)


@reactor_test
async def test_node_is_lost(site: Site) -> None:
    """Commands reach a device after its node was killed and it has connected to another one."""
    await site.node()
    other = await site.node()
    site.back_end()
    device = await site.device("door-1", other)
    await until(lambda: (site.folder / "commands.db").exists())
    site.add("door-1", "one")
    assert await device.line() == b"1 one"
    await site.become(DELIVERED)
    other.owsla.kill()
    site.add("door-1", "two")
    await until(lambda: site.states()[1][0] in ("sent", "away"))
    device = await site.device("door-1")
    assert await device.line() == b"2 two"
    await site.become(DELIVERED, DELIVERED)


@reactor_test
async def test_gateway_is_stopped(site: Site) -> None:
    """While no gateway runs, no more than one copy of a command waits in the queue, however often it is sent again."""
    node = await site.node()
    site.back_end()
    await until(lambda: (site.folder / "commands.db").exists())
    assert await node.owsla.terminate() == 0
    site.add("door-1", "one")
    sent: set[float] = set()

    def again() -> bool:
        sent.update(row[0] for row in site.query("SELECT sent_at FROM commands"))
        return len(sent - {0.0}) == 3

    await until(again, 40)
    assert await node.backend.count(node.to_device) <= 1
    node = await site.node()
    device = await site.device("door-1", node)
    assert await device.line() == b"1 one"
    await site.become(DELIVERED)


@reactor_test
async def test_connects_while_it_is_taken_for_away(site: Site) -> None:
    """A device that connects after its command was given up, and before the report arrives, gets the command."""
    node = await site.node()
    site.back_end()
    await until(lambda: (site.folder / "commands.db").exists())
    site.kill_back_end()
    site.add("door-1", "one")
    site.query("UPDATE commands SET state = 'sent', sent_at = ? WHERE id = 1", time.time() + 600)
    await site.device("door-1", node)
    site.back_end()
    await until(lambda: site.query("SELECT came FROM commands") == [(1,)])
    # The report that the node has sent before the device came.
    headers = {"owsla_report": "unknown-device", "connection_id": "", "device_id": "door-1"}
    await node.backend.publish(f"reports_{site.to_device}", b"", headers, correlation_id="1")
    await site.become(DELIVERED)
