"""Events from one process to another, as values that JSON can hold.

    {"event": "broker-warning", "warning": true, "text": "Broker: odd", "fields": {"text": "odd"}}

Workers report to their parent this way. During a rolling restart one of the two may be newer than the other, and know other
events, or other fields of them: what cannot be understood is still told as it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import _types
from ._types import Event

KINDS: Final[Mapping[str, type[Event]]] = {
    # Not Event.__subclasses__(): `slots=True` makes each class twice, and the first ones are there until they are collected.
    kind.name: kind
    for kind in vars(_types).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""Every event there is, by its name."""


@dataclass(frozen=True, slots=True)
class UnknownEvent(Event):
    """An event of another process, of a kind that is not known here, or not as it was sent."""

    name: str = field()  # type: ignore[misc]  # what other classes have for all their events this one has for each
    warning: bool = field()  # type: ignore[misc]
    text: str
    """The line for a person."""
    content: Mapping[str, Any] = field(hash=False)
    """What it holds, as it was sent."""

    def fields(self) -> Mapping[str, Any]:
        return self.content

    def __str__(self) -> str:
        return self.text


def to_wire(event: Event) -> dict[str, Any]:
    """An event as values for `json.dumps`, to be read by `from_wire`."""
    return {"event": event.name, "warning": event.warning, "text": str(event), "fields": dict(event.fields())}


def from_wire(sent: Mapping[str, Any]) -> Event:
    """The event that was sent, or an `UnknownEvent` where it is none of those that are known here.

    `ValueError`, if it is no event at all.
    """
    try:
        name, warning, text, fields = sent["event"], sent["warning"], sent["text"], sent["fields"]
    except (KeyError, TypeError):
        raise ValueError("this is no event") from None
    if not (isinstance(name, str) and isinstance(warning, bool) and isinstance(text, str) and isinstance(fields, dict)):
        raise ValueError("this is no event")
    kind = KINDS.get(name)
    if kind is not None:
        try:
            event = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
            # A field that has another type, or another meaning, would fail later on, or tell something wrong.
            if event.warning == warning and str(event) == text:
                return event
        except (TypeError, ValueError, AttributeError):
            pass
    return UnknownEvent(name, warning, text, fields)
