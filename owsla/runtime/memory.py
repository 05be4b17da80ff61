"""Memory, where connections come by the thousand and stay: what looks at it, and what is given back of it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Final


class Memory:
    """Python's and the C library's memory of this process."""

    ALL: Final = 100
    """Everything is looked at once in so many times."""

    def __init__(self) -> None:
        self._settled = 0
        self._trim = _malloc_trim()

    def settle(self) -> None:
        """Put what there is out of the garbage collector's sight, what is garbage already excepted.

        A full collection is a pause for everybody, and looks at whatever is there: some 10 ms for each 1,000 connections. What
        is frozen is left out. Connections leave nothing to it when they end (`tests/unit/device/test_footprint.py`); what else
        was frozen while it was in use, and is garbage since, waits for one of the rare times when everything is looked at.
        """
        if self._settled % self.ALL == 0:
            gc.unfreeze()
        self._settled += 1
        gc.collect()
        gc.freeze()

    def give_back(self) -> None:
        """Give the system back what lies free between things in use. The GNU C library does so at its heap's end only.

        Handshakes leave such memory behind: 8,000 connections that came 1,000 at a time took 24.6 KB each, and 22.4 after this.
        It takes a millisecond or two for each 1,000 connections.
        """
        self._trim(0)


def _malloc_trim() -> Callable[[int], object]:
    """malloc_trim(3), or nothing where the C library has none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda keep: None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
