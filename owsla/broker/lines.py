"""The publisher of device lines, each as a message: a line is packed, published, and kept until RabbitMQ confirms it.

`DoorPublisher` has what does not depend on the form of a message: confirms, refusals, shares, and the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..events import Event
from ..interfaces import Clock, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .door_publisher import DEFAULTS, DoorPublisher, PublisherOptions
from .line_traces import LineTraces
from .packing import LinePacker, LineTooLarge, body_size
from .window import Window


class LinePublisher(DoorPublisher):
    """Publisher of the lines of a door, with a message for each line."""

    _packer: LinePacker
    _traces: LineTraces

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        queue: topology.Queue | topology.Exchange,
        packer: LinePacker,
        window: Window,
        options: PublisherOptions = DEFAULTS,
    ) -> None:
        """`queue` is where lines go: a queue, which is declared, or an exchange, which has to be there."""
        super().__init__(
            clock, emit, queue=queue, packer=packer, window=window, traces=LineTraces(packer), options=options
        )
        self._pack = packer.pack

    def trace(self, share: float) -> None:
        super().trace(share)
        # Where no line is chosen, there is nobody to ask for each of them.
        self._pack = self._traces.pack if share > 0 else self._packer.pack

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        seq = source.seq
        now = self._now()
        try:
            packed = self._pack(source.template, seq, line, int(received or now))
        except (KeyTooLong, LineTooLarge) as error:
            self._reject(source, error)
            return
        source.seq = seq + 1
        window, direct = self.window, self._direct
        if direct is not None:
            full = window.add(source, seq, packed)
            direct.write(packed)
        else:
            self._publish_behind(source, seq, packed)
            full = window.full
        if self._latency.since is None or self._outstanding is not None:  # for most lines `_count` has nothing to do
            self._count(source, 1, now)
        if full:
            self.accepting = False

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        direct = self._direct
        if direct is None:
            return self._publish_each(source, lines, received)
        now = self._now()
        second = int(received or now)
        window, pack, template = self.window, self._pack, source.template
        first = source.seq
        room = max(1, window.max_messages - window.messages)
        space = window.max_bytes - window.size
        packed: list[bytes] = []
        fault: KeyTooLong | LineTooLarge | None = None
        try:
            for seq, line in enumerate(lines[:room] if room < len(lines) else lines, first):
                frames = pack(template, seq, line, second)
                packed.append(frames)
                space -= len(frames)
                if space <= 0:
                    break
        except (KeyTooLong, LineTooLarge) as error:
            fault = error
        taken = len(packed)
        if taken:
            source.seq = first + taken
            window.add_lines(source, first, packed)
            direct.write(b"".join(packed))
            if self._latency.since is None or self._outstanding is not None:
                self._count(source, taken, now)
            if space <= 0 or window.messages >= window.max_messages:
                self.accepting = False
        if fault is not None:
            self._reject(source, fault)
        return taken or 1

    def _publish_behind(self, source: LineSource, seq: int, packed: bytes) -> None:
        """Publish a line that may have to wait: behind refused lines of its connection, or for the next connection to the
        broker."""
        client = self._channel.client
        if client is None:
            self.window.add(source, seq, packed)
        elif self._refused.holds(source):
            self._refused.defer(source, seq, packed)
        else:
            self.window.add(source, seq, packed)
            client.write(packed)

    def _give_up(self, largest: int) -> list[tuple[LineSource, str]]:
        given_up = self.window.give_up(lambda packed: body_size(packed) > largest)
        return [(entry.source, f"a line of {body_size(entry.packed)} bytes") for entry in given_up]
