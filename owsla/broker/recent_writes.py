"""Messages without a number that a channel has handed over recently, whose acknowledgement may be lost. Pure.

A numbered message that is delivered twice is recognised by its number. One without a number is recognised by a digest, but only
if its acknowledgement may not have reached the broker: a back end may well send the same line to a device twice. RabbitMQ
delivers no more than the prefetch before it has acknowledgements, and reads those in the order in which they were sent. So when
a channel ends, the lost acknowledgements are among the last ones, and no more than the prefetch.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .message_properties import identity

KEPT_WHOLE: Final = 1024
"""Bytes up to which a message itself is kept. Its digest, which costs microseconds, is rarely needed."""


class RecentWrites:
    """The last messages without a number that one channel has handed over."""

    __slots__ = ("_last",)

    def __init__(self, most: int) -> None:
        """`most` is the prefetch of the channel."""
        self._last: deque[tuple[bytes, bytes] | bytes] = deque(maxlen=most)

    def add(self, header: bytes, body: bytes) -> None:
        self._last.append((header, body) if len(header) + len(body) <= KEPT_WHOLE else identity(header, body))

    def identities(self) -> list[bytes]:
        """Return the digest (`identity`) of each message."""
        return [one if isinstance(one, bytes) else identity(*one) for one in self._last]
