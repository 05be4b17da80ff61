"""Counts events by their names: a handler for the event manager."""

from __future__ import annotations

from collections.abc import Iterable

from ..events import Event


class EventCounts:
    """How often each kind of event happened."""

    __slots__ = ("by_name",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        """`names` are those to begin with 0: a series that is there before its first event has an increase to show."""
        self.by_name = dict.fromkeys(names or _names(), 0)

    def handle(self, event: Event) -> None:
        name = event.name
        self.by_name[name] = self.by_name.get(name, 0) + 1


def _names() -> list[str]:
    return sorted({kind.name for kind in Event.__subclasses__()})
