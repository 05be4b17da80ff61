"""Events as JSON values, between processes.

    {"event": "broker-warning", "warning": true, "text": "Broker: odd", "fields": {"text": "odd"}}

Workers send events to their parent in this form. During a rolling restart one of them may have a newer version, with other
events or other fields. An event that cannot be converted is passed on as it was sent (`UnknownEvent`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import _types
from ._types import Event

KINDS: Final[Mapping[str, type[Event]]] = {
    # Not Event.__subclasses__(): `slots=True` creates each class twice, and the first one lives until it is garbage collected.
    kind.name: kind
    for kind in vars(_types).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""All kinds of events by name."""


@dataclass(frozen=True, slots=True)
class UnknownEvent(Event):
    """An event of another process that this version does not know, or not with these fields."""

    name: str = field()  # type: ignore[misc]  # a field here, a class attribute in other events
    warning: bool = field()  # type: ignore[misc]
    text: str
    """Line for people."""
    content: Mapping[str, Any] = field(hash=False)
    """Fields as they were sent."""

    def fields(self) -> Mapping[str, Any]:
        return self.content

    def __str__(self) -> str:
        return self.text


def to_wire(event: Event) -> dict[str, Any]:
    """Convert an event to JSON values for `from_wire`."""
    return {"event": event.name, "warning": event.warning, "text": str(event), "fields": dict(event.fields())}


def from_wire(sent: Mapping[str, Any]) -> Event:
    """Convert JSON values to an event, or to an `UnknownEvent` if this version does not know it.

    Raise `ValueError` if the values are malformed.
    """
    try:
        name, warning, text, fields = sent["event"], sent["warning"], sent["text"], sent["fields"]
    except (KeyError, TypeError):
        raise ValueError("malformed event") from None
    if not (isinstance(name, str) and isinstance(warning, bool) and isinstance(text, str) and isinstance(fields, dict)):
        raise ValueError("malformed event")
    kind = KINDS.get(name)
    if kind is not None:
        try:
            event = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
            # A field with another type or meaning would fail later, or produce a wrong text.
            if event.warning == warning and str(event) == text:
                return event
        except (TypeError, ValueError, AttributeError):
            pass
    return UnknownEvent(name, warning, text, fields)
