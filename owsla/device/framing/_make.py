"""The framing of a door."""

from __future__ import annotations

from ...config.framings import FramingSpec
from ._between import BetweenFraming
from ._digits import NetstringFraming, OctetCountingFraming
from ._fixed import FixedFraming
from ._interface import Framing
from ._length import LengthFraming
from ._lines import LineFraming


def make_framing(spec: FramingSpec, delimiter: bytes, max_line: int) -> Framing:
    """Return the framing that an option names. `delimiter` is that of lines; `max_line` is in bytes."""
    match spec.kind:
        case "lines":
            return LineFraming(delimiter, max_line)
        case "length":
            return LengthFraming(spec, max_line)
        case "netstring":
            return NetstringFraming(max_line)
        case "octet-counting":
            return OctetCountingFraming(max_line)
        case "fixed":
            return FixedFraming(spec.size, max_line)
        case "between":
            return BetweenFraming(spec.start, spec.end, max_line)
