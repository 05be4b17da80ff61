"""The `owsla` command: an example back end, and tools to look at what passes and at the gateway itself.

| command                         | what it does                        |
|---------------------------------|-------------------------------------|
| `owsla echo`                    | answers each line                   |
| `owsla tail`                    | shows what arrives on `from_device` |
| `owsla send CONNECTION_ID TEXT` | sends a line to a device            |
| `owsla tree`                    | shows the tree of a running gateway |
| `owsla swarm`                   | simulates devices, and measures     |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ._print import Unwritable, put

INTERRUPTED = 130
"""The exit status of what Ctrl-C ended: 128 and the signal's number, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the result is its exit status. `arguments` are without the program's name."""
    from .._argv import scrub_command_line

    hidden = scrub_command_line()
    _fill_standard_streams()
    try:
        try:
            # Imported here, so that Ctrl-C while they load ends as it does later, and `--help` waits for none of them.
            from ._arguments import parse

            command = parse(sys.argv[1:] if arguments is None else arguments, os.environ, hidden=hidden)
            return command()
        finally:
            put()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, Unwritable) as error:
        # Python would complain of the same again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # whoever read our output has seen enough
        sys.stderr.write(f"owsla: standard output: {error}\n")
        return 1


def _fill_standard_streams() -> None:
    """Where a standard stream is closed (`>&-`), put nothing in its place: or else the next socket would be there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, open(number, mode))  # noqa: SIM115 - for as long as the process lives
