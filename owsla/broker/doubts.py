"""Whether a refusal is the queue's, or only the channel's. Pure.

A channel that uses a quorum queue for the first time while the queue has no leader, in the half second after a broker's machine
has died, is refused everything for that queue until that machine is back: long after there is another leader, and while any
other channel is served (RabbitMQ 3.10.8). So a refusal is doubted if nothing was ever taken on its channel, and tried on a new
one.
"""

from __future__ import annotations

from typing import Final


class Doubts:
    """How often in a row what was refused was refused again."""

    FIRST: Final = 3
    """After so many refusals a new channel is tried; the leader may be there before that."""

    LAST: Final = 10
    """After so many it is believed: with the waits between them, which double up to five seconds, that is half a minute."""

    __slots__ = ("_doubtful", "_in_vain")

    def __init__(self) -> None:
        self._in_vain = 0
        self._doubtful = False

    def refused(self, *, untried: bool) -> None:
        """The broker refused something. `untried`: nothing was taken on this channel before."""
        self._doubtful = self._doubtful or untried

    def again(self) -> bool:
        """What was refused is to be published again: whether that should be on a new channel."""
        doubtful, self._doubtful = self._doubtful, False
        if not doubtful:
            return False
        self._in_vain += 1
        return self.FIRST <= self._in_vain <= self.LAST

    def taken(self) -> None:
        """The broker takes what it refused, or something else of that kind."""
        self._in_vain = 0
        self._doubtful = False

    @property
    def believed(self) -> bool:
        """Whether it was tried often enough: the queue itself takes no more."""
        return self._in_vain >= self.LAST
