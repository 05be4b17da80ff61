"""Delivery reports to RabbitMQ's direct reply-to (https://www.rabbitmq.com/docs/direct-reply-to). Pure.

A client that consumes `amq.rabbitmq.reply-to` gets a name for `reply_to` that encodes the Erlang process of its channel:

    amq.rabbitmq.reply-to.<base64 of the process id in Erlang's external term format>.<key>

RabbitMQ crashes over a name that it cannot decode, and closes the whole connection of the publisher (541). Before RabbitMQ 4.0
the name of a cluster node that is not running has the same effect, which the name does not show. So names of another form are
never used; and when a connection is closed all the same, no direct replies are sent for a while.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from .retry_delay import RetryDelay

PREFIX: Final = "amq.rabbitmq.reply-to."

_PROCESS = re.compile(rb"\x83[Xg](?:[ws](.)|[vd](..))", re.DOTALL)
"""The beginning of a process id in Erlang's external term format, up to the name of its node: NEW_PID_EXT or PID_EXT, then an
atom."""

_PROCESS_NUMBERS: Final = {0x58: 12, 0x67: 9}
"""Bytes of the three numbers after the name: since Erlang 23, and before."""

FORGIVEN: Final = 600.0
"""Seconds after which the delay begins again with the shortest one."""


def is_direct(queue: str) -> bool:
    """Return whether the name of a queue belongs to direct reply-to."""
    return queue.startswith(PREFIX)


def is_valid(queue: str) -> bool:
    """Return whether a name of direct reply-to has the form that RabbitMQ gives it."""
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
    """The decision whether a report may be sent to direct reply-to."""

    __slots__ = ("_again", "_delay", "_failed")

    def __init__(self) -> None:
        self._delay = RetryDelay(first=1.0, most=60.0)
        self._again = self._failed = float("-inf")

    def failed(self, now: float) -> None:
        """Note that the broker closed the connection with a direct reply on its way: send none for a while, each time
        longer."""
        if now - self._failed >= FORGIVEN:
            self._delay.reset()
        self._failed = now
        self._again = now + self._delay.next()

    def allowed(self, queue: str, now: float) -> bool:
        """Return whether a report may be sent to this name now."""
        return now >= self._again and is_valid(queue)
