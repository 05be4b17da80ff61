"""How many files this process may have open, and what that allows."""

from __future__ import annotations

import resource
from typing import Final

from ..errors import ConfigError
from ..log import pluralize

RESERVE: Final = 100
"""Files that are not devices: logs, the broker's connections, the reactor's own, back ends of the embedded broker."""


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # a hard limit that is none, where the system's own is lower: what there is must do
    return soft


def allowed_connections(wanted: int | None, open_files: int) -> tuple[int, str | None]:
    """Return how many devices may be connected at once, and what to tell the user if that is less than wanted.

    `ConfigError`, where there is not even one.
    """
    possible = open_files - RESERVE
    if possible < 1:
        raise ConfigError(
            f"this process may have {open_files} open files, and needs {RESERVE} for itself and one for each device. Raise the "
            "limit: LimitNOFILE= in the systemd unit, 'nofile' in /etc/security/limits.conf, or 'ulimit -n' in the shell that "
            "starts it"
        )
    if wanted is None:
        return possible, None
    if wanted <= possible:
        return wanted, None
    return possible, (
        f"--max-connections {wanted} needs {wanted + RESERVE} open files, and this process may have {open_files}: "
        f"{possible} devices can connect. Raise the limit: LimitNOFILE={wanted + RESERVE} in the systemd unit, "
        f"'nofile' in /etc/security/limits.conf, or 'ulimit -n {wanted + RESERVE}' in the shell that starts it"
    )


def capacity(wanted: int | None, allowed: int, open_files: int) -> str:
    """Return a line that says how many devices can be connected, and what limits them."""
    if wanted is not None and allowed == wanted:
        why = "--max-connections"
    else:
        why = f"this process may have {open_files} open files (LimitNOFILE=, ulimit -n) and keeps {RESERVE} of them for itself"
    return f"Up to {pluralize(allowed, 'device')} can be connected: {why}"
