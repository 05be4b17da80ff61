"""Gateways that the tests fork are like those that are started as a program."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ._support.embedded import EmbeddedBrokerProcess
from ._support.fork_server import fork_server
from ._support.lab import Lab
from ._support.owsla import Owsla, environment
from ._support.process import ChildProcess
from ._support.waiting import reactor_test, until

BOTH = pytest.mark.parametrize("program", [True, False], ids=["program", "forked"])


def seen(owsla: Owsla) -> dict[str, Any]:
    """Return what the kernel knows of a gateway and does not differ between two starts."""
    folder = Path(f"/proc/{owsla.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    descriptors = [os.readlink(descriptor) for descriptor in (folder / "fd").iterdir()]
    session = [int(number) for number in (folder / "stat").read_text().rpartition(")")[2].split()[2:4]]
    return {
        "name": status["Name"],
        "signals": [status[key] for key in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd")],
        "threads": status["Threads"],
        "umask": status["Umask"],
        "leads its group and its session": session == [owsla.pid, owsla.pid],
        "limits": (folder / "limits").read_text(),
        "folder": Path(os.readlink(folder / "cwd")) == owsla.folder,
        "program": os.readlink(folder / "exe"),
        "descriptors": sorted(re.sub(r"\d+", "N", name) for name in descriptors),
    }


@reactor_test
async def test_alike(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """A forked gateway and a program have the same name, signals, limits, folder, descriptors and threads, and each leads a
    session of its own."""
    started = [lab.new_owsla(broker=embedded.url, program=program, env={"OWSLA_MAX_LINE": "7"}) for program in (True, False)]
    for owsla in started:
        await owsla.start()
    program, forked = started
    # Connections to the broker come and go while they start.
    await until(lambda: seen(forked) == seen(program), what=lambda: f"{seen(forked)}\nto be\n{seen(program)}")
    assert b"forking.py" in Path(f"/proc/{forked.pid}/cmdline").read_bytes()
    assert await forked.terminate() == 0
    assert forked.lines("Server Shut Down")


@BOTH
@reactor_test
async def test_ends(lab: Lab, embedded: EmbeddedBrokerProcess, program: bool) -> None:
    """A gateway that cannot start ends with status 1 and one line; one that is killed, with the signal."""
    owsla = lab.new_owsla(env={"OWSLA_PORT": "many"}, argv=["-n", "--pidfile=", "owsla"], program=program)
    owsla.launch()
    assert await owsla.exited() == 1
    assert owsla.output() == "owsla: OWSLA_PORT: 'many' is not a port number (0 to 65535)\n"
    killed = lab.new_owsla(broker=embedded.url, program=program)
    await killed.start()
    killed.process.signal(signal.SIGKILL)
    assert await killed.exited() == -signal.SIGKILL


def test_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests of a process share one server. In another environment gateways are programs."""
    server = fork_server(environment())
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another")
    monkeypatch.setenv("OWSLA_PORT", "1")
    assert server is not None
    assert fork_server(environment()) is server
    monkeypatch.setenv("LC_ALL", "C")
    assert fork_server(environment()) is None


OTHER_TESTS = """\
import sys, time
from pathlib import Path
from tests.integration._support.fork_server import ForkServer
from tests.integration._support.owsla import environment, twistd
arguments = [*twistd(), "-n", "--pidfile=", "owsla", "--port=0", "--embedded-port=0"]
with open("log", "w") as log:
    process = ForkServer(environment()).start(
        arguments, stdout=log.fileno(), stderr=log.fileno(), env=environment(), cwd=Path.cwd()
    )
print("pid", process.pid, flush=True)
time.sleep(600)
"""


@reactor_test
async def test_tests_are_killed(tmp_path: Path) -> None:
    """The kernel ends a forked gateway when the tests are killed."""
    env = environment({"PYTHONPATH": str(Path(__file__).parents[2])})
    tests = ChildProcess([sys.executable, "-c", OTHER_TESTS], output=tmp_path / "tests", env=env, cwd=tmp_path)
    pid = int((await tests.wait_for_line(r"^pid (\d+)$"))[1])
    assert Path(f"/proc/{pid}").exists()
    tests.kill()

    def ended() -> bool:
        try:
            return " Z " in Path(f"/proc/{pid}/stat").read_text()  # in a container nothing may reap it
        except FileNotFoundError:
            return True

    await until(ended)
