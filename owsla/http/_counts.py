"""Counts events by their names: a handler for the event manager."""

from __future__ import annotations

from collections.abc import Callable

from ..events import Event
from ..events._wire import KINDS


class EventCounts:
    """How often each kind of event happened.

    A parent counts its own alone, since each of its workers counts its own, too.
    """

    __slots__ = ("_own", "by_name")

    def __init__(self, own: Callable[[], str] | None = None) -> None:
        """`own()` is the node whose events are counted; without it all are."""
        self._own = own
        # A series that is there before its first event has an increase to show.
        self.by_name = dict.fromkeys(sorted(KINDS), 0)

    def handle(self, event: Event, node: str, when: float) -> None:
        if self._own is None or node == self._own():
            self.by_name[event.name] = self.by_name.get(event.name, 0) + 1
