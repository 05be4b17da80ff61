"""Files named in settings.

A load of the settings reads each file once (`Files`), so that the content that was checked is the content that is used,
although somebody may be writing the file. A parent sends the contents to its workers, which then all have the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from ..errors import ConfigError, os_reason

MOST: Final = 16 << 20
"""Bytes in all files together. The largest usual one is a revocation list: 40 bytes for each certificate. The limit keeps a
device such as /dev/zero from filling the memory, and the contents short enough for one message to a worker."""

ReadFile: TypeAlias = Callable[[Path], bytes]
"""A function that returns the content of a file, or raises `ConfigError` with the path and the reason."""


def read_file(path: Path) -> bytes:
    """Return the content of a file that the user named. Raise `ConfigError` with the reason if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None


class _TooLong(Exception):
    """The files have more bytes together than `MOST`."""


class Files:
    """Contents of the files of one load of the settings. Each is read when it is needed first.

    The objects may be used in any thread, one at a time.
    """

    def __init__(self, folder: Path | None = None, contents: Mapping[Path, bytes] | None = None) -> None:
        """Start with `contents`. Relative paths are relative to `folder`, by default the working folder of the process now:
        twistd changes it later, and a reload must find the same files as the start. Raise `ConfigError` if that was removed.
        """
        try:
            self.folder = Path.cwd() if folder is None else folder
        except OSError as error:
            raise ConfigError(f"the working folder: {os_reason(error)}") from None
        self._contents = dict(contents or {})
        self._faults: dict[Path, str] = {}
        self._unrepeatable: set[Path] = set()
        self._again = False
        self.reading: Path | None = None
        """Path of the file that is being read now, by another thread."""

    def read(self, path: Path) -> bytes:
        """Return the content of a file (`ReadFile`)."""
        content = self._contents.get(path)
        if content is None:
            self.reading = path
            try:
                content = self._contents[path] = self._read(path)
            except OSError as error:
                self._faults[path] = fault = f"{path}: {os_reason(error)}"
                raise ConfigError(fault) from None
            except _TooLong:
                self._faults[path] = fault = f"{path}: the files of the settings have more than {MOST >> 20} MiB together"
                raise ConfigError(fault) from None
            finally:
                self.reading = None
        return content

    def _read(self, path: Path) -> bytes:
        # O_NONBLOCK: to open a pipe that nobody writes to would block the thread for good.
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if self._again else 0)
        with open(self.folder / path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                if self._again:
                    raise OSError(errno.EINVAL, "not a regular file")
                self._unrepeatable.add(path)
            left = MOST - sum(map(len, self._contents.values()))
            content = file.read(left + 1)
        if len(content) > left:
            raise _TooLong
        return content

    @contextlib.contextmanager
    def read_elsewhere(self, path: Path) -> Iterator[None]:
        """Note `path` as the file that is being read, while other code reads it."""
        self.reading = path
        try:
            yield
        finally:
            self.reading = None

    def again(self) -> Files:
        """Return an object that reads the files again, relative to the same folder.

        A file that is not a regular one keeps its content. It may be the pipe of a shell (`--config <(…)`), which is empty now.
        One that is no regular file any longer cannot be read.
        """
        files = Files(self.folder, {path: self._contents[path] for path in self._unrepeatable if path in self._contents})
        files._unrepeatable = set(self._unrepeatable)
        files._again = True
        return files

    def read_all_of(self, other: Files) -> None:
        """Read all files that the other has read, those that it could not read included. Faults are noted, and not raised."""
        for path in [*other._contents, *other._faults]:
            try:
                self.read(path)
            except ConfigError:
                pass

    @property
    def paths(self) -> Iterable[Path]:
        """Paths of the files that were read."""
        return self._contents.keys()

    def same_as(self, other: Files) -> bool:
        """Return whether both have read the same files, with the same contents and the same faults."""
        return self._contents == other._contents and self._faults == other._faults

    def differs(self, other: Files, path: Path) -> bool:
        """Return whether a file has another content than in `other`."""
        return self._contents.get(path) != other._contents.get(path)

    def to_wire(self) -> dict[str, str]:
        """Return the contents by path, in a form that JSON can carry."""
        return {str(path): b64encode(content).decode() for path, content in self._contents.items()}

    @classmethod
    def from_wire(cls, wire: Mapping[str, str]) -> Files:
        """Return the contents that `to_wire` returned in another process."""
        return cls(contents={Path(path): b64decode(content) for path, content in wire.items()})
