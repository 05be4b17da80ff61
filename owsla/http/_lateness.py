"""The lateness of the reactor: a call that is due ten times a second, and how late it is made."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from ..supervision import Worker
from ._histogram import Histogram

PROBE_INTERVAL: Final = 0.1
"""Seconds between two measurements. A turn of the reactor that takes longer than this makes at least one of them late."""

RECENT: Final = 32
"""Measurements that are remembered, which is 3.2 s of them. A sample is taken every second; a worker has 2 s to answer."""


class Lateness(Histogram):
    """Histogram of the lateness of the reactor, and the last measurements one by one.

    Readers tell new measurements from old ones by `count`. So several can read, and each finds the worst measurement since it
    last looked.
    """

    __slots__ = ("_recent", "count")

    def __init__(self) -> None:
        super().__init__()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.count = 0
        """Number of measurements so far."""

    def observe(self, seconds: float) -> None:
        super().observe(seconds)
        self._recent.append(max(0.0, seconds))
        self.count += 1

    @property
    def recent(self) -> tuple[float, ...]:
        """The last measurements in seconds, the newest last."""
        return tuple(self._recent)


class LatenessProbe(Worker):
    """Service that measures the lateness of the reactor ten times a second."""

    def __init__(self, reactor: Any, lateness: Lateness) -> None:
        super().__init__(reactor)
        self.setName("beat")
        self._reactor = reactor
        self._lateness = lateness

    def startService(self) -> None:
        super().startService()
        self._probe_later()

    def _probe_later(self) -> None:
        self.later(PROBE_INTERVAL, self._probe, self._reactor.seconds() + PROBE_INTERVAL)

    def _probe(self, due: float) -> None:
        self._lateness.observe(self._reactor.seconds() - due)
        self._probe_later()
