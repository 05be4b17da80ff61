"""Splitting of a byte stream into frames."""

from __future__ import annotations

import struct
from typing import Final

from owsla.amqp import wire

from .errors import AMQPError

_FRAME = struct.Struct(">BHI")
_TYPES: Final = (wire.FRAME_METHOD, wire.FRAME_HEADER, wire.FRAME_BODY, wire.FRAME_HEARTBEAT)


def read_frame(data: bytes, at: int, frame_max: int) -> tuple[int, int, bytes, int] | None:
    """Read the frame at an offset: type, channel, payload, and offset of the next frame. `None` if it is incomplete.

    Raise 501 for a frame that is malformed or larger than `frame_max`, as soon as that shows.
    """
    if len(data) - at < 7:
        return None
    kind, channel, size = _FRAME.unpack_from(data, at)
    # Some clients take frame_max for the limit of the payload, without the 8 bytes that a frame adds. RabbitMQ tolerates that
    # (FRAME_SIZE_FUDGE), and so does this for bodies. A content header is delivered in one frame, so it has to fit.
    if size > frame_max - (0 if kind == wire.FRAME_BODY else wire.FRAME_OVERHEAD):
        raise AMQPError(501, f"frame of {size + wire.FRAME_OVERHEAD} bytes exceeds the negotiated maximum of {frame_max}")
    if kind not in _TYPES:
        raise AMQPError(501, f"unknown frame type {kind}")
    start = at + 7
    stop = start + size
    if stop >= len(data):
        return None
    if data[stop] != wire.FRAME_END:
        raise AMQPError(501, f"frame ends with {data[stop]:#04x} instead of {wire.FRAME_END:#04x}")
    return kind, channel, data[start:stop], stop + 1
