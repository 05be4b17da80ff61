"""CPUs that this process may use: by its affinity, and by the quota of its control groups.

A container with `--cpus=1.5` sees all CPUs of its host, and may use the time of 1.5 of them. The kernel keeps the quota in a
file of the control group: `cpu.max` of version 2, or `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1. The groups above
may have a quota as well, and the smallest counts.

    /proc/self/cgroup      0::/system.slice/owsla.service               the path of the group in the hierarchy
    /proc/self/mountinfo   … / /sys/fs/cgroup … - cgroup2 cgroup2 rw    where the hierarchy is mounted, and which part of it

In a container without a namespace of control groups the path is that of the host (`/docker/4711`), and so is the root of the
mount; the part of the path below that root is what the container sees. Groups above it cannot be seen.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from ..log import pluralize

MOST_WORKERS: Final = 256

process_cpu_count = getattr(os, "process_cpu_count", None)
"""Function of Python 3.13 and later: the number of CPUs that the process may run on, or that of PYTHON_CPU_COUNT."""

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Cpus:
    """CPUs that a process may use."""

    usable: int
    """Number of CPUs that the process may run on."""
    quota: float | None = None
    """Number of CPUs whose time the process may use; `None` without a limit."""

    @property
    def workers(self) -> int:
        """Number of worker processes that these CPUs are enough for.

        A quota is rounded to the nearest number, and half of a CPU up. Rounded down, 1.9 CPUs would be half idle. Rounded up,
        two workers on 1.1 CPUs would cost more for each line than one.
        """
        allowed = self.usable if self.quota is None else min(self.usable, math.floor(self.quota + 0.5))
        return min(max(allowed, 1), MOST_WORKERS)

    def describe(self) -> str:
        """Return a log line with the number of workers, and the reason for it."""
        count = "one process" if self.workers == 1 else f"{self.workers} workers"
        cpus = pluralize(self.usable, "CPU")
        if self.quota is None or self.quota >= self.usable:
            return f"--workers auto: {count}, because this process may run on {cpus}"
        return f"--workers auto: {count}, because a quota of the control group allows the time of {self.quota:.3g} of {cpus}"


def usable_cpus() -> Cpus:
    """Return the CPUs that this process may use."""
    usable = process_cpu_count() if process_cpu_count is not None else len(os.sched_getaffinity(0))
    return Cpus(usable or 1, cpu_quota())


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the number of CPUs whose time the control groups of this process allow, or `None` without a limit.

    `root` is the folder with `proc`, and with the mount points of the hierarchies.
    """
    quotas = [quota for group in _groups(root) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folder of each control group of this process that may have a quota."""
    try:
        cgroup, mountinfo = (_lines(root / "proc/self" / name) for name in ("cgroup", "mountinfo"))
    except OSError:
        return  # no /proc, or a kernel without control groups
    paths = _paths(cgroup)
    for version, top, mount_point in _mounts(mountinfo):
        path = paths.get(version)
        if path is None:
            continue
        try:
            below = path.relative_to(top)
        except ValueError:
            below = PurePosixPath()  # the mount shows another part of the hierarchy: its top is the nearest that can be seen
        if ".." in below.parts:
            below = PurePosixPath()  # the group is outside the namespace
        folder = root / mount_point.relative_to("/")
        yield folder
        for part in below.parts:
            folder /= part
            yield folder


def _lines(path: Path) -> list[str]:
    # Only a newline ends a line: the kernel writes other separators, as a form feed in a mount point, as they are.
    return path.read_bytes().decode("utf-8", "surrogateescape").rstrip("\n").split("\n")


def _paths(cgroup: list[str]) -> dict[int, PurePosixPath]:
    """Return the path of the control group in the hierarchy of each version that may control CPUs (cgroups(7))."""
    paths = {}
    for line in filter(None, cgroup):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            paths[1] = PurePosixPath(path)
    return paths


def _mounts(mountinfo: list[str]) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Yield the version, the root and the mount point of each hierarchy that may control CPUs (proc(5))."""
    for line in filter(None, mountinfo):
        left, _, right = line.partition(" - ")
        _, _, _, top, mount_point, *_ = left.split(" ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            version = 2
        elif kind == "cgroup" and "cpu" in options.split(","):
            version = 1
        else:
            continue
        yield version, _unescaped(top), _unescaped(mount_point)


def _unescaped(path: str) -> PurePosixPath:
    return PurePosixPath(_OCTAL.sub(lambda match: chr(int(match[1], 8)), path))


def _quota(group: Path) -> float | None:
    """Return the quota of one control group, in CPUs. A file may be missing: that of the root, or of another controller."""
    quota, period = [*_words(group / "cpu.max"), "", ""][:2]
    if not quota:
        quota, period = (" ".join(_words(group / name)) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max", or -1
    return int(quota) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []
