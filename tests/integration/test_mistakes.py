"""Mistakes of a person with any of the `owsla` commands: one line says what is wrong, and never a traceback."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ._support.commands import Commands, owsla_command
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.owsla import UNTIDY, environment
from ._support.process import ChildProcess, free_port
from ._support.waiting import block_on, reactor_test, until

ASKING = ("devices", "top --count=1", "events", "tree")
"""Commands that ask a gateway, print and end."""

WITH_BROKER = ("tail", "who-has x", "send --device x y")
"""Commands that ask a broker, and end."""


PAUSING = """\
import signal
import sys

def pause(event, given):
    if event == "import" and given[0] == MODULE:
        sys.stderr.write("now\\n")
        sys.stderr.flush()
        signal.pause()

sys.addaudithook(pause)
from owsla.cli import main
sys.exit(main())
"""
"""`owsla`, which waits for a signal before the import of a module."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, module_lab: Lab) -> Iterator[dict[str, str]]:
    """Return the options by which commands find a gateway and a broker.

    The shared broker may have the queues of gateways of other tests, with the names that are the defaults of the commands.
    """
    own = EmbeddedBrokerProcess(tmp_path_factory.mktemp("own"))
    try:
        block_on(own.start())
        gateway = block_on(module_lab.gateway(own.url, backend=False))
        broker = f"--broker={shlex.quote(own.url)}"
        control = f"--control={gateway.owsla.folder / 'owsla.sock'}"
        yield {**dict.fromkeys(ASKING, control), **dict.fromkeys(WITH_BROKER, broker)}
    finally:
        block_on(own.close())


@pytest.mark.parametrize("command", [*ASKING, *WITH_BROKER])
@reactor_test
async def test_streams(command: str, options: dict[str, str], commands: Commands) -> None:
    """A full disk is an error with one line, where there is something to write; a closed stream, or a pipe whose reader has
    gone, is none. The checks of `Commands` find tracebacks.
    """
    program = shlex.join(owsla_command())
    for redirection in (">/dev/full", ">&-", "2>&-", ">&- 2>&- <&-", "| true"):
        ran = commands.shell(f"{program} {command} {options[command]} {redirection}")
        status = await ran.ended()
        full = [line for line in ran.errors().splitlines() if "standard output" in line]
        # Those with the broker find neither queue nor gateway there, and so have nothing to write.
        assert len(full) == (redirection == ">/dev/full" and command in ASKING), ran.errors()
        assert status == 1 or not full, (redirection, status)


@pytest.mark.parametrize("command", ["echo", *WITH_BROKER, "swarm --plain --connections=1", "devices"])
@reactor_test
async def test_removed_folder(command: str, commands: Commands, tmp_path: Path) -> None:
    """A working folder that was removed is no traceback."""
    folder = tmp_path / "removed"
    folder.mkdir()
    port = f"--port={free_port()}" if command.startswith("swarm") else ""
    ran = commands.shell(f"cd {folder} && rmdir {folder} && exec {shlex.join(owsla_command())} {command} {port}")
    assert await ran.ended() == 1
    assert ran.errors().startswith(f"owsla {command.split()[0]}: ")
    assert ran.errors().count("\n") == 1


@reactor_test
async def test_modules_in_the_folder(commands: Commands, tmp_path: Path) -> None:
    """A file of the working folder with the name of a module is not imported by the processes of a swarm."""
    (tmp_path / "json.py").write_text("raise SystemExit('not this')\n")
    arguments = ["swarm", "--plain", f"--port={free_port()}", "--connections=1"]
    ran = commands.shell(f"cd {tmp_path} && exec @", *arguments)
    assert await ran.ended() == 1
    assert "not this" not in ran.errors()
    assert "connection refused" in ran.errors()


@pytest.mark.parametrize(
    ("command", "modules"),
    [
        ("send --device x y", ["owsla.runtime.process_title", "attr", "twisted.internet.defer", "OpenSSL", "owsla.cli._send"]),
        ("devices", ["owsla.cli._arguments", "owsla.cli._control"]),
        ("demo", ["owsla.cli.demo.arguments", "owsla.cli.demo._run"]),
        ("swarm", ["owsla.cli.swarm.arguments", "owsla.cli.swarm._planning"]),
    ],
)
@reactor_test
async def test_ctrl_c_while_importing(command: str, modules: list[str], tmp_path: Path) -> None:
    """Ctrl-C while a command imports what it needs ends it by the signal, without a word."""
    for module in modules:
        errors = tmp_path / f"{module}.errors"
        process = ChildProcess(
            [sys.executable, "-c", PAUSING.replace("MODULE", repr(module)), *command.split()],
            output=tmp_path / f"{module}.output",
            errors=errors,
            env=environment(),
            cwd=tmp_path,
        )
        await until(partial(_pauses, errors), what=errors.read_text)
        process.signal(signal.SIGINT)
        assert await process.wait() == -signal.SIGINT, module
        assert not UNTIDY.search(errors.read_text())


def _pauses(errors: Path) -> bool:
    return errors.read_text() == "now\n"
