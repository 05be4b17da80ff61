"""What /proc says: the CPU and the memory of a process and all that it has started, and who listens on a port."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(PROC):
        if name.isdigit():
            try:
                parent = int(_stat(int(name))[1])
            except OSError:
                continue  # it has just ended
            children.setdefault(parent, []).append(int(name))
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and all below it have spent so far, those included that have ended and were waited for.

    To the nanosecond for threads that live, where the system says so; to some 10 ms for those that have ended, and for
    processes. `ProcessLookupError` when the process itself is gone: a difference to what was read before would be nonsense.
    """
    if not (PROC / str(pid)).exists():
        raise ProcessLookupError(f"process {pid} is gone")
    return sum(_cpu(one) for one in tree(pid))


def _stat(pid: int) -> list[str]:
    """What follows the name in proc(5)'s stat, from the state on: its field N is number N - 3 here."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    tick = os.sysconf("SC_CLK_TCK")
    try:
        user, system, ended_user, ended_system = (int(field) for field in _stat(pid)[11:15])
    except OSError:
        return 0.0  # it has just ended
    own = (user + system) / tick  # of ended threads too, each of the two rounded down
    # What ended children spent is their parent's once it has waited for them. Parents are first in a tree: none counts twice.
    return max(own, _threads(pid)) + (ended_user + ended_system) / tick


def _threads(pid: int) -> float:
    """Seconds of CPU of a process's living threads."""
    spent = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            try:
                spent += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # it has just ended, or the system does not say
    except OSError:
        pass
    return spent / 1e9


def pss(pid: int) -> float:
    """Memory of a process and all below it in KB: proportional set size."""
    return sum(_pss(one) for one in tree(pid))


def _pss(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found is not None else 0.0


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine, as far as one may know."""
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
