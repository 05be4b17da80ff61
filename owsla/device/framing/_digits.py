"""Frames that begin with their length in decimal digits: netstrings, and the octet counting of syslog."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ._interface import Framing
from ._unfinished import LONG_FRAME, KnownSize, MalformedFrame, Unfinished

DIGITS: Final = 19
"""Maximum number of digits of a length, enough for 2^63 - 1. Longer numbers are malformed, so that a header is always short."""

_SHOWN = 24
"""Bytes of a malformed header that are shown."""


class _Digits(Framing):
    """Frames of a length without leading zeros, a separator, as many bytes, and a trailer of at most one byte."""

    __slots__ = ("_format", "_match", "_partial", "_trailer")

    def __init__(self, max_line: int, separator: bytes, trailer: bytes) -> None:
        super().__init__(max_line)
        digits = rb"(0|[1-9][0-9]{0,%d})" % (DIGITS - 1)
        self._match = re.compile(digits + separator).match
        self._partial = re.compile(digits)
        self._format = b"%d" + separator + b"%b" + trailer
        self._trailer = trailer

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        payloads: list[bytes] = []
        match, trailer = self._match, self._trailer
        start, last, behind = 0, len(data), len(trailer)
        while start < last and len(payloads) != limit:
            header = match(data, start)
            if header is None:
                break
            begin = header.end()
            end = begin + int(data[start : begin - 1])
            if end + behind > last or (behind and data[end] != trailer[0]):
                break
            payloads.append(data[begin:end])
            start = end + behind
        return payloads, data[start:]

    def unfinished(self, rest: bytes) -> Unfinished | None:
        header = self._match(rest)
        if header is None:
            if not rest or self._partial.fullmatch(rest):
                return None
            raise MalformedFrame(f"{rest[:_SHOWN]!r} does not begin with a length")
        length = int(header[1])
        end = header.end() + length
        if len(rest) > end:  # otherwise `split` would have taken it
            raise MalformedFrame(f"{length} bytes are not followed by {self._trailer!r}")
        if length > self.max_line or len(rest) > LONG_FRAME:
            return KnownSize(rest, end + len(self._trailer), length, self.max_line, self._trailer)
        return None

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        return b"".join([self._format % (len(payload), payload) for payload in payloads])


class NetstringFraming(_Digits):
    """Netstrings: `5:hello,` (https://cr.yp.to/proto/netstrings.txt)."""

    __slots__ = ()

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line, b":", b",")


class OctetCounting(_Digits):
    """Octet counting of syslog over TCP: `5 hello` (RFC 6587, section 3.4.1).

    That grammar has no message of length 0. Here `0 ` is one, in both directions.
    """

    __slots__ = ()

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line, b" ", b"")
