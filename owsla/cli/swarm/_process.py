"""The process of a swarm: `python -m owsla.cli.swarm` with a plan on standard input.

parent ──▶ child   the plan as a line of JSON, then the words go and stop; the end of the input means that the parent is gone
child ──▶ parent   lines of JSON: {"progress": …} again and again, {"all_failed": …} if the first connections all failed,
                   {"ready": …} with all connections, and at the end {"report": …} or {"fatal": …}
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from typing import Any

from ...errors import ConfigError, os_reason
from ._devices import SimulatedDevices
from ._errors import SwarmError
from ._plan import Plan


class CPUUsage:
    """The CPU time that this process has used, and the time that it waited for a CPU, since this object was made."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = time.process_time()
        self._starved = _starved()

    def since(self) -> dict[str, float]:
        """Return seconds: of the clock, of CPU, and ready to run without a CPU."""
        return {
            "seconds": time.monotonic() - self._wall,
            "cpu": time.process_time() - self._cpu,
            "starved": _starved() - self._starved,
        }


def _starved() -> float:
    """Return the seconds that this thread waited for a CPU, or 0 if the kernel does not tell.

    proc(5) does not mention the file; Documentation/scheduler/sched-stats.rst of Linux does.
    """
    try:
        with open("/proc/self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Carry out the plan on standard input. Return the exit status."""
    # A terminal sends Ctrl-C to all processes. The parent handles it, and has blocked it here until now.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        # One byte at a time: a buffer could swallow the words that follow.
        byte = os.read(0, 1)
        if not byte:
            return 1
        line += byte

    def tell(**what: Any) -> None:
        data = json.dumps(what).encode() + b"\n"
        while data:
            data = data[os.write(1, data) :]

    try:
        _run(Plan.load(line.decode()), tell)
    except BrokenPipeError:
        return 1  # the parent is gone
    except (SwarmError, ConfigError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            tell(fatal=os_reason(error) if isinstance(error, OSError) else str(error))
        return 1
    return 0


def _run(plan: Plan, tell: Any) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    devices = SimulatedDevices(plan, lambda counts: tell(progress=counts), lambda counts: tell(all_failed=counts))
    before = _resident()
    usage = CPUUsage()
    connecting = {"took": devices.connect(), **usage.since()}
    memory = _resident() - before
    talking: dict[str, float] = {}
    if plan.mode != "storm":
        tell(ready=devices.measured.counts.dump())
        devices.wait()
        usage = CPUUsage()
        talking = {"took": devices.send_lines(), **usage.since()}
        devices.settle()
    # Before the connections are closed: lines that arrive, and connections that end, during that are not measured.
    report = {**devices.measured.dump(), "connecting": connecting, "talking": talking, "memory": memory}
    devices.close()
    tell(report=report)
