"""Real `twistd` processes whose log is not read, or cannot be written."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.owsla import Owsla, command_line, environment, twistd
from ._support.process import ChildProcess, accepts, free_port
from ._support.waiting import current_reactor, pause, reactor_test, until
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


async def traffic(lab: Lab, owsla: Owsla, broker: EmbeddedBrokerProcess) -> None:
    """Send a line of a device to the back end, and an answer to the device."""
    gateway = Gateway(lab, owsla, broker.url, "from_log", "to_log")
    await gateway.connect_backend()
    await gateway.round_trip(await lab.device(owsla))


@WORKERS
@pytest.mark.parametrize("redirect", ["> {pipe} 2>&1", "> /dev/full 2>&1", ">&- 2>&-"])
@reactor_test
async def test_standard_output(
    lab: Lab, embedded: EmbeddedBrokerProcess, pipe: Pipe, redirect: str, workers: int | None
) -> None:
    """A full pipe, a full disk or a closed descriptor as standard output stops neither devices, lines, heartbeats, health nor
    SIGTERM, in both formats, and with events as JSON on it, too."""
    pipe.fill()
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(
        broker=embedded.url,
        port=port,
        http=http,
        workers=workers,
        from_device="from_log",
        to_device="to_log",
        heartbeat=1,
        drain_spread=0,
        log_format="json" if workers else "text",
        events=["console", "json:-"],
        redirect=redirect.format(pipe=pipe.path),
    )
    await started(owsla, port, http)
    began = current_reactor().seconds()
    await chatter(lab, owsla)
    await traffic(lab, owsla, embedded)
    assert (await ask(http, "/healthz"))[0] == 200
    await until(lambda: current_reactor().seconds() > began + 3)  # past two heartbeats, after which the broker closes
    values = await metrics(http)
    assert sum(value for name, value in values.items() if name.startswith("owsla_broker_reconnects_total")) == 0
    if "pipe" not in redirect:
        assert await log_lines_lost(http) > 10
    assert await owsla.terminate() == 0


def parsed(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON objects of lines."""
    return [json.loads(line) for line in lines]


@WORKERS
@reactor_test
async def test_stopped_reader(
    lab: Lab, embedded: EmbeddedBrokerProcess, pipe: Pipe, tmp_path: Path, workers: int | None
) -> None:
    """Lines that a stopped reader of the pipe has not read wait, and it gets them later: whole, in order, and those of events,
    too."""
    reader = ChildProcess(["cat", str(pipe.path)], output=tmp_path / "read")
    lab.ends(partial(in_thread, reader.kill))
    reader.signal(signal.SIGSTOP)
    port, http = free_port(), free_port()
    owsla = lab.new_owsla(
        broker=embedded.url,
        port=port,
        http=http,
        workers=workers,
        log_format="json" if workers else "text",
        events=["console", "json:-"],
        redirect=f"> {pipe.path}",
    )
    await started(owsla, port, http)
    await chatter(lab, owsla)
    assert reader.output().count("Device disconnected") == 0
    reader.signal(signal.SIGCONT)
    await until(lambda: (text := reader.output()).count("Device disconnected") >= 20 and text.count('"warning"') >= 120)
    values = await metrics(http)
    lost = [value for name, value in values.items() if name.startswith(("owsla_log_lines_lost", "owsla_event_drops"))]
    assert sum(lost) == 0
    assert await owsla.terminate() == 0
    await until(lambda: "Server Shut Down" in reader.output())
    lines = reader.output().splitlines()
    events = [event["event"] for event in parsed([line for line in lines if '"warning"' in line])]
    log = [line for line in lines if '"warning"' not in line]
    assert events.count("device-connected") == events.count("device-disconnected") == 60
    times = [line["time"] for line in parsed(log)] if workers else [line[:19] for line in log]
    assert all(time[:4].isdigit() for time in times), log
    assert times == sorted(times)


@reactor_test
async def test_full_disk(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """When the file of standard output cannot grow, devices and lines go on. Later lines are whole, one says how many are
    lost, and no event is."""
    path, port, http = tmp_path / "log", free_port(), free_port()
    owsla = lab.new_owsla(
        broker=embedded.url,
        port=port,
        http=http,
        from_device="from_log",
        to_device="to_log",
        log_format="json",
        events=["console", "json:-"],
        redirect=f">> {path}",
        through=["/bin/sh", "-c", 'ulimit -f 40; exec "$@"', "sh"],  # 20 KiB; the start writes 5
        env={"PYTHONDONTWRITEBYTECODE": "1"},  # the limit would cut the files of other processes
    )
    await started(owsla, port, http)
    await chatter(lab, owsla, 25)  # 40 KiB
    await traffic(lab, owsla, embedded)
    # How many depends on the speed: the console writes 20 events of a kind in a second.
    assert await log_lines_lost(http) > 0
    before = path.read_text()
    os.truncate(path, 0)
    await chatter(lab, owsla, 1)
    await until(lambda: "The log has lost" in path.read_text())
    assert await owsla.terminate() == 0
    # A torn line has no end, and a new line follows it.
    lines = parsed([line for line in (before[: before.rindex("\n")] + path.read_text()).splitlines() if line])
    numbers = [line["number"] for line in lines if "number" in line]
    assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1))
    (report,) = [line["text"] for line in lines if "has lost" in line.get("text", "")]
    assert re.fullmatch(r"The log has lost \d+ lines here: file too large", report)
    assert lines[-1]["text"] == "Server Shut Down."


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


