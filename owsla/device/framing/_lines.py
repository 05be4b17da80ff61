"""Lines with a delimiter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ._interface import Framing
from ._terminators import unfit_before
from ._unfinished import LONG_FRAME, Unfinished, UntilTerminator


class LineFraming(Framing):
    """Lines that end with a delimiter.

    With the default delimiter, `\\n`, a `\\r` before it is stripped, and lines to the device end with `\\r\\n`. A configured
    delimiter is used unchanged in both directions.
    """

    __slots__ = ("_slack", "_strip", "ending")

    def __init__(self, delimiter: bytes = b"\n", max_line: int = 16384) -> None:
        self._strip = delimiter == b"\n"
        forbidden = re.compile(b"[\r\n]") if self._strip else unfit_before(delimiter)
        super().__init__(max_line, delimiter=delimiter, unfit=forbidden.search, check_beyond=min(LONG_FRAME, max_line))
        self.ending = b"\r\n" if self._strip else delimiter
        """Ending of each line to the device."""
        self._slack = 1 if self._strip else len(delimiter) - 1  # of an incomplete ending after a line of maximum length

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        lines = data.split(self.delimiter, limit)
        rest = lines.pop()
        if self._strip and b"\r" in data:
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        return lines, rest

    def complete(self, rest: bytes) -> bool:
        return self.delimiter in rest

    def unfinished(self, rest: bytes) -> Unfinished | None:
        return UntilTerminator(rest, self.delimiter, self._slack, self.max_line) if len(rest) > self.check_beyond else None

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        # Also when lines from the device are joined again: a line that itself ends with `\r` would lose that when it is split.
        if len(payloads) == 1:
            return payloads[0] + self.ending
        return self.ending.join([*payloads, b""])
