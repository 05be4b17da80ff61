"""The publisher of device lines in batches (`--batch`): lines with the same routing key travel in one message.

Theory of operation. A line is packed as an element, counted by the window, and added to the open batch of its route. A batch is
closed, packed and published when it has `most` lines, when the next line would exceed its room (a frame, or the size limit of
the broker), or when `BatchPacing` publishes all open ones: after the delay, or at once

- when a connection waits for its lines to be settled (its share, a full window): nothing more may come before that;
- when the node stops.

From then on a batch is treated as `LinePublisher` treats a line: it is one entry of the window under one delivery tag. It is
confirmed, refused or returned as a whole, and each of its lines with it. Its route takes the place of the connection, so that
batches of a route keep their order. All lines of a connection have one route: a device proves no other identity after its first
line.

A line that begins a trace is a batch of its own, whose message has the trace context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..events import Event
from ..interfaces import Clock, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .batch import Batch
from .batch_pacing import BatchPacing
from .batch_packing import BatchPacker, BatchRoute, BatchTemplate
from .batch_window import BatchWindow
from .line_traces import TraceSample
from .lines import DEFAULTS, LinePublisher, PublisherOptions
from .packing import LineTooLarge, body_size
from .refused_lines import ReturnedBatches, ReturnedLines
from .window import Entry


class BatchPublisher(LinePublisher):
    """Publisher of the lines of a door in batches, on a channel of its own, within a window of unconfirmed lines."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        queue: topology.Queue | topology.Exchange,
        packer: BatchPacker,
        window: BatchWindow,
        pacing: BatchPacing,
        options: PublisherOptions = DEFAULTS,
    ) -> None:
        """Take the arguments of `LinePublisher`, with a packer and a window of batches, and the times of their publication."""
        self._batch_packer = packer
        self._batch_window = window
        self._pacing = pacing
        self._open: dict[BatchRoute, None] = {}  # routes with an open batch, in the order in which these were opened
        self._tracing_some = False
        pacing.bind(self._publish_open)
        super().__init__(clock, emit, queue=queue, packer=packer, window=window, options=options)

    def _prepare(self, packer: Any) -> tuple[TraceSample, ReturnedLines]:
        return TraceSample(), ReturnedBatches()

    def _route(self, source: LineSource) -> Any:
        route: BatchRoute | None = source.template.route
        return route

    def _tracing(self, some: bool) -> None:
        self._tracing_some = some

    def pace(self, delay: float) -> None:
        """Change the time that a line waits at most for others, in seconds."""
        self._pacing.configure(delay)

    def stop_waiting(self) -> None:
        """Publish each line at the end of its turn from now on: the node stops."""
        self._pacing.end()

    # -- towards devices -------------------------------------------------------------------------------------------------

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        seq = source.seq
        now = self._now()
        template: BatchTemplate = source.template
        packer = self._batch_packer
        try:
            element = packer.element(template, seq, line, received or now)
        except (KeyTooLong, LineTooLarge) as error:
            self._reject(source, error)
            return
        source.seq = seq + 1
        if self._tracing_some and (traceparent := self._traces.choose()) is not None:
            self._publish_traced(source, seq, element, int(received or now), traceparent)
        else:
            self._add(template.route, source, seq, element, received or now)
        window = self._window
        if self._latency.since is None:
            self._latency.follow(now, window.confirmed_lines + window.messages)
        if self._outstanding is not None:
            self._outstanding[source] += 1
        if window.messages >= window.max_messages or window.size >= window.max_bytes:
            self.accepting = False
            self._pacing.hurry()

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        window, template, first = self._window, source.template, source.seq
        now = self._now()
        room = max(1, window.max_messages - window.messages)
        try:
            elements = self._batch_packer.elements(template, first, lines[:room], received or now)
        except (KeyTooLong, LineTooLarge):
            elements = []
        size = sum(map(len, elements))
        if not elements or self._tracing_some or window.size + size >= window.max_bytes:
            return self._publish_each(source, lines, received)  # up to the line that is too large, or that fills the window
        taken = len(elements)
        source.seq = first + taken
        self._add_lines(template.route, source, first, elements, received or now)
        if self._latency.since is None:
            self._latency.follow(now, window.confirmed_lines + window.messages)
        if self._outstanding is not None:
            self._outstanding[source] += taken
        if window.messages >= window.max_messages:
            self.accepting = False
            self._pacing.hurry()
        return taken

    def _add_lines(self, route: BatchRoute, source: LineSource, seq: int, elements: list[bytes], received: float) -> None:
        """Add lines of one connection to batches of their route, as many as fit into each."""
        most, room = self._batch_packer.most, self._batch_packer.room
        while elements:
            batch = route.batch
            count, held = (0, 0) if batch is None else (len(batch), batch.size)
            some, elements = elements[: most - count], elements[most - count :]
            size = sum(map(len, some))
            if held + size > room:
                for number, element in enumerate(some, seq):
                    self._add(route, source, number, element, received)
            else:
                if batch is None:
                    batch = self._open_batch(route, received)
                batch.extend(source, range(seq, seq + len(some)), some)
                self._batch_window.hold(size, len(some))
                if len(batch) >= most:
                    self._publish_batch(route)
            seq += len(some)

    def _open_batch(self, route: BatchRoute, received: float) -> Batch:
        batch = route.open(int(received))
        self._open[route] = None
        self._pacing.line_waits()
        return batch

    def _add(self, route: BatchRoute, source: LineSource, seq: int, element: bytes, received: float) -> None:
        """Add a line to the open batch of its route."""
        batch, size, packer = route.batch, len(element), self._batch_packer
        if batch is not None and batch.size + size > packer.room:
            self._publish_batch(route)
            batch = None
        if batch is None:
            batch = self._open_batch(route, received)
        self._batch_window.hold(size)
        if batch.add(source, seq, element) >= packer.most:
            self._publish_batch(route)

    def _publish_traced(self, source: LineSource, seq: int, element: bytes, received: int, traceparent: str) -> None:
        """Publish a line that begins a trace as a batch of its own, behind the open one."""
        template: BatchTemplate = source.template
        self._publish_batch(template.route)
        template.route.open(received).add(source, seq, element)
        self._batch_window.hold(len(element))
        self._publish_batch(template.route, traceparent)
        template.traceparent = traceparent
        self._traces.begun()

    def _publish_open(self) -> bool:
        """Publish all open batches. Return whether there were any."""
        routes = list(self._open)
        for route in routes:
            self._publish_batch(route)
        return bool(routes)

    def _publish_batch(self, route: BatchRoute, traceparent: str | None = None) -> None:
        """Publish the open batch of a route, if any, or keep it behind refused ones or for the next connection."""
        batch = route.batch
        if batch is None:
            return
        entry = self._close_batch(route, batch, traceparent)
        window, client = self._batch_window, self._client
        if client is not None and self._refused.refuses(route):
            window.defer_batch(entry)
            self._refused.deferred(entry)
            # Only now its lines count as refused ones, for which no connection waits with its next share.
            self._waiting.grant_shares(self._window.settled)
            return
        window.add_batch(entry)
        if client is not None:
            client.write(entry.packed)

    def _close_batch(self, route: BatchRoute, batch: Batch, traceparent: str | None = None) -> Entry:
        """Close and pack the open batch of a route. Return its entry, which is not in the window yet."""
        self._open.pop(route, None)
        number = route.close()
        self._batch_window.release(batch)
        return Entry(route, number, self._batch_packer.pack(route, batch, traceparent), batch)

    def wait(self, source: LineSource, since: int = 0) -> None:
        super().wait(source, since)
        if self._open:
            # Lines of this connection may be among those that it waits for.
            self._pacing.hurry()

    def _outstanding_lines(self) -> Counter[LineSource]:
        lines = super()._outstanding_lines()
        for route in self._open:
            if route.batch is not None:
                lines.update(route.batch.sources)
        return lines

    # -- the size limit of the broker ------------------------------------------------------------------------------------

    def _give_up(self, largest: int) -> list[tuple[LineSource, str]]:
        """Cut all batches to the size limit, open ones too. Return the connection and a description of each line that exceeds
        it alone.
        """
        given_up: list[tuple[LineSource, str]] = []

        def cut(entry: Entry) -> list[Entry]:
            route: BatchRoute = entry.source
            assert entry.batch is not None
            pieces = [(entry.batch, entry.packed)]
            if body_size(entry.packed) > largest:
                pieces, hopeless = self._batch_packer.cut(route, entry.batch, entry.packed)
                for source, element in zip(hopeless.sources, hopeless.elements, strict=True):
                    given_up.append((source, f"a line that makes a batch of {len(element)} bytes"))
            # Each piece needs a number of its own, or a refusal might change their order. Later batches stay behind them.
            return [Entry(route, route.take_number(), packed, batch) for batch, packed in pieces]

        for route in list(self._open):
            # The channel has ended. An open batch above the limit would end the next one as well.
            if route.batch is not None:
                self._batch_window.add_batch(self._close_batch(route, route.batch))
        self._batch_window.recut(cut)
        return given_up
