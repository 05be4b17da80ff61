"""The action `close`: an operator closes connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred

from ..device.connections import Connection, guard
from ..events import DeviceKicked, Event
from ._device import read_id
from ._lookup import Lookup, Matches
from ._rows import Rows
from ._slices import Slices, chunks
from ._types import JSON, Args, NamedAnswers

MOST: Final = 10_000
"""Maximum number of connections that one action closes: some behind one address may be as many as all."""

SHOWN: Final = 100
"""Maximum number of matches that are shown."""

UNKNOWN: Final = "an operator"
"""Name of an operator whose name is not known."""


class CloseConnections:
    """Closes connections of one node: that of an id if it is the only one, or all of them."""

    def __init__(self, lookup: Lookup, rows: Rows, slices: Slices, emit: Callable[[Event], None]) -> None:
        self._lookup = lookup
        self._rows = rows
        self._slices = slices
        self._emit = emit

    def answer(self, args: Args) -> Deferred[JSON]:
        """Close connections in order: what was written is still sent. Return `closed` (connection ids) and `matches` (rows).

        Nothing is closed if several matches of `id` could be, and `all` is not true. `total` is the number of all matches.
        Raise `BadArgument`.
        """
        self._rows.adjust()
        return self._lookup.find(read_id(args), MOST).addCallback(self._close, bool(args.get("all")), args.get("by"))

    def _close(self, matches: Matches, all_of_them: bool, by: Any) -> JSON | Deferred[JSON]:
        answer: JSON = {
            "closed": [],
            "matches": [self._rows.row(connection) for connection in matches.connections[:SHOWN]],
            "total": matches.total,
        }
        # Nothing more can be done about a connection that closes already.
        found = [connection for connection in matches.connections if not connection.closing]
        if not found or (len(found) > 1 and not all_of_them):
            return answer
        who = by if isinstance(by, str) and by else UNKNOWN
        return self._slices.run(self._steps(found, who, answer["closed"])).addCallback(lambda _: answer)

    def _steps(self, connections: Iterable[Connection], who: str, closed: list[str]) -> Iterator[None]:
        for some in chunks(connections, 8):
            for connection in some:
                if connection.transport is not None and not connection.closing:
                    connection_id = connection.connection_id.decode()
                    self._emit(DeviceKicked(connection_id, connection.device_id, who, connection.factory.door))
                    guard(connection, connection.close, f"closed by an operator ({who})")
                    closed.append(connection_id)
            yield


def merge_close(answers: NamedAnswers, args: Args) -> JSON:
    """Merge what several workers have closed."""
    matches = [{**row, "worker": worker} for worker, answer in answers for row in answer["matches"]]
    return {
        "closed": [each for _, answer in answers for each in answer["closed"]],
        "matches": matches[:SHOWN],
        "total": sum(answer["total"] for _, answer in answers),
    }


def close_at_workers(ask: Callable[[str, Args], Deferred[JSON]], args: Args) -> Deferred[JSON]:
    """Close connections at several workers. `ask` asks all of them.

    No worker knows whether its match is the only one. So all are asked for theirs first, unless all matches are to be closed.
    """

    def counted(answer: Mapping[str, Any]) -> JSON | Deferred[JSON]:
        matches = [{name: row[name] for name in row if name != "findings"} for row in answer["connections"]]
        found = [row for row in matches if row["closing"] is None]
        if len(found) != 1:
            return {"closed": [], "matches": matches, "total": answer["total"], "missing": answer["missing"]}
        return ask("close", {**args, "id": found[0]["connection_id"]})

    text = read_id(args)
    return ask("close", args) if args.get("all") else ask("device", {"id": text}).addCallback(counted)
