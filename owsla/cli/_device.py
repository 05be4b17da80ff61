"""`owsla device`: one device, in detail."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from ._connections import since
from ._control import JSON, Control, Refusal, part
from ._events import line as event_line
from ._gateway import find, guarded, put_json, say, whole
from ._print import put
from ._table import Row
from ._text import sentence, word
from ._units import counted, day_and_time, size

NOT_FOUND: Final = 404

PAUSES: Final = {
    "broker": "lines cannot be published now",
    "share": "its share of the window is unconfirmed",
    "rate": "it sends more than --max-rate",
    "draining": "the gateway stops",
}
"""Why the gateway reads no lines of a connection."""


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla device`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return guarded("device", partial(show, find(args, environ), args.id, as_json=args.json))


def show(control: Control, device: str, *, as_json: bool) -> int:
    """Print what the gateway knows of a device. Return the exit status."""
    try:
        answer = control.get(f"/api/v1/devices/{part(device)}")
    except Refusal as refusal:
        if refusal.status != NOT_FOUND:
            raise
        say("device", unknown(control, device))
        if refusal.answer:
            whole("device", refusal.answer.get("missing", ()))
        return 1
    if as_json:
        put_json(answer)
    else:
        put("".join(f"{line}\n" for line in describe(device, answer, control.now())))
    return whole("device", answer.get("missing", ()))


def unknown(control: Control, device: str) -> str:
    """Return the error for a device of which nothing is known, with what was searched."""
    return (
        f"{control.where}: nothing is known of '{sentence(device)}': no connection has it as its connection id, device id or "
        "address, and none of the last ends and refusals that the gateway remembers"
    )


def describe(device: str, answer: JSON, now: float) -> Iterator[str]:
    """Yield the lines about a device. `now` is in milliseconds since the epoch."""
    connections = answer.get("connections", [])
    if not connections:
        yield f"{word(device)} is not connected"
    for row in connections:
        yield from _connection(row, now)
    ends = answer.get("ends", [])
    if ends:
        yield "last ends, newest first:"
        for end in ends:
            times = end.get("count") or 1
            again = f", {counted(times, 'time')} in {since(end['first'], end['time'])}" if times > 1 else ""
            yield f"  {since(end['time'], now)} ago{again}: {event_line(end)}"


def _connection(row: Row, now: float) -> Iterator[str]:
    device = f"device {word(row['device_id'])} on " if row.get("device_id") else ""
    yield f"{device}connection {word(row['connection_id'])}"
    facts = {
        "peer": word(row.get("peer")),
        "door": f"{word(row.get('door'))}, {sentence(row['tls']) if row.get('tls') else 'without TLS'}",
        "node": word(row.get("node")) + (f", {word(row['worker'])}" if row.get("worker") else ""),
        "connected": f"for {since(row['since'], now)}, since {day_and_time(row['since'])}",
        "lines in": _traffic(row, "in", now),
        "lines out": _traffic(row, "out", now),
    }
    if row.get("paused"):
        facts["paused"] = "; ".join(f"{word(one)}: {PAUSES.get(one, 'unknown')}" for one in row["paused"])
    if row.get("slow_since") is not None:
        facts["slow"] = f"its socket has taken nothing more for {since(row['slow_since'], now)}"
    if row.get("waiting"):
        facts["waiting"] = f"{counted(row['waiting'], 'message')} ({size(row.get('waiting_bytes') or 0)}) for its socket"
    if row.get("held"):
        facts["held"] = f"{counted(row['held'], 'message')} for a missing to_device_seq"
    if row.get("closing") is not None:
        facts["closing"] = sentence(str(row["closing"]))
    for name, text in facts.items():
        yield f"  {name:<10} {text}"
    for finding in row.get("findings", []):
        yield f"  ! {sentence(finding)}"


def _traffic(row: Row, way: str, now: float) -> str:
    last = row.get(f"last_{way}")
    return f"{row[f'lines_{way}']:,} ({size(row[f'bytes_{way}'])}), " + (
        "none yet" if last is None else f"the last {since(last, now)} ago"
    )
