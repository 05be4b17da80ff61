"""`owsla demo`: what it prints works, and whatever ends it, nothing of it stays."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from ._support.browser import Chromium
from ._support.commands import Command, Commands, Terminal
from ._support.process import accepts, free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import reactor_test, until

MARK = "DEMO_OF_TEST"
"""Variable in the environment of a demo and of all its processes."""

START = 60.0
"""Seconds for a demo to start on a busy machine."""


class Place:
    """A demo, its folder for temporary files, and a way to find its processes."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.ports = free_port(), free_port()
        self.mark = secrets.token_hex(8)
        # Not the folder of the test: the path of a unix socket has 107 bytes at most.
        self.temporary = Path(tempfile.mkdtemp(prefix="demo"))
        self.env = {MARK: self.mark, "TMPDIR": str(self.temporary)}

    def arguments(self, *others: str) -> list[str]:
        return ["demo", "--devices=5", f"--port={self.ports[0]}", f"--http-port={self.ports[1]}", *others]

    def start(self, *others: str, **env: str) -> Command:
        """Start a demo with ports of its own."""
        return self._commands.start(*self.arguments(*others), program=True, **self.env, **env)

    def processes(self) -> dict[int, str]:
        """Return the processes of the demo: the last arguments of each by its id."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdecimal() and f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                pass  # it has ended, or is of another user
        return found

    def process(self, kind: str) -> int:
        """Return the id of a process of the demo, by its kind."""
        pattern = r"-c from owsla\.twistd import main" if kind == "gateway" else rf"owsla\.cli\.demo \d+ {kind} "
        (pid,) = (pid for pid, line in self.processes().items() if re.search(pattern, line))
        return pid

    async def gone(self, *, folder: bool = True) -> None:
        """Wait until no process is left, and check ports and folder."""
        await until(lambda: not self.processes(), what=lambda: f"the end of {self.processes()}")
        await until(lambda: not any(map(accepts, self.ports)), what=f"the close of {self.ports}")
        if folder:
            assert list(self.temporary.iterdir()) == []


@pytest.fixture
def place(commands: Commands) -> Iterator[Place]:
    one = Place(commands)
    yield one
    for pid in one.processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(one.temporary)


async def shown(demo: Command | Terminal) -> str:
    """Wait until a demo has said what to try, and return all that it has said."""

    def output() -> str:
        return demo.seen() if isinstance(demo, Terminal) else demo.output() + demo.errors()

    await until(lambda: "Ctrl-C ends the demo" in output(), START, output)
    return output().replace("\r\n", "\n")


def page_of(text: str) -> str:
    """Return the address of the page that a demo has printed."""
    found = re.search(r"^ +(http://\S+)$", text, re.MULTILINE)
    assert found, text
    return found[1]


def command_of(text: str, word: str) -> str:
    """Return the printed command with a word in it, as it would be pasted."""
    (line,) = (line for line in text.splitlines() if re.search(rf"^    .*(?:owsla|\|) {word}\b", line))
    return line.strip()


def ask(url: str, path: str) -> tuple[int, str]:
    """Request a path of the gateway with the token of the page. Return status and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {parts.fragment.removeprefix('token=')}"})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@reactor_test
async def test_first_minute(place: Place, commands: Commands) -> None:
    """The page answers at the printed address, each printed command works in another folder, and the working folder stays as
    it was. A pipe gets the figures once.
    """
    demo = place.start()
    text = await shown(demo)
    url = page_of(text)
    assert ask(url, "/")[0] == 200
    status, state = ask(url, "/api/v1/state")
    assert (status, json.loads(state)["ready"]) == (200, True)

    async def paste(word: str) -> str:
        command = commands.shell(command_of(text, word))
        assert (await command.ended(), command.errors()) == (0, "")
        return command.output()

    assert re.search(r"^door-7 ", await paste("devices"), re.MULTILINE)
    await until(lambda: "printer-1" in ask(url, "/api/v1/devices?state=slow")[1])
    assert "device printer-1 on connection" in await paste("device")
    meter = commands.shell(command_of(text, "trace"))
    await until(lambda: re.search(r" in .*kwh", meter.output()) and re.search(r" out .*kwh", meter.output()), what=meter.output)
    events = commands.shell(command_of(text, "events"))
    await until(lambda: "!login-failed" in events.output() and "unknown ca" in events.output(), 60, events.output)
    # A newcomer sees the faults of devices, and no others.
    assert set(re.findall(r" !(\S+)", events.output())) == {"login-failed"}
    door = commands.shell(command_of(text, "trace").replace("meter-01", "door-7"))
    await until(lambda: re.search("trace-started .*door-7", events.output()), what=events.output)
    await paste("send")
    await until(lambda: re.search(r" out .*open\n.* in .*opened", door.output()), what=door.output)
    if shutil.which("openssl") is not None:
        device = commands.shell(command_of(text, "openssl").replace("cat)", "echo hi there; sleep 60)"))
        await until(lambda: "hi there" in device.output(), what=lambda: device.output() + device.errors())
    await until(lambda: re.search(r"^\d devices, .* lines/s in, ", demo.output(), re.MULTILINE), what=demo.output)
    assert {path.name for path in demo.folder.iterdir()} == {"output", "errors"}
    assert await demo.interrupt() == 0
    assert (demo.errors(), demo.output().count("lines/s in")) == ("", 1)
    await place.gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda one: one.name)
