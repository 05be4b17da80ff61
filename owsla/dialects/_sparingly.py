"""How often the same thing is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PAUSE: Final = 60.0
"""Seconds between two warnings of a kind: devices that are refused come again, and there may be thousands of them."""


class Sparingly:
    """Whether a warning is to be said now, or only to be counted."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: float | None = None
        self._unsaid = 0

    def due(self) -> bool:
        """Whether it may be said. One that may not counts as unsaid."""
        now = self._now()
        if self._last is not None and now - self._last < PAUSE:
            self._unsaid += 1
            return False
        self._last = now
        return True

    def unsaid(self) -> int:
        """How many were not said since this was last asked."""
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid
