"""Memory that messages take, and the alarm that makes publishers wait.

The account has three levels. Above `limit` the alarm is on: connections that publish are blocked. Above `EXHAUSTED_AT` times
the limit memory is exhausted, and connections that also consume are blocked as well; up to there they may publish, because the
acknowledgements that free memory arrive behind their publishes. The alarm ends at `LOW_WATERMARK` of the limit, so that
publishers do not alternate between blocked and unblocked with every message.
"""

from __future__ import annotations

from typing import Final, Protocol

from .messages import Message

LOW_WATERMARK: Final = 0.8
"""Share of the memory limit at which the alarm ends."""

EXHAUSTED_AT: Final = 2
"""Multiple of the memory limit at which connections that also consume have to wait."""


class BlockedConnection(Protocol):
    """Connection that waits for memory."""

    def alarm_ended(self) -> None:
        """Publish freely again."""

    def exhaustion_ended(self) -> None:
        """Publish again if the connection also consumes: the alarm is still on."""


class MemoryAccount:
    """Account of the bytes that messages take, with the connections that wait for memory."""

    __slots__ = ("_blocked", "alarm", "exhausted", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        """Bytes of messages: ready, unacknowledged, and partly received."""
        self.alarm = False
        """True while publishers have to wait."""
        self.exhausted = False
        """True while connections that also consume have to wait."""
        self._blocked: list[BlockedConnection] = []

    def configure(self, limit: int) -> None:
        """Change the limit. Publishers wait, or go on, as the bytes in use require now."""
        self.limit = limit
        self.add(0)

    def add(self, size: int) -> None:
        """Add bytes to the account, or remove them if negative."""
        self.used += size
        if self.alarm or self.used > self.limit:
            self._update_alarm()

    def _update_alarm(self) -> None:
        was_exhausted, self.exhausted = self.exhausted, self.used > EXHAUSTED_AT * self.limit
        self.alarm = self.used > self.limit * LOW_WATERMARK
        if not self.alarm:
            blocked, self._blocked = self._blocked, []
            for connection in blocked:
                connection.alarm_ended()
        elif was_exhausted and not self.exhausted:
            for connection in tuple(self._blocked):
                connection.exhaustion_ended()

    def retain(self, message: Message) -> None:
        """Count one more holder of the message. Its bytes count once, however many queues hold it."""
        message.references += 1
        if message.references == 1:
            self.add(message.size)

    def release(self, message: Message) -> None:
        """Count one holder of the message less."""
        message.references -= 1
        if not message.references:
            self.add(-message.size)

    def wait(self, connection: BlockedConnection) -> None:
        """Notify a connection when the alarm ends."""
        self._blocked.append(connection)

    def stop_waiting(self, connection: BlockedConnection) -> None:
        """Forget a connection that waits, if it does."""
        if connection in self._blocked:
            self._blocked.remove(connection)
