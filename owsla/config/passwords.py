"""The password for the broker in a file."""

from __future__ import annotations

from pathlib import Path

from owsla.errors import ConfigError
from owsla.runtime.files import ReadFile, read_file


def read_password(path: Path, read: ReadFile = read_file) -> str:
    """Return the password that is the only line of a file. Raise `ConfigError`, with the path, if there is none."""
    try:
        password = read(path).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    password = password.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password:
        raise ConfigError(f"{path}: the file must contain one line, the password")
    return password
