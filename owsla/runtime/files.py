"""Files named in settings."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, os_reason


def read_file(path: Path) -> bytes:
    """Return the content of a file that the user named. Raise `ConfigError` with the reason if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None
