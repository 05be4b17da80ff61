"""The last events of a gateway, as the question `events`.

Theory of operation
-------------------

A reader asks again and again for the events after those that it has seen, and gives the *cursor* of the last answer. A cursor
is text that readers do not interpret. It has the number of the next event for each process that the reader has heard of:

    1f2e3d4c-2a.9a8b7c6d-0

A process is named by an *instance*, which is random and never used again. So a worker that was replaced is another instance,
whose events are all new to the reader. Each process looks up its own number, and a parent makes one cursor of those of its
workers. A worker that has not answered in time keeps its number in the cursor, so that nothing is told twice.

Each event in an answer has a cursor of its own (`cursor`): an answer to that has the events after it. A stream to a browser
gives it as the id of each event.
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Final

from ..events import (
    BadFrame,
    DeviceConnected,
    DeviceContested,
    DeviceDisconnected,
    DeviceHeldOff,
    DeviceIdentified,
    DeviceReplaced,
    DialectFailed,
    Event,
    FannedOut,
    GapSkipped,
    HandshakeFailed,
    LinesSkipped,
    LineTooLong,
    LoginFailed,
    SlowDevice,
    Undeliverable,
    UndeliverableLost,
)
from ._paging import read_limit
from ._ring import EventRing, PastEvent, pack, unpack
from ._types import JSON, Args, BadArgument, NamedAnswers, named

EVENTS: Final = 1000
"""Number of events of devices that a process keeps, and of others."""

SIZE: Final = 1 << 20
"""Bytes of memory that these may take: half of it each. Usual ones take half of that. A peer chooses some of the texts."""

OF_DEVICES: Final = frozenset({
    BadFrame, DeviceConnected, DeviceContested, DeviceDisconnected, DeviceHeldOff, DeviceIdentified, DeviceReplaced,
    DialectFailed, FannedOut, GapSkipped, HandshakeFailed, LinesSkipped, LineTooLong, LoginFailed, SlowDevice, Undeliverable,
    UndeliverableLost,
})  # fmt: skip
"""Kinds of events of which devices, or messages for them, can cause any number."""

_NUMBER: Final = 8
"""Bytes of the number of an event, before the event itself."""

ABSENT: Final = 32
"""Number of processes that have not answered, or that have ended, in a cursor at most: a cursor is in each event."""

_CURSOR: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{1,15}(\.[0-9a-f]{8}-[0-9a-f]{1,15})*")
_LONGEST: Final = 16384

EventCursor = Mapping[str, int]
"""Number of the next event by instance."""


def parse_cursor(text: str | None) -> EventCursor | None:
    """Return the cursor in a text, or `None` without one. Raise `BadArgument` if it is not a cursor."""
    if not text:
        return None
    if not isinstance(text, str) or len(text) > _LONGEST or not _CURSOR.fullmatch(text):
        raise BadArgument("`after` is not a cursor of an earlier answer")
    return {instance: int(number, 16) for instance, _, number in (part.partition("-") for part in text.split("."))}


def cursor_text(cursor: EventCursor) -> str:
    """Return a cursor as text."""
    return ".".join(f"{instance}-{number:x}" for instance, number in cursor.items())


class EventFilter:
    """The events that a reader wants."""

    __slots__ = ("_kinds", "_query", "_warnings")

    def __init__(self, args: Args) -> None:
        """Use the arguments `kinds` (names of events; none: all), `query` (part of the text, in any case), and `warnings`.

        Raise `BadArgument`.
        """
        kinds, query = args.get("kinds") or (), args.get("query") or ""
        if not isinstance(query, str):
            raise BadArgument("`query` is text")
        if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
            raise BadArgument("`kinds` is a list of names of events")
        self._kinds = frozenset(kinds)
        self._query = query.casefold()
        self._warnings = bool(args.get("warnings"))

    def wants(self, past: PastEvent) -> bool:
        """Return whether the reader wants an event."""
        event = past.event
        if self._kinds and event.name not in self._kinds:
            return False
        if self._warnings and not event.warning:
            return False
        return not self._query or self._query in str(event).casefold()


class RecentEvents:
    """Event handler that keeps the last events of this process.

    Events are counted from 0. Those of devices have a memory of their own, so that a thousand devices that connect at once do
    not make an operator miss that the broker was lost.
    """

    __slots__ = ("_instance", "_next", "_of_devices", "_others")

    def __init__(self, instance: str, events: int = EVENTS, size: int = SIZE) -> None:
        """`instance` is a random name of 8 hexadecimal digits for this process."""
        self._instance = instance
        self._of_devices = EventRing(size // 2, events)
        self._others = EventRing(size // 2, events)
        self._next = 0

    def handle(self, event: Event, node: str, when: float) -> None:
        ring = self._of_devices if event.__class__ in OF_DEVICES else self._others
        ring.append(self._next.to_bytes(_NUMBER) + pack(event, node, when))
        self._next += 1

    def answer(self, args: Args) -> JSON:
        """Return the events after the cursor `after`, or the last ones without it: at most `limit`, oldest first.

        `lost` is the number of events that were forgotten before they could be read. Raise `BadArgument`.
        """
        cursor = parse_cursor(args.get("after"))
        wanted = EventFilter(args)
        limit = read_limit(args, EVENTS, EVENTS)
        kept = sorted([*self._of_devices.oldest_first(), *self._others.oldest_first()])  # by their numbers
        if cursor is None:
            found = [self._json(number, past) for number, past in islice(_chosen(reversed(kept), wanted), limit)]
            return {"events": found[::-1], "next": self._cursor(self._next), "lost": 0}
        # An instance that is not in the cursor has started since.
        begin = cursor.get(self._instance, 0)
        first = bisect_left(kept, begin.to_bytes(_NUMBER))
        chosen = list(islice(_chosen(islice(kept, first, None), wanted), limit))
        following = chosen[-1][0] + 1 if len(chosen) == limit else self._next
        read = bisect_left(kept, following.to_bytes(_NUMBER)) - first
        return {
            "events": [self._json(number, past) for number, past in chosen],
            "next": self._cursor(following),
            "lost": max(0, following - begin - read),
        }

    def _cursor(self, number: int) -> str:
        return cursor_text({self._instance: number})

    def _json(self, number: int, past: PastEvent) -> JSON:
        return {**past.json(), "cursor": self._cursor(number + 1)}


def _chosen(entries: Iterable[bytes], wanted: EventFilter) -> Iterator[tuple[int, PastEvent]]:
    """Yield the events that a reader wants, with their numbers."""
    for entry in entries:
        past = unpack(entry[_NUMBER:])
        if wanted.wants(past):
            yield int.from_bytes(entry[:_NUMBER]), past


def check_events(args: Args) -> None:
    """Raise `BadArgument` for arguments that cannot be used."""
    parse_cursor(args.get("after"))
    EventFilter(args)
    read_limit(args, EVENTS, EVENTS)


def merge_events(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the events of several processes, in the order of their times. `worker` becomes the name of the worker."""
    before = parse_cursor(args.get("after"))
    limit = read_limit(args, EVENTS, EVENTS)
    merged = list(heapq.merge(*(named("events", [each]) for each in answers), key=itemgetter("time")))
    if before is None:
        merged = merged[-limit:]  # a first answer has the last ones, and those before count as read
    kept, waiting = merged[:limit], merged[limit:]
    ends: dict[str, int] = {}
    for _, answer in answers:
        ends.update(parse_cursor(answer["next"]) or {})
    absent = [(instance, number) for instance, number in (before or {}).items() if instance not in ends][:ABSENT]
    position = {**ends}
    for event in reversed(merged):
        instance, following = _own(event)
        position[instance] = following - 1
    for event in kept:
        instance, following = _own(event)
        position[instance] = following
        event["cursor"] = cursor_text({**position, **dict(absent)})
    unfinished = {_own(event)[0] for event in waiting}
    position.update((instance, number) for instance, number in ends.items() if instance not in unfinished)
    return {
        "events": kept,
        "next": cursor_text({**position, **dict(absent)}),
        "lost": sum(answer["lost"] for _, answer in answers),
    }


def _own(event: JSON) -> tuple[str, int]:
    """Return the instance of an event, and the number after its own."""
    ((instance, following),) = (parse_cursor(event["cursor"]) or {}).items()
    return instance, following
