"""A bounded memory of the records of a trace, which a reader takes from. Pure."""

from __future__ import annotations

import base64
from collections import deque
from typing import Final

from ..device.tracing import TraceRecord
from ._types import JSON

RECORDS: Final = 4000
"""Records that wait for the reader at most, with those that it has not confirmed yet."""

AT_ONCE: Final = 128 << 10
"""Bytes of memory of the records in an answer, after which it has no more: 327 records without bodies, which take a millisecond
of the reactor. As much waits for a reader that does not read."""

SIZE: Final = 2 << 20
"""Bytes of memory that these may take, by the estimate of `ENTRY`."""

ENTRY: Final = 400
"""Bytes of memory that a record takes beyond its body and text."""


class TraceBuffer:
    """Records in the order in which they were made, numbered from 1.

    What a reader has got stays until it says that it has: an answer may be lost between processes. When the buffer is full, new
    records are dropped, and counted.
    """

    def __init__(self, bodies: bool, records: int = RECORDS, size: int = SIZE) -> None:
        """Create a buffer with a limit on the number of records, and on their `size` in bytes. `bodies` are shown or not."""
        self._bodies = bodies
        self._records = records
        self._bytes = size
        self._entries: deque[tuple[int, int, TraceRecord]] = deque()  # number, size, record
        self._size = 0
        self._last = 0  # number of the last record, whether it was kept or dropped
        self.position = (0, 0)
        """Number of the last record that was returned, and how many were dropped until then."""
        self.dropped = 0
        """Number of records that were dropped so far."""
        self.more = False
        """True if the last answer left records for the next one."""

    def add(self, record: TraceRecord) -> None:
        """Add a record. Its body counts although this trace may not show it: another trace of the connection does."""
        self._last += 1
        size = ENTRY + len(record.text or "") + record.room
        if len(self._entries) >= self._records or self._size + size > self._bytes:
            self.dropped += 1
            return
        self._size += size
        self._entries.append((self._last, size, record))

    def take(self, after: tuple[int, int] | None = None) -> tuple[list[JSON], int]:
        """Return the records since a position, and how many were dropped since. Forget those before.

        `after` is `position` as it was after an earlier call; by default after the last one.
        """
        number, dropped = self.position if after is None else after
        entries = self._entries
        while entries and entries[0][0] <= number:
            self._size -= entries.popleft()[1]
        taken: list[tuple[int, int, TraceRecord]] = []
        size = 0
        for entry in entries:
            taken.append(entry)
            size += entry[1]
            if size >= AT_ONCE:
                break
        self.more = len(taken) < len(entries)
        last = taken[-1][0] if self.more else self._last
        self.position = last, self.dropped
        return [record_json(record, self._bodies) for _, _, record in taken], self.dropped - dropped


def record_json(record: TraceRecord, bodies: bool) -> JSON:
    """Return a record as the API has it. A body that was cut has `cut`."""
    shown: JSON = {
        "time": round(record.time * 1000),
        "kind": record.kind,
        "connection_id": record.connection_id,
        "device_id": record.device_id,
        "size": record.size,
        "seq": record.seq,
    }
    if record.event is not None:
        shown["event"] = record.event
    if record.text is not None:
        shown["text"] = record.text
    if bodies and record.body is not None:
        cut = record.size is not None and len(record.body) < record.size
        shown |= body_json(record.body, cut)
        if cut:
            shown["cut"] = True
    return shown


def body_json(body: bytes, cut: bool = False) -> JSON:
    """Return a body as text if it is printable UTF-8, and else in base64. A `cut` body may end within a character."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        # Of a character of four bytes at most three are left.
        if not cut or len(body) - error.start > 3 or error.reason != "unexpected end of data":
            return {"body_base64": base64.b64encode(body).decode()}
        text = body[: error.start].decode()
    if not text.replace("\t", "").isprintable():
        return {"body_base64": base64.b64encode(body).decode()}
    return {"body": text}
