"""Tests of Owsla in containers and other confined environments (no RabbitMQ)."""

from __future__ import annotations

import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import deferToThread

from owsla.tls.development import development_certificates

from ._support import container, no_ipv6
from ._support.books import chosen_seed
from ._support.container import Contained, CpuGroup, Started, has_signal
from ._support.owsla import environment
from ._support.process import ChildProcess
from ._support.waiting import pause, reactor_test, until

#: Start of a command to which no signal is delivered before there is a handler for it (coreutils 8.31).
BLOCKED = ("env", "--block-signal=HUP", "--block-signal=USR2", "--block-signal=TERM", "--block-signal=INT")

#: Seconds of a start. Signals are sent at random moments of it.
START = 1.0


@pytest.fixture
def require_namespaces() -> None:
    """Skip the test where there are no PID namespaces: they take root."""
    why = container.missing()
    if why:
        pytest.skip(why)


Start = Callable[..., Started]


def program(name: str) -> str:
    """Return the path of a program that belongs to this Python."""
    return str(Path(sys.executable).with_name(name))


@pytest.fixture
def start(certs_dir: Path, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a `twistd-owsla`, with the embedded broker."""
    all_started: list[Started] = []

    def one(
        kind: type[Started],
        *options: str,
        before: tuple[str, ...] = BLOCKED,
        command: tuple[str, ...] = ("twistd-owsla",),
        **more: Any,
    ) -> Started:
        settings = ["--port=0", "--interface=127.0.0.1", "--embedded-port=0", f"--certs-dir={certs_dir}"]
        argv = [*before, program(command[0]), *command[1:], *settings, *options]
        started = kind(tmp_path / f"gateway-{len(all_started)}", argv, **more)
        all_started.append(started)
        return started

    yield one
    for started in all_started:
        started.process.kill()


KINDS = pytest.mark.parametrize("kind", [Started, Contained], ids=["beside-others", "process-1"])


# -- signals while Python and Twisted load -----------------------------------------------------------------------------------


def _guarded(pid: int) -> bool:
    """Return whether `env` has blocked the signals, or `twistd-owsla` has handlers for them by now.

    `unshare` blocks signals for a moment, too.
    """
    if Path(f"/proc/{pid}/comm").read_text().strip() in ("unshare", "setpriv"):
        return False
    return has_signal(pid, "SigBlk", signal.SIGHUP) or has_signal(pid, "SigIgn", signal.SIGHUP)


@KINDS
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_harmless_signals_from_the_start(start: Start, kind: type[Started], workers: int) -> None:
    """SIGHUP and SIGUSR2, every few milliseconds from the very start, harm neither a single process nor workers."""
    owsla = start(kind, f"--workers={workers}")
    pid = await owsla.pid()
    if kind is Started:  # the kernel drops early signals of process 1
        await until(partial(_guarded, pid), what="the start of env")

    def send() -> bool:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGUSR2)
        return has_signal(pid, "SigCgt", signal.SIGUSR2)

    await until(send, 60, "handlers of its own")
    await owsla.listening()
    assert await owsla.terminate(60) == 0
    owsla.assert_tidy()


@KINDS
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_sigterm_at_any_moment_of_the_start(start: Start, kind: type[Started], workers: int) -> None:
    """SIGTERM ends a gateway at whatever moment of its start with status 0, and leaves neither files nor processes."""
    rng = random.Random(f"{chosen_seed()}/{kind.__name__}/{workers}")
    for moment in (0.0, *(rng.uniform(0, START) for _ in range(5))):
        owsla = start(kind, f"--workers={workers}")
        pid = await owsla.pid()
        await until(partial(_guarded, pid), what="the start of env")
        await pause(moment)
        assert await owsla.terminate(60) == 0, f"{moment}: {owsla.output()}"
        owsla.assert_tidy()
        assert os.listdir(owsla.folder) == [], moment
        with pytest.raises(ProcessLookupError):
            os.killpg(owsla.process.pid, 0)


# -- limits of a container ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cpu_group() -> Iterator[Callable[[float], CpuGroup]]:
    """Return a function that makes a control group with a CPU quota. Skip the test where that cannot be."""
    groups: list[CpuGroup] = []

    def make(cpus: float) -> CpuGroup:
        group = CpuGroup.make(cpus)
        if group is None:
            pytest.skip("no control group with a CPU quota can be made here")
        groups.append(group)
        return group

    yield make
    for group in groups:
        group.remove()


@reactor_test
async def test_cpu_quota(cpu_group: Callable[[float], CpuGroup], start: Start) -> None:
    """`--workers auto` knows the CPU quota of a real control group above its own, and the log says so."""
    several = [(1.5, "2 workers")] if len(os.sched_getaffinity(0)) > 1 else []
    for cpus, workers in ((0.5, "one process"), *several):
        group = cpu_group(cpus)
        owsla = start(Started, "--workers=auto", before=group.enter)
        line = await owsla.process.wait_for_line("--workers auto", 60)
        assert f"{workers}, because a quota of the control group allows the time of {cpus} of" in line.string
        await owsla.listening()
        assert await owsla.terminate(60) == 0
        group.remove()


@pytest.mark.parametrize("workers", [1, 2])
@reactor_test
async def test_few_open_files(start: Start, workers: int) -> None:
    """A limit on open files that is not enough for a single device is one line, and a soft limit alone is raised."""
    for limit in ("64", "150"):
        owsla = start(Started, f"--workers={workers}", before=("prlimit", f"--nofile={limit}:{limit}"))
        assert await owsla.process.wait(30) == 1
        line = rf"owsla: this process may open {limit} files, and needs 15\d for itself and .+ Raise .+\n"
        assert re.fullmatch(line, owsla.errors())
        owsla.assert_tidy()
    for limits, devices in (("256:256", 106), ("64:2000", 1850)):
        owsla = start(Started, f"--workers={workers}", before=("prlimit", f"--nofile={limits}"))
        await owsla.process.wait_for_line(f"Up to {devices} devices can be connected", 60)
        await owsla.listening()
        assert await owsla.terminate(60) == 0
        owsla.assert_tidy()


@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_orphans_of_process_1(start: Start) -> None:
    """As process 1 a gateway reaps the orphans of commands that are run in its container, a minute after their end."""
    owsla = start(Contained)
    assert isinstance(owsla, Contained)
    await owsla.listening()
    pid, enter = await owsla.pid(), await owsla.enter()
    orphan = "sh -c 'sleep 0.1; echo it has ended' &"
    output = subprocess.run([*enter, "sh", "-c", orphan], capture_output=True, text=True, timeout=30, check=True).stdout
    assert output == "it has ended\n"
    children = Path(f"/proc/{pid}/task/{pid}/children")
    await until(lambda: not children.read_text(), 120, "the end of the orphan")
    assert await owsla.terminate() == 0


# -- networks ----------------------------------------------------------------------------------------------------------------

_NETWORKS = {
    "no-ipv6-in-the-kernel": ("127.0.0.1", "ip link set lo up"),
    "ipv6-disabled": ("127.0.0.1", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up"),
    "ipv6-only": ("::1", "ip link set lo up; ip address delete 127.0.0.1/8 dev lo"),
}

#: Client in the network of the gateway: a device whose line is echoed, and a request for metrics.
_CLIENT = """
import socket, ssl, sys, urllib.request
host, port, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
with context.wrap_socket(socket.create_connection((host, int(port)), 30), server_hostname=host) as device:
    device.sendall(b"hello\\n")
    print(device.makefile("rb").readline())
url = f"http://[{host}]:9100/readyz" if ":" in host else f"http://{host}:9100/readyz"
print(urllib.request.urlopen(url, timeout=30).status)
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("network", _NETWORKS)
@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_network(start: Start, certs_dir: Path, tmp_path: Path, network: str, workers: int) -> None:
    """Without IPv6 and with nothing else, a gateway with default addresses serves devices, a back end, metrics and commands."""
    host, setup = _NETWORKS[network]
    before: tuple[str, ...] = ()
    if network == "no-ipv6-in-the-kernel":
        if platform.machine() not in no_ipv6.SOCKET:
            pytest.skip("no seccomp filter for this machine")
        before = (sys.executable, no_ipv6.__file__)
    options = ("--interface=all", "--embedded-port=5672", "--http=9100", f"--workers={workers}")
    owsla = start(Contained, *options, before=before, setup=setup, network=True)
    assert isinstance(owsla, Contained)
    port = await owsla.listening()
    enter = await owsla.enter()
    echo = ChildProcess([*enter, program("owsla"), "echo"], output=tmp_path / "echo", env=environment())
    try:
        await echo.wait_for_line("answering the lines of from_device")
        client = [sys.executable, "-c", _CLIENT, host, str(port), str(certs_dir / "ca.pem")]
        tree = [program("owsla"), "tree", "--http", "9100"]
        for command, expected in ((client, "b'hello\\r\\n'\n200\n"), (tree, "owsla (one_for_one")):
            done = await deferToThread(
                subprocess.run, [*enter, *command], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.stdout.startswith(expected), done
    finally:
        echo.kill()
    assert await owsla.terminate(60) == 0
    owsla.assert_tidy()


# -- folders that cannot be written ------------------------------------------------------------------------------------------

#: Script that makes everything read-only, as `docker run --read-only` does. In a chroot the root may be no mount point.
_READ_ONLY = """
mount --bind . .
cd "$PWD"
cut -d ' ' -f 2 /proc/mounts | while read -r place; do mount -o remount,bind,ro "$place" 2>&- || true; done
if touch here 2>&-; then echo "$PWD can still be written to"; exit 77; fi
"""

#: Start of a command for a user without name, home folder and temporary folder, who may read everything.
_NOBODY = (
    *("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "env", "-u", "HOME", "TMPDIR=/nowhere"),
)


def _all_listening(owsla: Started, workers: int) -> bool:
    return owsla.output().count("istening for devices") == workers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_read_only(start: Start, certs_dir: Path, workers: int) -> None:
    """Where nothing can be written, a nameless user can run a gateway. The log has a warning for the control socket only."""
    development_certificates(certs_dir, socket.gethostname())
    missing = "owsla.sock cannot be used: read-only file system"
    for more, warnings in (((), [missing]), (("--control=off",), [])):
        owsla = start(Contained, f"--workers={workers}", *more, before=_NOBODY, setup=_READ_ONLY)
        await owsla.listening()
        await until(partial(_all_listening, owsla, workers), 60)
        assert await owsla.terminate(60) == 0
        owsla.assert_tidy()
        lines = [line for line in owsla.output().splitlines() if re.search("#(warn|error|critical)|cache", line)]
        assert len(lines) == len(warnings), lines
        assert all(map(str.__contains__, lines, warnings)), lines
        assert owsla.errors() == ""


@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_read_only_with_twistd(start: Start, certs_dir: Path) -> None:
    """A pid file that nobody asked for does not stop the start where it cannot be written."""
    development_certificates(certs_dir, socket.gethostname())
    owsla = start(Contained, command=("twistd", "-n", "owsla"), before=_NOBODY, setup=_READ_ONLY)
    await owsla.listening()
    assert await owsla.terminate(60) == 0
    owsla.assert_tidy()
    warning = "owsla: twistd.pid cannot be written: read-only file system; no pid file is written (twistd --pidfile=)\n"
    assert owsla.errors() == warning


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        (("twistd-owsla",), ("--certs-dir=certs",), "certs: cannot keep development certificates here: "),
        (("twistd-owsla",), ("--control=own.sock", "--tls=no"), "--control: own.sock cannot be used: "),
        (("twistd-owsla",), ("--listen=unix:devices.sock:name=x", "--tls=no"), "--listen x: devices.sock cannot be used: "),
        (("twistd", "-n", "--pidfile=owsla.pid", "owsla"), ("--tls=no",), "twistd --pidfile=owsla.pid: "),
        (("twistd", "-n", "--pidfile=", "--logfile=owsla.log", "owsla"), ("--tls=no",), "twistd --logfile=owsla.log: "),
        (("twistd", "--pidfile=", "owsla"), ("--tls=no",), "twistd --logfile=twistd.log: "),
    ],
)
@pytest.mark.usefixtures("require_namespaces")
@reactor_test
async def test_read_only_and_needed(start: Start, command: tuple[str, ...], options: tuple[str, ...], reason: str) -> None:
    """A file that was asked for and cannot be written is one line, and status 1."""
    owsla = start(Contained, *options, command=command, before=_NOBODY, setup=_READ_ONLY)
    assert await owsla.process.wait(30) == 1
    assert re.fullmatch(f"owsla: (/.*/)?{re.escape(reason)}read-only file system.*\n", owsla.errors()), owsla.output()
    owsla.assert_tidy()
