"""Orphans of process 1.

When a process ends, its children become children of process 1 of their PID namespace, which has to wait for them, or they stay
in the process table as zombies. In a container process 1 may be Owsla. Orphans come from commands that are run in the container
beside it: health checks, `docker exec`.
"""

from __future__ import annotations

import os
from collections.abc import Container
from typing import Any, Final

from twisted.internet.process import reapProcessHandlers

INTERVAL: Final = 5.0
"""Seconds between two looks at the children. A zombie is a line in the process table until then."""


def reap_orphans_of_process_1(reactor: Any) -> None:
    """Reap orphans while the reactor runs, if this is process 1."""

    def reap() -> None:
        reap_orphans(reapProcessHandlers)
        reactor.callLater(INTERVAL, reap)

    if os.getpid() == 1:
        reactor.callWhenRunning(reap)


def reap_orphans(own: Container[int]) -> None:
    """Reap the children that have ended, up to the first whose process id is in `own`: Twisted reaps those itself."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # it stays a zombie
        except ChildProcessError:
            return  # there are no children
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
