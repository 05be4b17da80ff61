"""Frames of the lines of a swarm, in both directions: those of a door of the gateway (`--framing`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...config.framings import read_framing
from ...device.framing import Framing, MalformedFrame, make_framing

LONGEST: Final = 1 << 20
"""Bytes of an incomplete frame after which the server does not send what it should."""


class Frames:
    """Framing of lines, and the reasons for which received bytes are not in it."""

    def __init__(self, framing: str, delimiter: bytes) -> None:
        """`framing` is a value of `--framing`; `delimiter` is that of lines."""
        self._lines = framing == "lines"
        self._framing: Framing = make_framing(read_framing(framing), delimiter, LONGEST)
        self.frame: Final[Callable[[bytes], bytes]] = _line(delimiter) if self._lines else self._frame
        """Function that returns the frame of a line."""
        self.split: Final = self._framing.split
        """Function that returns the complete lines in bytes from the gateway, and the rest."""

    def _frame(self, line: bytes) -> bytes:
        return self._framing.encode((line,))

    def fault(self, line: bytes) -> str | None:
        """Return why a line cannot be framed, or `None` if it can."""
        reason = self._framing.fault(line)
        return None if reason is None else _FAULTS.get(reason, reason)

    def problem(self, rest: bytes) -> str | None:
        """Return why these bytes, which `split` has left, are not the beginning of a frame; `None` if they may be."""
        try:
            unfinished = self._framing.unfinished(rest)
        except MalformedFrame as error:
            return f"malformed frames in what it sends: {error}"
        if len(rest) > LONGEST or (unfinished is not None and unfinished.skipping):
            return f"no end of {'line' if self._lines else 'frame'} in what it sends"
        return None


_FAULTS: Final = {
    "too-long": "is too long",
    "bad-length": "may become longer",
    "delimiter-in-body": "contains the beginning or the end of a frame",
}
"""Reasons of `Framing.fault`, as the rest of a sentence about a line."""


def _line(delimiter: bytes) -> Callable[[bytes], bytes]:
    return lambda line: line + delimiter
