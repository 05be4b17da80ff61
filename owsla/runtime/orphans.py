"""Orphans of process 1.

When a process ends, its children become children of process 1 of their PID namespace, which has to wait for them, or they stay
in the process table as zombies. In a container process 1 may be Owsla. Orphans come from commands that are run in the container
beside it: health checks, `docker exec`.

The kernel does not tell an orphan from a child that a library has started, such as with `subprocess` in a login checker. The
library asks for the status of its child some time after the end, and must find it. So a zombie is reaped only if nobody has
asked for its status for a minute.
"""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress
from typing import Any, Final

from twisted.internet.process import reapProcessHandlers

INTERVAL: Final = 5.0
"""Seconds between two looks at the children."""

LOOKS: Final = 13
"""Number of looks, one after another, that find a zombie before it is reaped: at least a minute. Time in which this process is
suspended does not count."""


class OrphanReaper:
    """Reaper of the children that have ended, and whose status nobody asks for."""

    def __init__(self) -> None:
        self._looks: dict[int, int] = {}  # by process id: number of looks that found this zombie

    def look(self, own: Container[int]) -> None:
        """Look at the children once. Those whose process id is in `own` are left alone: Twisted reaps them itself."""
        found = {pid: self._looks.get(pid, 0) + 1 for pid in _processes() if pid not in own and _is_zombie(pid)}
        for pid in [pid for pid, looks in found.items() if looks >= LOOKS]:
            del found[pid]
            with suppress(ChildProcessError):  # a thread has asked for the status meanwhile
                os.waitpid(pid, os.WNOHANG)
        self._looks = found


def reap_orphans_of_process_1(reactor: Any) -> None:
    """Reap orphans while the reactor runs, if this is process 1."""
    reaper = OrphanReaper()

    def look() -> None:
        reaper.look(reapProcessHandlers)
        reactor.callLater(INTERVAL, look)

    if os.getpid() == 1:
        reactor.callWhenRunning(look)


def _processes() -> list[int]:
    """Return the processes of the PID namespace. waitid(2) for any child returns the first zombie only."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []  # /proc is not mounted


def _is_zombie(pid: int) -> bool:
    """Return whether a process is a child that has ended. It stays a zombie."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
