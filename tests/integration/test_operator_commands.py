"""The commands that ask a running gateway: real gateways, with and without workers, pipes and terminals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import LoopingCall

from ._support.commands import Command, Commands
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.owsla import Owsla
from ._support.waiting import block_on, current_reactor, reactor_test, until
from .test_http import http_port

RESTORED = "\x1b[?25h\x1b[?1049l"
"""Bytes that show the cursor, and the screen of before."""

FULL, READING = "full-0123456789abcdef", "reading-0123456789abcdef"

WIDE = "日本" * 20
"""Device id that is long and wide."""

NAMES = ("meter-1", "meter-2", "door-7", "other", WIDE)


class Place:
    """A gateway to which devices log in."""

    def __init__(self, lab: Lab, owsla: Owsla) -> None:
        self.lab = lab
        self.owsla = owsla
        self.env: dict[str, Any] = {"OWSLA_CONTROL": str(owsla.folder / "owsla.sock")}

    async def log_in(self, name: str) -> Device:
        """Connect a device and log in."""
        device = await self.lab.device(self.owsla)
        device.send_line(f"HELLO {name} t".encode())
        assert await device.line() == b"WELCOME " + name.encode()
        return device

    async def talk(self, name: str) -> Device:
        """Connect a device that sends a line ten times a second until the end of the test."""
        device = await self.log_in(name)
        call = LoopingCall(lambda: device.send_line(b"x") if device.is_open else None)
        call.clock = current_reactor()
        call.start(0.1)

        async def stop() -> None:
            call.stop()

        self.lab.ends(stop)
        return device

    async def run(self, commands: Commands, *arguments: str) -> Command:
        """Run a command to its end, with status 0 and nothing on standard error."""
        command = commands.start(*arguments, **self.env)
        assert (await command.ended(), command.errors()) == (0, "")
        return command

    async def objects(self, commands: Commands, *arguments: str) -> list[Any]:
        """Run a command and return the JSON objects that it prints."""
        return [json.loads(line) for line in (await self.run(commands, *arguments)).output().splitlines()]

    async def refused(self, commands: Commands, *arguments: str) -> str:
        """Return the error of a command that ends with status 1."""
        command = commands.start(*arguments, **self.env)
        assert (await command.ended(), command.output()) == (1, "")
        return command.errors()


async def start(lab: Lab, broker_url: str, folder: Path, **options: Any) -> Place:
    """Start a gateway to which the devices of `NAMES` log in."""
    (folder / "devices").write_text("".join(f"{name}:t\n" for name in NAMES))
    gateway = await lab.gateway(
        broker_url, backend=False, dialect="login", login_checker=f"file:{folder / 'devices'}", drain_spread="0s", **options
    )
    return Place(lab, gateway.owsla)


@pytest.fixture(scope="module", params=["node", "workers"])
def shared(
    request: pytest.FixtureRequest, embedded: EmbeddedBrokerProcess, module_lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    options = {"workers": 2} if request.param == "workers" else {}
    return block_on(start(module_lab, embedded.url, tmp_path_factory.mktemp("place"), **options))


@pytest.fixture
def place(shared: Place, lab: Lab) -> Iterator[Place]:
    """Return a gateway of the module, alone or with workers, to which the test connects devices of its own."""
    yield Place(lab, shared.owsla)
    shared.owsla.assert_tidy()


@reactor_test
async def test_devices(place: Place, commands: Commands) -> None:
    """Devices are listed in a table or as JSON, selected, sorted and counted; on a terminal as they fit it."""
    for name in ("meter-1", "meter-2", WIDE):
        await place.log_in(name)
    lines = (await place.run(commands, "devices", "--sort=device_id")).output().splitlines()
    assert (lines[0].split()[0], [line.split()[0] for line in lines[1:]]) == (
        "DEVICE", ["meter-1", "meter-2", WIDE],
    )  # fmt: skip
    rows = await place.objects(commands, "devices", "METER", "--json", "--sort=device_id", "--reverse")
    assert [row["device_id"] for row in rows] == ["meter-2", "meter-1"]
    assert len(await place.objects(commands, "devices", "--json", "--limit=1")) == 1
    assert await place.objects(commands, "devices", "--json", "--door=nope") == []
    terminal = commands.terminal("devices", "--limit=2", columns=60, **place.env)
    shown = await terminal.shows("owsla devices: 1 more of 3: --all lists them, QUERY selects")
    assert await terminal.ended() == 0
    assert max(len(line) for line in shown.splitlines()[:-1]) <= 60


@reactor_test
async def test_device(place: Place, commands: Commands) -> None:
    """A device is described with all its connections, and after its end with how it ended."""
    first, second = await place.log_in("door-7"), await place.log_in("door-7")
    output = (await place.run(commands, "device", "door-7")).output()
    assert output.count("device door-7 on connection ") == 2
    assert output.count("  door       default, TLSv1.3\n") == 2
    (answer,) = await place.objects(commands, "device", "door-7", "--json")
    assert len(answer["connections"]) == 2
    for device in (first, second):
        await device.close()
    await until(lambda: len(place.owsla.lines("Device disconnected.*door-7|Device disconnected")) >= 2)
    output = (await place.run(commands, "device", "door-7")).output()
    assert output.startswith("door-7 is not connected\nlast ends, newest first:\n  ")
    error = await place.refused(commands, "device", "no\x1b")
    assert f"{place.env['OWSLA_CONTROL']}: nothing is known of 'no\\x1b': no connection has it as its connection id" in error


@reactor_test
async def test_kick(place: Place, commands: Commands) -> None:
    """One that matches is closed; of several none, except with --all; the event names who did it."""
    devices = [await place.log_in("door-7") for _ in range(2)]
    error = (await place.refused(commands, "kick", "door-7")).splitlines()
    assert error[0] == "owsla kick: 2 connections match 'door-7': name one by its connection id, or use --all"
    ids = [line.split()[2] for line in error[1:]]
    assert (await place.run(commands, "kick", ids[0])).output() == f"closed {ids[0]}\n"
    await until(lambda: sum(device.is_open for device in devices) == 1)
    assert (await place.run(commands, "kick", "door-7", "--all")).output() == f"closed {ids[1]}\n"
    for device in devices:
        await device.closed()
    assert "no connection has 'door-7' as its" in await place.refused(commands, "kick", "door-7")
    events = await place.objects(commands, "events", ids[0], "--kind=device-kicked", "--json")
    assert ["(requested by user" in event["text"] for event in events] == [True]


@reactor_test
async def test_trace(place: Place, commands: Commands) -> None:
    """A device is traced from its next connection on, until Ctrl-C, with its lines only if they are asked for."""
    trace = commands.start("trace", "other", "--bodies", **place.env)
    await trace.said("no connection has 'other' now; waiting for the next one")
    device = await place.log_in("other")
    device.send_line(b"a\x1bb")
    await until(lambda: "a\\x1bb" in trace.output(), what=trace.output)
    assert "-- connection " in trace.output()
    assert await trace.interrupt() == 130
    silent = commands.start("trace", "other", "--json", **place.env)
    await until(lambda: len(place.owsla.lines("Trace started: other")) == 2)
    device.send_line(b"secret")
    record = next(one for one in map(json.loads, await silent.shown(1)) if one["kind"] == "in")
    assert (record["size"], record["device_id"], "body" in record) == (6, "other", False)
    assert await silent.interrupt(signal.SIGTERM) == -signal.SIGTERM


@reactor_test
async def test_events_of_a_pipe_that_ends(place: Place, commands: Commands) -> None:
    """A command that follows events ends when the reader of its pipe has enough, also if nothing happens."""
    command = commands.shell("@ | head -n 1", "events", "--follow", "--limit=1", *("--control", place.env["OWSLA_CONTROL"]))
    assert await command.ended() == 0
    assert command.output().count("\n") == 1


@reactor_test
async def test_top_piped(place: Place, commands: Commands) -> None:
    """A pipe gets as many snapshots as it asks for; with --json each is a line."""
    await place.talk("meter-1")
    while not (await place.objects(commands, "top", "--count=1", "--json"))[0]["talkers"]:
        pass  # the gateway compares its counters every two seconds
    output = (await place.run(commands, "top", "--count=2", "--interval=200ms")).output()
    assert output.count("\nDEVICE") == output.count("\nmeter-1 ") == 2
    assert "\x1b" not in output
    snapshots = await place.objects(commands, "top", "--count=2", "--interval=100ms", "--json")
    assert [[row["device_id"] for row in snapshot["talkers"]] for snapshot in snapshots] == 2 * [["meter-1"]]


@reactor_test
async def test_top_on_a_terminal(place: Place, commands: Commands) -> None:
    """`top` refreshes in place, fits the terminal after a change of its size, and restores it, whatever ends it."""
    await place.talk("meter-1")
    while "meter-1 " not in (await place.run(commands, "top", "--count=1")).output():
        pass  # the gateway compares its counters every two seconds
    top = commands.terminal("top", "--interval=1h", columns=100, **place.env)
    assert "CONNECTION" in await top.shows("meter-1 ")
    top.forget()
    top.resize(40, 10)
    assert "CONNECTION" not in await top.shows("meter-1 ")
    top.type("\x03")
    assert (await top.ended(), top.seen().endswith(RESTORED)) == (130, True)
    for end, status in (("q", 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)):
        top = commands.terminal("top", **place.env)
        await top.shows("owsla.sock at ")
        top.type(end) if isinstance(end, str) else top.signal(end)
        assert (await top.ended(), top.seen().endswith(RESTORED)) == (status, True)


@reactor_test
async def test_tree(place: Place, commands: Commands) -> None:
    """The tree comes over the control socket."""
    assert "── listener (" in (await place.run(commands, "tree")).output()


@reactor_test
async def test_reload(lab: Lab, embedded: EmbeddedBrokerProcess, commands: Commands, tmp_path: Path) -> None:
    """A reload says what was changed; if nothing was, the status is 1 and the error says why."""
    config = tmp_path / "owsla.toml"
    config.write_text("max-rate = 5\n")
    place = await start(lab, embedded.url, tmp_path, config=config)
    config.write_text("max-rate = 6\n")
    assert "max-rate" in (await place.run(commands, "reload")).output()
    config.write_text('max-rate = "x"\n')
    error = await place.refused(commands, "reload")
    assert error.startswith(f"owsla reload: {place.env['OWSLA_CONTROL']}: ")
    assert "max-rate" in error


@pytest.mark.parametrize("workers", [1, 2])
@reactor_test
async def test_restart_and_drain(
    lab: Lab, embedded: EmbeddedBrokerProcess, commands: Commands, tmp_path: Path, workers: int
) -> None:
    """Who follows events gets each event once, also of the gateway that takes the place of one that was drained or killed; a
    refreshed screen goes on. A drain ends when the gateway has gone.
    """
    place = await start(lab, embedded.url, tmp_path, workers=workers)
    events = commands.start("events", "--follow", "--json", "--kind=device-identified", **place.env)
    top = commands.terminal("top", "--interval=200ms", **place.env)
    await top.shows("no device has said or heard anything")
    first = await place.log_in("meter-1")
    await events.shown(1)
    drain = commands.start("drain", **place.env)
    assert (await drain.ended(), drain.errors()) == (0, "")
    assert place.owsla.process.poll() == 0
    lines = drain.output().splitlines()
    assert (lines[0], lines[-1]) == ("The gateway stops in order.", "The gateway has gone.")
    await first.closed()
    await top.shows("trying again")
    await events.said("trying again")
    await place.owsla.start()
    await place.talk("meter-2")
    await events.shown(2)
    await top.shows("meter-2 ")
    place.owsla.kill()
    await place.owsla.start()
    await place.log_in("door-7")
    await events.shown(3)
    assert [json.loads(line)["fields"]["device_id"] for line in events.output().splitlines()] == [
        "meter-1",
        "meter-2",
        "door-7",
    ]
    assert await events.interrupt() == 130
    top.type("q")
    assert await top.ended() == 0
    place.owsla.kill()
    assert "no gateway listens there any longer: the socket is left over" in await place.refused(commands, "devices")


@reactor_test
async def test_over_tcp(lab: Lab, embedded: EmbeddedBrokerProcess, commands: Commands, tmp_path: Path) -> None:
    """Over TCP a token is needed; one for reading does not act; a gateway without a token file says so."""
    for name, token in (("full", FULL), ("reading", READING), ("wrong", "wrong-0123456789abcdef")):
        (tmp_path / name).write_text(f"{token}\n")
        os.chmod(tmp_path / name, 0o600)
    place = await start(
        lab, embedded.url, tmp_path, http=0, http_token_file=tmp_path / "full", http_read_token_file=tmp_path / "reading"
    )
    where = [f"--http=127.0.0.1:{await http_port(place.owsla)}"]
    device = await place.log_in("meter-1")
    for name in ("full", "reading"):
        output = (await place.run(commands, "devices", *where, f"--token-file={tmp_path / name}")).output()
        assert output.count("\n") == 2
    assert (await place.run(commands, "tree", *where)).output().startswith("owsla (")
    for name, said in (("reading", "This token may only read"), ("wrong", "The token is unknown")):
        assert said in await place.refused(commands, "kick", "meter-1", *where, f"--token-file={tmp_path / name}")
    assert "use --token-file" in await place.refused(commands, "kick", "meter-1", *where)
    assert device.is_open
    await place.run(commands, "kick", "meter-1", *where, f"--token-file={tmp_path / 'full'}")
    await device.closed()
