"""The publisher of device lines: each line is packed, published, and kept until RabbitMQ confirms it.

Theory of operation. `accepting` is the answer to "may devices be read": there is a connection, the broker does not block, lines
are not refused, and the window is not full. Otherwise connections stop reading, and register with `wait`. They resume a few at
a time, in the order of registration, so that 40,000 of them do not resume in one iteration of the reactor.

Shares. A connection may publish `share` lines, and gets the next share when its last one is settled: when as many lines have
left the window as were in it or had left it before (`position`). Refused lines count as having left it: those of another
connection may stay for hours. So a connection that floods has two shares in flight at most,
a thirty-second of the window, and the lines of the others wait behind no more than that.

Refusals. RabbitMQ refuses a line with basic.nack (a full queue, an unavailable quorum queue), or returns it as unroutable and
then confirms it. Refused lines stay in the window and are republished after a delay, with all later lines of their connections,
so that their order is kept. If all lines have one route (one queue, or one routing key), a refusal pauses all devices, because
it would meet any of them. If connections have their own routing keys, it pauses only their connections (`stalls`). Those share
the window with the others: when the window is full of refused lines, all devices wait.

After a lost connection everything in the window is republished, in order, before any new line.

Doors. Each door has a publisher, with a channel and a window of its own (`door_lines`).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..events import BrokerWarning, Event
from ..interfaces import FIRST_DOOR, Clock, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .batch_packing import BatchPacker
from .client import BaseHandler, BrokerClient, BrokerError, as_failure
from .destination import Destination
from .latency import ConfirmLatency
from .line_traces import LineTraces, TraceSample
from .packing import LinePacker, LineTooLarge, Template, Unroutable, body_size, refit
from .refused_lines import RefusedLines, ReturnedLines
from .waiting import WaitingConnections
from .window import Entry, UnknownTag, Window

TOO_LARGE = re.compile(r"larger than (?:configured )?max size ([0-9]{1,18})\b")
"""Size limit in the text with which RabbitMQ closes a channel over a message above max_message_size (3.8 and later)."""

SHARES = 64
"""Shares per window. A connection has at most two in flight. So a flooding one delays the lines of all others by a
thirty-second of the window: 312 lines by default, which take RabbitMQ 10 ms."""

SMALLEST_SHARE = 16
"""Minimum of lines in a share: granting one costs about as much as publishing a line."""


ChannelFailed: TypeAlias = Callable[["LinePublisher", BrokerClient, BaseException], None]
"""Function that is called when a publisher needs another channel: the broker closed the present one, or a refusal may be its
fault alone. The publisher goes on with the next `up`.
"""


def end_connection(publisher: LinePublisher, client: BrokerClient, reason: BaseException) -> None:
    """Get a publisher another channel with another connection, which the connection makes with back-off."""
    client.abort(reason)


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


class LinePublisher(BaseHandler):
    """Publisher of the lines of a door, on a channel of its own, within a window of unconfirmed ones."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        queue: topology.Queue | topology.Exchange,
        packer: LinePacker | BatchPacker,
        window: Window,
        options: PublisherOptions = DEFAULTS,
    ) -> None:
        """`queue` is where lines go: a queue, which is declared, or an exchange, which has to be there."""
        self._emit = emit
        self._destination = Destination(queue, self._warn, packer.channel + 1)
        self._packer = packer
        self._traces, self._returned = self._prepare(packer)
        self.channel = packer.channel
        """Channel for publishing. The next one is for declarations."""
        self.window = self._window = window
        self._failed = options.failed
        self._acknowledge = options.acknowledge
        self._now = options.now
        self._client: BrokerClient | None = None
        self._direct: BrokerClient | None = None
        """`_client` if new lines are written at once; `None` if refused lines must be written first."""
        self._waiting = WaitingConnections(clock, lambda: self.accepting)
        self._refused = RefusedLines(
            clock,
            emit,
            self._destination,
            window,
            self._waiting,
            door=options.door,
            route=None if packer.one_route else self._route,
            republish=self._retry,
        )
        self._latency = ConfirmLatency(options.observe)
        self._outstanding: Counter[LineSource] | None = None
        self._blocked = False
        self.share, self.line_size = _share(window)
        self.accepting = False

    def _prepare(self, packer: Any) -> tuple[TraceSample, ReturnedLines]:
        """Make what depends on the form of a message."""
        self._pack = packer.pack
        self._line_traces = LineTraces(packer)
        return self._line_traces, ReturnedLines(packer.seq_header)

    def _route(self, source: LineSource) -> Any:
        """Return the route of a connection: what the broker refuses together."""
        return source

    def configure(self, max_messages: int, max_bytes: int, *, acknowledge: bool) -> None:
        """Change the limits of the window, and whether connections want to know what is safe.

        Lines beyond the limits stay in the window. Shares that were granted stay as large as they are.
        """
        # Connections that were acknowledged are told for as long as they live.
        self._acknowledge = self._acknowledge or acknowledge
        self._window.configure(max_messages, max_bytes)
        self.share, self.line_size = _share(self._window)
        if not self.accepting:
            self._reopen()
        elif self._window.full:
            self.accepting = False

    def pace(self, delay: float) -> None:
        """Change the time that a line waits at most for others of its batch, in seconds. Lines without batches do not wait."""

    def stop_waiting(self) -> None:
        """Publish lines without a wait for others of their batch from now on: the node stops."""

    def trace(self, share: float) -> None:
        """Begin a trace with a share of the lines, chosen at random; 0: with none."""
        self._traces.configure(share)
        self._tracing(share > 0)

    def _tracing(self, some: bool) -> None:
        # Where no line is chosen, there is nobody to ask for each of them.
        self._pack = self._line_traces.pack if some else self._packer.pack

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
        seq = source.seq
        now = self._now()
        try:
            packed = self._pack(source.template, seq, line, int(received or now))
        except (KeyTooLong, LineTooLarge) as error:
            self._reject(source, error)
            return
        source.seq = seq + 1
        window, direct = self._window, self._direct
        if direct is not None:
            window.add(source, seq, packed)
            direct.write(packed)
        else:
            self._publish_behind(source, seq, packed)
        if self._latency.since is None:
            self._latency.follow(now, window.confirmed_lines + window.messages)
        if self._outstanding is not None:
            self._outstanding[source] += 1
        if window.messages >= window.max_messages or window.size >= window.max_bytes:
            self.accepting = False

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        direct = self._direct
        if direct is None:
            return self._publish_each(source, lines, received)
        now = self._now()
        second = int(received or now)
        window, pack, template = self._window, self._pack, source.template
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
            if self._latency.since is None:
                self._latency.follow(now, window.confirmed_lines + window.messages)
            if self._outstanding is not None:
                self._outstanding[source] += taken
            if space <= 0 or window.messages >= window.max_messages:
                self.accepting = False
        if fault is not None:
            self._reject(source, fault)
        return taken or 1

    def _publish_each(self, source: LineSource, lines: Sequence[bytes], received: float) -> int:
        """Publish lines that may have to wait (`_publish_behind`). Return as `publish_lines` does."""
        for taken, line in enumerate(lines, 1):
            before = source.seq
            self.publish(source, line, received)
            if source.seq == before:
                return max(1, taken - 1)
            if not self.accepting:
                return taken
        return len(lines)

    def _publish_behind(self, source: LineSource, seq: int, packed: bytes) -> None:
        """Publish a line that may have to wait: behind refused lines of its connection, or for the next connection to the
        broker."""
        client = self._client
        if client is None:
            self._window.add(source, seq, packed)
        elif self._refused.holds(source):
            self._refused.defer(source, seq, packed)
        else:
            self._window.add(source, seq, packed)
            client.write(packed)

    def _choose_direct(self) -> None:
        self._direct = None if self._refused.pending else self._client

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
        if since > self._window.settled:
            self._waiting.add_sharing(source, since)
        else:
            self._waiting.add((source,))
            self._waiting.resume_soon()

    def position(self, since: int) -> int:
        return -1 if self._window.settled < since else self._window.entered

    @property
    def spare(self) -> int:
        return self._window.spare

    def serves(self, source: LineSource) -> bool:
        return self._client is not None and not self._blocked and not self._refused.holds(source)

    def leave(self, source: LineSource) -> None:
        self._waiting.remove(source)
        self._refused.leave(source)

    def settled(self, source: LineSource) -> bool:
        """Return whether the broker has confirmed all lines of a connection. The first call starts counting for all
        connections."""
        if self._outstanding is None:
            self._outstanding = self._outstanding_lines()
        return self._outstanding[source] == 0

    def _outstanding_lines(self) -> Counter[LineSource]:
        """Return the number of unconfirmed lines of each connection."""
        return Counter(self._window.sources())

    def _settle(self, outstanding: Counter[LineSource], sources: Iterable[LineSource]) -> None:
        for source in sources:
            outstanding[source] -= 1
            if not outstanding[source]:
                del outstanding[source]  # a Counter keeps zeros, and with them connections that have ended

    @property
    def unconfirmed_since(self) -> float | None:
        """Time of publication of the followed line in seconds since the epoch; `None` if no line is followed."""
        return self._latency.unconfirmed_since

    @property
    def unconfirmed(self) -> int:
        """Number of published, unconfirmed lines."""
        return self._window.messages

    def _reopen(self) -> None:
        """Accept lines again if nothing prevents it. Waiting connections resume first, in order."""
        self.accepting = (
            self._client is not None and not self._blocked and not self._refused.pausing_all and not self._window.full
        )
        self._waiting.resume_soon()

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        await self._destination.prepare(client)
        channel = await client.open_channel(self.channel, self)
        await channel.confirm_select()
        smaller = client.frame_max if self._packer.limit(client.frame_max) else None
        self._client = client
        self._returned.clear()
        self._refused.channel_opened()
        self._choose_direct()
        again = self._window.restart((lambda packed: refit(packed, smaller)) if smaller else None)
        if again:
            client.write(b"".join(again))
        self._reopen()

    def down(self) -> None:
        """Stop publishing: the connection has ended."""
        self._blocked = False
        self._stop()

    def suspend(self, fault: BrokerError) -> None:
        """Stop publishing: the channel has ended, or could not be opened. Report the fault."""
        self._refused.suspended(f"{self._destination.describe()}: {fault}")
        self._stop()

    def _stop(self) -> None:
        self._client = None
        self._choose_direct()
        self.accepting = False
        self._refused.stop()

    def answer_to(self, reply_to: bytes) -> None:
        """Have replies to later lines sent to another queue, whose name has the same length."""
        self._packer.answer_to(reply_to)

    def blocked(self, reason: str) -> None:
        self._blocked = True
        self.accepting = False

    def unblocked(self) -> None:
        self._blocked = False
        self._reopen()

    def closed(self, reason: Failure) -> None:
        # A channel error: the broker rejected something.
        if isinstance(reason.value, BrokerError) and (too_large := TOO_LARGE.search(reason.value.text)):
            self._limit(int(too_large[1]))
        client = self._client
        if client is not None and not client.closed:
            self._failed(self, client, reason.value or BrokerError(0, "the channel was closed", scope="channel"))

    def _limit(self, largest: int) -> None:
        """Give up lines above the size limit of the broker, and close their connections.

        RabbitMQ closes the channel for such a line. Without this, each republication would fail at the same line forever.
        """
        self._packer.largest(largest)
        hopeless = self._give_up(largest)
        if hopeless:
            self._warn(
                f"RabbitMQ accepts messages of at most {largest} bytes, and devices may send longer lines: lower --max-line, "
                "or raise RabbitMQ's max_message_size and restart Owsla"
            )
            self._latency.restart()  # the count of the followed line included these
        if self._outstanding is not None:
            self._settle(self._outstanding, [source for source, _ in hopeless])
        self._waiting.grant_shares(self._window.settled)
        for source, line in hopeless:
            try:
                self._reject(source, LineTooLarge(f"{line}, and the limit of the broker is {largest}"))
            except Exception:
                source.failed(Failure())

    def _give_up(self, largest: int) -> list[tuple[LineSource, str]]:
        """Remove the lines above the size limit of the broker from the window. Return the connection and a description of each.
        """
        given_up = self._window.give_up(lambda packed: body_size(packed) > largest)
        return [(entry.source, f"a line of {body_size(entry.packed)} bytes") for entry in given_up]

    def _warn(self, text: str) -> None:
        self._emit(BrokerWarning(text))

    # -- confirms --------------------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        try:
            entries = self._window.confirm(tag, multiple)
        except UnknownTag as error:
            self._protest(error)
            return
        if self._returned.routing_keys:
            entries = self._without_returned(entries)
        window = self._window
        if window.confirmed_lines >= self._latency.followed:
            self._latency.record(self._now())
        if (settled := window.settled) >= self._waiting.next_share:
            self._waiting.grant_shares(settled)
        if self._outstanding is not None:
            self._settle(self._outstanding, [source for source, _ in window.lines(entries)])
        if self._acknowledge:
            for source, seq in window.lines(entries):
                try:
                    source.confirmed(seq)
                except Exception:
                    source.failed(Failure())  # an error in one connection must not affect the others
        if self._refused.watching:
            resumed = self._refused.confirmed(entries)
            self._choose_direct()
            if resumed:
                self._reopen()
        if not self.accepting and window.roomy:
            self._reopen()

    def refused(self, tag: int, multiple: bool) -> None:
        try:
            entries = self._window.refuse(tag, multiple)
        except UnknownTag as error:
            self._protest(error)
            return
        if entries:  # else all of them have been republished under other tags
            self._pause()
            self._refused.nacked(entries)
            self._choose_direct()
            self._waiting.grant_shares(self._window.settled)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        try:
            self._returned.add(routing_key, header, body)
        except WireError as error:
            self._protest(error)
            return
        self._destination.unroutable()

    def _without_returned(self, entries: list[Entry]) -> list[Entry]:
        safe, returned, by_key = self._returned.split(entries)
        if returned:
            self._window.put_back(returned)
            self._pause()
            for key, lines in by_key.items():
                self._refused.refuse(lines, self._destination.nowhere(key))
            self._choose_direct()
        return safe

    def _pause(self) -> None:
        """Pause all devices if refused lines would meet any of them."""
        if self._packer.one_route:
            self.accepting = False

    def _protest(self, error: Exception) -> None:
        if self._client is not None:
            self._client.abort(WireError(str(error)))

    # -- refusals --------------------------------------------------------------------------------------------------------

    def _retry(self, new_channel: bool) -> None:
        if self._client is not None:
            self._client.run(self._publish_again(new_channel))

    async def _publish_again(self, new_channel: bool) -> None:
        client = self._client
        if client is not None and new_channel:
            text = f"{self._destination.full()}, or only on this channel: trying another"
            self._failed(self, client, BrokerError(0, text, scope="channel"))
            return
        if client is not None and self._destination.missing:
            try:
                await self._destination.restore(client)
            except (BrokerError, Closed) as error:
                if client is self._client:
                    self._failed(self, client, as_failure(error).value or error)
                return
        if client is None or client is not self._client:
            return
        client.write(b"".join(self._window.retry()))
        self._refused.published_again()


def _share(window: Window) -> tuple[int, int]:
    """Return the share of a connection, in lines, and the bytes that count as a line."""
    share = min(window.max_messages, max(SMALLEST_SHARE, window.max_messages // SHARES))
    return share, max(1, window.max_bytes // window.max_messages)
