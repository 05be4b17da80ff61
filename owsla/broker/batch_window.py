"""The confirm window of lines that are published in batches. Pure.

A tag of the channel belongs to a batch, and the limits count lines. So `messages` and `size` also count the lines that wait in
open batches: they have been read from their devices, and must be kept. Their route takes the place of a connection: batches of
a route keep their order, and all later ones of it are republished behind a refused one. A connection has one route. So its
lines keep their order, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .batch import Batch
from .window import Entry, Window


class BatchWindow(Window):
    """Unconfirmed lines in batches, with limits on the number of lines and their bytes."""

    __slots__ = ()

    def count(self, entries: list[Entry]) -> int:
        return sum(len(entry.batch) for entry in entries if entry.batch is not None)

    def lines(self, entries: list[Entry]) -> Iterable[tuple[Any, int]]:
        return [line for entry in entries if entry.batch is not None for line in entry.batch.lines()]

    def hold(self, size: int, lines: int = 1) -> None:
        """Count lines that wait in an open batch, with the size of their elements in bytes."""
        self.messages += lines
        self.size += size

    def release(self, batch: Batch) -> None:
        """Count the lines of an open batch no longer: it becomes an entry."""
        self.messages -= len(batch)
        self.size -= batch.size

    def add_batch(self, entry: Entry) -> None:
        """Add a batch that was published with the next delivery tag."""
        self._entries.append(entry)
        self._count_in(entry)

    def defer_batch(self, entry: Entry) -> None:
        """Add a batch that is published at the next `retry`, behind refused ones of its route."""
        self._refused.append(entry)
        self.refused_lines += self.count([entry])
        self._count_in(entry)

    def _count_in(self, entry: Entry) -> None:
        self.messages += self.count([entry])
        self.size += len(entry.packed)

    def recut(self, cut: Callable[[Entry], list[Entry]]) -> None:
        """Replace each batch by those that `cut` makes of it, because the broker accepts only smaller messages. Give up the
        lines that are in none of these.

        The channel has ended, so that no tag can be answered any more. `restart` publishes the batches.
        """
        before = self._in_order()
        after = [one for entry in before for one in cut(entry)]
        lines = self.count(before) - self.count(after)
        self.messages -= lines
        self.given_up_lines += lines
        self.size += sum(len(entry.packed) for entry in after) - sum(len(entry.packed) for entry in before)
        self._renumber(after)

    def sources(self) -> Iterator[Any]:
        """Yield the connection of each unconfirmed line that is not in an open batch."""
        for entry in [*self._refused, *self._unanswered()]:
            if entry.batch is not None:
                yield from entry.batch.sources
