"""One process of a swarm: `python -m owsla.cli.swarm` with a plan on standard input.

    parent ─▶ child   the plan as a line of JSON; go; stop. The end of the input is the parent's
    child ─▶ parent   lines of JSON: {"progress": …} again and again; {"hopeless": …} where the first connections all fail;
                      {"ready": …}; then {"report": …}, or {"fatal": …}
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from typing import Any

from ...errors import ConfigError
from ._devices import Devices, Hopeless
from ._plan import Plan


class _Usage:
    """What this process has used, and what it was not given."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = time.process_time()
        self._starved = _starved()

    def since(self) -> dict[str, float]:
        """Seconds: by the clock, of CPU, and ready to run without one."""
        return {
            "seconds": time.monotonic() - self._wall,
            "cpu": time.process_time() - self._cpu,
            "starved": _starved() - self._starved,
        }


def _starved() -> float:
    """Seconds that this thread waited for a CPU; 0 where the system does not say. proc(5) has nothing of it:
    Documentation/scheduler/sched-stats.rst of Linux, "/proc/<pid>/schedstat".
    """
    try:
        with open("/proc/self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _resident() -> int:
    """Bytes of memory in use now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Do what the plan says; the exit status."""
    # A terminal's Ctrl-C goes to all; the parent says what it means (and keeps it from us until here).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        # Byte by byte, so that nothing of what follows is kept in a buffer.
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
        return 1  # nobody wants to know
    except (Hopeless, ConfigError) as error:
        with contextlib.suppress(BrokenPipeError):
            tell(fatal=str(error))
        return 1
    except OSError as error:
        with contextlib.suppress(BrokenPipeError):
            tell(fatal=(error.strerror or str(error)).lower())
        return 1
    return 0


def _run(plan: Plan, tell: Any) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    devices = Devices(plan, lambda counts: tell(progress=counts), lambda counts: tell(hopeless=counts))
    before = _resident()
    used = _Usage()
    connecting = {"took": devices.connect(), **used.since()}
    held = _resident() - before
    talking: dict[str, float] = {}
    if plan.mode != "storm":
        tell(ready=devices.counts.dump())
        devices.wait()
        used = _Usage()
        talking = {"took": devices.talk(), **used.since()}
        devices.settle()
    # Before the goodbyes: what comes, or ends, during them is no part of what was measured.
    report = {
        **devices.counts.dump(),
        "lost": devices.lost,
        "held": devices.held,
        "connecting": connecting,
        "talking": talking,
        "memory": held,
        "connect_times": devices.connect_times.dump(),
        "latency": devices.latency.dump(),
        "service": devices.service.dump(),
        "lateness": devices.lateness.dump(),
    }
    devices.close()
    tell(report=report)
