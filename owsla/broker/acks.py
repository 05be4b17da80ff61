"""Which deliveries of a channel to acknowledge, and how: cumulatively as far as it goes, one by one beyond. Pure."""

from __future__ import annotations

from bisect import bisect
from typing import Final

FURTHEST: Final = 1 << 20
"""How far a delivery tag may be ahead of the others: far above any prefetch, so a broker would have made it up."""



class AckTracker:
    """The delivery tags of one consuming channel, from delivered to acknowledged.

    Tags come as 1, 2, 3 …; they are done with in any order. What is contiguous is acknowledged with one cumulative
    acknowledgement; what is done beyond one that is still held is acknowledged alone, so that one held message does not use up
    the prefetch behind it.
    """

    __slots__ = ("_ahead", "_held", "_high", "_top")

    def __init__(self) -> None:
        self._high = 0  # the highest tag that is done
        self._held: dict[int, None] = {}  # the tags below it that are not, ascending
        self._top = 0  # done with none held before it, and not acknowledged; 0: none
        self._ahead: list[int] = []  # others that are done and not acknowledged

    def done(self, tag: int) -> None:
        """This delivery has been dealt with. Saying so twice changes nothing, nor does a tag that was made up."""
        high = self._high
        if tag > high:
            if tag - high > FURTHEST:
                return
            self._high = tag
            if tag == high + 1 and not self._held:
                self._top = tag
                return
            # What is held is remembered, and not what is done beyond it: that goes on for as long as one is held.
            self._held.update(dict.fromkeys(range(high + 1, tag)))
        elif tag in self._held:
            del self._held[tag]
        else:
            return
        self._ahead.append(tag)

    @property
    def high(self) -> int:
        """The highest tag that is done."""
        return self._high

    def take(self) -> tuple[int, list[int]]:
        """What to acknowledge now: cumulatively up to this tag (0: nothing), and these ones alone."""
        top, self._top = self._top, 0
        if not self._ahead:
            return top, []
        ahead, self._ahead = sorted(self._ahead), []
        held = next(iter(self._held), self._high + 1)
        # A cumulative acknowledgement has to name a tag that is still outstanding, so it is one of these.
        contiguous = bisect(ahead, held)
        if contiguous:
            top = max(top, ahead[contiguous - 1])
        return top, ahead[contiguous:]
