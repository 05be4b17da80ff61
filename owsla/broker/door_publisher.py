"""The base of the publishers of the lines of a door: `LinePublisher` (`lines`), with a message for each line, and
`BatchPublisher` (`batches`).

Theory of operation. `accepting` is the answer to "may devices be read": there is a connection, the broker does not block, lines
are not refused, and the window is not full. Otherwise connections stop reading, and register with `wait`. They resume a few at
a time, in the order of registration, so that 40,000 of them do not resume in one iteration of the reactor.

Shares. A connection may publish `share` lines, and gets the next share when its last one is settled: when as many lines have
left the window as were in it or had left it before (`position`). Refused lines count as having left it: those of another
connection may stay for hours. So a connection that floods has two shares in flight at most, a thirty-second of the window, and
the lines of the others wait behind no more than that.

Refusals. RabbitMQ refuses a line with basic.nack (a full queue, an unavailable quorum queue), or returns it as unroutable and
then confirms it. Refused lines stay in the window and are republished after a delay, with all later lines of their connections,
so that their order is kept. If all lines have one route (one queue, or one routing key), a refusal pauses all devices, because
it would meet any of them. If connections have their own routing keys, it pauses only their connections (`stalls`). Those share
the window with the others: when the window is full of refused lines, all devices wait.

After a lost connection everything in the window is republished, in order, before any new line.

Parts. `Window` has the unconfirmed lines and counts them; `ConfirmChannel` is the channel with its destination; `RefusedLines`
decides whom refusals pause, and when lines are republished; `WaitingConnections` has the connections that are not read;
`ConfirmLatency` and `OutstandingLines` answer the questions of operators and of a node that drains.

Doors. Each door has a publisher, with a channel and a window of its own (`door_lines`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twisted.python.failure import Failure

from ..amqp.wire import WireError
from ..events import BrokerWarning, Event
from ..interfaces import FIRST_DOOR, Clock, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .batch_packing import BatchPacker
from .client import BaseHandler, BrokerClient, BrokerError
from .confirm_channel import ChannelFailed, ConfirmChannel, end_connection
from .destination import Destination
from .latency import ConfirmLatency
from .line_traces import TraceSample
from .outstanding_lines import OutstandingLines
from .packing import LinePacker, LineTooLarge, Template, Unroutable, refit
from .refused_lines import RefusedLines
from .waiting import WaitingConnections
from .window import UnknownTag, Window

TOO_LARGE = re.compile(r"larger than (?:configured )?max size ([0-9]{1,18})\b")
"""Size limit in the text with which RabbitMQ closes a channel over a message above max_message_size (3.8 and later)."""

SHARES = 64
"""Shares per window. A connection has at most two in flight. So a flooding one delays the lines of all others by a
thirty-second of the window: 312 lines by default, which take RabbitMQ 10 ms."""

SMALLEST_SHARE = 16
"""Minimum of lines in a share: granting one costs about as much as publishing a line."""


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """Options of a publisher of lines, with which it serves the connections of its door."""

    door: str = FIRST_DOOR
    """Name of the door."""
    acknowledge: bool = False
    """True if connections want to know which of their lines are safe."""
    observe: Callable[[float], None] | None = None
    """Function that is told for how many seconds some of the lines waited for their confirm."""
    now: Callable[[], float] = time.time
    """Function that returns the time in seconds since the epoch."""
    failed: ChannelFailed = end_connection
    """Function that gets the publisher another channel."""


DEFAULTS: Final = PublisherOptions()
"""Options of a publisher without others."""


class DoorPublisher(BaseHandler):
    """Base of a publisher of the lines of a door, on a channel of its own, within a window of unconfirmed ones.

    A subclass implements `publish`, `publish_lines` and `_give_up`, for its form of messages.
    """

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        queue: topology.Queue | topology.Exchange,
        packer: LinePacker | BatchPacker,
        window: Window,
        traces: TraceSample,
        options: PublisherOptions,
    ) -> None:
        """`queue` is where lines go: a queue, which is declared, or an exchange, which has to be there."""
        self._emit = emit
        self._packer = packer
        self.window = window
        """Unconfirmed lines."""
        self._traces = traces
        self._now = options.now
        self._acknowledge = options.acknowledge
        destination = Destination(queue, self._warn, packer.channel + 1)
        self._channel = ConfirmChannel(packer.channel, destination, door=options.door, failed=options.failed)
        self._waiting = WaitingConnections(clock, lambda: self.accepting)
        self._refused = RefusedLines(
            clock, emit, destination, window, self._waiting, door=options.door, packer=packer, republish=self._retry
        )
        self._direct: BrokerClient | None = None
        """Connection on which new lines are written at once; `None` if there is none, or refused lines may come first."""
        self._latency = ConfirmLatency(options.observe)
        self._outstanding: OutstandingLines | None = None
        self.accepting = False
        self.share, self.line_size = _share(window)

    @property
    def channel(self) -> int:
        """Number of the channel for publishing. The next one is for declarations."""
        return self._packer.channel

    # -- settings --------------------------------------------------------------------------------------------------------

    def configure(self, max_messages: int, max_bytes: int, *, acknowledge: bool) -> None:
        """Change the limits of the window, and whether connections want to know what is safe.

        Lines beyond the limits stay in the window. Shares that were granted stay as large as they are.
        """
        # Connections that were acknowledged are told for as long as they live.
        self._acknowledge = self._acknowledge or acknowledge
        self.window.configure(max_messages, max_bytes)
        self.share, self.line_size = _share(self.window)
        if not self.accepting:
            self._reopen()
        elif self.window.full:
            self.accepting = False

    def pace(self, delay: float) -> None:
        """Change the time that a line waits at most for others of its batch, in seconds. Lines without batches do not wait."""

    def stop_waiting(self) -> None:
        """Publish lines without a wait for others of their batch from now on: the node stops."""

    def answer_to(self, reply_to: bytes) -> None:
        """Have replies to later lines sent to another queue, whose name has the same length."""
        self._packer.answer_to(reply_to)

    def trace(self, share: float) -> None:
        """Begin a trace with a share of the lines, chosen at random; 0: with none."""
        self._traces.configure(share)

    @property
    def traced_lines(self) -> int:
        """Number of lines that began a trace."""
        return self._traces.lines

    # -- towards devices -------------------------------------------------------------------------------------------------

    def open(self, connection_id: bytes, device_id: str | None) -> Any:
        try:
            return self._packer.template(connection_id, device_id)
        except KeyTooLong as error:
            # Not an error yet: a dialect may identify the device later, or the device may never send a line.
            return Unroutable(error)

    def traceparent(self, source: LineSource) -> str | None:
        template: Template | None = source.template
        return None if template is None else template.traceparent

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        raise NotImplementedError

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        raise NotImplementedError

    def _publish_each(self, source: LineSource, lines: Sequence[bytes], received: float) -> int:
        """Publish lines one by one, up to the first one that cannot be published, or that fills the window. Return as
        `publish_lines` does.
        """
        for taken, line in enumerate(lines, 1):
            before = source.seq
            self.publish(source, line, received)
            if source.seq == before:
                return max(1, taken - 1)
            if not self.accepting:
                return taken
        return len(lines)

    def _count(self, source: LineSource, lines: int, now: float) -> None:
        """Follow lines that were just published, if none is followed, and count them, if the node drains. Callers leave the
        call out if neither is the case, as for most lines.
        """
        if self._latency.since is None:
            self._latency.follow(now, self.window.confirmed_lines + self.window.messages)
        if self._outstanding is not None:
            self._outstanding[source] += lines

    def _reject(self, source: LineSource, error: KeyTooLong | LineTooLarge) -> None:
        """Reject a connection whose lines cannot be published. This line and later ones are not acknowledged to the device."""
        if not isinstance(source.template, Unroutable):
            source.template = Unroutable(error, source.template.traceparent)
        if not source.template.reported:
            source.template.reported = True
            self._warn(f"lines of connection {source.connection_id.decode()} cannot be published: {error}; closing it")
        source.reject(str(error))

    def wait(self, source: LineSource, since: int = 0) -> None:
        if self._refused.wait(source):
            return
        if since > self.window.answered:
            self._waiting.add_sharing(source, since)
        else:
            self._waiting.add((source,))
            self._waiting.resume_soon()

    def leave(self, source: LineSource) -> None:
        self._waiting.remove(source)
        self._refused.leave(source)

    def position(self, since: int) -> int:
        return -1 if self.window.answered < since else self.window.entered

    @property
    def spare(self) -> int:
        return self.window.spare

    def serves(self, source: LineSource) -> bool:
        return self._channel.serving and not self._refused.refuses(source)

    def settled(self, source: LineSource) -> bool:
        """Return whether the broker has confirmed all lines of a connection. The first call starts counting for all
        connections."""
        if self._outstanding is None:
            self._outstanding = OutstandingLines(self._sources())
        return self._outstanding[source] == 0

    def _sources(self) -> Iterable[LineSource]:
        """Return the connection of each unconfirmed line."""
        return self.window.sources()

    @property
    def unconfirmed_since(self) -> float | None:
        """Time of publication of the followed line in seconds since the epoch; `None` if no line is followed."""
        return self._latency.unconfirmed_since

    @property
    def unconfirmed(self) -> int:
        """Number of published, unconfirmed lines."""
        return self.window.messages

    def _reopen(self) -> None:
        """Accept lines again if nothing prevents it. Waiting connections resume first, in order."""
        self.accepting = self._channel.serving and not self._refused.pausing_all and not self.window.full
        self._waiting.resume_soon()

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        await self._channel.open(client, self)
        smaller = client.frame_max if self._packer.limit(client.frame_max) else None
        self._refused.channel_opened()
        self._choose_direct()
        again = self.window.restart((lambda packed: refit(packed, smaller)) if smaller else None)
        if again:
            client.write(b"".join(again))
        self._reopen()

    def down(self) -> None:
        """Stop publishing: the connection has ended."""
        self._channel.unblock()
        self._stop()

    def suspend(self, fault: BrokerError) -> None:
        """Stop publishing: the channel has ended, or could not be opened. Report the fault."""
        self._refused.suspended(fault)
        self._stop()

    def _stop(self) -> None:
        self._channel.close()
        self._choose_direct()
        self.accepting = False
        self._refused.stop()

    def blocked(self, reason: str) -> None:
        self._channel.block()
        self.accepting = False

    def unblocked(self) -> None:
        self._channel.unblock()
        self._reopen()

    def closed(self, reason: Failure) -> None:
        # A channel error: the broker rejected something.
        if isinstance(reason.value, BrokerError) and (too_large := TOO_LARGE.search(reason.value.text)):
            self._limit(int(too_large[1]))
        self._channel.fail(reason.value or BrokerError(0, "the channel was closed", scope="channel"))

    def _limit(self, largest: int) -> None:
        """Give up lines above the size limit of the broker, and close their connections.

        RabbitMQ closes the channel for such a line. Without this, each republication would fail at the same line forever.
        """
        self._packer.largest(largest)
        given_up = self._give_up(largest)
        if given_up:
            self._warn(
                f"RabbitMQ accepts messages of at most {largest} bytes, and devices may send longer lines: lower --max-line, "
                "or raise RabbitMQ's max_message_size and restart Owsla"
            )
            self._latency.restart()  # the count of the followed line included these
        if self._outstanding is not None:
            self._outstanding.settle(given_up)
        self._waiting.grant_shares(self.window.answered)
        for source, line in given_up:
            try:
                self._reject(source, LineTooLarge(f"{line}, and the limit of the broker is {largest}"))
            except Exception:
                source.failed(Failure())

    def _give_up(self, largest: int) -> list[tuple[LineSource, str]]:
        """Give up the lines above the size limit of the broker. Return the connection and a description of each."""
        raise NotImplementedError

    def _warn(self, text: str) -> None:
        self._emit(BrokerWarning(text))

    # -- confirms --------------------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        window, refused = self.window, self._refused
        try:
            entries = window.confirm(tag, multiple)
        except UnknownTag as error:
            self._channel.protest(error)
            return
        if refused.watching:
            entries = refused.keep_returned(entries)
            self._pause()
        if window.confirmed_lines >= self._latency.followed:
            self._latency.record(self._now())
        if (answered := window.answered) >= self._waiting.next_share:
            self._waiting.grant_shares(answered)
        if self._outstanding is not None:
            self._outstanding.settle(window.lines(entries))
        if self._acknowledge:
            for source, seq in window.lines(entries):
                try:
                    source.confirmed(seq)
                except Exception:
                    source.failed(Failure())  # an error in one connection must not affect the others
        if refused.watching:
            resumed = refused.confirmed(entries)
            self._choose_direct()
            if resumed:
                self._reopen()
        if not self.accepting and window.roomy:
            self._reopen()

    def refused(self, tag: int, multiple: bool) -> None:
        try:
            entries = self.window.refuse(tag, multiple)
        except UnknownTag as error:
            self._channel.protest(error)
            return
        if entries:  # else all of them have been republished under other tags
            self._refused.nacked(entries)
            self._pause()
            self._waiting.grant_shares(self.window.answered)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        try:
            self._refused.returned(routing_key, header, body)
        except WireError as error:
            self._channel.protest(error)

    def _pause(self) -> None:
        """Keep new lines behind refused ones, and pause all devices if the refusal would meet any of them."""
        self._choose_direct()
        if self._refused.pausing_all:
            self.accepting = False

    def _choose_direct(self) -> None:
        self._direct = None if self._refused.pending else self._channel.client

    # -- refusals --------------------------------------------------------------------------------------------------------

    def _retry(self, new_channel: bool) -> None:
        if self._channel.client is not None:
            self._channel.client.run(self._publish_again(new_channel))

    async def _publish_again(self, new_channel: bool) -> None:
        client = await self._channel.prepare_again(new_channel)
        if client is not None:
            client.write(b"".join(self.window.retry()))
            self._refused.published_again()


def _share(window: Window) -> tuple[int, int]:
    """Return the share of a connection, in lines, and the bytes that count as a line."""
    share = min(window.max_messages, max(SMALLEST_SHARE, window.max_messages // SHARES))
    return share, max(1, window.max_bytes // window.max_messages)
