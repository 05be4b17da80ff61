"""The file of `--login-checker file:PATH`: who may log in, and with which token.

A line `id:token` for each device. Twisted's FilePasswordDB is not used: it takes any file, cuts a token at its second colon,
and fails a login while there is no file.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.logger import Logger
from zope.interface import implementer

from ..errors import ConfigError, os_reason
from ._sparingly import Sparingly

LONGEST_ID: Final = 255
"""Bytes. A longer one could not be the connection's device id."""

_BOM: Final = b"\xef\xbb\xbf"


def read_tokens(content: bytes) -> dict[bytes, bytes]:
    """The token of each id. `ConfigError` says in which line something is wrong, without quoting it: a token may be in it.

    Space at a line's end, blank lines, and those that begin with # do not count. Of two lines for an id the last one holds; an
    id without a token is nobody's.
    """
    if b"\0" in content:
        raise ConfigError("it is not a text file")
    tokens = {}
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), 1):
        line = line.rstrip()
        if not line or line.lstrip().startswith(b"#"):
            continue
        name, colon, token = line.partition(b":")
        if not colon:
            raise ConfigError(f"line {number}: there is no colon in it, as in id:token")
        if b":" in token:
            raise ConfigError(f"line {number}: there is more than one colon in it; neither an id nor a token can have one")
        if not _is_an_id(name):
            raise ConfigError(
                f"line {number}: what is before the colon is no id: 1 to {LONGEST_ID} bytes of printable text without a space"
            )
        tokens[name] = token
    return tokens


def _is_an_id(name: bytes) -> bool:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return 1 <= len(name) <= LONGEST_ID and text.isprintable() and " " not in text


@implementer(ICredentialsChecker)
class DevicesFile:
    """Knows the devices of a file, which is read again when it has changed.

    While it cannot be read, or has something else in it, those of the last good one are known, and there is a warning: a slip
    in the file should not keep out all devices.
    """

    credentialInterfaces = (IUsernamePassword,)
    _log = Logger()

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """`ConfigError`, if it cannot be used."""
        self._name = str(path)
        self._path = path.absolute()  # twistd may go to another folder later
        self._sparingly = Sparingly(now)
        self._tokens: dict[bytes, bytes] = {}
        self._seen: object = None  # how the file looked whose content was read last
        self._fault = ""  # what is wrong with that content
        self._told = ""  # the trouble that was told last, and lasts
        trouble = self._trouble()
        if trouble:
            raise ConfigError(f"{self._name}: {trouble}")

    def requestAvatarId(self, credentials: Any) -> bytes:
        self._look()
        name: bytes = credentials.username
        token = self._tokens.get(name, b"")
        # An unknown id takes as long as a wrong token.
        if not hmac.compare_digest(token, credentials.password) or not token:
            raise UnauthorizedLogin("there is no such device, or it has another token")
        return name

    def _look(self) -> None:
        seen = self._seen
        trouble = self._trouble()
        if not trouble:
            if self._told:
                self._told = ""
                self._log.info("{file} is in use again", file=self._name)
        elif (trouble != self._told or seen != self._seen) and self._sparingly.due():
            self._told = trouble
            self._log.warn(
                "{file}: {trouble}; until that is mended the devices that were in it before are known",
                file=self._name,
                trouble=trouble,
            )

    def _trouble(self) -> str:
        """Read the file, if it has changed; why that cannot be, or what is wrong with it."""
        try:
            status = os.stat(self._path)
            # Before it is read: what is written meanwhile is then a change for the next look.
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return self._fault
            content = self._path.read_bytes()
        except OSError as error:
            return os_reason(error)
        self._seen = seen
        self._fault = ""
        try:
            self._tokens = read_tokens(content)
        except ConfigError as error:
            self._fault = str(error)
        return self._fault
