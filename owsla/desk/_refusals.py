"""Refusals of connections that never were open: a bounded memory, in which equal ones are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..events import HandshakeFailed
from ._ring import ENTRY, PastEvent, pack
from ._types import JSON

REPEATED: Final = 250
"""Bytes of memory that an entry takes beside those of `ENTRY`: a tuple, two numbers, and a place in a dictionary, which may be
a third full only."""

PackedRepeats: TypeAlias = tuple[bytes, int, float | None]
"""The packed last event, the number of equal ones, and the time of the first in seconds since the epoch, or `None`."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An event, or several equal ones of one address."""

    past: PastEvent
    """The last one of them."""
    count: int = 1
    first: float | None = None
    """Time of the first one in seconds since the epoch; `None` if it is the only one."""

    def json(self) -> JSON:
        """Return the event as the API has it, with `count`, and `first`, the time of the first one."""
        past = self.past.json()
        return {**past, "count": self.count, "first": past["time"] if self.first is None else round(self.first * 1000)}


class Refusals:
    """The last refusals, within a number of bytes. Equal ones of one address are one entry."""

    __slots__ = ("_bytes", "_entries", "size")

    def __init__(self, size: int) -> None:
        """`size` is the limit in bytes of memory, by the estimate of `ENTRY` and `REPEATED`."""
        self._bytes = size
        self._entries: dict[int, tuple[bytes, int, float]] = {}  # the last event, the number, and the time of the first
        self.size = 0
        """Estimate of the memory that the refusals take, in bytes."""

    def add(self, event: HandshakeFailed, node: str, when: float) -> None:
        """Add the newest refusal."""
        entries = self._entries
        # A collision, with a probability of 1 in 10^15, would show one refusal as a repetition of another.
        key = hash((host_of(event.peer), event.door, event.reason, event.subject, event.serial))
        packed = pack(event, node, when)
        earlier = entries.pop(key, None)
        if earlier is None:
            entries[key] = (packed, 1, when)
            self.size += len(packed) + ENTRY + REPEATED
        else:
            entries[key] = (packed, earlier[1] + 1, earlier[2])
            self.size += len(packed) - len(earlier[0])
        while self.size > self._bytes:
            forgotten, _, _ = entries.pop(next(iter(entries)))
            self.size -= len(forgotten) + ENTRY + REPEATED

    def __len__(self) -> int:
        return len(self._entries)

    def newest_first(self) -> Sequence[PackedRepeats]:
        """Return all refusals that are kept, newest first."""
        return list(reversed(self._entries.values()))


def host_of(peer: str) -> str:
    """Return the address in the `peer` of an event, without the port; the whole text for a unix socket."""
    return peer if peer.startswith("unix:") else peer.rpartition(":")[0].strip("[]")
