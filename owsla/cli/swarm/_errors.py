"""The error of a swarm that cannot run, and reasons of failed connections."""

from __future__ import annotations

import errno
import os
from typing import Final

REFUSED: Final = "the gateway refused: "
"""Beginning of the reasons that a gateway gives in an alert."""

UNEXPECTED_END: Final = "closed without close_notify"
"""Reason of a TLS connection that the gateway has ended without an alert."""

CLOSED: Final = frozenset({UNEXPECTED_END, *(os.strerror(number).lower() for number in (errno.ECONNRESET, errno.EPIPE))})
"""Reasons of TLS connections that the gateway has ended without telling why."""


class SwarmError(Exception):
    """A swarm cannot run, or has nothing to report; the text says why in one line."""
