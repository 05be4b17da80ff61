"""Real `twistd` processes whose log is not read, or cannot be written."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.owsla import Owsla, environment, twistd
from ._support.process import accepts, free_port
from ._support.waiting import pause, reactor_test, until
from .test_http import ask, in_thread, metrics

F_SETPIPE_SZ: Final = 1031

WORKERS = pytest.mark.parametrize("workers", [None, 2], ids=["alone", "workers"])

LOGGER: Final = """\
from twisted.logger import textFileLogObserver

def logger():
    return textFileLogObserver(open({fifo!r}, "w"))
"""


class Pipe:
    """Named pipe of one page that nobody reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, F_SETPIPE_SZ, 4096)

    def fill(self) -> None:
        """Fill the pipe."""
        try:
            while True:
                os.write(self._descriptor, b"x" * 256)
        except BlockingIOError:
            pass

    def read(self) -> str:
        """Return the available text."""
        try:
            return os.read(self._descriptor, 65536).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    one = Pipe(tmp_path / "log")
    yield one
    one.close()


async def started(owsla: Owsla, port: int, http: int) -> None:
    """Start a gateway, and wait until it is ready. Its log cannot be read here."""
    owsla.launch()
    owsla.port = port

    for _ in range(600):
        await until(lambda: owsla.process.poll() is not None or accepts(http), 60)
        assert owsla.process.poll() is None, owsla.output()
        if (await ask(http, "/readyz"))[0] == 200:
            return
        await pause(0.1)
    raise AssertionError("it does not become ready")


async def chatter(lab: Lab, owsla: Owsla, devices: int = 60) -> None:
    """Connect and disconnect devices, which write lines to the log."""
    for _ in range(devices):
        device = await lab.device(owsla)
        await device.close()


async def log_lines_lost(http: int) -> float:
    """Return the number of lines that all processes have lost."""
    return sum(value for name, value in (await metrics(http)).items() if name.startswith("owsla_log_lines_lost_total"))


@WORKERS
@pytest.mark.parametrize("redirect", ["> {pipe} 2>&1", "> /dev/full 2>&1", ">&- 2>&-"])
@reactor_test
async def test_standard_output(
    lab: Lab, embedded: EmbeddedBrokerProcess, pipe: Pipe, redirect: str, workers: int | None
) -> None:
    """A full pipe, a full disk or a closed descriptor as standard output stops neither devices, nor health, nor SIGTERM."""
    pipe.fill()
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(
        broker=embedded.url,
        port=port,
        http=http,
        workers=workers,
        drain_spread=0,
        redirect=redirect.format(pipe=pipe.path),
    )
    await started(owsla, port, http)
    await chatter(lab, owsla)
    assert (await ask(http, "/healthz"))[0] == 200
    if "pipe" not in redirect:
        assert await log_lines_lost(http) > 10
    assert await owsla.terminate() == 0


@WORKERS
@reactor_test
async def test_read_later(lab: Lab, embedded: EmbeddedBrokerProcess, pipe: Pipe, workers: int | None) -> None:
    """Lines that waited can be read later, whole and in order."""
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(broker=embedded.url, port=port, http=http, workers=workers, redirect=f"> {pipe.path}")
    await started(owsla, port, http)
    await chatter(lab, owsla)
    text = ""

    def all_read() -> bool:
        nonlocal text
        text += pipe.read()
        return text.count("Device disconnected") >= 20 and text.endswith("\n")

    await until(all_read)
    lines = text.splitlines()
    assert all(line[:4].isdigit() for line in lines), text
    assert [line[:19] for line in lines] == sorted(line[:19] for line in lines)
    assert await log_lines_lost(http) == 0
    assert await owsla.terminate() == 0


@pytest.mark.parametrize("option", ["--logfile=/dev/full", "--logfile=-", "--logger=blocking_log.logger"])
@reactor_test
async def test_twistd_options(lab: Lab, embedded: EmbeddedBrokerProcess, pipe: Pipe, tmp_path: Path, option: str) -> None:
    """The same holds for a log file, for standard output by name, and for an observer of the operator."""
    (tmp_path / "blocking_log.py").write_text(LOGGER.format(fifo=str(pipe.path)))
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(
        env={"PYTHONPATH": str(tmp_path)},
        broker=embedded.url,
        port=port,
        http=http,
        drain_spread=0,
        twistd_options=[option],
        redirect=f"> {pipe.path}",
    )
    await started(owsla, port, http)
    await chatter(lab, owsla)
    assert (await ask(http, "/healthz"))[0] == 200
    if "full" in option:
        assert await log_lines_lost(http) > 10
    assert await owsla.terminate() == 0


@reactor_test
async def test_journal(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """On the journal, lines have a priority and no time; on any other file they have twistd's format."""
    journal = tmp_path / "journal"
    journal.touch()
    status = journal.stat()
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(
        env={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        broker=embedded.url,
        port=port,
        http=http,
        max_connections=50,
        redirect=f">> {journal}",
    )
    await started(owsla, port, http)
    assert await owsla.terminate() == 0
    lines = journal.read_text().splitlines()
    assert all(re.match(r"<[2-7]>(\[[a-zA-Z]|[A-Z(]|_)", line) for line in lines), lines
    assert "<6>Up to 50 devices can be connected: --max-connections" in lines
    assert "<6>Stopped: 0 devices closed, everything confirmed" in lines
    (plain,) = (await lab.gateway(embedded.url, backend=False)).owsla.lines("Listening")
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ \[owsla#info\] Listening", plain)


@reactor_test
async def test_few_open_files(tmp_path: Path, certs_dir: Path) -> None:
    """A limit of open files that allows no device ends the process with one line and status 1."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *twistd(), "-n", "--pidfile=", "owsla", "--port=0",
             f"--certs-dir={certs_dir}"],
            capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=60,
        )  # fmt: skip

    done: subprocess.CompletedProcess[str] = await in_thread(run)
    assert done.returncode == 1, done
    assert done.stderr.startswith("owsla: this process may open 64 files, and needs 100 for itself"), done
    assert done.stderr.count("\n") == 1


@reactor_test
async def test_failure_with_a_full_pipe(tmp_path: Path, certs_dir: Path, pipe: Pipe) -> None:
    """A process that cannot start (here: it cannot write its pid file) ends with status 1, also if nobody reads its log."""
    pipe.fill()

    def run() -> int:
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" > {pipe.path}', "sh", *twistd(), "-n", f"--pidfile={tmp_path}/missing/pid", "owsla",
             "--port=0", f"--certs-dir={certs_dir}"],
            stderr=subprocess.DEVNULL, env=environment(), cwd=tmp_path, timeout=60,
        ).returncode  # fmt: skip

    assert await in_thread(run) == 1
