"""CPU and memory of a process with its descendants, and the process that listens on a port, read from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(PROC):
        if name.isdigit():
            try:
                parent = int(_stat(int(name))[1])
            except OSError:
                continue  # the process has just ended
            children.setdefault(parent, []).append(int(name))
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def cpu(pid: int) -> float:
    """Return the CPU time in seconds of a process and its descendants, including ended ones that were waited for.

    The resolution is a nanosecond for living threads, if the kernel has schedstat, and some 10 milliseconds for ended threads
    and processes. Raise `ProcessLookupError` if the process itself is gone: a difference to an earlier value would be
    meaningless.
    """
    if not (PROC / str(pid)).exists():
        raise ProcessLookupError(f"process {pid} is gone")
    return sum(_cpu(one) for one in tree(pid))


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: field N of proc(5) has the index N - 3."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    tick = os.sysconf("SC_CLK_TCK")
    try:
        user, system, ended_user, ended_system = (int(field) for field in _stat(pid)[11:15])
    except OSError:
        return 0.0  # the process has just ended
    own = (user + system) / tick  # includes ended threads; user and system time are each rounded down
    # The CPU of an ended child is added to its parent when the parent waits for it. Parents are read first, so that a child
    # that ends meanwhile does not count twice.
    return max(own, _threads(pid)) + (ended_user + ended_system) / tick


def _threads(pid: int) -> float:
    """Return the CPU time in seconds of the living threads of a process."""
    spent = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            try:
                spent += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # the thread has just ended, or the kernel has no schedstat
    except OSError:
        pass
    return spent / 1e9


def pss(pid: int) -> float:
    """Return the memory of a process and its descendants in KB: the proportional set size."""
    return sum(_pss(one) for one in tree(pid))


def _pss(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found is not None else 0.0


def listener(port: int) -> int | None:
    """Return the process that listens on a TCP port of this machine, or `None` if it is not visible to this user."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for descriptor in os.scandir(f"/proc/{name}/fd"):
                if os.readlink(descriptor.path) in inodes:
                    return int(name)
        except OSError:
            continue
    return None
