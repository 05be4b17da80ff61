"""Passwords and tokens in files of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from owsla.errors import ConfigError
from owsla.runtime.files import ReadFile, read_file

SHORTEST_TOKEN: Final = 16
"""Characters. 16 random letters and digits have 95 bits: more than can be tried over a network."""


def read_password(path: Path, read: ReadFile = read_file) -> str:
    """Return the password that is the only line of a file. Raise `ConfigError`, with the path, if there is none."""
    return _only_line(path, "password", read)


def read_token(path: Path, read: ReadFile = read_file) -> str:
    """Return the token that is the only line of a file. Raise `ConfigError`, with the path, if it cannot be used."""
    token = _only_line(path, "token", read)
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"{path}: the token has {len(token)} characters, and needs {SHORTEST_TOKEN} at least, as in openssl rand -hex 16"
        )
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{path}: a token consists of letters, digits and other characters of ASCII, without spaces")
    return token


def _only_line(path: Path, content: str, read: ReadFile) -> str:
    try:
        line = read(path).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    line = line.removesuffix("\n").removesuffix("\r")
    if not line or "\n" in line:
        raise ConfigError(f"{path}: the file must contain one line, the {content}")
    return line
