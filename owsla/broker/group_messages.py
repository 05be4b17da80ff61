"""Messages for many devices that wait for their publication to all nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from twisted.logger import Logger

from ..interfaces import Clock, DelayedCall
from ..letter import BAD, Letter

ATTEMPTS: Final = 3
"""Number of times that the broker may close the channel over a group message before that is recorded as `refused`."""

EXPIRY_INTERVAL: Final = 1.0
"""Seconds between two looks at group messages that wait, for those that have expired."""


class GroupMessage:
    """A message for many devices."""

    __slots__ = ("attempts", "group_id", "letter")

    def __init__(self, letter: Letter, group_id: str) -> None:
        self.letter = letter
        self.group_id = group_id
        self.attempts = 0
        """Number of channels that were closed over it, and of refusals by the queue of a node."""


class GroupMessages:
    """Messages for many devices in their order. They go one at a time: only the first one may be on its way.

    A message that cannot go is recorded: as `expired`, or as `refused` when the broker has refused it several times.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        *,
        publish: Callable[[], None],
        record: Callable[[Letter, str], None],
        now: Callable[[], float],
    ) -> None:
        """`publish` is called after messages have expired, to publish the next one. `record` records a message with a reason;
        `now()` returns the time in seconds since the epoch.
        """
        self._clock = clock
        self._publish = publish
        self._record = record
        self._now = now
        self._messages: deque[GroupMessage] = deque()
        self._expiry_call: DelayedCall | None = None
        self.on_its_way = False
        """True while the first message is published and not answered."""

    def __len__(self) -> int:
        """Return the number of messages that have not arrived yet."""
        return len(self._messages)

    def add(self, letter: Letter, group_id: str) -> None:
        """Add a message behind the others."""
        self._messages.append(GroupMessage(letter, group_id))

    def to_publish(self) -> GroupMessage | None:
        """Return the first message, without those before it that have expired or whose consumer has ended. `None`: there is
        none, or it is on its way.
        """
        while self._messages and not self.on_its_way:
            first = self._messages[0]
            if not first.letter.source.open:
                self._messages.popleft()  # the broker delivers it again, on another channel
            elif self._is_expired(first.letter):
                self._messages.popleft()
                self._record(first.letter, "expired")
            else:
                return first
        return None

    def published(self) -> None:
        """Note that the first message is on its way."""
        self.on_its_way = True

    def unanswered(self) -> None:
        """Note that the first message is not on its way any longer, and has not arrived for sure."""
        self.on_its_way = False

    def arrived(self) -> None:
        """Acknowledge the first message: the broker has confirmed it."""
        self.on_its_way = False
        letter = self._messages.popleft().letter
        letter.source.done(letter.tag)

    def refuse(self) -> None:
        """Record the first message as refused."""
        self._record(self._messages.popleft().letter, "refused")

    def blame(self) -> None:
        """Count that the channel was closed over the first message, or the queue of a node refused it. Record it if that
        happens again and again: those behind it wait.
        """
        first = self._messages[0]
        first.attempts += 1
        if first.attempts >= ATTEMPTS:
            self.refuse()

    # -- expiry ----------------------------------------------------------------------------------------------------------

    def _is_expired(self, letter: Letter) -> bool:
        if letter.deadline is not None and self._clock.seconds() >= letter.deadline:
            return True
        return letter.expires_at is not None and letter.expires_at != BAD and self._now() >= letter.expires_at

    def watch_expiry(self) -> None:
        """Look for messages that have expired from time to time, while there are any."""
        if self._messages and self._expiry_call is None:
            self._expiry_call = self._clock.callLater(EXPIRY_INTERVAL, self._look_for_expired)

    def _look_for_expired(self) -> None:
        self._expiry_call = None
        try:
            waiting = islice(self._messages, self.on_its_way, None)  # the first one may be on its way
            for message in [message for message in waiting if self._is_expired(message.letter)]:
                self._messages.remove(message)
                self._record(message.letter, "expired")
            self._publish()
        except Exception:
            self._log.failure("Publishing a message for many devices failed")
        self.watch_expiry()
