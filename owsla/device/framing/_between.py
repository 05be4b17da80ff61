"""Payloads between a start and an end."""

from __future__ import annotations

from collections.abc import Sequence

from ._interface import Framing
from ._terminators import unfit_before
from ._unfinished import LONG_FRAME, MalformedFrame, Unfinished, UntilTerminator


class BetweenFraming(Framing):
    """Payloads between a start and an end, which may be the same bytes (`between:START:END`).

    Nothing is allowed between the end of a frame and the start of the next one. Where start and end differ, a start within a
    frame is malformed: the device has begun a new frame, and the end of the one before is lost.

    `read_framing` has made sure that an end cannot begin within a start. So the first end in the stream is that of the first
    frame.
    """

    __slots__ = ("_end", "_start")

    def __init__(self, start: bytes, end: bytes, max_line: int) -> None:
        super().__init__(max_line, unfit=unfit_before(end, start).search)
        self._start = start
        self._end = end

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        start, end = self._start, self._end
        if start == end:
            return self._split_same(data, limit)
        parts = data.split(end, limit)
        rest = parts.pop()
        size = len(start)
        payloads = [part[size:] for part in parts if part.rfind(start) == 0]
        if len(payloads) == len(parts):
            return payloads, rest
        for number, part in enumerate(parts):
            if not part.startswith(start) or part.find(start, size) >= 0:
                return [each[size:] for each in parts[:number]], end.join([*parts[number:], rest])
        return [part[size:] for part in parts], rest

    def _split_same(self, data: bytes, limit: int) -> tuple[list[bytes], bytes]:
        boundary = self._end
        parts = data.split(boundary, 2 * limit if limit >= 0 else -1)
        rest = parts.pop()
        if len(parts) & 1:
            rest = parts.pop() + boundary + rest
        # Before each payload is what stands between two frames: nothing.
        if not any(parts[::2]):
            return parts[1::2], rest
        bad = next(number for number, part in enumerate(parts) if part and not number & 1)
        return parts[1:bad:2], boundary.join([*parts[bad:], rest])

    def unfinished(self, rest: bytes) -> Unfinished | None:
        start, end = self._start, self._end
        if not rest.startswith(start):
            if start.startswith(rest):
                return None
            raise MalformedFrame(f"the byte 0x{rest[0]:02X} where a frame must start")
        if start != end and rest.find(start, len(start)) >= 0:
            raise MalformedFrame("a frame begins before the end of the one before")
        slack = len(start) + len(end) - 1
        if len(rest) > min(self.max_line + slack, LONG_FRAME):
            return UntilTerminator(rest, end, slack, self.max_line)
        return None

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        return self._start + (self._end + self._start).join(payloads) + self._end
