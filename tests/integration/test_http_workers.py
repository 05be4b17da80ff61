"""Tests of the HTTP pages of a parent with failing workers, and of the event files of all workers."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.waiting import reactor_test, until
from .test_http import ask, gateway, metrics, tree_command
from .test_workers import devices_on_each, processes


async def ready(port: int) -> tuple[int, Any]:
    """Return the content of /readyz."""
    status, text = await ask(port, "/readyz")
    return status, json.loads(text)


@reactor_test
async def test_hanging(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """A worker that hangs delays one answer by two seconds, and later answers by nothing. When it continues, it is shown again.
    """
    owsla, port = await gateway(lab, embedded, workers=2)
    workers = await processes(owsla.owsla, 2)
    assert (await ready(port))[0] == 200
    os.kill(workers["worker-1"], signal.SIGSTOP)
    try:
        began = time.monotonic()
        status, body = await ready(port)
        assert 1.5 < time.monotonic() - began < 10  # 2.0 s on an idle machine
        assert [(worker["name"], worker["ready"]) for worker in body["workers"]] == [("worker-1", False), ("worker-2", True)]
        assert (status, body["workers"][0]["checks"]) == (200, None)
        fastest = 10.0
        for _ in range(5):
            began = time.monotonic()
            assert (await ready(port))[0] == 200
            fastest = min(fastest, time.monotonic() - began)
        assert fastest < 1
        after = await metrics(port)
        assert (after['owsla_worker_up{worker="1"}'], after['owsla_worker_up{worker="2"}']) == (0, 1)
        assert 'owsla_lines_sent_total{worker="1"}' not in after
    finally:
        os.kill(workers["worker-1"], signal.SIGCONT)
    up = 0.0
    deadline = time.monotonic() + 15
    while not up and time.monotonic() < deadline:
        up = (await metrics(port))['owsla_worker_up{worker="1"}']
    assert up == 1


@reactor_test
async def test_killed(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """After the death of a worker, the pages show that it was restarted, and that the other one is ready."""
    owsla, port = await gateway(lab, embedded, workers=2, backend=False)
    workers = await processes(owsla.owsla, 2)
    mark = owsla.owsla.mark()
    os.kill(workers["worker-2"], signal.SIGKILL)
    await owsla.owsla.wait_for_line("Restarting .*worker-2", start=mark)
    status, body = await ready(port)
    assert (status, body["workers"][0]["ready"]) == (200, True)
    await processes(owsla.owsla, 1, mark)
    after = await metrics(port)
    restarts = {name: value for name, value in after.items() if name.startswith("owsla_restarts_total") and value}
    (name,) = restarts
    assert re.fullmatch(r'owsla_restarts_total\{child="owsla/(workers/)?worker-2",worker="parent"\}', name)
    assert after['owsla_worker_up{worker="2"}'] == 1
    assert after['process_start_time_seconds{worker="2"}'] > after['process_start_time_seconds{worker="1"}']


@reactor_test
async def test_without_a_broker(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Without a broker no worker is ready, and neither is the parent. It is alive, and says so."""
    proxy = await lab.proxy(embedded.port)
    owsla, port = await gateway(lab, proxy, workers=2, backend=False)
    await processes(owsla.owsla, 2)
    assert (await ready(port))[0] == 200
    await proxy.refuse()
    mark = owsla.owsla.mark()
    proxy.cut()
    await until(lambda: len(owsla.owsla.lines("Broker lost", start=mark)) >= 2)
    status, body = await ready(port)
    assert (status, body["checks"]) == (503, {"worker_ready": False, "not_draining": True})
    assert [worker["checks"]["broker_connected"] for worker in body["workers"]] == [False, False]
    assert await ask(port, "/healthz") == (200, "ok\n")
    after = await metrics(port)
    assert after['owsla_ready{condition="worker_ready",worker="parent"}'] == 0
    status, text = await ask(port, "/")
    assert (status, text.count("the broker is not connected")) == (200, 2)


@reactor_test
async def test_tree(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """`owsla tree` shows the children of the parent, and the tree of each worker below it."""
    owsla, port = await gateway(lab, embedded, workers=2, backend=False)
    await processes(owsla.owsla, 2)
    status, out, err = await tree_command("--http", str(port))
    assert (status, err) == (0, "")
    for number in (1, 2):
        below = re.search(rf"^.*── worker-{number} .*(?:\n(?!.*── worker-).*)*", out, re.MULTILINE)
        assert below is not None, out
        for child in ("owsla", "broker", "producer", "consumers", "listener", "port"):
            assert re.search(rf"── {child} ", below[0]), out


@reactor_test
async def test_a_table_for_all(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """The events of all workers are rows of one database: each with its node, numbered per node without a hole, and its time.
    """
    file = tmp_path / "events.db"
    began = time.time()
    owsla, _ = await gateway(lab, embedded, workers=2, events=["console", f"database:{file}"])
    await processes(owsla.owsla, 2)
    found = await devices_on_each(owsla, lab, 2)
    count = sum(map(len, found.values()))

    def rows(condition: str) -> list[Any]:
        if not file.exists():
            return []
        with closing(sqlite3.connect(file)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'owsla_events'").fetchall():
                return []
            query = f"SELECT node, number, connection_id, unixepoch(time) FROM owsla_events WHERE {condition} ORDER BY number"
            return connection.execute(query).fetchall()

    await until(lambda: len(rows("event = 'device-connected'")) == count)
    connected = rows("event = 'device-connected'")
    assert {(node, connection_id) for node, _, connection_id, _ in connected} == {
        (connection_id[:8], connection_id) for devices in found.values() for _, connection_id in devices
    }
    assert all(began - 1 <= at <= time.time() for *_, at in connected)
    for node in found:
        numbers = [number for _, number, _, _ in rows(f"node = '{node}'")]
        assert numbers == list(range(1, len(numbers) + 1))
