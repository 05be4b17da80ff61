"""Rate limits for many keys, in bounded memory. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class LeakyBuckets(Generic[Key]):
    """A leaky bucket for each key: `burst` occurrences fill it, and one leaks out every `interval` seconds.

    The state of a bucket is the time at which it will be empty (the generic cell rate algorithm, ITU-T I.371), so a key costs
    one number. At most `limit` keys are remembered. The key that occurred least recently is forgotten first.
    """

    __slots__ = ("_empty_at", "burst", "interval", "limit")

    def __init__(self, burst: int, interval: float, limit: int) -> None:
        """Make buckets that are all empty. `interval` is in seconds."""
        self.burst = burst
        self.interval = interval
        self.limit = limit
        self._empty_at: dict[Key, float] = {}

    def __len__(self) -> int:
        """Return the number of keys that are remembered."""
        return len(self._empty_at)

    def add(self, key: Key, now: float) -> None:
        """Count one occurrence."""
        empty_at = max(self._empty_at.pop(key, now), now) + self.interval
        self._empty_at[key] = min(empty_at, now + self.burst * self.interval)
        if len(self._empty_at) > self.limit:
            del self._empty_at[next(iter(self._empty_at))]

    def take_back(self, key: Key) -> None:
        """Undo one `add`."""
        if key in self._empty_at:
            self._empty_at[key] -= self.interval

    def full(self, key: Key, now: float) -> bool:
        """Return whether the next occurrence must wait: there were `burst` occurrences, and none has leaked out since."""
        empty_at = self._empty_at.get(key)
        # A sum of fractions of a second is not exact: allow a microsecond.
        return empty_at is not None and empty_at - now > (self.burst - 1) * self.interval + 1e-6
