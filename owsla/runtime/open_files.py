"""The limit of open files, and the number of devices that it allows."""

from __future__ import annotations

import resource
from typing import Final

from ..errors import ConfigError
from ..log import pluralize

RESERVE: Final = 150
"""Open files that are not devices: logs, connections to the broker, the reactor's own, back ends of the embedded broker, and up
to 64 clients of each of `--http` and the control socket."""

FOR_A_WORKER: Final = 4
"""Open files of a parent for each worker: the connection to it, its two standard streams, and one more while it starts."""

_HOW_TO_RAISE = (
    "Raise the limit: LimitNOFILE= in the systemd unit, 'nofile' in /etc/security/limits.conf, or 'ulimit -n' in the shell "
    "that starts it"
)


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard limit. Return the soft limit that then applies."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # a hard limit of "unlimited" where the system's own limit is lower: keep the soft limit
    return soft


def check_parent(workers: int, open_files: int) -> None:
    """Raise `ConfigError` if the parent of these workers may not open enough files."""
    needed = RESERVE + FOR_A_WORKER * workers
    if open_files < needed:
        raise ConfigError(
            f"this process may open {open_files} files, and needs {needed} for itself and {pluralize(workers, 'worker')}. "
            f"{_HOW_TO_RAISE}"
        )


def allowed_connections(wanted: int | None, open_files: int) -> tuple[int, str | None]:
    """Return the number of devices that may be connected at once, and a warning for the user if that is less than wanted.

    Raise `ConfigError` if not even one device can be connected.
    """
    possible = open_files - RESERVE
    if possible < 1:
        raise ConfigError(
            f"this process may open {open_files} files, and needs {RESERVE} for itself and one for each device. {_HOW_TO_RAISE}"
        )
    if wanted is None:
        return possible, None
    if wanted <= possible:
        return wanted, None
    return possible, (
        f"--max-connections {wanted} needs {wanted + RESERVE} open files, and this process may open {open_files}: "
        f"{possible} devices can connect. Raise the limit: LimitNOFILE={wanted + RESERVE} in the systemd unit, "
        f"'nofile' in /etc/security/limits.conf, or 'ulimit -n {wanted + RESERVE}' in the shell that starts it"
    )


def describe_capacity(wanted: int | None, allowed: int, open_files: int) -> str:
    """Return a log line with the number of devices that can be connected, and the reason for that limit."""
    if wanted is not None and allowed == wanted:
        why = "--max-connections"
    else:
        why = f"this process may open {open_files} files (LimitNOFILE=, ulimit -n) and keeps {RESERVE} of them for itself"
    return f"Up to {pluralize(allowed, 'device')} can be connected: {why}"
