"""The `owsla` command: an example back end, and tools to look at messages and at the gateway itself.

| command                         | description                                            |
|---------------------------------|--------------------------------------------------------|
| `owsla echo`                    | answers each line                                      |
| `owsla tail`                    | shows the messages on `from_device`                    |
| `owsla send CONNECTION_ID TEXT` | sends a line to a device                               |
| `owsla who-has DEVICE_ID`       | asks whether a device is connected, and since when     |
| `owsla tree`                    | shows the supervision tree of a running gateway        |
| `owsla health`                  | checks whether a running gateway is alive, or ready    |
| `owsla swarm`                   | simulates devices, and measures                        |
| `owsla demo`                    | shows all of it at work                                |

This module imports nothing of its package, so that `main` runs at once: until a command is imported, Ctrl-C ends the process as
if it were not written in Python.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of the signal, as in shells."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. `arguments` come without the name of the program."""
    # Not where the caller has a handler of its own, or where the signal is ignored.
    own = arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ..runtime.process_title import hide_passwords
    from ._arguments import parse
    from ._print import Unwritable, put

    hidden = hide_passwords()
    _fill_standard_streams()
    try:
        try:
            command = parse(sys.argv[1:] if arguments is None else arguments, os.environ, hidden=hidden)
            if own:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return command()
        finally:
            if own:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # the end of Python shows tracebacks, too
            put()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, Unwritable) as error:
        # Python flushes standard output at exit, and would report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # the reader has closed the pipe, as `head` does when it has enough
        sys.stderr.write(f"owsla: standard output: {error}\n")
        return 1


def _fill_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed (`>&-`): the next socket would get its number otherwise."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, mode))  # noqa: SIM115 - open until the process ends
