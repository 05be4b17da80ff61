"""The publisher of device lines in batches (`--batch`): lines with the same routing key travel in one message.

Theory of operation. A line is packed as an element, counted by the window, and added to the open batch of its route
(`OpenBatches`). A batch is closed, packed and published when it has `most` lines, when the next line would exceed its room (a
frame, or the size limit of the broker), or when `BatchPacing` publishes all open ones: after the delay, or at once

- when a connection waits for its lines to be settled (its share, a full window): nothing more may come before that;
- when the node stops.

From then on a batch is treated as a message of one line is (`DoorPublisher`): it is one entry of the window under one delivery
tag. It is confirmed, refused or returned as a whole, and each of its lines with it. Its route takes the place of the
connection, so that batches of a route keep their order. All lines of a connection have one route: a device proves no other
identity after its first line.

A line that begins a trace is a batch of its own, whose message has the trace context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from ..events import Event
from ..interfaces import Clock, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .batch_pacing import BatchPacing
from .batch_packing import BatchPacker, BatchRoute, BatchTemplate
from .batch_window import BatchWindow
from .door_publisher import DEFAULTS, DoorPublisher, PublisherOptions
from .line_traces import TraceSample
from .open_batches import OpenBatches
from .packing import LineTooLarge, body_size
from .window import Entry


class BatchPublisher(DoorPublisher):
    """Publisher of the lines of a door in batches."""

    _packer: BatchPacker
    window: BatchWindow

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
        super().__init__(clock, emit, queue=queue, packer=packer, window=window, traces=TraceSample(), options=options)
        self._pacing = pacing
        self._batches = OpenBatches(packer, window, pacing, self._publish_batch)

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
        try:
            element = self._packer.element(template, seq, line, received or now)
        except (KeyTooLong, LineTooLarge) as error:
            self._reject(source, error)
            return
        source.seq = seq + 1
        if self._traces.rate and (traceparent := self._traces.choose()) is not None:
            template.traceparent = traceparent
            self._batches.add_traced(template.route, source, seq, element, int(received or now), traceparent)
            self._traces.begun()
        else:
            self._batches.add(template.route, source, seq, element, received or now)
        window = self.window
        if self._latency.since is None or self._outstanding is not None:  # for most lines `_count` has nothing to do
            self._count(source, 1, now)
        # `Window.full`, inlined: a call would cost 4 % of a publish. Read now: a batch that was published has become larger.
        if window.messages >= window.max_messages or window.size >= window.max_bytes:
            self.accepting = False
            self._pacing.hurry()

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        window, template, first = self.window, source.template, source.seq
        now = self._now()
        room = max(1, window.max_messages - window.messages)
        try:
            elements = self._packer.elements(template, first, lines[:room], received or now)
        except (KeyTooLong, LineTooLarge):
            elements = []
        size = sum(map(len, elements))
        if not elements or self._traces.rate or window.size + size >= window.max_bytes:
            return self._publish_each(source, lines, received)  # up to the line that is too large, or that fills the window
        taken = len(elements)
        source.seq = first + taken
        self._batches.add_lines(template.route, source, first, elements, size, received or now)
        if self._latency.since is None or self._outstanding is not None:
            self._count(source, taken, now)
        if window.messages >= window.max_messages:
            self.accepting = False
            self._pacing.hurry()
        return taken

    def _publish_batch(self, entry: Entry) -> None:
        """Publish a batch, or keep it behind refused ones or for the next connection."""
        window, client = self.window, self._channel.client
        if client is not None and self._refused.holds(entry.source):
            window.defer_batch(entry)
            self._refused.deferred(entry)
            # Only now its lines count as refused ones, for which no connection waits with its next share.
            self._waiting.grant_shares(window.answered)
            return
        window.add_batch(entry)
        if client is not None:
            client.write(entry.packed)

    def wait(self, source: LineSource, since: int = 0) -> None:
        super().wait(source, since)
        if self._batches:
            # Lines of this connection may be among those that it waits for.
            self._pacing.hurry()

    def _sources(self) -> Iterable[LineSource]:
        return chain(self.window.sources(), self._batches.sources())

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
                pieces, hopeless = self._packer.cut(route, entry.batch, entry.packed)
                for source, element in zip(hopeless.sources, hopeless.elements, strict=True):
                    given_up.append((source, f"a line that makes a batch of {len(element)} bytes"))
            # Each piece needs a number of its own, or a refusal might change their order. Later batches stay behind them.
            return [Entry(route, route.take_number(), packed, batch) for batch, packed in pieces]

        # The channel has ended. An open batch above the limit would end the next one as well.
        for entry in self._batches.close_all():
            self.window.add_batch(entry)
        self.window.recut(cut)
        return given_up
