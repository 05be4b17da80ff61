"""`python -m owsla.workers worker-1`: a worker, as its parent starts it."""

import sys

from ._worker import CHANNEL_FD, main

if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"owsla.workers is started by twistd owsla --workers, which gives it descriptor {CHANNEL_FD}: {error}")
