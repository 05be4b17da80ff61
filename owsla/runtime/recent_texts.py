"""Texts that were reported a short time ago."""

from __future__ import annotations

from typing import Final, Protocol

LIMIT: Final = 1000
"""Texts that are remembered at most. A text may have the name of anything, so there may be any number of them."""


class _Seconds(Protocol):
    def seconds(self) -> float: ...


class RecentTexts:
    """Texts that were reported within the last seconds."""

    __slots__ = ("_clock", "_interval", "_times")

    def __init__(self, clock: _Seconds, interval: float) -> None:
        """Remember each text for `interval` seconds after its report."""
        self._clock = clock
        self._interval = interval
        self._times: dict[str, float] = {}  # in the order of the reports

    def repeats(self, text: str) -> bool:
        """Return whether a text was reported within the interval. If it was not, it is reported now."""
        now = self._clock.seconds()
        while self._times:
            oldest, time = next(iter(self._times.items()))
            if now - time < self._interval and len(self._times) < LIMIT:
                break
            del self._times[oldest]
        if text in self._times:
            return True
        self._times[text] = now
        return False
