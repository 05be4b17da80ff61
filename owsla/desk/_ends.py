"""The memory of the last ends of connections, and of the last refusals.

A device that does not work has left a trace here: its connection ended, or was refused before it was open.

Nobody can make this forget the ends of others: there is one memory for identified devices, one for connections without a device
id, and one for those that never were open, each with its bound. A device that is refused and tries again, for days, takes the
place of one event: equal refusals of one address are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ..events import (
    DeviceContested,
    DeviceDisconnected,
    DeviceHeldOff,
    DeviceKicked,
    DeviceReplaced,
    DialectFailed,
    Event,
    HandshakeFailed,
    LoginFailed,
)
from ._refusals import PackedRepeats, Refusals
from ._ring import EventRing, pack

IDENTIFIED: Final = 4 << 20
"""Bytes of memory for the ends of identified devices: some 19,000 events."""

ANONYMOUS: Final = 2 << 20
"""Bytes of memory for the ends of connections without a device id: some 9,000 events."""

REFUSED: Final = 2 << 20
"""Bytes of memory for connections that were refused before they were open: some 4,000 different refusals."""


class Ends:
    """Event handler that keeps how connections ended, and which were refused."""

    wants: Final = (
        DeviceContested,
        DeviceDisconnected,
        DeviceHeldOff,
        DeviceKicked,
        DeviceReplaced,
        DialectFailed,
        HandshakeFailed,
        LoginFailed,
    )
    """Kinds of events. A line that is too long, a malformed frame and a slow device are reasons of `DeviceDisconnected`."""

    __slots__ = ("_anonymous", "_identified", "_refusals")

    def __init__(self) -> None:
        self._identified = EventRing(IDENTIFIED)
        self._anonymous = EventRing(ANONYMOUS)
        self._refusals = Refusals(REFUSED)

    def handle(self, event: Event, node: str, when: float) -> None:
        if isinstance(event, HandshakeFailed):
            self._refusals.add(event, node, when)
        elif getattr(event, "device_id", None) is None:
            self._anonymous.append(pack(event, node, when))
        else:
            self._identified.append(pack(event, node, when))

    @property
    def size(self) -> int:
        """Estimate of the memory that the events take, in bytes."""
        return self._identified.size + self._anonymous.size + self._refusals.size

    def memories(self) -> Iterator[Iterable[PackedRepeats]]:
        """Yield what each of the memories has at that time, newest first."""
        for ring in (self._identified, self._anonymous):
            # One by one: a list of these tuples would take some milliseconds.
            yield ((packed, 1, None) for packed in ring.newest_first())
        yield self._refusals.newest_first()

    def __len__(self) -> int:
        return len(self._identified) + len(self._anonymous) + len(self._refusals)
