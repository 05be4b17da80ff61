"""Connections that wait to publish: for the publisher to accept lines, or for their next share of the window.

States of a connection: *sharing*, from its registration until the lines of its last share are settled; *waiting*, until it is
resumed; then it is gone from here. A connection that leaves is removed at once from both; only the heap keeps its entry, which
is skipped later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import islice

from twisted.python.failure import Failure

from ..interfaces import Clock, LineSource

RESUMED_AT_ONCE = 200
"""Limit on connections resumed in one iteration of the reactor: resuming reading costs a system call each."""

RESUMED_WITHIN = 0.005
"""Seconds per iteration for resuming connections: each may have a share of lines to publish."""


class WaitingConnections:
    """The waiting connections in the order of their registration, and those that wait for their next share."""

    def __init__(self, clock: Clock, accepting: Callable[[], bool]) -> None:
        """`accepting` returns whether connections may be resumed."""
        self._clock = clock
        self._accepting = accepting
        self._waiting: dict[LineSource, None] = {}  # in the order of their registration
        # Connections that wait for their next share, with the position that settles the last one. The heap may have removed
        # ones.
        self._sharing: dict[LineSource, int] = {}
        self._shares: list[tuple[int, int, LineSource]] = []
        self._shares_asked = 0
        self._resuming = False
        self.next_share: float = math.inf
        """Number of lines that have left the window when the next share can be granted."""

    def add(self, sources: Iterable[LineSource]) -> None:
        """Register connections. `resume_soon` resumes them."""
        self._waiting.update(dict.fromkeys(sources))

    def add_sharing(self, source: LineSource, since: int) -> None:
        """Register a connection for when `since` lines have left the window."""
        self._sharing[source] = since
        self._shares_asked += 1
        heappush(self._shares, (since, self._shares_asked, source))
        self.next_share = self._shares[0][0]

    def remove(self, source: LineSource) -> bool:
        """Remove a connection. Return whether it was registered."""
        registered = source in self._waiting or source in self._sharing
        self._waiting.pop(source, None)
        self._sharing.pop(source, None)
        return registered

    def grant_shares(self, left: int) -> None:
        """Move connections whose last share is settled, now that `left` lines have left the window, to the end of the waiting
        ones."""
        shares = self._shares
        while shares and shares[0][0] <= left:
            since, _, source = heappop(shares)
            if self._sharing.get(source) == since:
                del self._sharing[source]
                self._waiting[source] = None
        self.next_share = shares[0][0] if shares else math.inf
        self.resume_soon()

    def resume_soon(self) -> None:
        """Resume waiting connections from the next iteration of the reactor on, while lines are accepted."""
        if self._waiting and not self._resuming and self._accepting():
            self._resuming = True
            self._clock.callLater(0, self._resume)

    def _resume(self) -> None:
        self._resuming = False
        end = self._clock.seconds() + RESUMED_WITHIN
        for source in list(islice(self._waiting, RESUMED_AT_ONCE)):
            if not self._accepting():
                return
            if self._clock.seconds() > end:
                break
            if source in self._waiting:
                del self._waiting[source]
                try:
                    source.resume()
                except Exception:
                    source.failed(Failure())
        self.resume_soon()
