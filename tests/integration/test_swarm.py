"""`owsla swarm` as a user runs it: real processes, against a gateway on the embedded broker, and against other servers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener
from xml.etree import ElementTree

import pytest

from ._support.certificates import Authority
from ._support.commands import Command, Commands
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.process import ChildProcess, accepts, free_port
from ._support.waiting import block_on, reactor_test, until
from .test_doors import port_of


@pytest.fixture(scope="module")
def shared(embedded: EmbeddedBrokerProcess, module_lab: Lab) -> Gateway:
    """Gateway of the tests that do not change it."""
    return block_on(module_lab.gateway(embedded.url, backend=False))


def swarm(commands: Commands, where: Gateway | int, *arguments: str) -> Command:
    """Start a swarm against a gateway, which it trusts, or against the server on a port."""
    if isinstance(where, int):
        return commands.start("swarm", f"--port={where}", "--json", *arguments)
    owsla = where.owsla
    return commands.start("swarm", f"--port={owsla.port}", f"--ca={owsla.ca}", "--json", *arguments)


async def summary(command: Command, status: int) -> Any:
    """Wait for the end of a swarm, and return its summary."""
    found = await command.ended(60)
    assert found == status, command.output() + command.errors()
    # No progress bar, since standard error is not a terminal.
    assert command.errors() == ""
    return json.loads(command.output())


@reactor_test
async def test_echo(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands, tmp_path: Path) -> None:
    """Every answer is matched to its line, the counts of two processes are added up, and latencies are drawn."""
    gateway = await lab.gateway(embedded.url, backend=False)
    queues = [f"--from-device={gateway.from_device}", f"--to-device={gateway.to_device}"]
    echo = commands.start("echo", "--prefix=> ", "--broker", embedded.url, *queues)
    await echo.said("answering the lines")
    arguments = ["--connections=10", "--seconds=1", "--processes=2", f"--histogram={tmp_path}/h.svg"]
    found = await summary(swarm(commands, gateway, "--rate=200", "--size=60", *arguments), 0)
    assert (found["connections"]["connected"], found["held"]) == (10, True)
    said = found["lines"]["said"]
    assert 150 < said <= 200, "a busy machine is late with the last ones, which are not sent then"
    assert (found["answers"]["answered"], found["lines"]["bytes"]) == (said, said * 61)
    due, written = found["answers"]["ms_since_due"], found["answers"]["ms_since_written"]
    assert 0 < written["p50"] <= due["p50"] <= due["p99"] <= due["max"]
    bars = [one for one in ElementTree.parse(tmp_path / "h.svg").iter() if one.get("class") == "bar"]
    assert bars

    found = await summary(swarm(commands, gateway, *arguments), 0)  # as fast as it goes
    assert found["answers"]["answered"] == found["lines"]["said"] > 100
    assert len(found["swarm"]["cpu_talking"]) == 2


@reactor_test
async def test_lost(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """Without a back end every line is lost, which makes the status 2."""
    gateway = await lab.gateway(embedded.url, backend=False)
    found = await summary(swarm(commands, gateway, "--connections=4", "--rate=40", "--seconds=0.5", "--grace=0.1"), 2)
    assert (found["lines"]["written"], found["answers"]["lost"]) == (20, 20)
    assert found["problems"] == ["20 lines not answered within 0.1 s"]


@reactor_test
async def test_wrong_answers(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """Duplicate, disordered and strange answers, and those of another device, are counted apart."""
    gateway = await lab.gateway(embedded.url)
    command = swarm(commands, gateway, "--connections=1", "--rate=4", "--seconds=1", "--line={device} {n}", "--grace=20")
    lines = await gateway.messages(4)
    assert [line.body for line in lines] == [b"0 0", b"0 1", b"0 2", b"0 3"]
    for seq, answer in enumerate((b"0 1", b"0 0", b"0 0", b"7 2", b"what?", b"0 2", b"0 3")):
        headers = {"connection_id": lines[0].connection_id, "to_device_seq": seq}
        await gateway.backend.publish(gateway.to_device, answer, headers)
    found = await summary(command, 2)
    answers = {name: found["answers"][name] for name in ("answered", "lost", "duplicates", "disordered", "strange")}
    assert answers == {"answered": 4, "lost": 0, "duplicates": 1, "disordered": 1, "strange": 2}


@reactor_test
async def test_flood(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """A flood counts written lines, and with the template of the gateway acknowledged ones."""
    gateway = await lab.gateway(embedded.url, device_ack="ACK {seq}")
    mode = ["--mode=flood", "--connections=5", "--device-ack=ACK {seq}"]
    found = await summary(swarm(commands, gateway, *mode, "--rate=100", "--seconds=0.5", "--line={device}/{n}"), 0)
    assert (found["lines"]["written"], found["lines"]["acknowledged"]) == (50, 50)
    bodies = {message.body for message in await gateway.messages(50)}
    assert bodies == {b"%d/%d" % (device, n) for device in range(5) for n in range(10)}

    found = await summary(swarm(commands, gateway, *mode, "--in-flight=10", "--seconds=0.5"), 0)
    assert found["lines"]["acknowledged"] == found["lines"]["written"] > 50


@reactor_test
async def test_bursts(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """With --burst a device writes several lines together. Each of them is answered, acknowledged and counted."""
    gateway = await lab.gateway(embedded.url, device_ack="ACK {seq}")
    mode = ["--mode=flood", "--connections=5", "--device-ack=ACK {seq}", "--line={device}/{n}", "--burst=4"]
    found = await summary(swarm(commands, gateway, *mode, "--rate=100", "--seconds=0.5"), 0)
    assert (found["lines"]["burst"], found["lines"]["written"], found["lines"]["acknowledged"]) == (4, 50, 50)
    bodies = [message.body for message in await gateway.messages(50)]
    assert len(set(bodies)) == 50
    assert {b"0/%d" % n for n in range(4)} <= set(bodies)


@reactor_test
async def test_hold_notices_drops(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """When the gateway dies, the swarm counts the dropped connections and ends at once."""
    gateway = await lab.gateway(embedded.url)
    command = swarm(commands, gateway, "--mode=hold", "--connections=5", "--rate=50", "--seconds=300")
    await gateway.messages(10)
    gateway.owsla.kill()
    found = await summary(command, 2)
    assert (found["connections"]["connected"], found["connections"]["dropped"]) == (5, 5)
    assert "5 connections dropped" in found["problems"]


@reactor_test
async def test_storm(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """A storm completes handshakes and closes in order, for a time or for a number of connections."""
    http = free_port()
    gateway = await lab.gateway(embedded.url, backend=False, http=http)
    found = await summary(swarm(commands, gateway, "--mode=storm", "--connections=40", "--seconds=30"), 0)
    assert (found["connections"]["connected"], found["connections"]["failed"]) == (40, 0)
    found = await summary(swarm(commands, gateway, "--mode=storm", "--connect-rate=50", "--seconds=1"), 0)
    assert 10 <= found["connections"]["connected"] <= 52
    complete = 40 + found["connections"]["connected"]
    found = await summary(swarm(commands, gateway, "--mode=storm", "--seconds=0.5"), 0)  # as fast as it goes
    complete += found["connections"]["connected"]
    with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{http}/metrics", timeout=10) as answer:
        assert f'owsla_handshakes_total{{door="default",outcome="completed"}} {complete}.0' in answer.read().decode()
    assert gateway.owsla.lines("Device disconnected: .*, closed by the device")
    assert not gateway.owsla.lines("Device disconnected: .*, closed without")
    assert not gateway.owsla.lines("Handshake failed")


@reactor_test
async def test_certificates(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands, tmp_path: Path) -> None:
    """Devices use one certificate, those of a folder in turn, or each its own by name."""
    authority = Authority(tmp_path / "pairs")
    for device in range(3):
        authority.issue(f"device-{device}")
    gateway = await lab.gateway(embedded.url, client_ca=authority.ca)
    pairs = authority.folder
    mode = ["--mode=flood", "--connections=3", "--rate=12", "--seconds=1", "--line={device}"]
    everyone = {(b"%d" % device, f"device-{device}") for device in range(3)}
    first = {(b"%d" % device, "device-0") for device in range(3)}
    for arguments, expected in (
        ([f"--cert={pairs}"], everyone),
        ([f"--cert={pairs}/device-{{device}}.pem", f"--key={pairs}/device-{{device}}.key"], everyone),
        ([f"--cert={pairs}/device-0.pem", f"--key={pairs}/device-0.key"], first),
    ):
        await summary(swarm(commands, gateway, *mode, *arguments), 0)
        messages = await gateway.messages(12)
        assert {(message.body, message.headers["device_id"]) for message in messages} == expected


@reactor_test
async def test_sources(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """Connections come from the given addresses in turn."""
    gateway = await lab.gateway(embedded.url, backend=False, max_per_address=3)
    mode = ["--mode=hold", "--connections=9", "--seconds=0.2"]
    found = await summary(swarm(commands, gateway, *mode, "--source=127.0.0.2-127.0.0.4"), 0)
    assert found["connections"]["connected"] == 9
    found = await summary(swarm(commands, gateway, *mode, "--source=127.0.0.2/31"), 2)
    assert found["connections"]["connected"] < 9


@reactor_test
async def test_partly_refused(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """A process whose connections are all refused does not stop the swarm, if another process has connections."""
    gateway = await lab.gateway(embedded.url, backend=False, max_per_address=3)
    found = await summary(swarm(commands, gateway, "--mode=hold", "--connections=4", "--seconds=0.2", "--processes=4"), 2)
    assert (found["connections"]["connected"], found["connections"]["failed"]) == (3, 1)
    assert "1 connections failed" in found["problems"]


@reactor_test
async def test_interrupted(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands) -> None:
    """Ctrl-C ends the swarm with a report so far."""
    gateway = await lab.gateway(embedded.url)
    command = swarm(commands, gateway, "--mode=flood", "--connections=3", "--rate=60", "--seconds=300", "--processes=2")
    await gateway.messages(10)
    assert await command.interrupt(signal.SIGINT) == 130
    found = json.loads(command.output())
    assert found["interrupted"]
    assert found["lines"]["written"] >= 10


@reactor_test
async def test_interrupted_while_it_starts(shared: Gateway, commands: Commands, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to all processes, ends the swarm in the same way while they are still loading."""
    os.mkfifo(tmp_path / "gate")
    # Python imports this before anything else: each process waits there for a byte.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'owsla.cli.swarm' in sys.orig_argv:\n"
        f"    os.read(os.open({str(tmp_path / 'gate')!r}, os.O_RDONLY), 1)\n"
    )
    where = f"--port={shared.owsla.port}", f"--ca={shared.owsla.ca}"
    arguments = "--json", "--mode=hold", "--connections=4", "--seconds=300", "--processes=2"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = commands.start("swarm", *where, *arguments, PYTHONPATH=path)

    def at_the_gate() -> int | None:
        try:
            return os.open(tmp_path / "gate", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    gate = await until(at_the_gate, what="a process of the swarm")
    assert gate is not None
    try:
        os.killpg(command.process.pid, signal.SIGINT)
        os.write(gate, b"12")
        assert await command.ended() == 130, command.errors()
    finally:
        os.close(gate)
    assert command.errors() == ""
    assert json.loads(command.output())["interrupted"]


@reactor_test
async def test_waits(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands, tmp_path: Path) -> None:
    """With --wait no line is sent before Enter, or the end of the input, which may be a file. Ctrl-C ends the wait."""
    gateway = await lab.gateway(embedded.url, backend=False)
    mode = ["swarm", f"--port={gateway.owsla.port}", f"--ca={gateway.owsla.ca}", "--json", "--wait", "--mode=flood"]
    mode += ["--connections=3", "--rate=60", "--seconds=0.5", "--processes=2"]
    os.mkfifo(tmp_path / "input")
    command = commands.shell(f"exec @ <{tmp_path}/input", *mode)
    with (tmp_path / "input").open("wb") as enter:
        await command.said("3 connected; Enter begins")
        enter.write(b"\n")
        enter.flush()
        assert await command.ended(60) == 0
    assert json.loads(command.output())["lines"]["written"] == 30

    command = commands.shell("exec @ </dev/null", *mode, "--tick=40")
    assert await command.ended(60) == 0
    assert json.loads(command.output())["lines"]["written"] == 30

    command = commands.shell(f"exec @ <{tmp_path}/input", *mode)
    with (tmp_path / "input").open("wb"):
        await command.said("Enter begins")
        assert await command.interrupt(signal.SIGINT) == 130
    assert json.loads(command.output())["lines"]["written"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ca={ca}", "--server-name=example.org"], "the certificate of the gateway is not for example.org"),
        (["--ca={other}"], "the certificate of the gateway is not trusted: "),
        (["--ca={ca}", "--port={nobody}"], "127.0.0.1 port {nobody}: connection refused"),
        (["--ca={ca}", "--port={nobody}", "--processes=3"], "127.0.0.1 port {nobody}: connection refused"),
        (["--insecure", "--port={broker}"], "the server does not speak TLS"),
        (["--ca=/nowhere/ca.pem"], "/nowhere/ca.pem: no such file or directory"),
        (["--ca={ca}", "--cert={ca}"], "{ca}: no private key in this file that can be read without a password"),
        (["--ca={ca}", "--host=nowhere.invalid"], "nowhere.invalid: "),
        (["--ca={ca}", "--server-name=a..b"], "'a..b' is not a name that a certificate can be for"),
        (["--ca={ca}", "--source=::1"], "127.0.0.1: "),
        (["--ca={ca}", "--source=192.0.2.1"], "no local address or port is left; give more addresses with --source"),
        (["--ca={ca}", "--connections=90000000"], "--processes"),
        (["--ca={ca}", "--histogram=/nowhere/h.svg"], "--histogram: /nowhere/h.svg: no such file or directory"),
    ],
)
@reactor_test
async def test_mistakes(
    arguments: list[str], says: str, embedded: EmbeddedBrokerProcess, shared: Gateway, commands: Commands, tmp_path: Path
) -> None:
    """A mistake is an error in one line on standard error, and status 1."""
    names = {"ca": shared.owsla.ca, "other": Authority(tmp_path / "other").ca, "nobody": free_port(), "broker": embedded.port}
    command = commands.start(
        "swarm", f"--port={shared.owsla.port}", "--connections=3", *[argument.format(**names) for argument in arguments]
    )
    assert await command.ended() == 1
    assert command.output() == ""
    assert command.errors().startswith("owsla swarm: ")
    assert command.errors().count("\n") == 1
    assert says.format(**names) in command.errors()


