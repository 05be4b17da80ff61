"""`python -m owsla.workers worker-1`: a worker, as its parent starts it."""

import signal
import sys

if __name__ == "__main__":
    # Before everything else is imported, which takes a second: a terminal, or systemd, sends these to all processes, and here
    # they are the parent's business.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    from ._worker import CHANNEL_FD, main

    try:
        main()
    except OSError as error:
        sys.exit(f"owsla.workers is started by twistd owsla --workers, which gives it descriptor {CHANNEL_FD}: {error}")
