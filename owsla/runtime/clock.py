"""The clock that the reactor's timers follow."""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger

_log = Logger(namespace="owsla")


def use_monotonic_clock(reactor: Any) -> None:
    """Make a reactor's timers follow `time.monotonic` instead of the wall clock, unless calls are scheduled already.

    Twisted's timers follow the wall clock (`twisted.python.runtime.seconds`). When that clock is set back by an hour, as on a
    machine that asks for the time after its start, every timer waits an hour longer: heartbeats to the broker, time-outs of
    devices, and lingering lines.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
    elif reactor.seconds is not time.monotonic:
        # Scheduled calls have their times by the wall clock, and those cannot be changed. A .tac file may have scheduled them.
        _log.warn(
            "Timers follow the wall clock: a call was scheduled before the Owsla service was made. When the clock is set back, "
            "timeouts and heartbeats wait that much longer; make the service first, and schedule calls after it"
        )
