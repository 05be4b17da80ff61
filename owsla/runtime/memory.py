"""Memory of a process that holds thousands of connections: garbage collection, and free memory for the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Final


class ProcessMemory:
    """The memory of this process, as Python and the C library manage it."""

    UNFREEZE_EVERY: Final = 100
    """Number of calls of `freeze` after which all objects are examined once."""

    def __init__(self) -> None:
        self._frozen = 0
        self._malloc_trim = _malloc_trim()

    def freeze(self) -> None:
        """Collect garbage, and exclude all objects that remain from future collections (`gc.freeze`).

        A full collection stops the process, and examines every object: some 10 ms for each 1,000 connections. Frozen objects
        are left out. A connection that ends needs no collector (`tests/unit/device/test_footprint.py`). Other objects that
        were in use when they were frozen, and are garbage since, wait for one of the rare times when all are examined.
        """
        if self._frozen and self._frozen % self.UNFREEZE_EVERY == 0:
            gc.unfreeze()
        self._frozen += 1
        gc.collect()
        gc.freeze()

    def trim(self) -> None:
        """Return free memory between objects to the system. The GNU C library returns only the end of its heap by itself.

        Handshakes leave such memory: 8,000 connections that came 1,000 at a time took 24.6 KB each, and 22.4 KB after this.
        A call takes a millisecond or two for each 1,000 connections (`TrimSchedule`).
        """
        self._malloc_trim(0)


class TrimSchedule:
    """Decision when to return free memory to the system: once a stampede of handshakes has ended, or lasts for minutes.

    Memory that a stampede leaves free is used again while it lasts. A call of `ProcessMemory.trim` stops the process, so there
    is at most one in `INTERVAL`, and none without `HANDSHAKES` before it.
    """

    HANDSHAKES: Final = 500
    """Number of handshakes that leave enough free memory behind."""

    CALM: Final = 50
    """Number of handshakes from one call of `due` to the next below which the stampede has ended."""

    INTERVAL: Final = 60.0
    """Minimum time between two returns in seconds."""

    LONGEST: Final = 300.0
    """Time in seconds after which a stampede that goes on is no reason to wait any more."""

    __slots__ = ("_at_last_call", "_handshakes", "_time")

    def __init__(self, now: float) -> None:
        self._handshakes = 0
        """Number of handshakes at the last return."""
        self._time = now - self.INTERVAL
        """Time of the last return."""
        self._at_last_call = 0

    def due(self, handshakes: int, now: float) -> bool:
        """Return whether memory is to be returned now. To be called once a second.

        `handshakes` is their number so far, and `now` a monotonic time in seconds.
        """
        calm = handshakes - self._at_last_call < self.CALM
        self._at_last_call = handshakes
        if handshakes - self._handshakes < self.HANDSHAKES or now < self._time + (self.INTERVAL if calm else self.LONGEST):
            return False
        self._handshakes, self._time = handshakes, now
        return True


def _malloc_trim() -> Callable[[int], object]:
    """Return malloc_trim(3), or a function that does nothing where the C library does not have it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda keep: None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
