"""Program that passes its descriptors to a command, as sd_listen_fds(3) says, and becomes that command.

    python pass_sockets.py NAME=DESCRIPTOR... -- COMMAND...
"""

from __future__ import annotations

import os
import sys

FIRST = 3


def main() -> None:
    end = sys.argv.index("--")
    passed = [argument.rpartition("=") for argument in sys.argv[1:end]]
    # Out of the way of each other first: a descriptor may have the number that another one gets.
    above = [os.dup(int(number)) for _, _, number in passed]
    while above and min(above) < FIRST + len(above):
        above = [os.dup(number) for number in above]
    for target, descriptor in enumerate(above, FIRST):
        os.dup2(descriptor, target)
    os.closerange(FIRST + len(above), 1000)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(passed))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _, _ in passed)
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
