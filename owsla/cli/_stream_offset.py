"""Positions in a stream of RabbitMQ: https://www.rabbitmq.com/docs/streams#consuming."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import datetime
from typing import Final

from ..amqp import wire
from ..amqp.wire import Timestamp, WireError
from ._values import seconds

OFFSET: Final = "x-stream-offset"
"""Argument of a consumer, and header of a message: its position in the stream."""

WORDS: Final = ("first", "last", "next")

_HEADER: Final = OFFSET.encode()

MOST: Final = (1 << 63) - 1

Offset = str | int | Timestamp
"""A word of `WORDS`, a number, or a time: RabbitMQ begins with the chunk of messages of that time."""


def offset(text: str, now: Callable[[], float] = time.time) -> Offset:
    """Read a position: one of `WORDS`, a number, an age such as 1h, or a time such as 2026-11-29T18:00, in local time."""
    if text in WORDS:
        return text
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MOST:
        return int(text)
    try:
        moment = now() - seconds(text) if text[-1:] in "smh" else datetime.fromisoformat(text).timestamp()
    except (ArgumentTypeError, ValueError, OverflowError, OSError):
        moment = -1.0
    if moment < 0:
        raise ArgumentTypeError(
            f"{text!r} is not a position in a stream: first, last, next, a number, an age such as 1h, "
            "or a time such as 2026-11-29T18:00"
        )
    return Timestamp(int(moment))


def message_offset(header: bytes) -> int | None:
    """Return the position of a message in its stream, from the payload of its content header; `None` if it has none."""
    if _HEADER not in header:
        return None
    try:
        found = wire.decode_properties(header, wire.BARE_HEADER).get("headers", {}).get(OFFSET)
    except WireError:
        return None
    return found if isinstance(found, int) else None


class UnfinishedOffsets:
    """Positions of the messages of a stream that have arrived on a channel and are not finished."""

    def __init__(self, first: int | None = None) -> None:
        """`first` is the position of the first message that will arrive, if it is known."""
        self._offsets: dict[int, int] = {}  # by delivery tag, in the order of the stream
        self._behind = first

    def add(self, tag: int, header: bytes) -> None:
        """Note a message that has arrived."""
        offset = message_offset(header)
        if offset is not None:
            self._offsets[tag] = offset
            self._behind = offset + 1

    def done(self, tag: int) -> None:
        """Note that a message is finished."""
        self._offsets.pop(tag, None)

    @property
    def first(self) -> int | None:
        """Position of the first message that is not finished, or else the one behind the last message."""
        return next(iter(self._offsets.values()), self._behind)
