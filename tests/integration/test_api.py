"""The API of a running gateway: its addresses, tokens, questions, streams and actions."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import stat
from pathlib import Path

from ._support.api import ApiClient
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.owsla import Owsla
from ._support.waiting import reactor_test
from .test_http import http_port
from .test_workers import devices_on_each, processes

ME = f"user {pwd.getpwuid(os.getuid()).pw_name} (uid {os.getuid()})"
FULL, READING = "full-0123456789abcdef", "reading-0123456789abcdef"


def control(gateway: Gateway | Owsla) -> Path:
    """Return the path of the default control socket of a gateway."""
    owsla = gateway.owsla if isinstance(gateway, Gateway) else gateway
    return owsla.folder / "owsla.sock"


# -- the control socket ------------------------------------------------------------------------------------------------------


@reactor_test
async def test_socket(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The socket is in the folder of the start, for the user of the gateway only. It is removed at the stop."""
    gateway = await lab.gateway(embedded.url, backend=False)
    path = control(gateway)
    assert stat.filemode(path.lstat().st_mode) == "srw-------"
    await gateway.owsla.wait_for_line(f"Control socket: {path}")
    body = await ApiClient(path).get("")
    assert (body["api"], body["workers"], body["read_only"]) == (1, None, False)
    assert await gateway.owsla.terminate() == 0
    assert sorted(each.name for each in gateway.owsla.folder.iterdir() if "owsla" in each.name) == []


