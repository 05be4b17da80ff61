"""Entry point of one process of a swarm; see `_process`."""

import sys

from ._process import main

sys.exit(main())
