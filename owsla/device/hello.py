"""Whether a ClientHello is there, from the first bytes of a connection. Pure.

A handshake begins when the first TLS record is there as a whole. So a few bytes of nonsense, half a hello, or one that comes
byte by byte hold no place among the handshakes, and none of the memory that OpenSSL has for one.
"""

from __future__ import annotations

from typing import Final

HEADER: Final = 5
"""Bytes before a record's content: its type, the version, the length (RFC 8446, 5.1)."""

LONGEST: Final = HEADER + 4096
"""Bytes of a hello that are waited for at most. One has a few hundred, or 1,800 with keys for the time after quantum computers;
the system wakes us for so many even where receive buffers are small."""


def needed(first: bytes) -> int:
    """How many bytes have to be there before OpenSSL can do something, as far as the first ones show."""
    if len(first) < HEADER:
        return HEADER
    if first[1] != 3:
        return HEADER  # not TLS, nor SSL 3: OpenSSL says so at once
    return min(HEADER + int.from_bytes(first[3:5], "big"), LONGEST)
