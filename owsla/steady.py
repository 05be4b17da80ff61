"""The time by which timers go."""

from __future__ import annotations

import time
from typing import Any


def keep_steady(reactor: Any) -> None:
    """Have this reactor's timers go by a clock that nobody sets (`time.monotonic`), if there are none yet.

    Twisted's go by the wall clock (`twisted.python.runtime.seconds`). When that is set back by an hour, as on a machine that
    asks for the time after its start, whatever waits for a time waits for an hour: heartbeats to the broker, time-outs of
    devices, and lines that linger.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
