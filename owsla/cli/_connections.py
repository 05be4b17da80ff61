"""Connections of devices, as the control interface describes them: their columns in tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._table import NOTHING, Column, Row
from ._text import word
from ._units import duration, size


def state(row: Row) -> str:
    """Return what holds a connection up, in one word: `paused:broker,slow,held`, or `-`."""
    found = []
    if row.get("closing") is not None:
        found.append("closing")
    if row.get("paused"):
        found.append("paused:" + "+".join(map(word, row["paused"])))
    if row.get("slow_since") is not None:
        found.append("slow")
    if row.get("held"):
        found.append("held")
    return ",".join(found) or NOTHING


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: word(row.get(name))


def number(name: str) -> Callable[[Row], str]:
    """Return a function that shows a number of a row, and `-` where it is 0 or unknown."""
    return lambda row: str(row[name]) if row.get(name) else NOTHING


def octets(name: str) -> Callable[[Row], str]:
    """Return a function that shows a size of a row, and `-` where it is 0 or unknown."""
    return lambda row: size(row[name]) if row.get(name) else NOTHING


def age(name: str, now: float) -> Callable[[Row], str]:
    """Return a function that shows the time since a time of a row; `now` is in milliseconds since the epoch."""
    return lambda row: NOTHING if row.get(name) is None else since(row[name], now)


def since(time: Any, now: float) -> str:
    """Return the time since another one, both in milliseconds since the epoch."""
    return duration((now - time) / 1000)


DEVICE = Column("DEVICE", _text("device_id"), 0, least=12)
CONNECTION = Column("CONNECTION", _text("connection_id"), 6, least=13)
PEER = Column("PEER", _text("peer"), 4, least=15)
STATE = Column("STATE", state, 1)
DOOR = Column("DOOR", _text("door"), 7, least=8)
WORKER = Column("WORKER", _text("worker"), 11)


def columns(now: float) -> list[Column]:
    """Return the columns of `owsla devices`. `now` is in milliseconds since the epoch, by the clock of the gateway."""
    return [
        DEVICE,
        STATE,
        Column("AGE", age("since", now), 2, right=True),
        Column("IN", number("lines_in"), 3, right=True),
        Column("LAST-IN", age("last_in", now), 3, right=True),
        Column("OUT", number("lines_out"), 3, right=True),
        Column("LAST-OUT", age("last_out", now), 5, right=True),
        Column("BYTES-IN", octets("bytes_in"), 12, right=True),
        Column("BYTES-OUT", octets("bytes_out"), 12, right=True),
        Column("WAITING", number("waiting"), 8, right=True),
        Column("HELD", number("held"), 9, right=True),
        PEER,
        CONNECTION,
        DOOR,
        WORKER,
        Column("TLS", _text("tls"), 13),
    ]
