"""Frames that begin with their length in decimal digits: netstrings, and the octet counting of syslog."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ._interface import Framing
from ._unfinished import LONG_FRAME, KnownSize, MalformedFrame, Unfinished

DIGITS: Final = 19
"""Maximum number of digits of a length, enough for 2^63 - 1. Longer numbers are malformed, so that a header is always short."""

_SHORT: Final = {b"%d" % length: length for length in range(1000)}
"""Lengths by their digits. To look one up takes half of the time that checking and parsing its digits takes."""


class _Digits(Framing):
    """Frames of a length without leading zeros, a separator, as many bytes, and a trailer of at most one byte."""

    __slots__ = ("_format", "_headers", "_match", "_partial", "_separator", "_trailer")

    def __init__(self, max_line: int, separator: bytes, trailer: bytes) -> None:
        super().__init__(max_line)
        digits = rb"(0|[1-9][0-9]{0,%d})" % (DIGITS - 1)
        self._match = re.compile(digits + separator).match
        self._partial = re.compile(digits)
        self._format = b"%d" + separator + b"%b" + trailer
        self._headers = {digits + separator: length for digits, length in _SHORT.items() if length >= 10}
        self._separator = separator
        self._trailer = trailer

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        trailer = self._trailer
        head, separator, payload = data.partition(self._separator)
        length = _SHORT.get(head)
        if length is not None and len(payload) == length + len(trailer) and payload.endswith(trailer) and separator and limit:
            return [payload[:length]], b""  # one frame in a read, as is usual
        payloads: list[bytes] = []
        known, match, behind = self._headers.get, self._match, len(trailer)
        start, last = 0, len(data)
        while start < last and len(payloads) != limit:
            begin = start + 3
            length = known(data[start:begin])
            if length is None:
                begin += 1
                length = known(data[start:begin])
            if length is None:
                header = match(data, start)
                if header is None:
                    break
                begin = header.end()
                length = int(data[start : begin - 1])
            end = begin + length
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
            raise MalformedFrame(f"no length at the start of a frame, which begins with the byte 0x{rest[0]:02X}")
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


class OctetCountingFraming(_Digits):
    """Octet counting of syslog over TCP: `5 hello` (RFC 6587, section 3.4.1).

    That grammar has no message of length 0. Here `0 ` is one, in both directions.
    """

    __slots__ = ()

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line, b" ", b"")
