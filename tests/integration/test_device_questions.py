"""Questions about devices of a gateway with workers: the list, findings about a device that does not work, the busiest, and the
close by an operator.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ._support.api import ApiClient
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import PATIENCE, pause, reactor_test, until
from .test_deny import Fleet
from .test_workers import devices_on_each


async def asked(ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], object]) -> Any:
    """Ask until the answer is as wanted, and return it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = await ask()
        if wanted(answer):
            return answer
        assert time.monotonic() < deadline, answer
        await pause(0.1)


class Desk:
    """The API of a gateway, asked about devices."""

    def __init__(self, gateway: Gateway) -> None:
        self.api = ApiClient(gateway.owsla.folder / "owsla.sock")

    async def finds(self, name: str, finding: str) -> dict[str, Any]:
        """Wait until the only connection of a device has a finding, and return its row."""

        async def ask() -> Any:
            reply = await self.api.ask(f"/devices/{name}")
            # With TLS 1.3 a device is connected before the gateway has seen the end of the handshake.
            return [] if reply.status == 404 else reply.body["connections"]

        [row] = await asked(ask, lambda rows: len(rows) == 1 and any(finding in each for each in rows[0]["findings"]))
        found: dict[str, Any] = row
        return found

    async def finds_nothing(self, name: str) -> None:
        """Check that the only connection of a device has no finding."""
        [row] = (await self.api.get(f"/devices/{name}"))["connections"]
        assert row["findings"] == []


