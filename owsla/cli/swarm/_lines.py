"""The lines that devices send, and how answers are recognized. Lines are bytes without their delimiter."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

DEFAULT: Final = "{device} {n} {time}"

_FIELD = re.compile(r"\{(n|device|time|pad)\}")
_PAD: Final = b"."


class LineTemplate:
    """A template of lines, such as `{device} {n}`, padded to a size.

    | `{n}`      | number of the line on its connection: 0, 1, 2 ...    |
    | `{device}` | number of the device                                 |
    | `{time}`   | milliseconds since the epoch                         |
    | `{pad}`    | position of the padding; the end if it is not there  |

    Any other brace stands for itself, so a template can be JSON.
    """

    def __init__(self, text: str, size: int = 0) -> None:
        """Parse a template; `size` is the minimum size of a line in bytes. Raise `ValueError` with the reason."""
        if "\n" in text or "\r" in text:
            raise ValueError("a line cannot contain an end of line")
        pieces = _FIELD.split(text)
        self.fields: Final = tuple(pieces[1::2])
        if self.fields.count("pad") > 1:
            raise ValueError("{pad} can be there only once")
        if "pad" not in self.fields:
            pieces += ["pad", ""]
        at = 2 * pieces[1::2].index("pad") + 1
        self._pieces = pieces
        self._before, self._before_values = _format(pieces[:at])
        self._after, self._after_values = _format(pieces[at + 1 :])
        self.size: Final = size

    @property
    def numbered(self) -> bool:
        """Return whether the number of a line is in it, so that the lines of a device differ."""
        return "n" in self.fields

    def line(self, n: int, device: int, milliseconds: int) -> bytes:
        """Return a line, without its delimiter."""
        values = (n, device, milliseconds)
        before: bytes = self._before % self._before_values(values)
        if not self._after:
            return before.ljust(self.size, _PAD)
        after: bytes = self._after % self._after_values(values)
        return before + _PAD * (self.size - len(before) - len(after)) + after

    def pattern(self) -> re.Pattern[bytes]:
        """Return the pattern that finds a line in an answer, with the groups `n` and, if it is in the template, `device`.

        Text around the line does not matter. Everything before the padding must match, so that digits around the line are not
        taken for its number.
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


def _format(pieces: list[str]) -> tuple[bytes, Callable[[tuple[int, int, int]], Any]]:
    """Return a bytes format, and the function that selects its values, from literals and fields in turn."""
    literals = [piece.encode().replace(b"%", b"%%") for piece in pieces[::2]]
    places = [("n", "device", "time").index(field) for field in pieces[1::2]]
    return b"%d".join(literals), itemgetter(*places) if places else lambda values: ()


def ack_pattern(template: str) -> re.Pattern[bytes]:
    """Return the pattern of an acknowledgement, from the `--device-ack` of the gateway. Raise `ValueError` without `{seq}`."""
    before, found, after = template.partition("{seq}")
    if not found or "{seq}" in after:
        raise ValueError(f"{template!r} must contain {{seq}} once")
    return re.compile(re.escape(before.encode()) + rb"([0-9]{1,18})" + re.escape(after.encode()))
