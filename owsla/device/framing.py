"""Lines out of bytes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Framing:
    """How a device's lines are told apart.

    With the default delimiter, `\\n`, a `\\r` before it is stripped, and lines to the device end with `\\r\\n`. A delimiter
    of the user's own is used as it is, both ways.
    """

    delimiter: bytes = b"\n"
    max_line: int = 16384
    """The longest line, in bytes, without its delimiter."""

    @property
    def ending(self) -> bytes:
        """What a line towards the device ends with."""
        return b"\r\n" if self.delimiter == b"\n" else self.delimiter

    @property
    def forbidden(self) -> re.Pattern[bytes]:
        """What may not stand in a line towards the device, since the device would see two lines."""
        return re.compile(b"[\r\n]" if self.delimiter == b"\n" else re.escape(self.delimiter))

    @property
    def slack(self) -> int:
        """How many bytes of the delimiter may hang on to a line of full length before the delimiter is whole."""
        return 1 if self.delimiter == b"\n" else len(self.delimiter) - 1

    def split(self, data: bytes, most: int = -1) -> tuple[list[bytes], bytes]:
        """Return the whole lines at the start of `data`, `most` of them at most, and the rest. Lengths are not checked."""
        lines = data.split(self.delimiter, most)
        rest = lines.pop()
        if self.delimiter == b"\n":
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        return lines, rest
