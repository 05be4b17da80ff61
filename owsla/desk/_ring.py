"""A bounded memory of events.

A gateway keeps some ten thousand events for questions that are rarely asked. So an event is kept as the bytes of `marshal`: a
third of the memory of the object with its texts, nothing that the garbage collector has to visit, and a known size. Texts for
people are made when somebody asks. The bytes never leave the process, so their format may differ between versions.
"""

from __future__ import annotations

import json
import marshal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from ..events import KINDS, Event, UnknownEvent
from ._types import JSON

ENTRY: Final = 33 + 24
"""Bytes of memory that an entry takes beyond its content: 33 of the object (`sys.getsizeof`), 9 in the deque, and up to 15 that
malloc adds."""

_VERSION: Final = 2
"""Version of the format of `marshal` without references between equal objects: finding these costs more than they save here."""

_UNKNOWN: Final = -1

_Values = Callable[[Any], tuple[Any, ...]]


def _values_of(kind: type[Event]) -> _Values:
    """Return the function that returns the values of all fields of such an event, as a tuple."""
    names: tuple[str, ...] = kind.__match_args__
    if len(names) > 1:
        get: _Values = attrgetter(*names)
        return get
    return lambda event: tuple(getattr(event, name) for name in names)


_KINDS: Final[Sequence[type[Event]]] = tuple(KINDS.values())
_CODES: Final[Mapping[type[Event], tuple[int, _Values]]] = MappingProxyType({
    kind: (code, _values_of(kind)) for code, kind in enumerate(_KINDS)
})  # fmt: skip


def pack(event: Event, node: str, when: float) -> bytes:
    """Return an event of a node, at `when` in seconds since the epoch, as bytes for `unpack`.

    Texts are in them in UTF-8, whole, so that they can be searched.
    """
    known = _CODES.get(event.__class__)
    if known is not None:
        code, values_of = known
        try:
            return marshal.dumps((code, when, node, *values_of(event)), _VERSION)
        except ValueError:
            pass  # marshal takes no subclasses of `str`, which a dialect may give as a device id
    fields = json.loads(json.dumps(dict(event.fields()), default=str))
    return marshal.dumps((_UNKNOWN, when, node, event.name, event.warning, str(event), fields), _VERSION)


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event with its time and node."""

    event: Event
    node: str
    when: float
    """Time in seconds since the epoch."""

    def json(self) -> JSON:
        """Return the event as the API has it, with `worker` null: a parent fills that in."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in self.event.fields().items()}
        return {
            "time": round(self.when * 1000),
            "node": self.node,
            "worker": None,
            "event": self.event.name,
            "warning": self.event.warning,
            "text": str(self.event),
            "fields": fields,
        }


def unpack(packed: bytes) -> PastEvent:
    """Return the event in the bytes of `pack`."""
    code, when, node, *values = marshal.loads(packed)
    return PastEvent(UnknownEvent(*values) if code == _UNKNOWN else _KINDS[code](*values), node, when)


class EventRing:
    """The last events, packed, within a number of bytes and of events. Older ones are forgotten. Appending one is O(1)."""

    __slots__ = ("_bytes", "_entries", "_events", "_size")

    def __init__(self, size: int, events: int | None = None) -> None:
        """`size` is the limit in bytes of memory, by the estimate of `ENTRY`; `events` that of the number, if there is one.

        The estimate is up to 10 % above what is allocated: a test compares it with `tracemalloc`. A single event that is larger
        than `size` is not kept.
        """
        self._bytes = size
        self._events = events
        self._entries: deque[bytes] = deque()
        self._size = 0

    def append(self, packed: bytes) -> None:
        """Add the newest event."""
        entries = self._entries
        entries.append(packed)
        size = self._size + len(packed) + ENTRY
        limit, events = self._bytes, self._events
        while size > limit or (events is not None and len(entries) > events):
            size -= len(entries.popleft()) + ENTRY
        self._size = size

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Estimate of the memory that the events take, in bytes."""
        return self._size

    def oldest_first(self) -> Sequence[bytes]:
        """Return all events that are kept, oldest first."""
        return list(self._entries)

    def newest_first(self) -> Sequence[bytes]:
        """Return all events that are kept, newest first."""
        return list(reversed(self._entries))
