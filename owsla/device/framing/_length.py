"""Frames that begin with their length as a binary number."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ...config.framings import FramingSpec
from ._interface import Framing
from ._unfinished import LONG_FRAME, KnownSize, MalformedFrame, Unfinished

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class LengthFraming(Framing):
    """Frames of an unsigned binary number, the length field, and as many bytes (`length:N`).

    This is what Twisted's `IntNStringReceiver` and Erlang's `{packet, N}` read and write. With `inclusive` the number counts
    the bytes of the field, too.
    """

    __slots__ = ("_fields", "_own", "_width")

    def __init__(self, spec: FramingSpec, max_line: int) -> None:
        super().__init__(max_line, spec.longest)
        self._fields = struct.Struct(("<" if spec.little else ">") + _FORMATS[spec.size])
        self._width = spec.size
        self._own = spec.size if spec.inclusive else 0  # bytes of the field that its number counts

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        payloads: list[bytes] = []
        unpack, width, beyond = self._fields.unpack_from, self._width, self._width - self._own
        start, last = 0, len(data) - width
        while start <= last and len(payloads) != limit:
            stop = start + unpack(data, start)[0] + beyond
            if not start + width <= stop <= last + width:
                break
            payloads.append(data[start + width : stop])
            start = stop
        return payloads, data[start:]

    def unfinished(self, rest: bytes) -> Unfinished | None:
        if len(rest) < self._width:
            return None
        number: int = self._fields.unpack_from(rest)[0]
        length = number - self._own
        if length < 0:
            raise MalformedFrame(f"the length {number} does not include the {self._own} bytes of its field")
        if length > self.max_line or len(rest) > LONG_FRAME:
            return KnownSize(rest, self._width + length, length, self.max_line)
        return None

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        pack, own = self._fields.pack, self._own
        if len(payloads) == 1:
            return pack(len(payloads[0]) + own) + payloads[0]
        return b"".join([part for payload in payloads for part in (pack(len(payload) + own), payload)])
