"""Recognition of other protocols by the first bytes of a plain connection. Pure.

A device without TLS may send any bytes. So only complete beginnings are recognised, which no device sends by accident: a whole
request line of HTTP, for example, and not the word GET. In a framing other than lines they must also be malformed, or too long.
"""

from __future__ import annotations

import re
from typing import Final

from .framing import Framing, MalformedFrame

PROXY_HEADER: Final = "a PROXY protocol header"
"""Beginning of the names of headers of the PROXY protocol."""

_OTHERS: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        # A record header of TLS 1.0 to 1.3 (RFC 8446, 5.1) with a plausible length, and the header of a ClientHello (4).
        (rb"\x16\x03[\x00-\x04][\x00-\x40].\x01\x00", "a TLS ClientHello"),
        (rb"PROXY (TCP[46] [0-9A-Fa-f:.]+ [0-9A-Fa-f:.]+ \d+ \d+|UNKNOWN[^\r\n]*)\r\n", PROXY_HEADER),
        (rb"\r\n\r\n\0\r\nQUIT\n[\x20\x21]", f"{PROXY_HEADER} (version 2)"),
        (rb"SSH-(2\.0|1\.99)-", "an SSH client's greeting"),
        (rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|CONNECT|PATCH|TRACE) [^ \r\n]+ HTTP/1\.[01]\r?\n", "an HTTP request"),
        (rb"PRI \* HTTP/2\.0\r\n", "an HTTP/2 request"),
    )
)


def other_protocol(first: bytes) -> str | None:
    """Return the name of the protocol that the bytes begin with, or `None` if they can be those of a device."""
    for pattern, name in _OTHERS:
        if pattern.match(first):
            return name
    return None


def foreign_protocol(framing: Framing, first: bytes) -> str | None:
    """Return the name of the protocol that the bytes begin with, or `None` if they can be frames of a device."""
    name = other_protocol(first)
    return None if name is None or _can_be_frames(framing, first) else name


def _can_be_frames(framing: Framing, first: bytes) -> bool:
    if framing.delimiter:
        return False  # lines may be anything, and no device has a line that is an HTTP request
    payloads, rest = framing.split(first, 1)
    if payloads:
        return len(payloads[0]) <= framing.max_line
    try:
        unfinished = framing.unfinished(rest)
    except MalformedFrame:
        return False
    return unfinished is None or not unfinished.skipping
