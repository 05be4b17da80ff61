"""The question `devices`: the connections of a gateway, filtered, sorted and in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from twisted.internet.defer import Deferred

from ..device.connections import Connection
from ..routing import Registry
from ._paging import Page, Selection, read_page
from ._rows import Rows
from ._slices import CHUNK, Slices, chunks
from ._types import JSON, Args, BadArgument, NamedAnswers

STATES: Final[Mapping[str, Callable[[Connection], object]]] = {
    "paused": lambda connection: connection.paused,
    "slow": lambda connection: connection.slow,
    "held": lambda connection: connection.held,
    "closing": lambda connection: connection.closing,
}
"""States of connections that a list can be limited to, with their conditions."""

ROWS: Final = 8
"""Rows that are made between two readings of the clock: some 100 microseconds."""


def check_devices(args: Args) -> None:
    """Raise `BadArgument` if the question `devices` cannot be answered with these arguments."""
    read_page(args)
    _read_filter(args)


class DeviceList:
    """Answers the question `devices` for one node.

    All connections are looked at, in slices, and a page of them is kept. So neither time nor memory of an answer holds up
    devices.
    """

    def __init__(self, registry: Registry[Connection], rows: Rows, slices: Slices) -> None:
        self._registry = registry
        self._rows = rows
        self._slices = slices

    def answer(self, args: Args) -> Deferred[JSON]:
        """Return `devices` (rows), `total` (number of matches) and `next` (cursor of the next page, or `None`).

        Raise `BadArgument`. A value that changes while the list is read is sorted by what it was when it was looked at.
        """
        page = read_page(args)
        self._rows.adjust()
        answer: JSON = {}
        return self._slices.run(self._steps(page, _read_filter(args), answer)).addCallback(lambda _: answer)

    def _steps(self, page: Page, matches: Callable[[Connection], bool], answer: JSON) -> Iterator[None]:
        order, after = page.order, page.after
        value = self._rows.values[order.column]
        selection: Selection[Connection] = Selection(page.limit, order.descending)
        total = 0
        for connections in self._registry.walk(CHUNK):
            for connection in connections:
                if matches(connection):
                    total += 1
                    key = (value(connection), connection.connection_id.decode())
                    if after is None or order.precedes(after, key):
                        selection.offer(key, connection)
            yield
        selected = selection.take()
        devices = []
        for some in chunks(selected, ROWS):
            for key, connection in some:
                if connection.transport is not None:
                    devices.append({**self._rows.row(connection), order.column: order.shown(key[0])})
            yield
        answer.update(devices=devices, total=total, next=order.cursor(selected[-1][0]) if selection.more else None)


def _read_filter(args: Args) -> Callable[[Connection], bool]:
    """Return the condition of the arguments `query`, `door` and `state`."""
    query = str(args.get("query") or "").lower()
    door, state = args.get("door") or None, args.get("state") or None
    if state is not None and state not in STATES:
        raise BadArgument(f"`state` is one of {', '.join(STATES)}")
    in_state = STATES[state] if state is not None else None
    query_bytes = query.encode("utf-8", "replace")

    def matches(connection: Connection) -> bool:
        if door is not None and connection.factory.door != door:
            return False
        if in_state is not None and not in_state(connection):
            return False
        if not query:
            return True
        device_id = connection.device_id
        return (
            (device_id is not None and query in device_id.lower())
            or query_bytes in connection.connection_id
            or query in connection.transport.peer.lower()
        )

    return matches


def merge_devices(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the pages of several workers into one. The next page begins, at every worker, behind the last row of this one."""
    page = read_page(args)
    order = page.order
    rows = sorted(
        ((order.key(row), {**row, "worker": worker}) for worker, answer in answers for row in answer["devices"]),
        key=lambda placed: placed[0],
        reverse=order.descending,
    )
    # A worker that has more rows has shown all of its rows up to its cursor. Behind it, its rows are not known.
    ends = [order.read_cursor(answer["next"]) for _, answer in answers if answer["next"] is not None]
    end = (max(ends) if order.descending else min(ends)) if ends else None
    known = [(key, row) for key, row in rows if end is None or not order.precedes(end, key)]
    shown = known[: page.limit]
    if len(known) > len(shown):
        end = shown[-1][0]
    return {
        "devices": [row for _, row in shown],
        "total": sum(answer["total"] for _, answer in answers),
        "next": None if end is None else order.cursor(end),
    }
