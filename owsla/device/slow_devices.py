"""Devices that do not take what is written to them.

When a socket takes no more, the transport pauses the connection as a producer, and further messages wait in the connection,
unacknowledged. Three limits keep that bounded: `write_buffer` bytes for one connection (the connection checks that), a quarter
of the prefetch of a consumer for all connections together, and `write_timeout` seconds without progress.

Progress is what the transport reports as `untaken`: bytes that were written and that the peer has not acknowledged. EPOLLOUT
alone would not do: the kernel reports room only after a third of the send buffer has drained, which takes a slow device longer
than the time-out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..events import Event, SlowDevice
from ..interfaces import Clock
from ..letter import DeliverySource, Letter
from .connections import Connection, guard
from .held_messages import HeldMessages


class _Paused(NamedTuple):
    """A connection whose socket takes no more."""

    since: float
    checked: float
    """Time of the last check at which it had taken something; at first the same as `since`."""
    untaken: int
    """Number of bytes that were not taken then."""


class SlowDevices:
    """Watches the connections whose socket takes no more, and closes those that make no progress."""

    def __init__(self, clock: Clock, emit: Callable[[Event], None], write_timeout: float) -> None:
        self._clock = clock
        self._emit = emit
        self._timeout = write_timeout
        self._paused: dict[Connection, _Paused] = {}  # in the order of their checks
        self._queued: HeldMessages[Connection] = HeldMessages()

    def configure(self, write_timeout: float) -> None:
        """Change the write time-out. It applies to devices that are slow already, counted from their last progress."""
        self._timeout = write_timeout

    def paused(self, connection: Connection) -> None:
        """Watch a connection whose socket takes no more."""
        now = self._clock.seconds()
        before = self._paused.pop(connection, None)
        since = now if before is None else before.since
        self._paused[connection] = _Paused(since, now, connection.transport.untaken)

    def resumed(self, connection: Connection) -> None:
        """Stop watching a connection whose socket has taken everything, or is closed."""
        self._paused.pop(connection, None)

    @property
    def write_timeout(self) -> float:
        """Time in seconds after which a connection that makes no progress is closed."""
        return self._timeout

    def connections(self) -> list[Connection]:
        """Return the connections whose socket takes no more."""
        return list(self._paused)

    def since(self, connection: Connection) -> float | None:
        """Return the time, by the clock of the reactor, since which the socket of a connection takes no more, or `None`."""
        paused = self._paused.get(connection)
        return None if paused is None else paused.since

    def stuck_since(self, connection: Connection) -> float | None:
        """Return the time, by the clock of the reactor, since which a device has taken nothing at all.

        `None` if its socket takes more, or if the device has taken something since the last check.
        """
        paused = self._paused.get(connection)
        return None if paused is None or connection.transport.untaken < paused.untaken else paused.checked

    def queue(self, connection: Connection, letter: Letter) -> None:
        """Count a message that waits for a socket. Close the slowest connection if too much of a prefetch waits."""
        source = letter.source
        self._queued.add(source, connection)
        while self._queued.count(source) > max(1, source.prefetch // 4):
            queued, slowest = self._queued.count(source), self._queued.greatest(source)
            guard(slowest, slowest.close_slow, "too many messages wait for slow devices, most of them for this one")
            if self._queued.count(source) == queued:
                return  # it has failed: its messages are settled when it is closed

    def unqueue(self, connection: Connection, letters: Iterable[Letter]) -> None:
        """Stop counting messages that no longer wait."""
        for letter in letters:
            self._queued.remove(letter.source, connection)

    def holders(self, source: DeliverySource) -> list[Connection]:
        """Return the connections for whose socket messages of a consumer wait."""
        return self._queued.holders(source)

    def queued(self, source: DeliverySource) -> int:
        """Return the number of messages of a consumer that wait for a socket."""
        return self._queued.count(source)

    def closed_as_slow(self, connection: Connection, why: str) -> None:
        """Announce that a connection is closed since its device is too slow."""
        door, traceparent = connection.factory.door, connection.traceparent
        self._emit(SlowDevice(connection.connection_id.decode(), connection.device_id, why, door, traceparent))

    def tick(self, now: float) -> None:
        """Close the connections whose device has taken nothing for the write time-out."""
        for connection, paused in list(self._paused.items()):
            if now - paused.checked < self._timeout:
                break
            if connection.transport.untaken < paused.untaken:
                self.paused(connection)  # slow, but it reads
            else:
                guard(connection, connection.close_slow, f"it took nothing for {self._timeout:g} s")
