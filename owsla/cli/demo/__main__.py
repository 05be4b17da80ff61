"""A process of the demo, which its parent starts: `python -m owsla.cli.demo PARENT KIND ARGUMENTS ...`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""Option of prctl(2): the signal that the kernel sends when the parent ends, even if that is killed."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Exit if that has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main(arguments: Sequence[str]) -> int:
    """Run one kind of process."""
    parent, kind, *rest = arguments
    die_with(int(parent))
    if kind == "gateway":
        # `twistd-owsla`, as a program of its own: it writes nothing into the folder of plug-ins. The signal stays.
        os.execv(sys.executable, [sys.executable, "-P", "-c", "from owsla.twistd import main; main()", *rest])
    if kind == "devices":
        from ._devices import main as devices

        return devices(*rest)
    if kind == "queues":
        from ._queues import main as queues

        return queues(*rest)
    from .. import main as owsla

    return owsla(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
