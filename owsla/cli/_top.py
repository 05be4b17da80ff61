"""`owsla top`: who talks most, and who is slowest."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from ._connections import CONNECTION, DEVICE, DOOR, PEER, STATE, WORKER, age, number, octets
from ._control import JSON, Control, ControlError
from ._gateway import find, guarded, put_json
from ._print import put
from ._screen import Screen, full_screen
from ._table import NOTHING, Column, Row, lines, terminal
from ._text import sentence, shortened
from ._units import counted, milliseconds, rate, size, time_of_day

LIMIT: Final = 10
"""Connections in each table where there is no screen to fill."""

HEADINGS: Final = 7
"""Lines of a screen besides the connections: title, summary, two empty lines, two headings, and the line of an error."""

SLOWEST: Final = 1 / 3
"""Share of the screen for the slowest connections, at most."""


@dataclass(frozen=True, slots=True)
class TopOptions:
    """Options of `owsla top`."""

    interval: float
    """Seconds between two snapshots."""
    count: int | None
    """Number of snapshots, or `None` for no end."""
    limit: int | None
    json: bool


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla top`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    options = TopOptions(args.interval, args.count, args.limit, args.json)
    return guarded("top", partial(show, find(args, environ), options))


def show(control: Control, options: TopOptions) -> int:
    """Print snapshots, or show them in place. Return the exit status.

    Some snapshots, by `--count`, are to stay on the terminal.
    """
    if full_screen() and not options.json and options.count is None:
        return _in_place(control, options)
    shown = 0
    while True:
        answer = _ask(control, options.limit or LIMIT)
        if options.json:
            put_json(answer)
        else:
            screen = terminal()
            width = None if screen is None else screen.columns
            text = "\n".join(snapshot(answer, _sample(control), control, width, options.limit or LIMIT))
            put(("\n" if shown else "") + text + "\n")
        shown += 1
        if shown == options.count:
            return 0
        time.sleep(options.interval)


def _in_place(control: Control, options: TopOptions) -> int:
    """Refresh the terminal until Ctrl-C or `q`. A gateway that is restarted is asked again."""
    answer = _ask(control, options.limit or LIMIT)  # an error at the start ends the command, before the screen is taken
    sample = None
    with Screen() as screen:
        while True:
            size_ = terminal()
            assert size_ is not None
            limit = options.limit or max(LIMIT, size_.lines)
            error = ""
            try:
                answer, sample = _ask(control, limit), _sample(control)
            except ControlError as problem:  # also of a gateway whose workers are restarting
                error = sentence(f"{problem}; trying again")
            text = list(snapshot(answer, sample, control, size_.columns, limit, size_.lines))
            screen.show([*text[: size_.lines - 1], shortened(error, size_.columns)] if error else text, size_)
            if not screen.wait(options.interval):
                return 0


def _ask(control: Control, limit: int) -> JSON:
    return control.get("/api/v1/top", {"limit": limit})


def _sample(control: Control) -> JSON | None:
    """Return the newest sample of the gateway, or `None` if there is none yet."""
    try:
        return next((sent.data for sent in control.stream("/api/v1/live") if sent.kind == "sample"), None)
    except ControlError:
        return None  # the stream is one of many; the tables are what was asked for


def snapshot(
    answer: JSON, sample: JSON | None, control: Control, columns: int | None, limit: int, height: int | None = None
) -> Iterator[str]:
    """Yield the lines of a snapshot, with at most `limit` connections in each table, for a screen of a height."""
    now = control.now()
    talkers, slowest = answer["talkers"][:limit], answer["slowest"][:limit]
    if height is not None:
        room = max(2, height - HEADINGS)
        fewer = min(len(slowest), max(1, int(room * SLOWEST)))
        talkers, slowest = talkers[: room - fewer], slowest[:fewer]
    title = f"{control.where} at {time_of_day(now)[:8]}"
    if answer.get("missing"):
        title += f": no answer from {', '.join(map(str, answer['missing']))}"
    for text in (title, *([] if sample is None else [summary(sample)])):
        yield sentence(text) if columns is None else shortened(sentence(text), columns)
    yield ""
    if talkers:
        yield from lines(talker_columns(now), talkers, columns)
    else:
        yield "no device has said or heard anything since the last look"
    if slowest:
        yield ""
        yield from lines(slow_columns(now), slowest, columns)


def summary(sample: JSON) -> str:
    """Return a sample in one line. Figures that are not known are left out, and connects and failures if there are none."""
    parts = {
        "devices": lambda value: counted(value, "device"),
        "connects": lambda value: f"{rate(value)} connects/s" if value else None,
        "failed_handshakes": lambda value: f"{rate(value)} failed handshakes/s" if value else None,
        "lines_in": lambda value: f"{rate(value)} lines/s in",
        "lines_out": lambda value: f"{rate(value)} out",
        "p50": lambda value: f"confirmed in {milliseconds(value)}",
        "p99": lambda value: f"99% in {milliseconds(value)}",
        "unconfirmed": lambda value: f"{value:,} unconfirmed",
        "cpu": lambda value: f"CPU {value:.0%}",
    }
    texts = (text(sample[name]) for name, text in parts.items() if sample.get(name) is not None)
    return ", ".join(text for text in texts if text is not None)


def talker_columns(now: float) -> list[Column]:
    """Return the columns of the connections with the most traffic."""
    return [
        DEVICE,
        Column("IN/S", _rate("lines_in_rate"), 1, right=True),
        Column("OUT/S", _rate("lines_out_rate"), 1, right=True),
        Column("BYTES-IN/S", _bytes_rate("bytes_in_rate"), 2, right=True),
        Column("BYTES-OUT/S", _bytes_rate("bytes_out_rate"), 3, right=True),
        STATE,
        Column("AGE", age("since", now), 5, right=True),
        PEER,
        CONNECTION,
        DOOR,
        WORKER,
    ]


def slow_columns(now: float) -> list[Column]:
    """Return the columns of the slowest connections."""
    return [
        DEVICE,
        Column("SLOW-FOR", age("slow_since", now), 1, right=True),
        Column("WAITING", number("waiting"), 2, right=True),
        Column("BYTES", octets("waiting_bytes"), 3, right=True),
        Column("LAST-IN", age("last_in", now), 5, right=True),
        STATE,
        PEER,
        CONNECTION,
        DOOR,
        WORKER,
    ]


def _rate(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row.get(name) is None else rate(row[name])


def _bytes_rate(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row.get(name) is None else size(row[name])
