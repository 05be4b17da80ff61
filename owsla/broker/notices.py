"""Notices that nodes publish to each other: questions, answers, claims and lists of nodes. Pure."""

from __future__ import annotations

from typing import Any, Final

from ..amqp import wire
from . import headers as delivery
from .packing import APP_ID

UNCONFIRMED_NOTICES: Final = 1000
"""Limit of unconfirmed notices. The broker confirms a notice when the queues of all nodes have it: some milliseconds."""

UNCONFIRMED_BYTES: Final = 8 << 20
"""Limit of the bytes of unconfirmed notices. A question for 500 devices has 10 to 130 KB."""

QUESTION_PATIENCE: Final = 0.5
"""Seconds for which the next question waits for the confirm of the last one. The broker confirms a question when the queues of
all nodes have it. So many nodes that ask at once ask no faster than it can copy their questions."""


class Notice:
    """A question, an answer, a claim or a list of nodes."""

    __slots__ = ("body", "correlation_id", "headers", "lifetime", "queue", "reply_to", "size")

    def __init__(
        self,
        headers: dict[str, str],
        body: bytes,
        lifetime: float,
        *,
        queue: str = "",
        reply_to: str | None = None,
        correlation_id: bytes | None = None,
    ) -> None:
        self.headers = headers
        self.body = body
        self.lifetime = lifetime
        """Seconds after which the broker drops it."""
        self.queue = queue
        """Queue of the node that it is for; empty for the exchange."""
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        """Property `correlation_id` as encoded in a content header."""
        self.size = 0
        """Bytes that were published."""

    @property
    def question(self) -> bool:
        """True if the notice is a question."""
        return self.headers[delivery.NOTICE] == delivery.WHO_HAS

    def properties(self, user: str) -> bytes:
        """Return the encoded properties, for the user of the login."""
        properties: dict[str, Any] = {
            "headers": self.headers,
            "delivery_mode": 1,
            "expiration": str(max(1, round(self.lifetime * 1000))),
            # RabbitMQ accepts only the user name of the login: so a notice proves which user has published it.
            "user_id": user,
            "app_id": APP_ID,
        }
        if self.body:
            properties["content_type"] = "application/json"
        if self.reply_to is not None:
            properties["reply_to"] = self.reply_to
        encoded = wire.encode_properties(properties)
        if self.correlation_id is not None:
            encoded = wire.join_properties({**wire.split_properties(encoded), "correlation_id": self.correlation_id})
        return encoded


class UnconfirmedNotices:
    """Count of the notices that the broker has not confirmed, with limits on their number and bytes."""

    __slots__ = ("_asked_at", "_number", "_questions", "_size")

    def __init__(self) -> None:
        self._asked_at = 0.0
        self.clear()

    def clear(self) -> None:
        """Count none any longer: their channel has ended."""
        self._number = 0
        self._questions = 0
        self._size = 0

    def add(self, notice: Notice) -> None:
        """Count a notice that is published."""
        self._number += 1
        self._questions += notice.question
        self._size += notice.size

    def remove(self, notice: Notice) -> None:
        """Count a notice no longer: the broker has answered."""
        self._number -= 1
        self._questions -= notice.question
        self._size -= notice.size

    @property
    def full(self) -> bool:
        """True if a limit is reached."""
        return self._number >= UNCONFIRMED_NOTICES or self._size >= UNCONFIRMED_BYTES

    def may_ask(self, now: float) -> bool:
        """Return whether a question may go: the last one was confirmed, or has waited for that long enough. Note that it is
        asked then. `now` is the time in seconds of any clock.
        """
        if self._questions and now < self._asked_at + QUESTION_PATIENCE:
            return False
        self._asked_at = now
        return True
