"""Tests of the HTTP pages of a running Owsla, and of `owsla tree`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.internet.threads import deferToThread

from ._support.commands import owsla_command
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.owsla import Owsla, environment, twistd
from ._support.process import free_port
from ._support.proxy import Proxy
from ._support.waiting import current_reactor, pause, reactor_test, until, within


@cache
def _offered() -> bool:
    """Return whether this Owsla has the option."""
    shown = subprocess.run([*twistd(), "owsla", "--help"], capture_output=True, text=True, env=environment(), timeout=60)
    return "--http" in shown.stdout


@pytest.fixture(autouse=True)
def _wired() -> None:
    if not _offered():
        pytest.skip("`twistd owsla` has no --http yet")


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a blocking function in a thread, while the reactor runs."""
    current_reactor()
    return await within(deferToThread(function, *arguments))


def _ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def ask(port: int, path: str) -> tuple[int, str]:
    """Return the status and the text of a page."""
    answer: tuple[int, str] = await in_thread(_ask, port, path)
    return answer


async def http_port(owsla: Owsla) -> int:
    """Return the HTTP port of a gateway."""
    return int((await owsla.wait_for_line(r"Metrics and health on http://\S+:(\d+)/"))[1])


async def metrics(port: int) -> dict[str, float]:
    """Return a scrape: values by name and labels, as in `owsla_connections{state="open"}`."""
    status, text = await ask(port, "/metrics")
    assert status == 200
    found = {}
    for family in parse(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def tree_command(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run `owsla tree`. Return status, standard output and standard error."""

    def run() -> subprocess.CompletedProcess[str]:
        argv: Sequence[str] = [*owsla_command(), "tree", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, env=environment(env), timeout=30)

    done: subprocess.CompletedProcess[str] = await in_thread(run)
    return done.returncode, done.stdout, done.stderr


async def gateway(lab: Lab, broker: EmbeddedBrokerProcess | Proxy, **options: Any) -> tuple[Gateway, int]:
    """Return a gateway that serves HTTP, and its HTTP port."""
    started = await lab.gateway(broker.url, **{"http": 0} | options)
    return started, await http_port(started.owsla)


@reactor_test
async def test_books(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The metrics add up: connections, handshakes, lines and bytes in both directions, confirms, undeliverable messages."""
    owsla, port = await gateway(lab, embedded)
    before = await metrics(port)
    assert before['owsla_connections{state="open"}'] == 0
    devices = [await lab.device(owsla) for _ in range(3)]
    for device in devices:
        await owsla.round_trip(device)  # a line of 16 bytes in each direction
    connection_id = await owsla.introduce(devices[0])
    await devices[0].close()
    await until(lambda: "disconnected" in owsla.owsla.output())
    await owsla.send(connection_id, b"too late")
    await owsla.refused()

    after = await metrics(port)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert after['owsla_connections{state="open"}'] == 2
    assert grown['owsla_handshakes_total{door="default",outcome="completed"}'] == 3
    assert grown['owsla_accepted_total{door="default"}'] == 3
    assert grown['owsla_lines_received_total{door="default"}'] == grown['owsla_lines_confirmed_total{door="default"}'] == 4
    assert grown["owsla_lines_sent_total"] == 3
    assert grown["owsla_received_bytes_total"] in range(4 * 17, 4 * 18 + 1)
    assert grown["owsla_sent_bytes_total"] == 3 * 16
    assert grown['owsla_undeliverable_total{reason="unknown-connection"}'] == 1
    assert grown['owsla_events_total{event="device-disconnected"}'] == 1
    assert 1 <= grown['owsla_publish_to_confirm_seconds_count{door="default"}'] <= 4
    assert 0 < grown['owsla_publish_to_confirm_seconds_sum{door="default"}'] < 10
    assert after['owsla_window_lines{door="default"}'] == after['owsla_unconfirmed_age_seconds{door="default"}'] == 0
    assert after['owsla_taking_lines{door="default"}'] == 1


@reactor_test
async def test_readiness(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Owsla is ready with a broker, and alive but not ready without. It is ready again when the broker is back, and the outage
    is counted.
    """
    proxy = await lab.proxy(embedded.port)
    owsla, port = await gateway(lab, proxy, backend=False)
    assert (await ask(port, "/readyz"))[0] == 200
    await proxy.refuse()
    proxy.cut()
    await owsla.owsla.wait_for_line("Broker lost")
    status, text = await ask(port, "/readyz")
    checks = {"broker_connected": False, "listener_accepting": True, "not_draining": True}
    assert (status, json.loads(text)) == (503, {"ready": False, "checks": checks})
    assert await ask(port, "/healthz") == (200, "ok\n")
    assert (await metrics(port))['owsla_taking_lines{door="default"}'] == 0
    assert (await metrics(port))["owsla_broker_reconnects_total"] == 0
    mark = owsla.owsla.mark()
    await proxy.start()
    await owsla.owsla.wait_for_line("Broker connected", 45, start=mark)
    assert (await ask(port, "/readyz"))[0] == 200
    assert (await metrics(port))["owsla_broker_reconnects_total"] == 1


@reactor_test
async def test_draining(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """While it stops, Owsla is not ready until the end, so that load balancers send no devices. Then the port is closed."""
    owsla, port = await gateway(lab, embedded, drain_spread=2)
    await lab.device(owsla)
    await lab.device(owsla)
    mark = owsla.owsla.mark()
    owsla.owsla.process.signal(signal.SIGTERM)
    await owsla.owsla.wait_for_line("Stopping", start=mark)
    status, text = await ask(port, "/readyz")
    assert (status, json.loads(text)["checks"]["not_draining"]) == (503, False)
    assert await owsla.owsla.exited() == 0
    with pytest.raises(OSError, match="refused"):
        await ask(port, "/healthz")


@reactor_test
async def test_tree(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """`owsla tree` shows the running tree. OWSLA_HTTP, as set for the gateway, gives the address."""
    _, port = await gateway(lab, embedded)
    status, text = await ask(port, "/tree")
    tree = json.loads(text)
    assert (status, tree["id"], tree["state"]) == (200, "owsla", "running")
    for arguments, env in (
        (["--http", f"http://127.0.0.1:{port}"], {}),
        (["--http", str(port)], {"OWSLA_HTTP": "1"}),
        ([], {"OWSLA_HTTP": f"127.0.0.1:{port}"}),
    ):
        status, out, err = await tree_command(*arguments, env=env)
        assert (status, err) == (0, "")
        assert out.startswith("owsla (")
        for child in tree["children"]:
            assert re.search(rf"^[├└]── {child['id']} ", out, re.MULTILINE)


@reactor_test
async def test_tree_elsewhere(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Each failure is one line and status 1: a closed port, another protocol, another HTTP server, a silent server."""
    for port, expected in ((free_port(), "connection refused"), (embedded.port, "does not speak HTTP")):
        status, out, err = await tree_command("--http", str(port))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert expected in err


@reactor_test
async def test_port_in_use(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """An HTTP port in use is one line at the start, and status 1."""
    _, port = await gateway(lab, embedded)
    other = lab.new_owsla(broker=embedded.url, http=port)
    other.launch()
    assert await other.exited() == 1
    assert other.errors().splitlines()[-1] == f"owsla: --http: port {port} on 127.0.0.1 is in use by another process"


@reactor_test
async def test_off(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Without --http no HTTP port is opened."""
    owsla = await lab.gateway(embedded.url, backend=False)
    await pause(0.2)
    assert "http://" not in owsla.owsla.output()


@reactor_test
async def test_quiet(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Neither regular scrapes nor aborted ones are logged."""
    owsla, port = await gateway(lab, embedded)
    await owsla.owsla.wait_for_line("Node started")  # the last line of the start
    mark = owsla.owsla.mark()
    for path in ("/metrics", "/", "/nothing"):
        await ask(port, path)
    plain = await lab.plain(port)
    plain.send_raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    await plain.close()
    await pause(0.3)
    assert owsla.owsla.output()[mark:] == ""
