"""Test of README.md: its first steps, with the commands that it shows, except for the ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest

from ._support.owsla import environment
from ._support.process import ChildProcess, accepts, free_port
from ._support.waiting import block_on, reactor_test, until

_README: Final = (Path(__file__).parents[2] / "README.md").read_text()
_BIN: Final = Path(sys.executable).parent


class Terminals:
    """Shells in one folder, in which a user types what README.md says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"8883": str(free_port()), "5672": str(free_port()), "9100": str(free_port())}
        broker = f"amqp://guest:guest@127.0.0.1:{self.ports['5672']}"
        self._env = environment({"OWSLA_EMBEDDED_PORT": self.ports["5672"]})
        self._env_of_commands = environment({"OWSLA_BROKER": broker})
        self._open: list[ChildProcess] = []

    def command(self, pattern: str) -> str:
        """Return the command in README.md that matches, with the programs of this Python and the ports of this test."""
        found = re.search(pattern, _README, re.MULTILINE)
        assert found is not None, f"README.md has no command {pattern}"
        command = found[0].replace(".venv/bin/", f"{_BIN}/")
        for port, own in self.ports.items():
            command = re.sub(rf"\b{port}\b", own, command)
        return command

    def start(self, command: str, stdin: int = subprocess.DEVNULL) -> ChildProcess:
        """Type a command that goes on."""
        env = self._env if "twistd" in command else self._env_of_commands
        output = self.folder / f"terminal-{len(self._open)}"
        process = ChildProcess(["/bin/sh", "-c", f"exec {command}"], output=output, env=env, cwd=self.folder, stdin=stdin)
        self._open.append(process)
        return process

    def run(self, command: str) -> str:
        """Type a command that ends, and return its output."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=self._env_of_commands, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    async def close(self) -> None:
        """End what still runs, the gateway last."""
        for process in reversed(self._open):
            await process.stop()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """Return shells in an empty folder."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl is installed")
    shells = Terminals(tmp_path)
    yield shells
    block_on(shells.close())


@reactor_test
async def test_first_steps(terminals: Terminals) -> None:
    """The gateway starts, the back end answers, the device sees its line come back, and the owsla commands know it."""
    gateway = terminals.start(terminals.command(r"(?<=&& )\.venv/bin/twistd .*--port 8883$"))
    await gateway.wait_for_line(re.escape(f"amqp://guest:guest@127.0.0.1:{terminals.ports['5672']}"))
    await gateway.wait_for_line(r"certs/ca\.pem")
    await until(lambda: accepts(int(terminals.ports["8883"])), what="the door")
    terminals.start(terminals.command(r"(?<=^       )\.venv/bin/owsla echo$"))
    keys, keyboard = os.pipe()
    device = terminals.start(terminals.command(r"(?<=^       )openssl s_client .*$"), stdin=keys)
    os.close(keys)
    with os.fdopen(keyboard, "wb", buffering=0) as typing:
        typing.write(b"a line\n")
        await device.wait_for_line("^a line$")
        (connection,) = [json.loads(line) for line in terminals.run(f"{_BIN}/owsla devices --json").splitlines()]
        command = terminals.command("(?<=`)owsla send CONNECTION_ID TEXT(?=`)")
        terminals.run(f"{_BIN}/{command.replace('CONNECTION_ID', connection['connection_id']).replace('TEXT', 'another')}")
        await device.wait_for_line("^another$")


@reactor_test
async def test_page(terminals: Terminals) -> None:
    """The gateway with the page starts as README.md says, with a token that was made as it says, and serves both."""
    terminals.run(terminals.command("(?<=`)openssl rand -hex 16 >token(?=`)"))
    gateway = terminals.start(terminals.command(r"(?<=^    )\.venv/bin/twistd .*--http-token-file token"))
    await gateway.wait_for_line(rf"127\.0\.0\.1:{terminals.ports['9100']}")
    page = terminals.command(r"http://127\.0\.0\.1:9100/")
    with urlopen(page) as reply:
        assert b"<title>Owsla" in reply.read()
    assert terminals.run(f"{_BIN}/owsla devices --json --http {page} --token-file token") == ""
