"""An event handler that counts events by name."""

from __future__ import annotations

from collections.abc import Callable

from ..events import KINDS, Event


class EventCounts:
    """Number of events of each kind.

    A parent counts only its own events, because its workers count theirs.
    """

    __slots__ = ("_own", "by_name")

    def __init__(self, own: Callable[[], str] | None = None) -> None:
        """Count the events of the node that `own()` returns, or else all events."""
        self._own = own
        # All series exist from the start. Prometheus sees no increase in a series whose first sample is 1.
        self.by_name = dict.fromkeys(sorted(KINDS), 0)

    def handle(self, event: Event, node: str, when: float) -> None:
        if self._own is None or node == self._own():
            self.by_name[event.name] = self.by_name.get(event.name, 0) + 1
