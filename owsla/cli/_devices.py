"""`owsla devices`: the connections of devices, in a table or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ..errors import ConfigError
from ._connections import columns
from ._control import JSON, Control
from ._gateway import find, guarded, put_json, say, whole
from ._print import put
from ._table import Table, terminal

PAGE: Final = 1000
"""Connections that are asked for at once: the most that the gateway gives."""

ABOVE_AND_BELOW: Final = 3
"""Lines of a screen for the heading, the number of those left out, and the prompt."""

FEWEST: Final = 10
"""Least number of connections on a screen, however small it is."""


@dataclass(frozen=True, slots=True)
class DevicesOptions:
    """Options of `owsla devices`."""

    query: Mapping[str, Any]
    """Parameters of the request, without those of the pages."""
    limit: int | None
    """Maximum number of connections, or `None` for as many as the output takes."""
    all: bool
    json: bool


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla devices`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    if args.reverse and args.sort is None:
        raise ConfigError("--reverse: use --sort too: a field to sort by")
    sort = f"{'-' if args.reverse else ''}{args.sort}" if args.sort is not None else None
    query = {"query": args.query, "door": args.door, "state": args.state, "sort": sort}
    options = DevicesOptions(query, args.limit, args.all, args.json)
    return guarded("devices", partial(show, find(args, environ), options))


def show(control: Control, options: DevicesOptions) -> int:
    """Print the connections, page by page. Return the exit status."""
    screen = terminal()
    limit = options.limit
    if limit is None and screen is not None and not options.all:
        limit = max(FEWEST, screen.lines - ABOVE_AND_BELOW)
    table: Table | None = None
    shown = total = 0
    missing: set[object] = set()
    for answer in pages(control, options.query, limit):
        rows = answer["devices"]
        total = answer["total"]
        missing.update(answer.get("missing", ()))
        if options.json:
            for row in rows:
                put_json(row)
        else:
            # Built with the first page: a list of any length takes the memory of one page.
            now = control.now()
            if table is None:
                table = Table(columns(now), rows, None if screen is None else screen.columns)
                put(table.heading + "\n" if rows or screen is None else "")
            put("".join(f"{table.line(row)}\n" for row in rows))
        shown += len(rows)
    if screen is not None and not shown:
        say("devices", "no device is connected" if not any(options.query.values()) else "no connection matches")
    elif screen is not None and shown < total:
        say("devices", f"{total - shown:,} more of {total:,}: --all lists them, QUERY selects")
    return whole("devices", missing)


def pages(control: Control, query: Mapping[str, Any], limit: int | None) -> Iterator[JSON]:
    """Yield the answers of the gateway, with at most `limit` connections altogether."""
    after: str | None = None
    left = limit
    while True:
        size = PAGE if left is None else min(PAGE, left)
        answer = control.get("/api/v1/devices", {**query, "limit": size, "after": after})
        yield answer
        if left is not None:
            left -= len(answer["devices"])
        after = answer.get("next")
        if after is None or not answer["devices"] or left == 0:
            return
