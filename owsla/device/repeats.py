"""Memory of messages that were written to devices and may be delivered again. Pure.

A message is acknowledged after it was written. If the connection to the broker ends in between, the broker delivers the message
again, and by then the device may have disconnected. An unrecognized repeat would be recorded as undeliverable, although the
device received the message, and a report said so.

While a connection is open, its `Ordering` has the numbers that were written. After that `ClosedConnections` has them. For
messages without a number `HandedOver` has those whose acknowledgement may have been lost. Both are bounded: the oldest entries
are forgotten first, and all after some time in which messages came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .ordering import Ordering

REMEMBERED_FOR: Final = 600.0
"""Seconds, without those in which no messages came. The broker delivers a repeat when it notices that the connection is dead,
ahead of the other messages in the queue."""

CONNECTIONS_REMEMBERED: Final = 50_000
"""Number of closed connections with numbered messages that are remembered. Each takes some 280 bytes, and up to 600 more if
numbers were skipped: 44 MB at most."""

RANGES_REMEMBERED: Final = 16
"""Number of ranges of skipped numbers that are remembered for a closed connection. A number below all of them counts as not
written: one record too many is better than one too few."""

MESSAGES_REMEMBERED: Final = 20_000
"""Number of messages without a number that are remembered, at 200 bytes each. A channel has at most its prefetch of them."""


class ClosedConnections:
    """The sequence numbers that were written on closed connections."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: dict[bytes, tuple[float, int | Ordering[Any]]] = {}  # the time of closing, in that order

    def add(self, connection_id: bytes, numbers: int | Ordering[Any], now: float) -> None:
        """Remember a closed connection: its next number if none was skipped, or else its `Ordering`."""
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
        self._messages: dict[bytes, tuple[float, int]] = {}  # the time and the number of equal messages, in the order of time

    def add(self, identities: Iterable[bytes], now: float) -> None:
        """Remember the messages of a channel that has ended."""
        messages = self._messages
        for identity in identities:
            _, alike = messages.pop(identity, (now, 0))
            messages[identity] = (now, alike + 1)
        while len(messages) > MESSAGES_REMEMBERED:
            del messages[next(iter(messages))]

    def take(self, identity: bytes, now: float) -> bool:
        """Return whether a message was handed over before. Forget one copy: each copy is delivered again once."""
        since, alike = self._messages.pop(identity, (0.0, 0))
        if alike > 1:
            self._messages[identity] = (since, alike - 1)
        return alike > 0 and since > now - REMEMBERED_FOR

    def __len__(self) -> int:
        return len(self._messages)
