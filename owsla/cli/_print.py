"""Printing, where standard output may be a disk that is full."""

from __future__ import annotations

import sys

_ASCII = str.maketrans("├└│─…", "|`|-.")
"""The lines of a tree, for a terminal without UTF-8."""


class Unwritable(Exception):
    """Standard output takes no more, and why."""


def put(text: str = "") -> None:
    """Write to standard output, with what was written before. `Unwritable`; `BrokenPipeError` where the reader has left."""
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
