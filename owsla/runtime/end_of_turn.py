"""Work that is done once, at the end of a reactor turn, however often it was asked for during the turn.

Writing to a socket, acknowledging deliveries and sending acknowledgements to devices each cost about as much for a hundred
messages as for one. So the hot path only notes that there is something to send. One delayed call for each turn, shared by all
connections, sends it. The time, too, is read once for all lines of a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from ..interfaces import Clock


class EndOfTurn:
    """The end of the current reactor turn, in two rounds.

    The first round writes to devices, the second one to the broker. So a delivery is acknowledged after its line was written.
    """

    _log = Logger()

    __slots__ = ("_clock", "_first", "_last", "_now", "_scheduled", "now")

    def __init__(self, clock: Clock, now: Callable[[], float] = time.time) -> None:
        """`now()` returns the time in seconds since the epoch."""
        self._clock = clock
        self._now = now
        self.now = now()
        """Time of this turn in seconds since the epoch: when its devices were polled, or when its end began."""
        self._first: list[Callable[[], Any]] = []
        self._last: list[Callable[[], Any]] = []
        self._scheduled = False

    def read_time(self) -> None:
        """Read the time of this turn, before the lines of devices that it brings."""
        self.now = self._now()

    def call_first(self, flush: Callable[[], Any]) -> None:
        """Call `flush` in the first round at the end of this turn. The caller must not ask twice in a turn."""
        self._first.append(flush)
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._run)

    def call_last(self, flush: Callable[[], Any]) -> None:
        """Call `flush` in the second round at the end of this turn. The caller must not ask twice in a turn."""
        self._last.append(flush)
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        self.now = self._now()
        # Each list may grow during the iteration: flushing a consumer's acknowledgements schedules a flush of its connection.
        for calls in (self._first, self._last):
            for flush in calls:
                try:
                    flush()
                except Exception:
                    self._log.failure("A flush at the end of a reactor turn failed: {flush}", flush=flush)
            calls.clear()
        # The second round may have added to the first one. Those calls are made at the end of the next turn.
        self._scheduled = bool(self._first)
        if self._scheduled:
            self._clock.callLater(0, self._run)
