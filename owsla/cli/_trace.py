"""`owsla trace`: what a device says and hears, as it happens."""

from __future__ import annotations

import argparse
import base64
import binascii
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ._control import JSON, Control, part
from ._gateway import find, guarded, put_json, say, whole
from ._print import end_with_reader, put
from ._table import NOTHING, Row
from ._text import printable, sentence, word
from ._units import time_of_day

EARLY: Final = 2.0
"""Seconds before its time by which the end of a trace is still the end of its minutes."""


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla trace`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    run = partial(follow, find(args, environ), args.id, args.minutes, bodies=args.bodies, as_json=args.json)
    return guarded("trace", run)


def follow(control: Control, device: str, minutes: int, *, bodies: bool, as_json: bool) -> int:
    """Print the records of a trace until its minutes are over. Return the exit status."""
    end_with_reader()
    end = time.monotonic() + 60 * minutes - EARLY
    reason = "the connection was closed"
    shown = ""
    for sent in control.stream(f"/api/v1/trace/{part(device)}", {"minutes": minutes, "bodies": bodies}):
        match sent.kind:
            case "record" if as_json:
                put_json(sent.data)
            case "record":
                connection = sent.data.get("connection_id")
                if connection and connection != shown:
                    of = f" of device {word(sent.data['device_id'])}" if sent.data.get("device_id") else ""
                    put(f"-- connection {word(connection)}{of}\n")
                    shown = connection
                put(line(sent.data) + "\n")
            case "dropped":
                say("trace", f"{sent.data['dropped']:,} records are missing: there were more than the gateway keeps")
            case "connections":
                _say_connections(device, sent.data)
            case "end":
                reason = str(sent.data.get("text"))
    if time.monotonic() < end:
        say("trace", f"{control.where}: the trace has ended early: {reason}")
        return 1
    return 0


def _say_connections(device: str, data: JSON) -> None:
    if data.get("missing"):
        whole("trace", data["missing"])
    elif not data["connections"]:
        say("trace", f"no connection has '{sentence(device)}' now; waiting for the next one")


def line(record: Row) -> str:
    """Return a record as a line: `TIME DIRECTION SIZE NUMBER TEXT`."""
    size = NOTHING if record.get("size") is None else str(record["size"])
    seq = NOTHING if record.get("seq") is None else str(record["seq"])
    return f"{time_of_day(record['time'])} {word(record['kind']):<5} {size:>6} {seq:>6}  {_text(record)}".rstrip()


def _text(record: JSON) -> str:
    if record.get("body_base64") is not None:
        try:
            return printable(base64.b64decode(record["body_base64"]))
        except (binascii.Error, ValueError):
            return ""
    if record.get("body") is not None:
        return printable(str(record["body"]).encode("utf-8", "surrogatepass"))
    return sentence(str(record.get("text") or ""))
