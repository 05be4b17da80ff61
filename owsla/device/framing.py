"""Splitting of bytes into lines, without I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

LONG_LINE: Final = 32768
"""Bytes of an unfinished line past which it is collected in a buffer that grows in place."""


@dataclass(frozen=True, slots=True)
class Framing:
    """Delimiter and maximum length of lines.

    With the default delimiter, `\\n`, a `\\r` before it is stripped, and lines to the device end with `\\r\\n`. A configured
    delimiter is used unchanged in both directions.
    """

    delimiter: bytes = b"\n"
    max_line: int = 16384
    """Maximum length of a line in bytes, without its delimiter."""
    ending: bytes = field(init=False)
    """Ending of each line to the device."""
    long_line: int = field(init=False)
    """Bytes of an unfinished line past which it is checked: it is either too long, or collected in a buffer of its own."""

    def __post_init__(self) -> None:
        # Computed once, since both are read for every line.
        object.__setattr__(self, "ending", b"\r\n" if self.delimiter == b"\n" else self.delimiter)
        object.__setattr__(self, "long_line", min(LONG_LINE, self.max_line))

    @property
    def forbidden(self) -> re.Pattern[bytes]:
        """Pattern of what must not occur in a line to the device, since the device would see two lines."""
        return re.compile(b"[\r\n]" if self.delimiter == b"\n" else re.escape(self.delimiter))

    @property
    def slack(self) -> int:
        """Number of bytes of an incomplete delimiter that may follow a line of maximum length."""
        return 1 if self.delimiter == b"\n" else len(self.delimiter) - 1

    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        """Return the complete lines at the start of `data`, at most `limit` of them, and the rest. Do not check lengths."""
        lines = data.split(self.delimiter, limit)
        rest = lines.pop()
        if self.delimiter == b"\n":
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        return lines, rest