DOORS = {
    "plain": ("tcp:0", []),
    "length": (r"tcp:0:framing=length\:2", ["--framing=length:2"]),
    "fixed": (r"tcp:0:framing=fixed\:40", ["--framing=fixed:40"]),
    "between": (r"tcp:0:framing=between\:02\:03:proxy-protocol=127.0.0.0/8", ["--framing=between:02:03", "--proxy=v1"]),
    "named": ("tcp:0:proxy-protocol=127.0.0.0/8:proxy-identity=cn", ["--proxy=v2", "--proxy-cn=dev-{device}"]),
    "balanced": ("tls:0:proxy-protocol=127.0.0.0/8", ["--proxy=v2"]),
    "semicolon": ("tls:0:delimiter=;", ["--delimiter=;", "--line={device} {n}"]),
    "local": ("unix:{folder}/local.sock", []),
}
"""Doors of one gateway, and the arguments of a swarm in front of each, besides --plain or --ca."""


@reactor_test
async def test_doors(embedded: EmbeddedBrokerProcess, lab: Lab, commands: Commands, tmp_path: Path) -> None:
    """Every kind of door is spoken to: all lines are answered, and devices have the addresses and names of the PROXY header."""
    listen = [
        (text if text.startswith("unix:") else f"{text}:interface=127.0.0.1").format(folder=tmp_path) + f":name={name}"
        for name, (text, _) in DOORS.items()
    ]
    gateway = await lab.gateway(embedded.url, backend=False, listen=listen)
    queues = [f"--from-device={gateway.from_device}", f"--to-device={gateway.to_device}"]
    echo = commands.start("echo", "--broker", embedded.url, *queues)
    await echo.said("answering the lines")
    for name, (text, arguments) in DOORS.items():
        where = f"unix:{tmp_path}/local.sock" if name == "local" else str(await port_of(gateway.owsla, name))
        how = [f"--ca={gateway.owsla.ca}"] if text.startswith("tls:") else ["--plain"]
        load = ["--connections=4", "--rate=40", "--seconds=0.5", f"--port={where}", "--json"]
        found = await summary(commands.start("swarm", *load, *how, *arguments), 0)
        # 20 lines, and fewer on a machine that is too slow for the rate.
        assert 0 < found["lines"]["said"] == found["answers"]["answered"] <= 20, name
    await gateway.owsla.wait_for_line(r"Device connected: .* from 198\.18\.0\.3:1024 \(door between\)")
    await gateway.owsla.wait_for_line(r"Device connected: .*\bdev-3\b.* from 198\.18\.0\.3:1024 \(door named\)")

    mistakes = [
        ("plain", ["--ca={ca}"], "; a port without TLS needs --plain, and one behind a load balancer --proxy"),
        ("semicolon", ["--plain"], ": is --plain, --proxy or --framing wrong?"),
        ("named", ["--plain"], ": is --plain, --proxy or --framing wrong?"),
        ("semicolon", ["--ca={ca}", "--proxy=v1"], "; a port that devices connect to themselves is without --proxy"),
    ]
    for name, arguments, says in mistakes:
        where = str(await port_of(gateway.owsla, name))
        command = commands.start("swarm", f"--port={where}", *[one.format(ca=gateway.owsla.ca) for one in arguments])
        assert await command.ended() == 1, name
        assert command.errors().startswith(f"owsla swarm: 127.0.0.1 port {where}: ")
        assert command.errors().endswith(f"{says}\n")
        assert command.errors().count("\n") == 1


