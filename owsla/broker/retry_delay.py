"""How long to wait before trying again. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable


class RetryDelay:
    """Waits that double up to a bound, with jitter, so that a fleet of gateways does not return to a broker in one instant."""

    __slots__ = ("_attempt", "_first", "_most", "_random")

    def __init__(self, first: float = 0.2, most: float = 5.0, random: Callable[[], float] = random.random) -> None:
        """`first` and `most` in seconds, before jitter; `random()` gives numbers from 0 to 1."""
        self._first = first
        self._most = most
        self._random = random
        self._attempt = 0

    def next(self) -> float:
        """The next wait in seconds: half of it certain, half of it random."""
        wait = min(self._most, self._first * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return wait * (0.5 + self._random() / 2)

    def reset(self) -> None:
        """It worked: begin again with the shortest wait."""
        self._attempt = 0
