"""Hides the passwords of broker and database URLs from the process list.

Linux keeps a process's arguments in the process's own memory, between the addresses in fields 48 and 49 of
``/proc/self/stat`` (proc(5)); ``ps`` shows whatever is there *now*. So a password that came in an argument is hidden
by overwriting those very bytes, as sendmail does. It can be seen until then (the interpreter's start, some tenths of
a second): a password file or the environment never shows it at all.
"""

from __future__ import annotations

import os
import re

_MASK = b"*"

# Up to the argument's last "@", so that a password with an unescaped "@", "/" or "," in it is covered too. A URL without
# a password but with an "@" further on loses its port from the process list: that harms nobody.
_PASSWORD = re.compile(rb"(?:amqps?|postgres(?:ql)?)://[^:\0]*:([^\0]+)@", re.IGNORECASE)

# libpq takes it among the parameters of a URL, too. Up to the argument's end, so that one with an unescaped "&" is covered.
_PARAMETER = re.compile(rb"postgres(?:ql)?://[^\0]*?[?&](?:ssl)?password=([^\0]+)", re.IGNORECASE)


def password_spans(arguments: bytes) -> list[tuple[int, int]]:
    """Where the passwords of broker and database URLs are in a NUL-separated argument area: (start, end) pairs."""
    return [match.span(1) for pattern in (_PASSWORD, _PARAMETER) for match in pattern.finditer(arguments)]


def scrub_command_line() -> bool:
    """Overwrite the passwords of broker and database URLs in this process's own argument area.

    ``sys.argv`` is untouched. Returns False only when a password is there and could not be hidden; raises nothing.
    """
    try:
        with open("/proc/self/cmdline", "rb") as file:
            if not password_spans(file.read()):
                return True
    except OSError:  # not Linux, or no /proc: there is nothing to be done
        return False
    try:
        with open("/proc/self/stat", "rb") as file:
            # The second field is the program's name in parentheses and may hold anything: count after it.
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[48 - 3]), int(fields[49 - 3])
        # Through /proc/self/mem rather than ctypes: a wrong address is an error there, not a crash.
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            for first, last in password_spans(os.pread(memory, end - start, start)):
                os.pwrite(memory, _MASK * (last - first), start + first)
        finally:
            os.close(memory)
        with open("/proc/self/cmdline", "rb") as file:
            area = file.read()
    except (OSError, OverflowError, ValueError, IndexError):
        return False
    return all(set(area[first:last]) == set(_MASK) for first, last in password_spans(area))
