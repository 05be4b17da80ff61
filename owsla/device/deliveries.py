"""State of messages to devices beyond a single connection: expiry, duplicates, and the end of a consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..interfaces import Clock, Courier
from ..letter import DeliverySource, Letter
from .connections import Connection, guard
from .ordering import Ordering
from .reordering import ReorderLimits
from .repeats import ClosedConnections, HandedOver
from .slow_devices import SlowDevices


class Deliveries:
    """Recognizes messages that are too old or were written before. It is what `routing.Router` needs of the devices."""

    def __init__(
        self, clock: Clock, now: Callable[[], float], courier: Courier, reordering: ReorderLimits, slow: SlowDevices
    ) -> None:
        """`now()` is the time in seconds since the epoch."""
        self._clock = clock
        self._now = now
        self._courier = courier
        self._reordering = reordering
        self._slow = slow
        self._closed = ClosedConnections()
        self._handed_over = HandedOver()
        self.duplicates = 0
        """Number of messages whose sequence number was used before."""

    def expired(self, letter: Letter) -> bool:
        """Return whether a message is too old to be written."""
        if letter.deadline is not None and letter.deadline <= self._clock.seconds():
            return True
        return letter.expires_at is not None and letter.expires_at <= self._now()

    def duplicate(self, letter: Letter) -> None:
        """Settle a message whose sequence number was used before. The fate of the first copy is not known any more."""
        self.duplicates += 1
        letter.source.done(letter.tag)
        if letter.reply_to is not None:
            self._courier.report(letter, "duplicate")

    def repeated(self, letter: Letter) -> bool:
        """Settle a message of a closed connection as a duplicate if its number was written there. Return whether it was."""
        if letter.seq is None or letter.connection_id is None:
            return False
        if not self._closed.written(letter.connection_id, letter.seq, self._reordering.clock()):
            return False
        self.duplicate(letter)
        return True

    def recall(self, identity: bytes) -> bool:
        """Return whether a message without a number was handed over before its consumer ended."""
        return self._handed_over.take(identity, self._reordering.clock())

    def closed(self, connection: Connection, numbers: int | Ordering[Letter]) -> None:
        """Remember the sequence numbers that were written on a connection which has closed."""
        self._closed.add(connection.connection_id, numbers, self._reordering.clock())

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes] = ()) -> None:
        """Drop the waiting messages of a consumer that ended, since the broker delivers them again.

        `handed_over` has the identities of messages without a number that may be delivered again as well.
        """
        self._handed_over.add(handed_over, self._reordering.clock())
        for connection in dict.fromkeys(self._reordering.holders(source) + self._slow.holders(source)):
            guard(connection, connection.forget, source)
