"""Stand-ins for systemd, and systemd itself: a notify socket, passed sockets, and a user instance in its own namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .process import ChildProcess
from .waiting import PATIENCE, until

SYSTEMD: Final = Path("/lib/systemd/systemd")


class NotifySocket:
    """Notify socket of a service manager (sd_notify(3)), which keeps everything that it is told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """Return all notifications so far. The assignments of one are separated by spaces."""
        while True:
            try:
                self._told.append(self._socket.recv(65536).decode().replace("\n", " "))
            except BlockingIOError:
                return self._told

    def states(self, start: int = 0) -> list[str]:
        """Return the changes of the state among the notifications, without their times."""
        words = [notification.split(" ")[0] for notification in self.told()[start:]]
        return [word for word in words if word in ("READY=1", "RELOADING=1", "STOPPING=1")]

    def mark(self) -> int:
        """Return the number of notifications so far."""
        return len(self.told())

    async def wait_for(self, beginning: str, start: int = 0, timeout: float = PATIENCE) -> str:
        """Wait for a notification that begins so, and return it."""

        def look() -> str | None:
            return next((one for one in self.told()[start:] if one.startswith(beginning)), None)

        found = await until(look, timeout, lambda: f"{beginning}: told {self._told[start:]}")
        assert found is not None
        return found

    def close(self) -> None:
        self._socket.close()


def pass_sockets(sockets: Mapping[str, socket.socket]) -> tuple[list[str], list[int]]:
    """Return the beginning of a command that is passed these sockets, and the descriptors that it must inherit."""
    program = Path(__file__).with_name("pass_sockets.py")
    descriptors = {name: sock.fileno() for name, sock in sockets.items()}
    arguments = [f"{name}={descriptor}" for name, descriptor in descriptors.items()]
    return [sys.executable, "-P", str(program), *arguments, "--"], list(descriptors.values())


_START: Final = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user /run/cgroup
mount -t cgroup2 none /run/cgroup
mkdir -p "/run/cgroup/$1"
echo 0 > "/run/cgroup/$1/cgroup.procs"
exec unshare --cgroup sh -euc '
    umount /run/cgroup
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    export XDG_RUNTIME_DIR=/run/user SYSTEMD_UNIT_PATH="$1"
    "$2" --user --unit=nothing.target &
    wait
' sh "$2" "$3"
"""
"""Script that starts systemd, which sees no units but those of a test, and no control groups but one. As process 1 it would run
as the manager of a whole system."""

_TRY: Final = """
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/cgroup
mount -t cgroup2 none /run/cgroup
mkdir "/run/cgroup/$1"
rmdir "/run/cgroup/$1"
umount -R /sys/fs/cgroup
"""

#: Script that removes the control group of a machine, with those in it.
REMOVE_GROUP: Final = """
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/cgroup
mount -t cgroup2 none /run/cgroup
[ ! -d "/run/cgroup/$1" ] || find "/run/cgroup/$1" -depth -type d -exec rmdir {} ';'
[ ! -d "/run/cgroup/$1" ]
"""


class Systemd:
    """Real systemd, as the manager of a user's services, in PID, mount and control group namespaces of its own.

    It has the network and the files of the tests. Its units are the files in `units`. To make these namespaces takes root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "units"
        self._group = f"owsla-tests-{os.getpid()}"
        self._process: ChildProcess | None = None

    @staticmethod
    def missing() -> str:
        """Return why systemd cannot be run here; an empty text if it can."""
        if not (SYSTEMD.exists() and shutil.which("systemctl") and shutil.which("unshare") and shutil.which("nsenter")):
            return "systemd or util-linux is not installed"
        tried = _in_namespaces(_TRY, f"owsla-tests-{os.getpid()}")
        return "" if tried.returncode == 0 else f"no namespaces: {tried.stderr.strip()}"

    def write(self, name: str, text: str) -> None:
        """Write a unit file."""
        path = self.units / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    async def start(self) -> Systemd:
        """Start systemd, and wait until it answers."""
        for target in ("nothing", "basic", "sysinit", "sockets", "multi-user", "network-online", "shutdown"):
            self.write(f"{target}.target", "[Unit]\nDefaultDependencies=no\n")
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = ChildProcess(
            [*command, "sh", "-c", _START, "sh", self._group, str(self.units), str(SYSTEMD)],
            output=self.folder / "systemd.log",
        )
        await until(lambda: self.try_systemctl("is-system-running").stdout.strip() in ("running", "degraded"), what=self.errors)
        return self

    def errors(self) -> str:
        """Return what the programs have written that start systemd."""
        return (self.folder / "systemd.log").read_text()

    def status(self) -> str:
        """Return the states of all units."""
        return self.try_systemctl("status", "--all").stdout

    def try_systemctl(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run systemctl --user in the namespaces of this systemd."""
        child = self._pid()
        enter = ["nsenter", "--target", str(child), "--mount", "--pid", "--", "env", "XDG_RUNTIME_DIR=/run/user"]
        return subprocess.run(
            [*enter, "systemctl", "--user", "--no-pager", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl. Return its output; it must succeed."""
        done = self.try_systemctl(*arguments)
        assert done.returncode == 0, f"systemctl {arguments}: {done.stdout}{done.stderr}\n{self.status()}"
        return done.stdout

    def show(self, unit: str, property: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "--property", property, unit).strip()

    def _pid(self) -> int:
        """Return the process id of systemd, in the namespace of the tests."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline, "unshare has no child"
            time.sleep(0.01)
        return int(found[0])

    async def close(self) -> None:
        """End systemd and all its services at once, and remove their control group."""
        if self._process is not None:
            self._process.kill()
        await until(
            lambda: _in_namespaces(REMOVE_GROUP, self._group).returncode == 0, what="the end of all services of systemd"
        )


def _in_namespaces(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a mount namespace of its own."""
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
