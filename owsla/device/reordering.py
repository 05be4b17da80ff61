"""Limits on the messages that connections hold for a missing sequence number.

Each connection orders its own messages (`ordering.Ordering`). A message that is held stays unacknowledged, and a consumer gets
no more messages than its prefetch before some are acknowledged. So the messages held are limited in three ways:

- in time: after `gap_timeout` the missing number is skipped;
- for a connection: past `reorder_limit` messages it skips the missing number at once;
- for a consumer: past half of its prefetch the connection that holds most of its messages skips.

After an outage of the broker the queues are full, and the messages of one device are read from one queue before those of the
other. The second and third limits are suspended for `CATCHING_UP` seconds then, as long as the prefetch is not exhausted. The
clock for gaps stands still while no messages can arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ..events import Event, GapSkipped
from ..interfaces import Clock
from ..letter import DeliverySource, Letter
from .connections import Connection, guard
from .held_messages import HeldMessages
from .ordering import PausableClock

CATCHING_UP: Final = 1.0
"""Seconds after an outage in which the limits on numbers of held messages are suspended."""


class ReorderLimits:
    """Counts the messages held for missing sequence numbers, and has connections skip the numbers that do not arrive."""

    def __init__(self, clock: Clock, emit: Callable[[Event], None], gap_timeout: float, reorder_limit: int) -> None:
        self._clock = clock
        self._emit = emit
        self._gap_timeout = gap_timeout
        self._limit = reorder_limit
        self._held: HeldMessages[Connection] = HeldMessages()
        self._holders: dict[Connection, None] = {}
        self._suspended_until = 0.0  # 0 while the limits hold
        self.clock = PausableClock(clock.seconds)
        """Clock of the gaps."""
        self.skips = 0
        """Number of sequence numbers that were skipped so far."""

    def configure(self, gap_timeout: float, reorder_limit: int) -> None:
        """Change the limits. A connection that holds more messages than allowed skips at its next one, or at the time limit."""
        self._gap_timeout = gap_timeout
        self._limit = reorder_limit

    @property
    def gap_timeout(self) -> float:
        """Time in seconds for which a connection waits for a missing sequence number."""
        return self._gap_timeout

    def connections(self) -> list[Connection]:
        """Return the connections that wait for a missing sequence number."""
        return list(self._holders)

    def hold(self, connection: Connection, letter: Letter) -> None:
        """Count a message that a connection holds."""
        self._held.add(letter.source, connection)
        self._holders[connection] = None

    def release(self, connection: Connection, letters: Iterable[Letter]) -> None:
        """Stop counting messages that a connection no longer holds."""
        for letter in letters:
            self._held.remove(letter.source, connection)
        if not connection.held:
            self._holders.pop(connection, None)

    def holders(self, source: DeliverySource) -> list[Connection]:
        """Return the connections that hold messages of a consumer."""
        return self._held.holders(source)

    def held(self, source: DeliverySource) -> int:
        """Return the number of held messages of a consumer."""
        return self._held.count(source)

    def enforce(self, connection: Connection, source: DeliverySource) -> None:
        """Apply the limits after a connection has held a message of a consumer."""
        if self._suspended_until:
            # The missing message is probably in the queue that is read later. It cannot arrive any more once the consumer has
            # its whole prefetch outstanding.
            if self._held.count(source) >= source.prefetch:
                greatest = self._held.greatest(source)
                guard(greatest, greatest.skip_gap)
            return
        self._enforce_limit(connection)
        self._enforce_share(source)

    def _enforce_limit(self, connection: Connection) -> None:
        while connection.held > self._limit:  # more than once only after the limit was lowered
            connection.skip_gap()

    def _enforce_share(self, source: DeliverySource) -> None:
        while self._held.count(source) > max(1, source.prefetch // 2):
            greatest = self._held.greatest(source)
            held = greatest.held
            guard(greatest, greatest.skip_gap)
            if greatest.held == held:
                return  # it has failed: its messages are settled when it is closed

    def skipped(self, connection: Connection, missing: range) -> None:
        """Count and announce sequence numbers that a connection has skipped."""
        self.skips += missing.stop - missing.start  # len() fails for numbers as large as a back end may choose
        connection_id, traceparent = connection.connection_id.decode(), connection.traceparent
        self._emit(GapSkipped(connection_id, connection.device_id, missing.start, missing.stop - 1, traceparent))

    def flowing(self, flows: bool) -> None:
        """Note whether messages can arrive at this node. While they cannot, the clock of the gaps stands still."""
        if flows:
            if self.clock.paused:
                self._suspended_until = self._clock.seconds() + min(self._gap_timeout, CATCHING_UP)
            self.clock.resume()
        else:
            self.clock.pause()

    def tick(self, now: float) -> None:
        """Skip the numbers that were missed for too long."""
        if self._suspended_until and now >= self._suspended_until:
            self._reinstate()
        if not self._holders:
            return
        due = self.clock() - self._gap_timeout
        for connection in list(self._holders):
            missing_since = connection.missing_since
            if missing_since is not None and missing_since <= due:
                guard(connection, connection.skip_gap)

    def _reinstate(self) -> None:
        """Apply the limits again, also to the messages that arrived while they were suspended."""
        self._suspended_until = 0.0
        for connection in list(self._holders):
            guard(connection, self._enforce_limit, connection)
        for source in self._held.sources():
            self._enforce_share(source)
