"""Limit on repeated log lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 60.0
"""Seconds between two log lines of one kind: refused devices come again, and there may be thousands of them."""


class Throttle:
    """Limit for log lines of one kind: one in each interval. The others are only counted."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: float | None = None
        self._suppressed = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now. If not, count it as suppressed."""
        now = self._now()
        if self._last is not None and now - self._last < INTERVAL:
            self._suppressed += 1
            return False
        self._last = now
        return True

    def take_suppressed(self) -> int:
        """Return the number of suppressed lines since the last call."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
