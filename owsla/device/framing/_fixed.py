"""Payloads of one fixed length, with nothing between them."""

from __future__ import annotations

from collections.abc import Sequence

from ._interface import Framing
from ._unfinished import LONG_FRAME, KnownSize, Unfinished


class FixedFraming(Framing):
    """Payloads of one fixed length, with nothing between them (`fixed:N`)."""

    __slots__ = ("_size",)

    def __init__(self, size: int, max_line: int) -> None:
        super().__init__(max_line, size, unfit=lambda body: len(body) != size, unfit_reason="bad-length")
        self._size = size

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        size = self._size
        count = len(data) // size
        if 0 <= limit < count:
            count = limit
        end = count * size
        return [data[start : start + size] for start in range(0, end, size)], data[end:]

    def unfinished(self, rest: bytes) -> Unfinished | None:
        return KnownSize(rest, self._size, self._size, self.max_line) if len(rest) > LONG_FRAME else None

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        return b"".join(payloads)

    def fault(self, body: bytes) -> str | None:
        # Longer than the others is another length, too.
        return "bad-length" if len(body) != self._size else None
