"""Nodes whose queues do not exist, and for how long. Pure.

A node whose connection broke comes back to its queue, and the queue of a node can be absent for a moment while a broker
restarts. So a node counts as lost only when its queue was absent for the grace period, and from then on at once, until its
queue is there again.
"""

from __future__ import annotations

from typing import Final

REMEMBERED: Final = 1000
"""Number of absent nodes that are remembered. The bound is needed since a made-up connection id names a node, too."""


class AbsentNodes:
    """The queues of nodes that were found absent, each with the time at which that was found first."""

    __slots__ = ("_grace", "_since")

    def __init__(self, grace: float) -> None:
        """`grace` in seconds."""
        self._grace = grace
        self._since: dict[str, float] = {}

    def is_lost(self, queue: str, now: float) -> bool:
        """Note that a queue is absent. Return whether it has been absent for the grace period."""
        if len(self._since) >= REMEMBERED and queue not in self._since:
            del self._since[next(iter(self._since))]
        return now - self._since.setdefault(queue, now) >= self._grace

    def lost(self, queue: str, now: float) -> None:
        """Note that the node of a queue is known to be dead: its grace period is over."""
        self.is_lost(queue, now)
        self._since[queue] = now - self._grace

    def present(self, queue: str) -> None:
        """Note that a queue is there."""
        if self._since:
            self._since.pop(queue, None)