BURST: Final = 200
"""Connections that are closed at once: far more events of a kind in a second than are logged."""


def burst(text: str) -> list[int]:
    """Return the number of failed handshakes that each line of the log stands for."""
    lines = parsed(text[: text.rfind("\n") + 1].splitlines())
    return [line.get("more", 1) for line in lines if line.get("event") == "handshake-failed"]


JSON_LOG = pytest.mark.parametrize("place", ["standard output", "--logfile", "daemon", "workers"])


@JSON_LOG
@reactor_test
async def test_json(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path, place: str) -> None:
    """With `--log-format json` each line of the log is an object: those of twistd, of workers and of events, on standard output
    and in the file of twistd; a burst of events is some lines and a count."""
    port, http, path = free_port(), free_port(), tmp_path / "log"
    pid_file = tmp_path / "pid"
    settings = command_line(
        {"port": port, "interface": "127.0.0.1", "certs_dir": lab.certs_dir, "broker": embedded.url, "http": http,
         "workers": 2 if place == "workers" else 1, "log_format": "json", "drain_spread": 0}
    )  # fmt: skip
    twistd_options = {"daemon": [f"--pidfile={pid_file}", f"--logfile={path}"], "--logfile": ["-n", f"--logfile={path}"]}
    owsla = lab.new_owsla(argv=[*twistd_options.get(place, ["-n", "--pidfile="]), "owsla", *settings])
    owsla.launch()
    owsla.port = port
    if place == "daemon":
        assert await owsla.exited() == 0
        pid = await until(lambda: int(pid_file.read_text() or 0))
        lab.ends(partial(stop_daemon, pid))
    await until(lambda: accepts(http), 60)
    while (await ask(http, "/readyz"))[0] != 200:
        await pause(0.1)
    await (await lab.device(owsla)).close()
    for _ in range(BURST):
        socket.create_connection(("127.0.0.1", port)).close()
    log = (lambda: path.read_text()) if path.exists() else owsla.process.output
    await until(lambda: sum(burst(log())) == BURST)
    if place == "daemon":
        await stop_daemon(pid)
    else:
        assert await owsla.terminate() == 0
    lines = parsed(log().splitlines())
    assert all(list(line)[:4] == ["time", "level", "namespace", "text"] for line in lines)
    assert any(line["text"].startswith("twistd ") for line in lines)
    assert lines[-1]["text"] == "Server Shut Down."
    (connected, *_) = [line for line in lines if line.get("event") == "device-connected" and "fields" in line]
    assert connected["text"].startswith(f"Device connected: {connected['fields']['connection_id']} from 127.0.0.1:")
    assert connected["fields"]["connection_id"].startswith(connected["node"])
    assert connected["namespace"].startswith("owsla.worker-" if place == "workers" else "owsla")
    assert max(burst(log())) > 1
    assert {"owsla.worker-1", "owsla.worker-2"} <= {line["namespace"] for line in lines} or place != "workers"


async def stop_daemon(pid: int) -> None:
    """End a daemon in order, if it runs."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)

    def ended() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    await until(ended, 45)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-n", "--syslog", "owsla", "--log-format=json"],
         "owsla: --log-format json: not with twistd --syslog, which has a format of its own\n"),
        (["owsla", "--events=json:-"], "owsla: --events json:-: only with twistd -n; a daemon has no standard output\n"),
    ],
)  # fmt: skip
@reactor_test
async def test_refused(tmp_path: Path, certs_dir: Path, arguments: list[str], says: str) -> None:
    """JSON lines where Owsla does not write them are refused, in one line."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*twistd(), "--pidfile=", *arguments, "--port=0", "--embedded-port=0", f"--certs-dir={certs_dir}"],
            capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=60,
        )  # fmt: skip

    done: subprocess.CompletedProcess[str] = await in_thread(run)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", says)


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
             "--embedded-port=0", f"--certs-dir={certs_dir}"],
            capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=60,
        )  # fmt: skip

    done: subprocess.CompletedProcess[str] = await in_thread(run)
    assert done.returncode == 1, done
    assert done.stderr.startswith("owsla: this process may open 64 files, and needs 150 for itself"), done
    assert done.stderr.count("\n") == 1


@reactor_test
async def test_failure_with_a_full_pipe(tmp_path: Path, certs_dir: Path, pipe: Pipe) -> None:
    """A process that cannot start (here: it cannot write its pid file) ends with status 1, also if nobody reads its log."""
    pipe.fill()

    def run() -> int:
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" > {pipe.path}', "sh", *twistd(), "-n", f"--pidfile={tmp_path}/missing/pid", "owsla",
             "--port=0", "--embedded-port=0", f"--certs-dir={certs_dir}"],
            stderr=subprocess.DEVNULL, env=environment(), cwd=tmp_path, timeout=60,
        ).returncode  # fmt: skip

    assert await in_thread(run) == 1
