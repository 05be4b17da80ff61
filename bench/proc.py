"""What /proc says: the CPU and the memory of a process and all that it has started, and who listens on a port."""

from __future__ import annotations

import os
import re
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and all below it have spent so far: all threads, to the nanosecond where it is said."""
    return sum(_cpu(one) for one in tree(pid))


def _cpu(pid: int) -> float:
    spent = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
        if spent:
            return spent / 1e9
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