@reactor_test
async def test_findings(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device that does not work is found by its name, whichever worker has it, with the reason: it says nothing, ends no
    line, gets no answer, reads nothing, waits for a message, sends too much, or has several connections.
    """
    fleet = Fleet(tmp_path)
    options: dict[str, Any] = {"max_rate": 200, "write_buffer": "16MiB", "gap_timeout": "5m", "write_timeout": "5m"}
    gateway = await lab.gateway(embedded.url, client_ca=fleet.ca, workers=2, **options)
    desk = Desk(gateway)
    names = ("talks", "silent", "half", "reads-nothing", "waits", "floods", "twice")
    certificates = {name: fleet.certificate(name) for name in names}

    async def connect(name: str) -> Device:
        return await lab.device(gateway, certificate=certificates[name])

    silent, half, talks = await connect("silent"), await connect("half"), await connect("talks")
    half.send_raw(b"hello\r")
    connection_id = await gateway.introduce(talks)
    row = await desk.finds("talks", "It has sent 1 line and no message was ever sent to it: no back end answers")
    assert (row["connection_id"], row["device_id"], row["lines_in"], row["bytes_in"]) == (connection_id, "talks", 1, 17)
    assert row["last_in"] >= row["since"]
    assert row["worker"] in ("worker-1", "worker-2")
    await gateway.send(connection_id, b"here you are")
    assert await talks.line() == b"here you are"
    await desk.finds_nothing("talks")
    assert (await desk.finds("silent", "It has sent nothing since it connected"))["last_in"] is None
    await desk.finds("half", r"It has sent 6 bytes, but not the end of a line ('\n', --delimiter).")
    await desk.finds(f"127.0.0.1:{silent.local_port}", "It has sent nothing")

    waits = await connect("waits")
    early = {"connection_id": await gateway.introduce(waits), "to_device_seq": 7}
    await gateway.backend.publish(gateway.to_device, b"too early", early)
    await desk.finds("waits", "for the one with to_device_seq 0, which has not arrived: 1.")

    floods = await connect("floods")
    floods.send_line(*(b"%d" % number for number in range(6000)))
    assert "rate" in (await desk.finds("floods", "it sends more than 200 lines a second (--max-rate)"))["paused"]

    reads_nothing = await connect("reads-nothing")
    slow_id = await gateway.introduce(reads_nothing)
    reads_nothing.pause()

    async def fill() -> Any:
        await gateway.send(slow_id, bytes(10_000).replace(b"\0", b"x"))
        return await desk.api.get("/devices?state=slow")

    [row] = (await asked(fill, lambda answer: answer["devices"] and answer["devices"][0]["waiting"]))["devices"]
    assert (row["device_id"], row["waiting_bytes"]) == ("reads-nothing", 10_000 * row["waiting"])
    await desk.finds("reads-nothing", "It has taken nothing that was written to it for")
    slowest = (await desk.api.get("/top"))["slowest"]
    assert {each["device_id"] for each in slowest} == {"reads-nothing", "waits"}
    reads_nothing.resume()
    await asked(lambda: desk.api.get("/devices?state=slow"), lambda answer: answer["total"] == 0)

    first = await connect("twice")
    await gateway.introduce(first)
    for _ in range(20):  # until both workers have it
        await gateway.introduce(await connect("twice"))
        answer = await desk.api.get("/devices/twice")
        if len({row["worker"] for row in answer["connections"]}) == 2:
            break
    assert "Device id twice has" in answer["findings"][0]
    assert "open connections, at 2 workers" in answer["findings"][0]
    assert (await desk.api.ask("/devices/twice", "DELETE")).status == 409
    assert first.is_open


@reactor_test
async def test_list_top_and_close(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """The list has the devices of all workers in pages, and the busiest ones their rates. An operator closes a connection in
    order: its last message arrives before the end, and the event of the end says who has closed it.
    """
    events = tmp_path / "events"
    gateway = await lab.gateway(embedded.url, workers=2, events=["console", f"json:{events}"])
    api = ApiClient(gateway.owsla.folder / "owsla.sock")
    on_each = await devices_on_each(gateway, lab, 2)
    devices = {connection_id: device for node in on_each.values() for device, connection_id in node}
    rows: list[dict[str, Any]] = []
    after = ""
    while True:
        page = await api.get(f"/devices?sort=-connection_id&limit=1{after}")
        assert (page["total"], page["missing"]) == (len(devices), [])
        rows += page["devices"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [row["connection_id"] for row in rows] == sorted(devices, reverse=True)
    assert {row["worker"]: row["node"] for row in rows}.keys() == {"worker-1", "worker-2"}
    assert {row["node"] for row in rows} == set(on_each)

    busy = next(iter(on_each.values()))[0]

    async def top() -> Any:
        busy[0].send_line(b"one", b"two")
        return await api.get("/top?limit=1")

    answer = await asked(top, lambda answer: answer["talkers"])
    [talker] = answer["talkers"]
    assert talker["connection_id"] == busy[1]
    assert talker["lines_in_rate"] > 0 == talker["lines_out_rate"]
    assert abs(talker["bytes_in_rate"] - 4 * talker["lines_in_rate"]) < 0.3  # each is rounded

    device, connection_id = on_each[rows[0]["node"]][0]
    await gateway.send(connection_id, b"last message")
    await asked(lambda: api.get(f"/devices/{connection_id}"), lambda answer: answer["connections"][0]["lines_out"])
    reply = await api.ask(f"/devices/{connection_id}", "DELETE")
    assert (reply.status, reply.body["closed"]) == (200, [connection_id])
    assert await device.line() == b"last message"
    await device.closed()
    for other in devices.values():
        assert other is device or other.is_open
    match = await gateway.owsla.wait_for_line(rf"Device disconnected: .*{connection_id}.*closed by an operator \((user .*)\)")
    await asked(lambda: api.ask(f"/devices/{connection_id}", "DELETE"), lambda reply: reply.status == 404)
    ends = (await api.get(f"/devices/{connection_id}"))["ends"]
    assert match[1] in ends[0]["text"]
    kicked = await until(lambda: re.search(r'.*"device-kicked".*', events.read_text()), what="the event of the close")
    assert kicked is not None
    event = json.loads(kicked[0])
    assert (event["connection_id"], event["by"]) == (connection_id, match[1])
