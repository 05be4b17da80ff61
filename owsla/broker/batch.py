"""Lines that travel in one message. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Batch:
    """Lines of one route, in order: open until it is packed, and then part of an `Entry` in the window."""

    __slots__ = ("elements", "received", "seqs", "size", "sources")

    def __init__(self, received: int) -> None:
        """`received` is the time of the first line, in seconds since the epoch."""
        self.received = received
        self.sources: list[Any] = []
        """Connection of each line."""
        self.seqs: list[int] = []
        """Number of each line on its connection."""
        self.elements: list[bytes] = []
        """Encoded lines. Empty once the batch is packed."""
        self.size = 0
        """Bytes of the elements."""

    def add(self, source: Any, seq: int, element: bytes) -> int:
        """Add a line, and return the number of lines."""
        self.sources.append(source)
        self.seqs.append(seq)
        self.elements.append(element)
        self.size += len(element)
        return len(self.seqs)

    def extend(self, source: Any, seq: int, elements: list[bytes], size: int) -> None:
        """Add several lines of one connection, numbered from `seq` on, whose elements have `size` bytes."""
        lines = len(elements)
        self.seqs += range(seq, seq + lines)
        self.sources += [source] * lines
        self.elements += elements
        self.size += size

    def close(self) -> bytes:
        """Return the elements together, and forget them: the packed message has them from now on."""
        body = b"".join(self.elements)
        self.elements = []
        return body

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.seqs)

    def lines(self) -> Iterator[tuple[Any, int]]:
        """Yield the connection and the number of each line."""
        return zip(self.sources, self.seqs, strict=True)
