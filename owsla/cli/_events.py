"""`owsla events`: what happened last in a gateway, and what happens."""

from __future__ import annotations

import argparse
import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ._control import JSON, Control, Refusal, Unreachable
from ._gateway import find, guarded, put_json, say, whole
from ._print import end_with_reader, put
from ._table import Row
from ._text import sentence, word
from ._units import day_and_time

PATH: Final = "/api/v1/events"

FIRST_PAUSE: Final = 0.25
"""Seconds before the first attempt to reach a gateway again; each is twice as long as the one before."""

LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True, slots=True)
class EventsOptions:
    """Options of `owsla events`."""

    query: Mapping[str, Any]
    """Parameters of the request that select events."""
    limit: int
    follow: bool
    json: bool


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla events`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    query = {"query": args.query, "kind": args.kind, "warnings": args.warnings}
    options = EventsOptions(query, args.limit, args.follow, args.json)
    return guarded("events", partial(show, find(args, environ), options))


def line(event: Row) -> str:
    """Return an event as a line: `TIME EVENT TEXT`, with a ! before the name of a warning."""
    worker = f" {word(event['worker'])}:" if event.get("worker") else ""
    mark = "!" if event.get("warning") else ""
    return f"{day_and_time(event['time'])} {mark}{word(event['event'])}{worker} {sentence(str(event.get('text', '')))}"


def show(control: Control, options: EventsOptions) -> int:
    """Print the last events, and with `follow` those to come. Return the exit status."""
    print_one = put_json if options.json else lambda event: put(line(event) + "\n")
    answer = control.get(PATH, {**options.query, "limit": options.limit})
    for event in answer["events"]:
        print_one(event)
    status = whole("events", answer.get("missing", ()))
    if not options.follow:
        return status
    end_with_reader()
    follow(control, options.query, answer["next"], print_one)
    raise AssertionError("an endless stream has ended")


def follow(control: Control, query: Mapping[str, Any], cursor: str | None, show_one: Callable[[JSON], None]) -> None:
    """Print the events after a cursor, for ever. When the gateway is restarted, go on with the new one.

    The cursor is that of the last event shown, so that nothing is lost that the gateway still remembers.
    """
    pause = FIRST_PAUSE
    lost = False
    while True:
        try:
            for sent in control.stream(PATH, query, after=cursor):
                if lost:
                    say("events", f"{control.where}: connected again")
                pause, lost = FIRST_PAUSE, False
                cursor = sent.id or cursor
                if sent.kind == "event":
                    show_one(sent.data)
                elif sent.kind == "lost":
                    say("events", f"{sent.data['lost']:,} events were forgotten before they were read")
            why = f"{control.where}: the gateway has ended the stream"
        except Unreachable as error:
            why = str(error)
        except Refusal as refusal:
            if refusal.status != http.client.SERVICE_UNAVAILABLE:
                raise
            why = str(refusal)
        if not lost:
            say("events", f"{why}; trying again")
            lost = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
