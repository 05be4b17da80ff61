"""The delay before another attempt. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable


class RetryDelay:
    """Delays that double up to a limit. Their jitter keeps a fleet of gateways from returning to a broker in one instant."""

    __slots__ = ("_attempt", "_first", "_most", "_random")

    def __init__(self, first: float = 0.2, most: float = 5.0, random: Callable[[], float] = random.random) -> None:
        """`first` and `most` in seconds, before jitter; `random()` returns numbers from 0 to 1."""
        self._first = first
        self._most = most
        self._random = random
        self._attempt = 0

    def next(self) -> float:
        """Return the next delay in seconds: half of it fixed, half of it random."""
        delay = min(self._most, self._first * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return delay * (0.5 + self._random() / 2)

    def reset(self) -> None:
        """Begin again with the shortest delay, after a success."""
        self._attempt = 0
