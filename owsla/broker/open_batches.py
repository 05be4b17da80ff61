"""The open batches: lines that were read from devices, and are not published yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..interfaces import LineSource
from .batch import Batch
from .batch_pacing import BatchPacing
from .batch_packing import BatchPacker, BatchRoute
from .batch_window import BatchWindow
from .window import Entry


class OpenBatches:
    """The open batches of all routes. Lines are added to them. A batch is closed, packed and published when it is full, or when
    `BatchPacing` publishes all of them.

    The window counts the lines of open batches (`BatchWindow.hold`). An entry that is published is in no batch and not in the
    window yet.
    """

    __slots__ = ("_open", "_pacing", "_packer", "_publish", "_window")

    def __init__(
        self, packer: BatchPacker, window: BatchWindow, pacing: BatchPacing, publish: Callable[[Entry], None]
    ) -> None:
        """`publish` is called with each batch that is closed."""
        self._packer = packer
        self._window = window
        self._pacing = pacing
        self._publish = publish
        self._open: dict[BatchRoute, None] = {}  # routes with an open batch, in the order in which these were opened
        pacing.bind(self.publish_all)

    def __len__(self) -> int:
        """Return the number of open batches."""
        return len(self._open)

    def sources(self) -> Iterator[Any]:
        """Yield the connection of each line."""
        for route in self._open:
            if route.batch is not None:
                yield from route.batch.sources

    def add(self, route: BatchRoute, source: LineSource, seq: int, element: bytes, received: float) -> None:
        """Add a line to the batch of its route. `received` is the time of its reading, in seconds since the epoch."""
        batch, size, packer = route.batch, len(element), self._packer
        if batch is not None and batch.size + size > packer.room:
            self._publish_batch(route, batch)
            batch = None
        if batch is None:
            batch = self._open_batch(route, received)
        self._window.hold(size)
        if batch.add(source, seq, element) >= packer.most:
            self._publish_batch(route, batch)

    def add_lines(
        self, route: BatchRoute, source: LineSource, seq: int, elements: list[bytes], size: int, received: float
    ) -> None:
        """Add lines of one connection to batches of their route, as many as fit into each.

        `seq` is the number of the first line, and `size` is that of all elements in bytes.
        """
        most, room = self._packer.most, self._packer.room
        batch, lines = route.batch, len(elements)
        if batch is not None and len(batch.seqs) + lines < most and batch.size + size <= room:
            # Nearly always: a read has few lines.
            batch.extend(source, seq, elements, size)
            self._window.hold(size, lines)
            return
        while elements:
            batch = route.batch
            count, held = (0, 0) if batch is None else (len(batch), batch.size)
            some, elements = elements[: most - count], elements[most - count :]
            size = sum(map(len, some))
            if held + size > room:
                for number, element in enumerate(some, seq):
                    self.add(route, source, number, element, received)
            else:
                if batch is None:
                    batch = self._open_batch(route, received)
                batch.extend(source, seq, some, size)
                self._window.hold(size, len(some))
                if len(batch) >= most:
                    self._publish_batch(route, batch)
            seq += len(some)

    def add_traced(self, route: BatchRoute, source: LineSource, seq: int, element: bytes, received: int, parent: str) -> None:
        """Publish a line that begins a trace as a batch of its own, behind the open one. `parent` is its traceparent."""
        if route.batch is not None:
            self._publish_batch(route, route.batch)
        batch = route.open(received)
        batch.add(source, seq, element)
        self._window.hold(len(element))
        self._publish_batch(route, batch, parent)

    def _open_batch(self, route: BatchRoute, received: float) -> Batch:
        batch = route.open(int(received))
        self._open[route] = None
        self._pacing.line_waits()
        return batch

    def publish_all(self) -> bool:
        """Publish all batches. Return whether there were any."""
        routes = list(self._open)
        for route in routes:
            if route.batch is not None:
                self._publish_batch(route, route.batch)
        return bool(routes)

    def _publish_batch(self, route: BatchRoute, batch: Batch, traceparent: str | None = None) -> None:
        self._publish(self._close_batch(route, batch, traceparent))

    def close_all(self) -> Iterator[Entry]:
        """Close all batches, and yield them instead of publishing them."""
        for route in list(self._open):
            if route.batch is not None:
                yield self._close_batch(route, route.batch)

    def _close_batch(self, route: BatchRoute, batch: Batch, traceparent: str | None = None) -> Entry:
        """Close and pack the batch of a route."""
        self._open.pop(route, None)
        number = route.close()
        self._window.release(batch)
        return Entry(route, number, self._packer.pack(route, batch, traceparent), batch)
