"""Files named in settings.

A load of the settings reads each file once (`Files`), so that the content that was checked is the content that is used,
although somebody may be writing the file. A parent sends the contents to its workers, which then all have the same.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from ..errors import ConfigError, os_reason

ReadFile: TypeAlias = Callable[[Path], bytes]
"""A function that returns the content of a file, or raises `ConfigError` with the path and the reason."""


def read_file(path: Path) -> bytes:
    """Return the content of a file that the user named. Raise `ConfigError` with the reason if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None


class Files:
    """Contents of the files of one load of the settings. Each is read when it is needed first."""

    def __init__(self, folder: Path | None = None, contents: Mapping[Path, bytes] | None = None) -> None:
        """Start with `contents`. Relative paths are relative to `folder`, by default the working folder of the process now:
        twistd changes it later, and a reload must find the same files as the start.
        """
        self.folder = Path.cwd() if folder is None else folder
        self._contents = dict(contents or {})

    def read(self, path: Path) -> bytes:
        """Return the content of a file (`ReadFile`)."""
        content = self._contents.get(path)
        if content is None:
            content = self._contents[path] = self._read(path)
        return content

    def _read(self, path: Path) -> bytes:
        try:
            return (self.folder / path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {os_reason(error)}") from None

    def again(self) -> Files:
        """Return an object that reads the files again, relative to the same folder."""
        return Files(self.folder)

    @property
    def paths(self) -> Iterable[Path]:
        """Paths of the files that were read."""
        return self._contents.keys()

    def same_as(self, other: Files) -> bool:
        """Return whether both have read the same files, with the same contents."""
        return self._contents == other._contents

    def to_wire(self) -> dict[str, str]:
        """Return the contents by path, in a form that JSON can carry."""
        return {str(path): b64encode(content).decode() for path, content in self._contents.items()}

    @classmethod
    def from_wire(cls, wire: Mapping[str, str]) -> Files:
        """Return the contents that `to_wire` returned in another process."""
        return cls(contents={Path(path): b64decode(content) for path, content in wire.items()})
