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
        A call takes a millisecond or two for each 1,000 connections.
        """
        self._malloc_trim(0)


def _malloc_trim() -> Callable[[int], object]:
    """Return malloc_trim(3), or a function that does nothing where the C library does not have it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda keep: None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
