"""What devices say, and what is read from the answers. Lines are bytes, without their delimiter."""

from __future__ import annotations

import re
from typing import Final

DEFAULT: Final = "{device} {n} {time}"

_FIELD = re.compile(r"\{(n|device|time|pad)\}")
_PAD: Final = b"."


class LineTemplate:
    """A template such as `{device} {n}`, filled up to a size.

    | `{n}`      | the line's number on its connection: 0, 1, 2 ...        |
    | `{device}` | the device's number                                     |
    | `{time}`   | milliseconds since the epoch                            |
    | `{pad}`    | where the filling goes; at the end, if it is not there  |

    Any other brace stands for itself, so that a template may be JSON.
    """

    def __init__(self, text: str, size: int = 0) -> None:
        """`size`: bytes that a line has at least. `ValueError` says what is wrong."""
        if "\n" in text or "\r" in text:
            raise ValueError("a line has no end of line within it")
        pieces = _FIELD.split(text)
        self.fields: Final = tuple(pieces[1::2])
        if self.fields.count("pad") > 1:
            raise ValueError("{pad} can be there once")
        if "pad" not in self.fields:
            pieces += ["pad", ""]
        at = 2 * pieces[1::2].index("pad") + 1
        self._pieces = pieces
        self._before, self._before_fields = _format(pieces[:at])
        self._after, self._after_fields = _format(pieces[at + 1 :])
        self.size: Final = size

    @property
    def numbered(self) -> bool:
        """Whether a line can be told from the others of its device."""
        return "n" in self.fields

    def line(self, n: int, device: int, milliseconds: int) -> bytes:
        """A line, without its delimiter."""
        values = {"n": n, "device": device, "time": milliseconds}
        before = self._before % tuple([values[field] for field in self._before_fields])
        if not self._after:
            return before.ljust(self.size, _PAD)
        after = self._after % tuple([values[field] for field in self._after_fields])
        return before + _PAD * (self.size - len(before) - len(after)) + after

    def pattern(self) -> re.Pattern[bytes]:
        """What finds `n`, and `device` where it is there, in an answer that has the line in it, whatever is around it.

        The whole of what comes before the filling must be there, so that no digits are taken for the number by chance.
        """
        named: set[str] = set()
        parts: list[bytes] = []
        for index, piece in enumerate(self._pieces):
            if index % 2 == 0:
                parts.append(re.escape(piece.encode()))
            elif piece == "pad":
                parts.append(rb"\.*")
            elif piece == "time" or piece in named:
                parts.append(rb"[0-9]+")
            else:
                named.add(piece)
                parts.append(b"(?P<%s>[0-9]+)" % piece.encode())
        return re.compile(b"".join(parts))


def _format(pieces: list[str]) -> tuple[bytes, tuple[str, ...]]:
    """A bytes format, and the fields that it is filled with, from literals and fields in turn."""
    literals = [piece.encode().replace(b"%", b"%%") for piece in pieces[::2]]
    return b"%d".join(literals), tuple(pieces[1::2])


def ack_pattern(template: str) -> re.Pattern[bytes]:
    """What finds the number in a line that says what is safe, for the gateway's own `--device-ack`. `ValueError`."""
    before, found, after = template.partition("{seq}")
    if not found or "{seq}" in after:
        raise ValueError(f"{template!r} must have {{seq}} in it, once")
    return re.compile(re.escape(before.encode()) + rb"([0-9]{1,18})" + re.escape(after.encode()))