@reactor_test
async def test_signals(place: Place, number: signal.Signals) -> None:
    """A signal ends all of it, in the middle of the start and later. Only SIGKILL leaves the folder."""
    for started in (False, True):
        demo = place.start()
        if started:
            await shown(demo)
        else:
            await demo.shown(1)
        os.killpg(demo.process.pid, number)  # as a terminal does: to the whole group
        killed = number is signal.SIGKILL
        assert await demo.ended() == (-signal.SIGKILL if killed else 0)
        await place.gone(folder=not killed)
        assert demo.errors() == ""


@pytest.mark.parametrize("last", ["Starting", "lines.s in"])
@reactor_test
async def test_pipe_that_ends(place: Place, commands: Commands, last: str) -> None:
    """A reader that goes away ends the demo, also if that has nothing more to write."""
    demo = commands.shell(f"@ | sed -u '/{last}/q'; echo done", *place.arguments(), **place.env)
    assert (await demo.ended(START), demo.errors()) == (0, "")
    assert re.search(f"{last}.*\ndone\n$", demo.output())
    await place.gone()


@reactor_test
async def test_terminal(place: Place, commands: Commands) -> None:
    """On a terminal the figures are refreshed in one line, which fits. A terminal that is closed ends all of it."""
    env: dict[str, Any] = place.env
    demo = commands.terminal(*place.arguments(), columns=50, **env)
    await shown(demo)
    await until(lambda: demo.seen().count("\x1b[K") > 2, what=demo.seen)
    figures = demo.seen().rpartition(" and removes ")[2].partition("\n")[2].split("\x1b[K")
    assert all(re.fullmatch(r"\r?\d devices, .{5,38}", one) for one in (figures[0].strip(), *figures[1:2])), figures
    demo.hang_up()
    await until(lambda: not demo.running)
    await place.gone()


@pytest.mark.parametrize("kind", ["gateway", "echo", "devices"])
@reactor_test
async def test_part_killed(place: Place, kind: str) -> None:
    """When a part dies, the demo says which, and how its log ends, and ends the others with status 1."""
    demo = place.start()
    await shown(demo)
    os.kill(place.process(kind), signal.SIGKILL)
    assert await demo.ended() == 1
    name = "back end" if kind == "echo" else kind
    assert demo.errors().startswith(f"owsla demo: the {name} was killed by SIGKILL")
    if kind == "gateway":
        assert "the last lines of its log:\n  " in demo.errors()
    await place.gone()


@reactor_test
async def test_busy_ports(place: Place, commands: Commands) -> None:
    """Other ports are chosen where the default ones are in use; a port that the user names must be free."""
    taken = []
    try:
        for port in (8883, 9100, 5672):
            sock = socket.socket()
            taken.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen()
            except OSError:
                pass  # it is in use, as it should be
        demo = commands.start("demo", "--devices=2", program=True, **place.env)
        text = await shown(demo)
        assert urlsplit(page_of(text)).port != 9100
        assert "127.0.0.1:5672" not in command_of(text, "send")
        state = json.loads(ask(page_of(text), "/api/v1/state")[1])
        assert state["doors"]["default"]["address"] != "127.0.0.1:8883"
        assert await demo.interrupt() == 0
        refused = place.start("--http-port=9100")
        assert await refused.ended() == 1
        assert refused.errors() == "owsla demo: --http-port: 127.0.0.1 port 9100: address already in use\n"
    finally:
        for sock in taken:
            sock.close()
    await place.gone()


