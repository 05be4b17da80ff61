"""Which deliveries of a channel to acknowledge, and how: cumulatively as far as it goes, one by one beyond. Pure."""

from __future__ import annotations


class AckTracker:
    """The delivery tags of one consuming channel, from delivered to acknowledged.

    Tags come as 1, 2, 3 …; they are done with in any order. What is contiguous is acknowledged with one cumulative
    acknowledgement; what is done beyond one that is still held is acknowledged alone, so that one held message does not use up
    the prefetch behind it.
    """

    __slots__ = ("_acked_alone", "_ahead", "_low", "_top")

    def __init__(self) -> None:
        self._low = 1  # the lowest tag that is not done
        self._top = 0  # the highest tag below it that is done and not acknowledged; 0: none
        self._ahead: set[int] = set()  # done beyond _low, not acknowledged
        self._acked_alone: set[int] = set()  # acknowledged beyond _low

    def done(self, tag: int) -> None:
        """This delivery has been dealt with. Saying so twice changes nothing."""
        if tag != self._low:
            if tag > self._low and tag not in self._acked_alone:
                self._ahead.add(tag)
            return
        self._top = tag
        tag += 1
        if self._ahead or self._acked_alone:
            while True:
                if tag in self._ahead:
                    self._ahead.remove(tag)
                    self._top = tag
                elif tag in self._acked_alone:
                    # A cumulative acknowledgement has to name a tag that is still outstanding, so _top stays.
                    self._acked_alone.remove(tag)
                else:
                    break
                tag += 1
        self._low = tag

    def take(self) -> tuple[int, list[int]]:
        """What to acknowledge now: cumulatively up to this tag (0: nothing), and these ones alone."""
        top, self._top = self._top, 0
        if not self._ahead:
            return top, []
        alone = sorted(self._ahead)
        self._acked_alone |= self._ahead
        self._ahead = set()
        return top, alone
