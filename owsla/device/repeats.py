"""What was written to devices and may come again. Pure.

A message is acknowledged after it was written. Where the connection to the broker ends in between, the broker delivers the
message again, and its device may have closed its connection by then. A repeat that nobody recognizes would go on record as
undeliverable, although the device was told and a report said so.

As long as a connection is open, its `Ordering` knows which numbers were written. After that `ClosedConnections` does. For
messages without a number `HandedOver` knows those of which the acknowledgement may have been lost. Both forget: the oldest
first when there are many, and all after some time in which messages came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .ordering import Ordering

REMEMBERED_FOR: Final = 600.0
"""Seconds, not counting those in which no messages came. A repeat comes when the broker has noticed that the connection is
dead, ahead of what is in the queue."""

CONNECTIONS_REMEMBERED: Final = 50_000
"""Closed connections with numbered messages that are remembered: at some 280 bytes each, and up to 600 more where numbers were
skipped, 44 MB at most."""

RANGES_REMEMBERED: Final = 16
"""Ranges of skipped numbers that are remembered for a closed connection. A number below all of them counts as not written: one
record too many is better than one too few."""

MESSAGES_REMEMBERED: Final = 20_000
"""Messages without a number that are remembered, at some 200 bytes each. One channel has no more than its prefetch of them."""


class ClosedConnections:
    """The numbers that were written on connections which have closed."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: dict[bytes, tuple[float, int | Ordering[Any]]] = {}  # since when; in that order

    def add(self, connection_id: bytes, numbers: int | Ordering[Any], now: float) -> None:
        """Note a connection that has closed: its next number, where none was skipped, or what orders them."""
        if numbers != 0:
            if not isinstance(numbers, int):
                numbers.compact(RANGES_REMEMBERED)
            self._connections[connection_id] = (now, numbers)
            if len(self._connections) > CONNECTIONS_REMEMBERED:
                del self._connections[next(iter(self._connections))]

    def written(self, connection_id: bytes, seq: int, now: float) -> bool:
        """Return whether the number was written on that connection."""
        connections = self._connections
        while connections and (oldest := next(iter(connections))) and connections[oldest][0] <= now - REMEMBERED_FOR:
            del connections[oldest]
        numbers = connections.get(connection_id, (now, 0))[1]
        return seq < numbers if isinstance(numbers, int) else numbers.written(seq)

    def __len__(self) -> int:
        return len(self._connections)


class HandedOver:
    """The identities of messages without a number that were handed over on channels which have ended."""

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages: dict[bytes, tuple[float, int]] = {}  # since when, and how many alike; in that order

    def add(self, identities: Iterable[bytes], now: float) -> None:
        """Note the messages of a channel that has ended."""
        messages = self._messages
        for identity in identities:
            _, alike = messages.pop(identity, (now, 0))
            messages[identity] = (now, alike + 1)
        while len(messages) > MESSAGES_REMEMBERED:
            del messages[next(iter(messages))]

    def take(self, identity: bytes, now: float) -> bool:
        """Return whether a message was handed over before. What is taken is forgotten: each copy comes again once."""
        since, alike = self._messages.pop(identity, (0.0, 0))
        if alike > 1:
            self._messages[identity] = (since, alike - 1)
        return alike > 0 and since > now - REMEMBERED_FOR

    def __len__(self) -> int:
        return len(self._messages)
