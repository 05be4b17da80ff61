"""The files of the page in the browser: HTML, styles and scripts, which are read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("static")

PREFIX: Final = b"/static/"
"""Start of the paths of styles and scripts."""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Policy of all answers: scripts and styles are files of this folder, never part of a page. So no text of a device can become
one."""

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
"""Types of the files that are served; others in the folder are not."""

_TITLE: Final = "<!-- title -->"
_SUMMARY: Final = "<!-- summary -->"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is sent."""

    media_type: str
    body: bytes
    etag: bytes
    """Entity tag: a browser asks with it whether its copy is current."""


class StaticFiles:
    """The files of the folder `static` by name. They are small, and stay in memory."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Read the folder. `OSError` if that is not possible."""
        self._files: dict[str, StaticFile] = {}
        for path in sorted(folder.iterdir()):
            media_type = _MEDIA_TYPES.get(path.suffix)
            if media_type is not None:
                body = path.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
                self._files[path.name] = StaticFile(media_type, body, etag)
        self._index = self._files.pop("index.html").body.decode()

    def items(self) -> Iterator[tuple[bytes, StaticFile]]:
        """Return the styles and scripts with their paths."""
        return ((PREFIX + name.encode(), file) for name, file in self._files.items())

    def index(self, title: str, summary: str) -> str:
        """Return the page with a title and a summary, both HTML. Browsers without scripts show the summary."""
        return self._index.replace(_TITLE, title, 1).replace(_SUMMARY, summary, 1)
