"""Whether a refusal is the queue's, or only the channel's. Pure.

A channel that uses a quorum queue for the first time while the queue has no leader, in the half second after a broker's machine
has died, is refused everything for that queue until that machine is back: long after there is another leader, and while any
other channel is served (RabbitMQ 3.10.8). So a refusal is doubted if nothing was ever taken on its channel, and tried on a new
one.
"""

from __future__ import annotations

from typing import Final


class RefusalHistory:
    """Of each queue: whether it took something on this channel, and how often in a row it refused what it was given.

    What refuses once in a while is no matter here: who publishes waits, and publishes again. This says on which channel.
    """

    FIRST: Final = 3
    """After so many refusals in a row another channel is tried; the leader may be there before that."""

    LAST: Final = 7
    """After so many the refusal is believed. With the waits in between, which double, that is some fifteen seconds."""

    RARELY: Final = 12
    """Past that, another channel is still tried after each so many: the last one may have come too early as well."""

    __slots__ = ("_doubtful", "_in_vain", "_tried")

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._doubtful: set[str] = set()
        self._in_vain: dict[str, int] = {}

    def channel_opened(self) -> None:
        """There is a new channel, on which nothing was tried."""
        self._tried.clear()
        self._doubtful.clear()

    def accepted(self, queue: str) -> None:
        """The queue has taken something on this channel."""
        if queue not in self._tried:
            self._tried.add(queue)
            self._doubtful.discard(queue)
            self._in_vain.pop(queue, None)

    def refused(self, queue: str) -> None:
        """The queue has refused something."""
        if queue not in self._tried:
            self._doubtful.add(queue)

    def needs_new_channel(self) -> bool:
        """What was refused is to be published again now: whether on a new channel."""
        new = False
        for queue in self._doubtful:
            times = self._in_vain[queue] = self._in_vain.get(queue, 0) + 1
            new = new or self.FIRST <= times <= self.LAST or (times > self.LAST and times % self.RARELY == 0)
        self._doubtful.clear()
        return new

    def is_believed(self, queue: str) -> bool:
        """Whether a refusal of this queue's is its own: it took something on this channel, or nothing on several."""
        return queue in self._tried or self._in_vain.get(queue, 0) >= self.LAST
