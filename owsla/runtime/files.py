"""Files named in settings."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, os_reason


def read_file(path: Path) -> bytes:
    """What is in a file the user named, or a ConfigError that says why it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None
