"""Text from outside, made safe for a terminal, and its width there.

A device chooses its id. Neither an escape sequence nor a change of the writing direction in it may reach a terminal, and wide
characters must not move the columns of a table.
"""

from __future__ import annotations

import re
from typing import Final
from unicodedata import category, east_asian_width

ELLIPSIS: Final = "…"
"""Character in place of what was cut out of a text."""

_SELECTORS: Final = re.compile("[\ufe00-\ufe0f]")
"""Variation selectors: printable by their category, but they change the width of the character before them."""


def printable(raw: bytes) -> str:
    """Escape bytes so that a terminal can show them and none is lost: `\\x1b` for an escape, `\\\\` for a backslash."""
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return _bytes(character)


def _bytes(character: str) -> str:
    # The bytes of the character in UTF-8, not its number, so that \x80 has only one meaning.
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def sentence(text: str) -> str:
    """Return a text on one line, without characters that a terminal would act on. Backslashes stay."""
    return "".join(one if one == "\\" else _escaped(one) for one in " ".join(text.split()))


def word(text: object) -> str:
    """Return a value for a column: printable, without spaces, and `-` for nothing."""
    if text is None or text == "":
        return "-"
    escaped = printable(str(text).encode("utf-8", "surrogatepass")).replace(" ", "\\x20")
    escaped = _SELECTORS.sub(lambda found: _bytes(found[0]), escaped)
    # A combining mark at the beginning would join the column before it.
    return f" {escaped}".replace(" ", "\\x20") if not _columns(escaped[0]) else escaped


def width(text: str) -> int:
    """Return the number of columns of a printable text: 2 for a wide character of East Asia, 0 for a combining mark."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if category(character) in ("Mn", "Me"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def shortened(text: str, columns: int) -> str:
    """Return a text of at most `columns` (1 or more), with `…` in its middle for what was left out."""
    if width(text) <= columns:
        return text
    left = _beginning(text, columns // 2)
    # The end reversed begins with the marks of a character, before the character itself; those alone are dropped.
    right = _beginning(text[::-1], columns - 1 - width(left))[::-1]
    while right and not _columns(right[0]):
        right = right[1:]
    return f"{left}{ELLIPSIS}{right}"


def _beginning(text: str, columns: int) -> str:
    """Return the longest beginning of a text that fits."""
    used = 0
    for index, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:index]
    return text


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """Return a text with spaces to a width; `right` puts the spaces before it."""
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces
