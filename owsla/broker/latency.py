"""The latency of confirms, measured on one line at a time. Pure.

Confirms come in order, so the followed line is confirmed when as many lines are confirmed as were published up to it. A time
for every line would cost memory and work on the hot path.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class ConfirmLatency:
    """The measurement of the time from the publication of a line to its confirm."""

    __slots__ = ("_observe", "followed", "since")

    def __init__(self, observe: Callable[[float], None] | None) -> None:
        """`observe` is called with the seconds that a line waited for its confirm; `None`: nothing is measured."""
        self._observe = observe
        self.followed: float = math.inf
        """Number of confirmed lines with which the followed line is confirmed."""
        self.since: float | None = None if observe is not None else 0.0
        """Time of publication of the followed line; `None` if the next line should be followed."""

    def follow(self, now: float, position: int) -> None:
        """Follow the line that was just published: it is confirmed when `position` lines are."""
        self.since = now
        self.followed = position

    def record(self, now: float) -> None:
        """Record the latency of the followed line, which was confirmed. The next published line is followed."""
        assert self._observe is not None
        assert self.since is not None
        self._observe(now - self.since)
        self.restart()

    def restart(self) -> None:
        """Follow the next published line instead: the count of the followed one no longer holds."""
        if self._observe is not None:
            self.followed = math.inf
            self.since = None

    @property
    def unconfirmed_since(self) -> float | None:
        """Time of publication of the followed line in seconds since the epoch; `None` if no line is followed."""
        return self.since if self._observe is not None else None
