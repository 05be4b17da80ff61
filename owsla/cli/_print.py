"""Output of commands that print once and end."""

from __future__ import annotations

import sys

_ASCII = str.maketrans("├└│─…", "|`|-.")
"""ASCII characters for the branches of a tree."""


class Unwritable(Exception):
    """Standard output cannot be written, for example because the disk is full; the text says why."""


def put(text: str = "") -> None:
    """Write a text to standard output and flush it.

    Raise `BrokenPipeError` if the reader has closed the pipe, and `Unwritable` if it cannot be written for another reason.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:  # a terminal without UTF-8
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable((error.strerror or str(error)).lower()) from None