@reactor_test
async def test_insecure(shared: Gateway, commands: Commands) -> None:
    """With --insecure any certificate is trusted."""
    await summary(swarm(commands, shared.owsla.port, "--insecure", "--mode=hold", "--connections=2", "--seconds=0.1"), 0)


@reactor_test
async def test_name(shared: Gateway, commands: Commands) -> None:
    """A host name is resolved to the address that accepts connections, and the certificate must be for the name."""
    mode = ["--host=localhost", "--mode=hold", "--connections=2", "--seconds=0.1"]
    await summary(swarm(commands, shared, *mode), 0)


@reactor_test
async def test_bar(shared: Gateway, commands: Commands) -> None:
    """On a terminal there is a progress bar, which is removed before the table is printed."""
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    arguments = [f"--port={shared.owsla.port}", f"--ca={shared.owsla.ca}", "--mode=hold", "--connections=3", "--seconds=1"]
    command = commands.shell(f"exec {sys.executable} -c '{terminal}' @", "swarm", *arguments)
    assert await command.ended() == 0, command.output()
    assert "] 3 connected" in command.output()
    assert "\n\x1b[Kconnections " in command.output()  # carriage returns are read as ends of lines
    assert command.output().rstrip().endswith("It held.")


@pytest.mark.parametrize(
    ("options", "resumed"), [(["-tls1_2"], 5), (["-tls1_3"], 5), (["-tls1_2", "-no_ticket", "-no_cache"], 0)]
)
@reactor_test
async def test_resumption(options: list[str], resumed: int, commands: Commands, tmp_path: Path) -> None:
    """With --resume, TLS sessions are resumed if the server supports it, and counted as the handshakes show."""
    authority = Authority(tmp_path / "server")
    cert, key = authority.issue("server")
    port = free_port()
    # `openssl s_server` serves one connection at a time.
    server = ChildProcess(
        ["openssl", "s_server", "-quiet", "-rev", *options, "-accept", str(port), "-cert", str(cert), "-key", str(key)],
        output=tmp_path / "server.log",
    )
    try:
        await until(lambda: accepts(port), what="the server")
        mode = ["--mode=storm", f"--ca={authority.ca}", "--connections=6", "--connecting=1"]
        found = await summary(swarm(commands, port, *mode, "--resume"), 0)
        assert (found["connections"]["connected"], found["connections"]["resumed"]) == (6, resumed)
        found = await summary(swarm(commands, port, *mode), 0)
        assert (found["connections"]["connected"], found["connections"]["resumed"]) == (6, 0)
    finally:
        server.kill()
