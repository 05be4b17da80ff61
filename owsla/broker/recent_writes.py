"""Which messages without a number a channel has handed over lately: those of which the acknowledgement may be lost. Pure.

A numbered message that comes twice is known by its number. One without is known by a digest, but only where its acknowledgement
may not have reached the broker: a back end may well send the same line to a device again. RabbitMQ delivers no more than the
prefetch before it has acknowledgements, which it reads in the order in which they were sent. So when a channel ends, those that
were lost are among the last ones, and no more than the prefetch.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .message_properties import identity

KEPT_WHOLE: Final = 1024
"""Bytes up to which a message is kept until its digest is needed, which is seldom: a digest costs microseconds."""


class RecentWrites:
    """The last messages without a number that one channel handed over."""

    __slots__ = ("_last",)

    def __init__(self, most: int) -> None:
        """`most` is the channel's prefetch."""
        self._last: deque[tuple[bytes, bytes] | bytes] = deque(maxlen=most)

    def add(self, header: bytes, body: bytes) -> None:
        self._last.append((header, body) if len(header) + len(body) <= KEPT_WHOLE else identity(header, body))

    def identities(self) -> list[bytes]:
        """Return what identifies each of them (`identity`)."""
        return [one if isinstance(one, bytes) else identity(*one) for one in self._last]
