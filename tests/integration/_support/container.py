"""A program as process 1 of namespaces of its own, as in a container; or beside other processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from .owsla import UNTIDY, environment
from .process import ChildProcess
from .waiting import PATIENCE, until

_NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")


def missing() -> str:
    """Return why there are no namespaces here; an empty text if there are."""
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            return f"{tool} ({package}) is not installed"
    tried = subprocess.run(
        [*_NAMESPACES, "--net", "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=30, check=False
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Started:
    """A program with its output in a folder, in which it is started."""

    def __init__(self, folder: Path, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._errors = folder.with_name(f"{folder.name}.errors")
        self.process = ChildProcess(
            argv, output=folder.with_name(f"{folder.name}.output"), errors=self._errors, env=environment(env), cwd=folder
        )

    async def pid(self) -> int:
        """Return the process id of the program, outside."""
        return self.process.pid

    def output(self) -> str:
        """Return all output of the program, standard error last."""
        return self.process.output() + self.errors()

    def errors(self) -> str:
        """Return the standard error output of the program."""
        return self._errors.read_text("utf-8", "replace")

    async def listening(self) -> int:
        """Wait until the device port is open, and return it."""
        return int((await self.process.wait_for_line(r"[Ll]istening for devices .*?port (\d+)", 90))[1])

    async def terminate(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM to the program, as `docker stop` does, and return its exit status."""
        os.kill(await self.pid(), signal.SIGTERM)
        return await self.process.wait(timeout)

    def assert_tidy(self) -> None:
        """Fail if the output shows an unhandled exception."""
        output = self.output()
        assert not UNTIDY.search(output), output


class Contained(Started):
    """A program that is process 1 of its PID namespace. `setup` is a shell script that runs in the namespaces before it, and
    `network` gives it a network of its own, which is down."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        setup: str = "",
        network: bool = False,
    ) -> None:
        before = ["sh", "-euc", f'{setup}\nexec "$@"', "sh"] if setup else []
        super().__init__(folder, [*_NAMESPACES, *(["--net"] if network else []), *before, *argv], env)

    async def enter(self) -> list[str]:
        """Return the start of a command that runs the rest in the namespaces."""
        return ["nsenter", "--target", str(await self.pid()), "--mount", "--pid", "--net", "--"]

    async def pid(self) -> int:
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children")
        return int((await until(lambda: children.read_text().split(), what="process 1"))[0])


def has_signal(pid: int, name: str, number: signal.Signals) -> bool:
    """Return whether a set of signals of a process contains one. `name` is SigBlk, SigIgn or SigCgt (proc(5))."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = re.search(rf"^{name}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number - 1 & 1)


class CpuGroup:
    """Control group with a CPU quota of its own, and one within it without: below those of this process.

    `None` is returned by `make` where there is no such controller, or no permission for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inner = folder / "inner"

    @classmethod
    def make(cls, cpus: float) -> CpuGroup | None:
        """Make the groups, and allow them the time of `cpus` CPUs."""
        for top, files in (
            (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": f"{cpus * 100_000:.0f}"}),
            (Path("/sys/fs/cgroup/cpu,cpuacct"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": f"{cpus * 100_000:.0f}"}),
            (Path("/sys/fs/cgroup"), {"cpu.max": f"{cpus * 100_000:.0f} 100000"}),
        ):
            group = cls(top / f"owsla-tests-{os.getpid()}")
            try:
                group._inner.mkdir(parents=True)
                for name, text in files.items():
                    (group._folder / name).write_text(text)
            except OSError:
                group.remove()
            else:
                return group
        return None

    @property
    def enter(self) -> tuple[str, ...]:
        """Start of a command that runs the rest in the inner group."""
        return ("sh", "-euc", f'echo $$ > {self._inner}/cgroup.procs; exec "$@"', "sh")

    def remove(self) -> None:
        """Remove the groups, in which no process may be left."""
        for folder in (self._inner, self._folder):
            if folder.exists():
                folder.rmdir()
