"""What is done once, at the end of a reactor turn, however often it was asked for meanwhile.

Writing to a socket, acknowledging deliveries and telling devices what is safe all cost about as much for a hundred messages as
for one. So the hot path only notes that it has something to say; one delayed call a turn, shared by everybody, says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from ..interfaces import Clock


class Turn:
    """The end of the current reactor turn.

    There are two rounds: what goes to devices is written first, and then what goes to the broker, so that a delivery is
    acknowledged after its line was written.
    """

    _log = Logger()

    __slots__ = ("_clock", "_late", "_pending", "_soon")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._soon: list[Callable[[], Any]] = []
        self._late: list[Callable[[], Any]] = []
        self._pending = False

    def devices(self, flush: Callable[[], Any]) -> None:
        """Call `flush` at the end of this turn, in the round of the devices. The caller sees to it that it asks once."""
        self._soon.append(flush)
        if not self._pending:
            self._pending = True
            self._clock.callLater(0, self._end)

    def broker(self, flush: Callable[[], Any]) -> None:
        """Call `flush` at the end of this turn, in the round of the broker. The caller sees to it that it asks once."""
        self._late.append(flush)
        if not self._pending:
            self._pending = True
            self._clock.callLater(0, self._end)

    def _end(self) -> None:
        # Each list may grow while it is walked: a flush of a consumer's acknowledgements asks for its connection's.
        for calls in (self._soon, self._late):
            for flush in calls:
                try:
                    flush()
                except Exception:
                    self._log.failure("A flush at the end of a turn failed: {flush}", flush=flush)
            calls.clear()
        self._pending = bool(self._soon)
        if self._pending:
            self._clock.callLater(0, self._end)
