"""The streams of the API: events, a trace, and samples.

Each message has `kind` in its data where lines of JSON have no other way to tell messages apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed

from ..desk import JSON, Desk
from ._history import History
from ._streams import Message

EVENTS_AT_ONCE: Final = 100
"""Events of one answer. Some 30 KB of text: less than the buffer of a connection."""


def to_text(value: Any) -> str:
    """Return a value as JSON text without line ends."""
    return json.dumps(value, separators=(",", ":"))


class EventsFeed:
    """Events of a gateway after a cursor, or from now on."""

    interval: Final = 0.5
    end: Final = None
    more = False

    def __init__(self, desk: Desk, args: Mapping[str, Any]) -> None:
        """`args` are those of the question `events`, without `limit`."""
        self._desk = desk
        self._args = dict(args)
        # Without a cursor, the first answer only tells the present one.
        self._now = self._args.get("after") is None

    def poll(self) -> Deferred[Sequence[Message]]:
        limit = 1 if self._now else EVENTS_AT_ONCE
        return self._desk.ask("events", {**self._args, "limit": limit}).addCallback(self._messages)

    def _messages(self, answer: JSON) -> Sequence[Message]:
        self._args["after"] = answer["next"]
        if self._now:
            self._now = False
            return []
        lost = answer["lost"]
        self.more = len(answer["events"]) == EVENTS_AT_ONCE
        messages = [Message("event", to_text(event), event["cursor"]) for event in answer["events"]]
        return [Message("lost", to_text({"kind": "lost", "lost": lost})), *messages] if lost else messages

    def close(self) -> None: ...


class TraceFeed:
    """Lines from and to a device, while a client reads them."""

    interval: Final = 0.25
    more = False

    def __init__(self, desk: Desk, args: Mapping[str, Any]) -> None:
        """`args` are those of the question `trace`."""
        self._desk = desk
        self._args = dict(args)
        self._asked = False
        self._connections: object = None
        self.end: str | None = None

    def poll(self) -> Deferred[Sequence[Message]]:
        if self.end is not None:
            return succeed([])
        self._asked = True
        return self._desk.ask("trace", self._args).addCallback(self._messages)

    def _messages(self, answer: JSON) -> Sequence[Message]:
        self._args["after"] = answer["next"]
        self.more = answer["more"]
        messages = [Message("record", to_text(record)) for record in answer["records"]]
        if answer["dropped"]:
            messages.append(Message("dropped", to_text({"kind": "dropped", "dropped": answer["dropped"]})))
        if answer["connections"] != self._connections:
            # After the records, one of which may say why a connection has ended.
            self._connections = answer["connections"]
            connections = {"kind": "connections", "connections": answer["connections"], "missing": answer["missing"]}
            messages.append(Message("connections", to_text(connections)))
        if answer["ended"] is not None and not answer["records"]:
            self.end = answer["ended"]
        return messages

    def close(self) -> None:
        if self._asked:
            args = {"id": self._args["id"], "after": self._args.get("after"), "reason": self.end}
            ended = self._desk.ask("end-trace", args)
            ended.addErrback(lambda _: None)  # the node ends it without that, too, when nobody asks any more


class SamplesFeed:
    """The newest sample, each time there is another one. A client that does not read misses samples."""

    interval: Final = 0.5
    end: Final = None
    more: Final = False

    def __init__(self, history: History) -> None:
        self._history = history
        self._sent = 0

    def poll(self) -> Deferred[Sequence[Message]]:
        newest, number = self._history.newest, self._history.number
        if newest is None or number == self._sent:
            return succeed([])
        self._sent = number
        return succeed([Message("sample", newest)])

    def close(self) -> None: ...
