"""Work that is done once, at the end of a reactor turn, however often it was asked for during the turn.

Writing to a socket, acknowledging deliveries and sending acknowledgements to devices each cost about as much for a hundred
messages as for one. So the hot path only notes that there is something to send. One delayed call for each turn, shared by all
connections, sends it. The time, too, is read once for all lines of a turn.

The set of established devices calls `flush` when it has read those that were ready: their lines leave before the reactor
serves the broker. Long work, such as a series of handshakes, calls it before it begins, and returns to the reactor when
`urgent` says that the broker has sent something meanwhile.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from ..interfaces import Clock


class EndOfTurn:
    """The end of the current reactor turn, in two rounds.

    The first round writes to devices, the second one to the broker. So a delivery is acknowledged after its line was written.
    """

    _log = Logger()

    __slots__ = ("_clock", "_first", "_last", "_now", "_urgent", "_watched", "now", "scheduled")

    def __init__(self, clock: Clock, now: Callable[[], float] = time.time) -> None:
        """`now()` returns the time in seconds since the epoch."""
        self._clock = clock
        self._now = now
        self.now = now()
        """Time of this turn in seconds since the epoch: when its devices were polled, or when its end began."""
        self._first: list[Callable[[], Any]] = []
        self._last: list[Callable[[], Any]] = []
        self.scheduled = False
        """True while there are calls for the end of this turn, or may be."""
        self._urgent: select.epoll | None = None
        self._watched: set[int] = set()

    # -- Descriptors that long work must not hold up -----------------------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Have long work interrupted when this descriptor becomes readable, if the system has the resources to watch it."""
        try:
            if self._urgent is None:
                self._urgent = select.epoll()
            self._urgent.register(fd, select.EPOLLIN)
        except OSError:
            self._close_unused()
        else:
            self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`. The descriptor may be closed already."""
        if fd not in self._watched:
            return
        assert self._urgent is not None
        self._watched.remove(fd)
        with suppress(OSError):
            self._urgent.unregister(fd)
        self._close_unused()

    def _close_unused(self) -> None:
        if self._urgent is not None and not self._watched:
            self._urgent.close()
            self._urgent = None

    def urgent(self) -> bool:
        """Return whether a watched descriptor is readable: long work leaves the rest for the next turn. It takes 1 µs."""
        return self._urgent is not None and bool(self._urgent.poll(0, 1))

    # -- The end of the turn -----------------------------------------------------------------------------------------------

    def read_time(self) -> None:
        """Read the time of this turn, before the lines of devices that it brings."""
        self.now = self._now()

    def call_first(self, flush: Callable[[], Any]) -> None:
        """Call `flush` in the first round at the end of this turn. The caller must not ask twice in a turn."""
        self._first.append(flush)
        if not self.scheduled:
            self.scheduled = True
            self._clock.callLater(0, self._run)

    def call_last(self, flush: Callable[[], Any]) -> None:
        """Call `flush` in the second round at the end of this turn. The caller must not ask twice in a turn."""
        self._last.append(flush)
        if not self.scheduled:
            self.scheduled = True
            self._clock.callLater(0, self._run)

    def flush(self) -> None:
        """Make the calls of this turn now. Those that are requested later are made at its end."""
        if not self.scheduled:
            return
        self.now = self._now()
        # Each list may grow during the iteration: flushing a consumer's acknowledgements schedules a flush of its connection.
        for calls in (self._first, self._last):
            for flush in calls:
                try:
                    flush()
                except Exception:
                    self._log.failure("A flush at the end of a reactor turn failed: {flush}", flush=flush)
            calls.clear()

    def _run(self) -> None:
        self.flush()
        # The second round may have added to the first one. Those calls are made at the end of the next turn.
        self.scheduled = bool(self._first)
        if self.scheduled:
            self._clock.callLater(0, self._run)
