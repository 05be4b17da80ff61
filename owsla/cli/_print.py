"""Output of commands that print once and end."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading

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
        if text:  # the write of nothing is an error on a full disk
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable((error.strerror or str(error)).lower()) from None


def end_with_reader() -> None:
    """End the process, with status 0, when the reader of its standard output closes the pipe.

    A command that follows something may write nothing for hours, and would not notice.
    """
    try:
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            threading.Thread(target=_watch, name="reader", daemon=True).start()
    except OSError:
        pass  # standard output is closed


def _watch() -> None:
    poll = select.poll()
    poll.register(1, 0)  # POLLERR, which needs no registration, is the only event
    poll.poll()
    os._exit(0)  # the main thread is blocked in a read
