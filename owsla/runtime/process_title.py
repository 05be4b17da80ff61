"""Passwords of broker, management and database URLs in the process list.

The kernel shows the arguments of a process from its own memory, in `/proc/PID/cmdline` and `ps`. `setproctitle` overwrites them
there, as PostgreSQL does for its status. A password is visible until then, for the tenths of a second that Python needs to
start. A password from a file or from the environment is never visible.

`setproctitle` copies the environment and overwrites the original, too, which leaves `/proc/PID/environ` empty; the variables
keep their values. So it is called only if there is a password to hide.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Final

from setproctitle import getthreadtitle, setproctitle, setthreadtitle

MASK: Final = "***"
"""The replacement for a password. Its length says nothing about the password."""

_PASSWORDS: Final = (
    # Up to the last "@", so that an unescaped "@", "/" or "," in a password is covered. A URL without a password but with an
    # "@" further on loses its port from the process list, which does no harm.
    re.compile(r"(?:amqps?|https?|postgres(?:ql)?)://[^:]*:(.+)@", re.IGNORECASE | re.DOTALL),
    # libpq takes passwords among the parameters, too. Up to the end, so that an unescaped "&" is covered.
    re.compile(r"postgres(?:ql)?://.*?[?&](?:ssl)?password=(.+)", re.IGNORECASE | re.DOTALL),
)


def mask_passwords(argument: str) -> str:
    """Return a command-line argument with the passwords of the URLs in it replaced."""
    spans = [match.span(1) for pattern in _PASSWORDS if (match := pattern.search(argument))]
    if not spans:
        return argument
    return argument[: min(start for start, _ in spans)] + MASK + argument[max(end for _, end in spans) :]


def hide_passwords() -> bool:
    """Replace the passwords in the title of this process; `sys.argv` keeps them.

    Return `False` if a password is still visible. `setproctitle` does nothing, and reports nothing, if the environment is empty
    or if the arguments exceed 100 KB (seen with version 1.3.8).
    """
    arguments = [mask_passwords(argument) for argument in sys.orig_argv]
    if arguments == sys.orig_argv:
        return True
    # Bytes that are not UTF-8 are surrogates in `sys.orig_argv`, which `setproctitle` refuses.
    title = os.fsencode(" ".join(arguments)).decode("utf-8", "replace")
    name = getthreadtitle()
    setproctitle(title)
    setthreadtitle(name)  # `setproctitle` changes the name of the process as well, by which `pgrep twistd` finds it
    try:
        with open("/proc/self/cmdline", "rb") as file:
            shown = file.read().rstrip(b"\0")
    except OSError:  # no /proc, so the result cannot be checked
        return False
    return title.encode().startswith(shown)
