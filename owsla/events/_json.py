"""The event handler `json`: events as lines of JSON in a file, or on standard output.

    {"time": "2026-11-22T10:20:30.123456Z", "node": "0123abcd", "number": 7, "event": "broker-unblocked", "warning": false}
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import os_reason
from ..log import LineStream, utc
from ._outbox import Record, Trouble
from ._types import Event

COMMON: Final = ("time", "node", "number", "event", "warning")
"""Keys of every event; its own fields follow."""


def as_json(record: Record) -> dict[str, Any]:
    """Convert an event to a flat JSON object."""
    event: Event = record.event
    return {
        "time": utc(record.time),
        "node": record.node,
        "number": record.number,
        "event": event.name,
        "warning": event.warning,
        **event.fields(),
    }


def json_line(record: Record) -> str:
    """Return an event as a line with a JSON object."""
    return json.dumps(as_json(record)) + "\n"


class JSONWriter:
    """Writer that appends to a file, always whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._reopen = False

    def write(self, batch: Sequence[Record]) -> int:
        data = "".join(json_line(record) for record in batch).encode()
        try:
            if self._reopen:
                self._reopen = False
                self.close()
            if self._file < 0:
                self._open()
            self._append(data)
        except OSError as error:
            self.close()
            raise Trouble(f"{self._path}: {os_reason(error)}") from None
        return 0

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # the last writer died within a line

    def _append(self, data: bytes) -> None:
        """Append all of the data. If that fails halfway, as on a full disk, remove the part that was written."""
        written = 0
        fcntl.flock(self._file, fcntl.LOCK_EX)  # other processes of Owsla may append to the same file
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def reopen(self) -> None:
        self._reopen = True

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class JSONStreamWriter:
    """Writer to standard output, which the log may be written to, too."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream
        self._written = 0
        """Events of a batch that were written before an attempt failed. The next attempt gets the same batch."""

    def write(self, batch: Sequence[Record]) -> int:
        try:
            for record in batch[self._written :]:
                self._stream.write(json_line(record))
                self._written += 1
        except OSError as error:
            raise Trouble(f"standard output: {os_reason(error)}") from None
        self._written = 0
        return 0

    def reopen(self) -> None:
        """Do nothing: standard output has no name."""

    def close(self) -> None:
        """Do nothing: the log goes on."""
