"""The times at which open batches are published."""

from __future__ import annotations

from collections.abc import Callable

from ..interfaces import Clock, DelayedCall
from ..runtime.end_of_turn import EndOfTurn


class BatchPacing:
    """The next publication of all open batches: at most one in `delay` seconds, and none later than that.

    A line that comes when none was published within the delay leaves at the end of its turn, so that a single line waits for
    nothing. Under load all lines of the delay travel together.
    """

    def __init__(self, clock: Clock, turn: EndOfTurn, delay: float) -> None:
        """`delay` is the longest wait of a line in seconds. 0: batches have the lines of one turn of the reactor."""
        self._clock = clock
        self._turn = turn
        self._delay = delay
        self._publish: Callable[[], bool] = _nothing
        self._last = clock.seconds() - delay
        self._call: DelayedCall | None = None
        self._at_end_of_turn = False
        self._ending = False

    def bind(self, publish: Callable[[], bool]) -> None:
        """Call `publish` when the open batches are due. It returns whether there were any."""
        self._publish = publish

    def configure(self, delay: float) -> None:
        """Change the delay. Lines that wait already leave at the end of this turn."""
        if self._ending:
            return
        self._delay = delay
        if self._call is not None:
            self.hurry()

    def end(self) -> None:
        """Publish lines at the end of their turn from now on, also after another `configure`."""
        self.configure(0.0)
        self._ending = True
        self.hurry()

    def line_waits(self) -> None:
        """Schedule the publication: a batch has been opened."""
        if self._call is None and not self._at_end_of_turn:
            left = self._last + self._delay - self._clock.seconds()
            if left <= 0:
                self.hurry()
            else:
                self._call = self._clock.callLater(left, self._due)

    def hurry(self) -> None:
        """Publish at the end of this turn."""
        if not self._at_end_of_turn:
            self._at_end_of_turn = True
            self._turn.call_last(self._due)

    def _due(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._at_end_of_turn = False
        if self._publish():  # else the batch that was to be published then was full before
            self._last = self._clock.seconds()


def _nothing() -> bool:
    """Publish nothing: no publisher is bound."""
    return False
