"""The file of `--login-checker file:PATH`: device ids and their tokens.

The file has a line `id:token` for each device. Twisted's FilePasswordDB is not used: it accepts any file, cuts a token at a
second colon, and fails logins while the file is missing.
"""

from __future__ import annotations

import hmac
import os
import stat
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
from ._throttle import Throttle

LONGEST_ID: Final = 255
"""Maximum length of an id in bytes. A longer one could not be the device id of a connection."""

_BOM: Final = b"\xef\xbb\xbf"


def read_tokens(content: bytes) -> dict[bytes, bytes]:
    """Return the token of each id. Raise `ConfigError` with the number of a wrong line, not its text: that may contain a token.

    Space at the end of a line, blank lines and lines that begin with # are ignored. Of two lines for one id the last one
    counts. With an empty token nobody can log in.
    """
    if b"\0" in content:
        raise ConfigError("this is not a text file")
    tokens = {}
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), 1):
        line = line.rstrip()
        if not line or line.lstrip().startswith(b"#"):
            continue
        name, colon, token = line.partition(b":")
        if not colon:
            raise ConfigError(f"line {number}: the colon is missing, as in id:token")
        if b":" in token:
            raise ConfigError(f"line {number}: there is more than one colon; neither an id nor a token can have one")
        if not _is_an_id(name):
            raise ConfigError(
                f"line {number}: the id before the colon must be 1 to {LONGEST_ID} bytes of printable text without a space"
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
    """Checker of device ids and tokens by a file, which is read again when it has changed.

    While the file cannot be read, or has a wrong line, the last good content applies, with a warning: a mistake in the file
    must not lock out all devices.
    """

    credentialInterfaces = (IUsernamePassword,)
    _log = Logger()

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic, *, folder: Path | None = None) -> None:
        """Read the file. Raise `ConfigError` if it cannot be used. A relative path is relative to `folder`, or else to the
        working folder of the process now, which twistd may change later.
        """
        self._name = str(path)
        self._path = (folder or Path.cwd()) / path
        self._throttle = Throttle(now)
        self._tokens: dict[bytes, bytes] = {}
        self._read_status: object = None  # device, inode, size and time of the file that was read last
        self._fault = ""  # the fault of that content
        self._reported = ""  # the problem that was logged last, and is not solved
        problem = self._refresh()
        if problem:
            raise ConfigError(f"{self._name}: {problem}")

    def requestAvatarId(self, credentials: Any) -> bytes:
        self._refresh_and_report()
        name: bytes = credentials.username
        token = self._tokens.get(name, b"")
        # An unknown id takes as long as a wrong token.
        if not hmac.compare_digest(token, credentials.password) or not token:
            raise UnauthorizedLogin("unknown device id, or wrong token")
        return name

    def _refresh_and_report(self) -> None:
        before = self._read_status
        problem = self._refresh()
        if not problem:
            if self._reported:
                self._reported = ""
                self._log.info("{file} is in use again", file=self._name)
        elif (problem != self._reported or before != self._read_status) and self._throttle.allows():
            self._reported = problem
            self._log.warn(
                "{file}: {problem}; its previous content applies until the file is corrected",
                file=self._name,
                problem=problem,
            )

    def _refresh(self) -> str:
        """Read the file if it has changed. Return the reason for which it cannot be used, or an empty string."""
        try:
            status = os.stat(self._path)
            # Taken before the file is read: a write in between is then noticed at the next login.
            current = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if current == self._read_status:
                return self._fault
            if stat.S_ISFIFO(status.st_mode):
                return "a pipe cannot be read again"  # and without a writer would block the process
            content = self._path.read_bytes()
        except OSError as error:
            return os_reason(error)
        self._read_status = current
        self._fault = ""
        try:
            self._tokens = read_tokens(content)
        except ConfigError as error:
            self._fault = str(error)
        return self._fault
