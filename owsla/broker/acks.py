"""Acknowledgements of a consuming channel: cumulative as far as possible, individual beyond. Pure.

Theory of operation. RabbitMQ numbers the deliveries of a channel 1, 2, 3, ... Messages finish in any order, because a message
may be held (for a missing number, a slow device, or the confirm of its forward). Tags up to the first held one are acknowledged
together (`multiple`), which is cheap for both sides. Finished tags beyond it can only be acknowledged one by one. That must be
done in time, so that one held message does not use up the prefetch. But most messages are held for a moment, and then a
cumulative acknowledgement covers those beyond them, too. So the caller decides when to take them one by one. Invariants:
`_held` has the unfinished tags below `_high`, ascending; no tag is acknowledged twice, which would be a channel error
(PRECONDITION_FAILED, unknown delivery tag).
"""

from __future__ import annotations

from bisect import bisect
from typing import Final

FURTHEST: Final = 1 << 20
"""Greatest plausible gap before a delivery tag: far above any prefetch (65,535). A larger one is a protocol error of the
broker."""


class AckTracker:
    """Delivery tags of a channel, from delivery to acknowledgement."""

    __slots__ = ("_ahead", "_before", "_held", "_high", "_top")

    def __init__(self) -> None:
        self._high = 0  # highest finished tag
        self._held: dict[int, None] = {}  # unfinished tags below it, ascending
        self._top = 0  # finished, with none held before it, and not acknowledged yet; 0: none
        self._ahead: list[int] = []  # other finished tags that are not acknowledged yet
        self._before = 0  # no tag before this one is in `_ahead`: it was held when acknowledgements were taken last

    def done(self, tag: int) -> None:
        """Mark a delivery as finished. A repeated or implausible tag is ignored."""
        high = self._high
        if tag > high:
            if tag - high > FURTHEST:
                return
            self._high = tag
            if tag == high + 1 and not self._held:
                self._top = tag
                return
            # Remember the held tags, not the finished ones beyond: their number would grow as long as one tag is held.
            self._held.update(dict.fromkeys(range(high + 1, tag)))
        elif tag in self._held:
            del self._held[tag]
        else:
            return
        self._ahead.append(tag)

    @property
    def high(self) -> int:
        """Highest finished tag."""
        return self._high

    def settled(self, highest: int) -> bool:
        """Return whether all deliveries up to the tag `highest` are finished."""
        return highest <= self._high and not self._held

    @property
    def ahead(self) -> int:
        """Number of finished tags that are not acknowledged yet, and were behind an unfinished one when they finished."""
        return len(self._ahead)

    def take(self, *, individually: bool = True) -> tuple[int, list[int]]:
        """Return the tag to acknowledge cumulatively (0: none), and the tags to acknowledge individually: none of them unless
        `individually`.
        """
        top, self._top = self._top, 0
        if not self._ahead:
            return top, []
        held = next(iter(self._held), self._high + 1)
        if held == self._before and not individually:
            return top, []
        self._before = held
        ahead = sorted(self._ahead)
        # The tag of a cumulative acknowledgement must itself be unacknowledged, so take it from these.
        contiguous = bisect(ahead, held)
        if contiguous:
            top = max(top, ahead[contiguous - 1])
        if not individually:
            self._ahead = ahead[contiguous:]
            return top, []
        self._ahead = []
        return top, ahead[contiguous:]