@reactor_test
async def test_bare_environment(place: Place, commands: Commands) -> None:
    """It needs no HOME, no PATH and no writable working folder, and heeds neither settings of a gateway nor the umask."""
    folder = place.temporary.parent / f"{place.temporary.name}.readonly"
    folder.mkdir(mode=0o500)
    try:
        variables = place.env | {"OWSLA_PORT": "nonsense", "OWSLA_CONTROL": "off"}
        given = shlex.join(f"{name}={value}" for name, value in variables.items())
        script = f"umask 0777; cd {folder}; exec env -i {given} @"
        demo = commands.shell(script, *place.arguments())
        text = await shown(demo)
        assert ask(page_of(text), "/api/v1/state")[0] == 200
        (files,) = place.temporary.iterdir()
        assert files.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in files.iterdir() if path.stat().st_mode & 0o077 and path.is_file()} == set()
        assert list(folder.iterdir()) == []
        assert await demo.interrupt() == 0
        await place.gone()
    finally:
        folder.rmdir()


@reactor_test
async def test_own_broker(place: Place, commands: Commands, rabbitmq: RabbitMQ) -> None:
    """With a RabbitMQ of the user the demo has queues of its own there, which it deletes. The password is in no argument."""

    async def queues() -> set[str]:
        return set((await rabbitmq.ctl("list_queues", "--silent", "name")).split()) - {"name"}

    before = await queues()
    demo = place.start(f"--broker={rabbitmq.url}")
    text = await shown(demo)
    assert {one for one in await queues() - before if not one.startswith("owsla-demo.")} == set()
    assert "owsla-demo.from_device" in await queues()
    assert not [line for line in place.processes().values() if "guest:guest" in line]
    command = commands.shell(command_of(text, "send").replace("send ", "send --report "))
    assert (await command.ended(), command.errors()) == (0, "")
    assert command.output().startswith("delivered ")
    assert await demo.interrupt() == 0
    assert demo.errors() == ""
    assert await queues() == before
    await place.gone()


@reactor_test
async def test_queues_that_stay(place: Place, rabbitmq: RabbitMQ) -> None:
    """Queues that the demo must not delete any more are named at its end, with the reason. It deletes the others."""
    queues = ("owsla-demo.to_device", "owsla-demo.from_device")
    await rabbitmq.ctl("add_user", "limited", "secret")
    try:
        await rabbitmq.ctl("set_permissions", "limited", ".*", ".*", ".*")
        demo = place.start(f"--broker={rabbitmq.url.replace('guest:guest', 'limited:secret')}")
        await shown(demo)
        await rabbitmq.ctl("set_permissions", "limited", "^owsla-demo.to_device[.]", ".*", ".*")
        assert await demo.interrupt() == 0
        begin = f"owsla demo: {', '.join(queues)} stay at the broker: ACCESS_REFUSED - "
        assert re.fullmatch(f"{re.escape(begin)}.*\n", demo.errors())
        listed = (await rabbitmq.ctl("list_queues", "--silent", "name")).split()
        assert {name for name in listed if name.startswith("owsla-demo")} == set(queues)
    finally:
        for queue in queues:
            await rabbitmq.ctl("delete_queue", queue)
        await rabbitmq.ctl("delete_user", "limited")
    await place.gone()


@reactor_test
async def test_no_broker(place: Place) -> None:
    """A RabbitMQ that is not there ends the demo, with the reason."""
    demo = place.start(f"--broker=amqp://me:secret@127.0.0.1:{free_port()}")
    assert await demo.ended(START) == 1
    assert "owsla demo: the gateway is not ready after 10 s: amqp://me@127.0.0.1:" in demo.errors()
    assert "onnection refused" in demo.errors()
    assert "secret" not in demo.errors() + demo.output()
    await place.gone()


@reactor_test
async def test_page(place: Place, require_chromium: None) -> None:
    """One click on the printed address shows the devices, and removes the token from the address."""
    demo = place.start()
    url = page_of(await shown(demo))
    browser = Chromium()
    await browser.start()
    try:
        tab = await browser.tab(url.partition("/#")[0])

        def look(page: Page) -> None:
            page.goto(url)
            expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()
            assert "token" not in page.url
            expect(page.locator(".tile", has_text="Devices").locator(".value")).to_have_text(re.compile("[45]"))
            page.get_by_role("link", name="Devices", exact=True).click()
            expect(page.get_by_role("link", name="door-7")).to_be_visible()
            page.reload()
            expect(page.get_by_role("link", name="door-7")).to_be_visible()

        await browser.run(look, tab.page)
        assert tab.problems == []
    finally:
        await browser.close()
    assert await demo.interrupt() == 0
    await place.gone()
