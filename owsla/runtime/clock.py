"""The time by which timers go."""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger

_log = Logger(namespace="owsla")


def keep_steady(reactor: Any) -> None:
    """Have this reactor's timers go by a clock that nobody sets (`time.monotonic`), if there are none yet.

    Twisted's go by the wall clock (`twisted.python.runtime.seconds`). When that is set back by an hour, as on a machine that
    asks for the time after its start, whatever waits for a time waits for an hour: heartbeats to the broker, time-outs of
    devices, and lines that linger.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
    elif reactor.seconds is not time.monotonic:
        # Their times are those of the other clock, and cannot be changed. A .tac file may have scheduled them.
        _log.warn(
            "Timers follow the wall clock: a call was scheduled before the Owsla service was made. When the clock is set back, "
            "timeouts and heartbeats wait that much longer; make the service first, and schedule calls after it"
        )
