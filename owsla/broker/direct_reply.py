"""Delivery reports to RabbitMQ's direct reply-to (https://www.rabbitmq.com/docs/direct-reply-to). Pure.

A client that consumes `amq.rabbitmq.reply-to` gets a name for `reply_to` that encodes its channel's Erlang process:

    amq.rabbitmq.reply-to.<base64 of the process id in Erlang's external term format>.<key>

A publisher's channel crashes over a name that it cannot decode, and RabbitMQ closes the whole connection (541). Before 4.0 the
name of a cluster node that is not running does the same, which nothing in the name shows. So names of another form are never
used; and when a connection is closed all the same, there are no direct replies for a while.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from .retry_delay import RetryDelay

PREFIX: Final = "amq.rabbitmq.reply-to."

_PROCESS = re.compile(rb"\x83[Xg](?:[ws](.)|[vd](..))", re.DOTALL)
"""How a process id begins in Erlang's external term format, up to its node's name: NEW_PID_EXT or PID_EXT, then an atom."""

_PROCESS_NUMBERS: Final = {0x58: 12, 0x67: 9}
"""Bytes of the three numbers behind the name: since Erlang 23, and before."""

FORGIVEN: Final = 600.0
"""Seconds after which the next closed connection counts as the first one again."""


def is_direct(queue: str) -> bool:
    """Whether a queue's name is one of direct reply-to."""
    return queue.startswith(PREFIX)


def is_valid(queue: str) -> bool:
    """Whether a name of direct reply-to has the form that RabbitMQ gives it."""
    process, _, key = queue.removeprefix(PREFIX).partition(".")
    try:
        decoded = base64.b64decode(process, validate=True)
    except ValueError:
        return False
    begin = _PROCESS.match(decoded)
    if begin is None or not key or "." in key:
        return False
    name = int.from_bytes(begin[1] or begin[2])
    return len(decoded) == begin.end() + name + _PROCESS_NUMBERS[decoded[1]]


class DirectReplies:
    """Whether direct replies may be sent now."""

    __slots__ = ("_again", "_failed", "_wait")

    def __init__(self) -> None:
        self._wait = RetryDelay(first=1.0, most=60.0)
        self._again = self._failed = float("-inf")

    def failed(self, now: float) -> None:
        """The broker closed the connection with one of them on its way: send none for a while, each time for longer."""
        if now - self._failed >= FORGIVEN:
            self._wait.reset()
        self._failed = now
        self._again = now + self._wait.next()

    def allowed(self, queue: str, now: float) -> bool:
        """Whether a report may go to this name."""
        return now >= self._again and is_valid(queue)
