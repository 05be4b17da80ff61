"""Printing, where standard output may be a disk that is full."""

from __future__ import annotations

import sys


class Unwritable(Exception):
    """Standard output takes no more, and why."""


def put(text: str = "") -> None:
    """Write to standard output, with what was written before. `Unwritable`; `BrokenPipeError` where the reader has left."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable((error.strerror or str(error)).lower()) from None
