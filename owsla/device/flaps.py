"""Devices that connect again and again (`--max-flaps`). Pure.

The connections of a device are counted for a minute, from the first one. One more than the limit within that minute is refused,
and the device is held off: all its connections are refused for a minute. Then its count begins again at zero. Only connections
whose device was identified are counted, so another device or an attacker cannot have a device held off.

A restart of Owsla forgets all counts, and each device of the storm that follows counts one or two. To forget a device, when
there are too many, is to its advantage.
"""

from __future__ import annotations

from typing import Final

COUNTED: Final = 60.0
"""Seconds for which connections are counted."""

HELD_OFF: Final = 60.0
"""Seconds for which a device is held off."""

REMEMBERED: Final = 20_000
"""Device ids that are remembered: 4 MB. A device that flaps comes back within seconds, and is not the one that is forgotten."""


class FlapLimit:
    """The number of connections of each device within a minute, and the devices that are held off."""

    __slots__ = ("_counts", "_held_until", "limit")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        """Connections of a device within a minute; `None`: any number."""
        self._counts: dict[str, tuple[float, int]] = {}  # end of the minute and connections, the latest connection last
        self._held_until: dict[str, float] = {}  # in order of time

    def configure(self, limit: int | None) -> None:
        """Change the limit. Without one no device is held off."""
        self.limit = limit
        if limit is None:
            self._counts.clear()
            self._held_until.clear()

    def held_off(self, now: float) -> int:
        """Return the number of devices that are held off."""
        return sum(until > now for until in self._held_until.values())

    def remaining(self, device_id: str, now: float) -> float:
        """Return the number of seconds for which a device is still held off, or 0."""
        return max(0.0, self._held_until.get(device_id, now) - now)

    def enter(self, device_id: str, now: float) -> int | None:
        """Count a connection. Return `None` if the device may connect, 0 if it is held off, and the number of its connections
        if it is held off from now on.
        """
        if self.limit is None:
            return None
        until = self._held_until.get(device_id)
        if until is not None:
            if now < until:
                return 0
            del self._held_until[device_id]
        end, count = self._counts.pop(device_id, (0.0, 0))
        if now >= end:
            end, count = now + COUNTED, 0
        count += 1
        if count <= self.limit:
            self._counts[device_id] = end, count
            _forget_first(self._counts)
            return None
        self._held_until[device_id] = now + HELD_OFF
        _forget_first(self._held_until)
        return count


def _forget_first(remembered: dict[str, tuple[float, int]] | dict[str, float]) -> None:
    if len(remembered) > REMEMBERED:
        del remembered[next(iter(remembered))]