@reactor_test
async def test_killed(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The socket that a killed gateway has left behind is replaced."""
    gateway = await lab.gateway(embedded.url, backend=False)
    gateway.owsla.kill()
    assert await gateway.owsla.exited() == -signal.SIGKILL
    assert control(gateway).is_socket()
    await gateway.owsla.start()
    assert (await ApiClient(control(gateway)).ask("")).status == 200


@reactor_test
async def test_another_gateway(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The socket of another gateway of the same folder is left alone: by default a gateway warns in one line, and runs without.
    One that was told to use it does not start.
    """
    first = await lab.gateway(embedded.url, backend=False)
    folder = first.owsla.folder
    there = ["env", f"--chdir={folder}"]
    second = lab.new_owsla(through=there, broker=embedded.url)
    await second.start()
    (warning,) = second.lines("No control socket")
    assert "owsla.sock is in use by another process; use another one (--control PATH)" in warning
    node = (await ApiClient(control(first)).get(""))["node"]
    assert await second.terminate() == 0
    third = lab.new_owsla(through=there, broker=embedded.url, control="owsla.sock")
    third.launch()
    assert await third.exited() == 1
    assert third.errors() == "owsla: --control: owsla.sock is in use by another process\n"
    assert (await ApiClient(control(first)).get(""))["node"] == node


@reactor_test
async def test_no_socket(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """If the default socket cannot be had, the gateway warns in one line, and runs without."""
    owsla = lab.new_owsla(broker=embedded.url)
    owsla.folder.mkdir()
    (owsla.folder / "owsla.sock").write_text("mine")
    await owsla.start()
    (warning,) = owsla.lines("ontrol socket")
    assert "owsla.sock exists and is not a socket; use another one" in warning
    assert (owsla.folder / "owsla.sock").read_text() == "mine"


@reactor_test
async def test_absolute(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A relative path is relative to the folder of the start, although twistd changes to another one."""
    owsla = lab.new_owsla(broker=embedded.url, control="here.sock", twistd_options=[f"--rundir={tmp_path}"])
    await owsla.start()
    assert (await ApiClient(owsla.folder / "here.sock").ask("")).status == 200
    assert await owsla.terminate() == 0
    assert not (owsla.folder / "here.sock").exists()


# -- questions and actions ---------------------------------------------------------------------------------------------------


@reactor_test
async def test_devices(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Devices are listed, found and closed. The close is an event that names who acted, on the stream of events, too."""
    gateway = await lab.gateway(embedded.url)
    devices = [await lab.device(gateway) for _ in range(2)]
    ids = [await gateway.introduce(device) for device in devices]
    api = ApiClient(control(gateway))
    listed = await api.get("/devices?sort=connection_id&limit=1")
    assert (listed["total"], [each["connection_id"] for each in listed["devices"]]) == (2, sorted(ids)[:1])
    listed = await api.get(f"/devices?sort=connection_id&limit=1&after={listed['next']}")
    assert ([each["connection_id"] for each in listed["devices"]], listed["next"]) == (sorted(ids)[1:], None)
    (found,) = (await api.get(f"/devices/{ids[0]}"))["connections"]
    assert (found["lines_in"], found["tls"], found["paused"]) == (1, "TLSv1.3", [])
    assert (await api.ask("/devices/127.0.0.1", "DELETE")).status == 409
    assert (await api.ask("/devices/nobody", "DELETE")).status == 404
    assert all(device.is_open for device in devices)
    with api.stream("/events?kind=device-kicked") as stream:
        await stream.opened()
        assert (await api.ask(f"/devices/{ids[0]}", "DELETE")).body == {"closed": [ids[0]], "missing": []}
        event = await stream.find("event")
    assert (event["fields"]["connection_id"], event["fields"]["by"]) == (ids[0], ME)
    await devices[0].closed()
    await gateway.round_trip(devices[1])
    reply = await api.ask(f"/devices/{ids[0]}")
    assert (reply.status, reply.body["connections"], reply.body["ends"] != []) == (200, [], True)


@reactor_test
async def test_reload_and_drain(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A reload is answered with the changes, or the reason, when it is done. A drain stops the gateway as SIGTERM does: streams
    are told, and the process ends with status 0, also if SIGTERM follows.
    """
    config = tmp_path / "owsla.toml"
    config.write_text("window = 100\n")
    gateway = await lab.gateway(embedded.url, config=config, watch="off", drain_spread=2)
    api = ApiClient(control(gateway))
    config.write_text("window = 200\n")
    reply = await api.ask("/reload", "POST")
    assert (reply.status, reply.body) == (200, {"text": "Configuration reloaded: window"})
    config.write_text("window = nothing\n")
    reply = await api.ask("/reload", "POST")
    assert reply.status == 409
    assert reply.body["error"].startswith(f"{config}: ")
    await gateway.owsla.wait_for_line(rf"Reload failed, and nothing was changed \(requested by {re.escape(ME)}\)")

    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    with api.stream("/live") as stream:
        await stream.find("sample")
        reply = await api.ask("/drain", "POST")
        assert (reply.status, reply.body) == (202, {"text": "The gateway stops in order."})
        assert (await api.ask("/drain", "POST")).body == {"text": "The gateway stops already."}
        state = await api.get("/state")
        assert (state["ready"], state["checks"]["not_draining"]) == (False, False)
        assert (await api.get(f"/devices/{connection_id}"))["total"] == 1
        gateway.owsla.process.signal(signal.SIGTERM)
        assert await stream.find("end") == {"kind": "end", "text": "the HTTP server of the gateway stops"}
    assert await gateway.owsla.exited() == 0
    await gateway.owsla.wait_for_line("Stopped: 1 device closed, everything confirmed")
    await gateway.owsla.wait_for_line(rf"Orderly stop begins \(requested by {re.escape(ME)}\)")


@reactor_test
async def test_trace(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """A trace shows the lines of a device that connects later. It is an event, and ends when its reader goes."""
    gateway = await lab.gateway(embedded.url)
    api = ApiClient(control(gateway))
    with api.stream("/trace/127.0.0.1?bodies=1&minutes=1") as stream:
        assert (await stream.find("connections"))["connections"] == []
        (trace,) = (await api.get("/state"))["traces"]
        assert (trace["target"], trace["by"]) == ("127.0.0.1", ME)
        device = await lab.device(gateway)
        connection_id = await gateway.introduce(device)
        while (record := await stream.find("record"))["kind"] != "in":
            pass
        assert (record["connection_id"], record["seq"], len(record["body"])) == (connection_id, 0, 16)
    ended = await gateway.owsla.wait_for_line(r"Trace ended: 127\.0\.0\.1, (.*)")
    assert f"requested by {ME}" in ended[1]
    assert (await api.get("/state"))["traces"] == []


# -- tokens ------------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_tokens(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """With --http the full token may do everything, and the one for reading may only read. A reload reads the files again."""
    full, reading = tmp_path / "full", tmp_path / "reading"
    full.write_text(f"{FULL}\n")
    reading.write_text(f"{READING}\n")
    gateway = await lab.gateway(
        embedded.url, http=0, http_token_file=full, http_read_token_file=reading, watch="off", control="off"
    )
    port = await http_port(gateway.owsla)
    connection_id = await gateway.introduce(await lab.device(gateway))
    operator, reader, nobody = ApiClient(port, FULL), ApiClient(port, READING), ApiClient(port)
    assert (await reader.get(""))["read_only"] is True
    assert (await reader.get("/devices"))["total"] == 1
    for path, method in ((f"/devices/{connection_id}", "DELETE"), ("/drain", "POST"), ("/trace/x", "GET")):
        assert (await reader.ask(path, method)).status == 403
    assert (await nobody.ask("/devices")).status == 401
    assert (await ApiClient(port, f"{FULL}0").ask("/devices")).status == 401
    full.write_text("another-0123456789abcdef\n")
    reply = await operator.ask("/reload", "POST")
    assert reply.body == {"text": "Configuration reloaded: http-token-file"}
    await gateway.owsla.wait_for_line(r"requested by token from 127\.0\.0\.1")
    assert (await operator.ask("/devices")).status == 401
    operator = ApiClient(port, "another-0123456789abcdef")
    full.write_text("short\n")
    reply = await operator.ask("/reload", "POST")
    assert (reply.status, reply.body["error"]) == (
        409,
        f"--http-token-file: {full}: the token has 5 characters, and needs 16 at least, as in openssl rand -hex 16",
    )
    assert (await operator.ask(f"/devices/{connection_id}", "DELETE")).status == 200
    # A log with tokens would give them away.
    assert not any(token in gateway.owsla.output() for token in (FULL, READING, "another-0123"))


# -- workers -----------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_workers(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The parent answers for all workers, and names one that does not answer. A drain stops all of them in order."""
    gateway = await lab.gateway(embedded.url, workers=2)
    workers = await processes(gateway.owsla, 2)
    nodes = await devices_on_each(gateway, lab, 2)
    api = ApiClient(control(gateway))
    assert (await api.get(""))["workers"] == ["worker-1", "worker-2"]
    listed = await api.get("/devices")
    assert {each["worker"] for each in listed["devices"]} == {"worker-1", "worker-2"}
    assert listed["total"] == sum(map(len, nodes.values()))
    (device, connection_id), *_ = nodes[min(nodes)]
    assert (await api.ask("/devices/127.0.0.1", "DELETE")).status == 409
    assert (await api.ask(f"/devices/{connection_id}", "DELETE")).body["closed"] == [connection_id]
    await device.closed()
    os.kill(workers["worker-1"], signal.SIGSTOP)
    try:
        assert (await api.get("/devices"))["missing"] == ["worker-1"]
        assert (await api.get("/state"))["missing"] == ["worker-1"]
    finally:
        os.kill(workers["worker-1"], signal.SIGCONT)
    assert (await api.ask("/drain", "POST")).status == 202
    assert await gateway.owsla.exited(60) == 0
    await gateway.owsla.wait_for_line("Stopped: no worker is left")
    assert not control(gateway).exists()


# -- limits ------------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_slow_reader(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """A client that opens streams and reads nothing, and one that opens connections and says nothing, hold nobody up."""
    gateway = await lab.gateway(embedded.url, backend=False)
    path = control(gateway)
    idle = []
    for _ in range(100):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        idle.append(sock)
        if len(idle) % 3 == 0:
            sock.sendall(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        assert (await ApiClient(path).ask("/history")).status == 200
        assert (await ApiClient(path).ask("/live")).status == 503
    finally:
        for sock in idle:
            sock.close()
