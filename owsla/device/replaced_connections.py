"""Connections that share a device id, with `--on-duplicate replace`. Pure.

A device that reconnects replaces its earlier connection at once. Two devices with one identity would replace each other as fast
as they can connect, and each time costs a handshake. So a device id whose connections are replaced too often is contested: from
then on a replaced connection stays open for a while beside the newer one. The replaced device has no reason to reconnect before
that, so two devices take turns every `STAY` seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from ..runtime.leaky_buckets import LeakyBuckets

BURST: Final = 5
"""Replacements in a row of one device id that are normal, as for a device at the edge of a radio cell."""

INTERVAL: Final = 30.0
"""Seconds until one more is normal. More than `STAY`, so that a contested device id stays contested."""

STAY: Final = 10.0
"""Seconds for which a replaced connection of a contested device id stays open."""

STAYING: Final = 8
"""Replaced connections of one device id that stay open at a time, if a device connects in a loop without closing."""

TOLD_EVERY: Final = 60.0
"""Seconds between two events about one contested device id."""

REMEMBERED: Final = 10_000
"""Number of device ids whose replacements are remembered: 2 MB."""

Connection = TypeVar("Connection", bound=Hashable)


class ReplacedConnections(Generic[Connection]):
    """Connections that were replaced: the time at which each is to be closed, and the contested device ids."""

    __slots__ = ("_rate", "_staying", "_told", "_untold")

    def __init__(self) -> None:
        self._rate: LeakyBuckets[str] = LeakyBuckets(BURST, INTERVAL, REMEMBERED)
        self._told: LeakyBuckets[str] = LeakyBuckets(1, TOLD_EVERY, REMEMBERED)
        self._untold: dict[str, int] = {}  # replacements that were not reported, by contested device id
        self._staying: dict[str, deque[tuple[float, Connection]]] = {}

    def __len__(self) -> int:
        """Return the number of replaced connections that stay open."""
        return sum(map(len, self._staying.values()))

    def replaced(self, device_id: str, connection: Connection, now: float) -> tuple[list[Connection], int]:
        """Note that a newer connection of a device replaces an earlier one.

        Return the connections to close now, and the number of replacements to report: 0 unless the device id is contested and a
        report is due.
        """
        contested = self._rate.full(device_id, now)
        self._rate.add(device_id, now)
        if not contested:
            return [connection], 0
        staying = self._staying.setdefault(device_id, deque())
        staying.append((now + STAY, connection))
        closing = [staying.popleft()[1]] if len(staying) > STAYING else []
        untold = self._untold.pop(device_id, BURST) + 1
        due = not self._told.full(device_id, now)
        if due:
            self._told.add(device_id, now)
        self._untold[device_id] = 0 if due else untold
        if len(self._untold) > REMEMBERED:
            del self._untold[next(iter(self._untold))]
        return closing, untold if due else 0

    def due(self, now: float) -> list[Connection]:
        """Return the connections whose time is over. Some may be closed already."""
        over = []
        for device_id, staying in list(self._staying.items()):
            while staying and staying[0][0] <= now:
                over.append(staying.popleft()[1])
            if not staying:
                del self._staying[device_id]
        return over
