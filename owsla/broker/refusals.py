"""The decision whether a refusal is the fault of a queue, or only of the channel. Pure.

A channel that uses a quorum queue for the first time while the queue has no leader, in the half second after the machine of a
broker has died, gets every message for that queue refused until that machine is back: long after there is another leader, and
while any other channel is served (RabbitMQ 3.10.8). So a refusal on a channel on which the queue accepted nothing is not
believed at once, and the message is published again on a new channel.
"""

from __future__ import annotations

from typing import Final


class RefusalHistory:
    """For each queue: whether it accepted a message on this channel, and how many attempts in a row it refused.

    A refusal now and then is not counted here: the publisher waits, and publishes again. This decides on which channel.
    """

    FIRST: Final = 3
    """Number of refusals in a row after which another channel is tried. The leader may be there before that."""

    LAST: Final = 7
    """Number of refusals in a row after which a refusal is believed. With the delays in between, which double, that is some
    fifteen seconds."""

    RARELY: Final = 12
    """Past `LAST`, number of refusals between two new channels: the last new channel may have come too early as well."""

    __slots__ = ("_accepted", "_attempts", "_refused")

    def __init__(self) -> None:
        self._accepted: set[str] = set()
        self._refused: set[str] = set()
        self._attempts: dict[str, int] = {}

    def channel_opened(self) -> None:
        """Begin with a new channel, on which no queue has accepted or refused a message."""
        self._accepted.clear()
        self._refused.clear()

    def accepted(self, queue: str) -> None:
        """Note that a queue has accepted a message on this channel."""
        if queue not in self._accepted:
            self._accepted.add(queue)
            self._refused.discard(queue)
            self._attempts.pop(queue, None)

    def refused(self, queue: str) -> None:
        """Note that a queue has refused a message."""
        if queue not in self._accepted:
            self._refused.add(queue)

    def needs_new_channel(self) -> bool:
        """Count an attempt to publish again. Return whether it needs a new channel."""
        new = False
        for queue in self._refused:
            attempts = self._attempts[queue] = self._attempts.get(queue, 0) + 1
            new = new or self.FIRST <= attempts <= self.LAST or (attempts > self.LAST and attempts % self.RARELY == 0)
        self._refused.clear()
        return new

    def is_believed(self, queue: str) -> bool:
        """Return whether the queue itself refuses: it accepted a message on this channel, or none on several channels."""
        return queue in self._accepted or self._attempts.get(queue, 0) >= self.LAST
