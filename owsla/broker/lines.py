"""The publisher of device lines: each line is packed, published, and kept until RabbitMQ confirms it.

Theory of operation. `accepting` is the answer to "may devices be read": there is a connection, the broker does not block, lines
are not refused, and the window is not full. Otherwise connections stop reading, and register with `wait`. They resume a few at
a time, in the order of registration, so that 40,000 of them do not resume in one iteration of the reactor.

Shares. A connection may publish `share` lines, and gets the next share when its last one is settled: when as many lines have
left the window as were in it or had left it before (`position`). So a connection that floods has two shares in flight at most,
a thirty-second of the window, and the lines of the others wait behind no more than that.

Refusals. RabbitMQ refuses a line with basic.nack (a full queue, an unavailable quorum queue), or returns it as unroutable and
then confirms it. Refused lines stay in the window and are republished after a delay, with all later lines of their connections,
so that their order is kept. If all lines have one route (one queue, or one routing key), a refusal pauses all devices, because
it would meet any of them. If connections have their own routing keys, it pauses only their connections (`stalls`). Those share
the window with the others: when the window is full of refused lines, all devices wait.

After a lost connection everything in the window is republished, in order, before any new line.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import islice

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.wire import WireError
from ..events import BrokerWarning, Event, LinesAccepted, LinesRefused
from ..interfaces import Clock, DelayedCall, LineSource
from ..routing_key import KeyTooLong
from . import queues as topology
from .client import BaseHandler, BrokerClient, BrokerError, as_failure
from .packing import LinePacker, LineTooLarge, Template, Unroutable, body_size, refit
from .refusals import RefusalHistory
from .retry_delay import RetryDelay
from .stalls import Stalls
from .window import Entry, UnknownTag, Window

LINES = 1
"""Channel for publishing. Its number is part of the packed lines in the window, so it never changes."""

SCRATCH = 2
"""Channel for declarations."""

TOO_LARGE = re.compile(r"larger than (?:configured )?max size ([0-9]{1,18})\b")
"""Size limit in the text with which RabbitMQ closes a channel over a message above max_message_size (3.8 and later)."""

RESUMED_AT_ONCE = 200
"""Limit on connections resumed in one iteration of the reactor: resuming reading costs a system call each."""

RESUMED_WITHIN = 0.005
"""Seconds per iteration for resuming connections: each may have a share of lines to publish."""

SHARES = 64
"""Shares per window. A connection has at most two in flight. So a flooding one delays the lines of all others by a
thirty-second of the window: 312 lines by default, which take RabbitMQ 10 ms."""

SMALLEST_SHARE = 16
"""Minimum of lines in a share: granting one costs about as much as publishing a line."""


class LinePublisher(BaseHandler):
    """Role of the connection that publishes lines of devices, within a window of unconfirmed ones."""

    name = "producer"

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        queue: topology.Queue | topology.Exchange,
        packer: LinePacker,
        window: Window,
        seq_header: str,
        frame_max: int,
        acknowledge: bool = False,
        observe: Callable[[float], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`queue` is where lines go: a queue, which is declared, or an exchange, which has to be there.

        `frame_max` is what `packer` packs for, in bytes. `acknowledge`: connections want to know what is safe.

        `observe` is told how many seconds some of the lines waited for their confirm.
        """
        self._clock = clock
        self._emit = emit
        self._queue = queue
        self._packer = packer
        self._frame_max = frame_max
        self._window = window
        self._seq_header = seq_header
        self._acknowledge = acknowledge
        self._now = now
        self._client: BrokerClient | None = None
        self._direct: BrokerClient | None = None
        """`_client` if new lines are written at once; `None` if refused lines must be written first."""
        self._waiting: dict[LineSource, None] = {}  # in the order of their registration
        # Connections that wait for their next share, with the position that settles the last one. The heap may have removed
        # ones.
        self._sharing: dict[LineSource, int] = {}
        self._shares: list[tuple[int, int, LineSource]] = []
        self._shares_asked = 0
        self.share = min(window.max_messages, max(SMALLEST_SHARE, window.max_messages // SHARES))
        self.line_size = max(1, window.max_bytes // window.max_messages)
        self._resuming = False
        self._blocked = False
        self._returned: dict[tuple[bytes, int], str] = {}  # connection and number: routing key
        self._missing_queue = False
        self._refusing = False  # lines are refused, and all devices paused
        self._refusal_reported = False
        self._stalls: Stalls[LineSource] | None = None if packer.one_route else Stalls()
        self._retry_call: DelayedCall | None = None
        self._retry_wait = RetryDelay(first=0.1, most=5.0)
        self._refusals = RefusalHistory()
        self._proven = False  # the broker confirmed a line on this channel
        self._outstanding: Counter[LineSource] | None = None
        self.accepting = False
        self.confirmed_lines = 0
        """Lines confirmed by the broker."""
        self.given_up_lines = 0
        """Published lines that were given up, because they exceed the size limit of the broker."""
        # Latency is measured on one line at a time. Confirms come in order, so it is confirmed when `_followed` lines are.
        self._observe = observe
        self._followed: float = math.inf
        self._followed_since: float | None = None if observe is not None else 0.0

    # -- towards devices -------------------------------------------------------------------------------------------------

    def open(self, connection_id: bytes, device_id: str | None) -> Template:
        try:
            return self._packer.template(connection_id, device_id)
        except KeyTooLong as error:
            # Not an error yet: a dialect may identify the device later, or the device may never send a line.
            return Unroutable(error)

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        seq = source.seq
        now = self._now()
        try:
            packed = self._packer.pack(source.template, seq, line, int(received or now))
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
        if self._followed_since is None:
            self._followed_since = now
            self._followed = self.confirmed_lines + window.messages
        if self._outstanding is not None:
            self._outstanding[source] += 1
        if window.messages >= window.max_messages or window.size >= window.max_bytes:
            self.accepting = False

    def _publish_behind(self, source: LineSource, seq: int, packed: bytes) -> None:
        """Publish a line that may have to wait: behind refused lines of its connection, or for the next connection to the
        broker."""
        client = self._client
        if client is None:
            self._window.add(source, seq, packed)
        elif self._refusing or (self._stalls is not None and source in self._stalls):
            self._window.defer(source, seq, packed)
            if self._stalls is not None:
                self._stalls.refuse(source, "")  # it stays stalled until this line is republished, too
            self._retry_soon()
        else:
            self._window.add(source, seq, packed)
            client.write(packed)

    def _choose_direct(self) -> None:
        self._direct = self._client if not self._refusing and not self._stalls else None

    def _reject(self, source: LineSource, error: KeyTooLong | LineTooLarge) -> None:
        """Reject a connection whose lines cannot be published. This line and later ones are not acknowledged to the device."""
        if not isinstance(source.template, Unroutable):
            source.template = Unroutable(error)
        if not source.template.reported:
            source.template.reported = True
            self._warn(f"lines of connection {source.connection_id.decode()} cannot be published: {error}; closing it")
        source.reject(str(error))

    def wait(self, source: LineSource, since: int = 0) -> None:
        if self._stalls is not None and source in self._stalls:
            self._stalls.wait(source)
        elif since > self._left:
            self._sharing[source] = since
            self._shares_asked += 1
            heappush(self._shares, (since, self._shares_asked, source))
        else:
            self._waiting[source] = None
            self._resume_soon()

    @property
    def _left(self) -> int:
        """Number of lines that have left the window."""
        return self.confirmed_lines + self.given_up_lines

    def position(self, since: int) -> int:
        left = self._left
        return left + self._window.messages if left >= since else -1

    def _grant_shares(self) -> None:
        """Move connections whose last share is settled to the end of the waiting ones."""
        shares, left = self._shares, self._left
        while shares and shares[0][0] <= left:
            since, _, source = heappop(shares)
            if self._sharing.get(source) == since:
                del self._sharing[source]
                self._waiting[source] = None
        self._resume_soon()

    @property
    def spare(self) -> int:
        return self._window.spare

    def serves(self, source: LineSource) -> bool:
        if self._client is None or self._blocked or self._refusing:
            return False
        return self._stalls is None or source not in self._stalls

    def leave(self, source: LineSource) -> None:
        self._waiting.pop(source, None)
        self._sharing.pop(source, None)
        if self._stalls is not None:
            self._stalls.leave(source)

    def settled(self, source: LineSource) -> bool:
        """Return whether the broker has confirmed all lines of a connection. The first call starts counting for all
        connections."""
        if self._outstanding is None:
            self._outstanding = Counter(self._window.sources())
        return self._outstanding[source] == 0

    def _settle(self, outstanding: Counter[LineSource], entries: list[Entry]) -> None:
        for entry in entries:
            source = entry.source
            outstanding[source] -= 1
            if not outstanding[source]:
                del outstanding[source]  # a Counter keeps zeros, and with them connections that have ended

    def _record_latency(self) -> None:
        """Record the latency of the followed line. The next published line is followed."""
        assert self._observe is not None
        assert self._followed_since is not None
        self._observe(self._now() - self._followed_since)
        self._followed = math.inf
        self._followed_since = None

    @property
    def unconfirmed_since(self) -> float | None:
        """Time of publication of the followed line in seconds since the epoch; `None` if no line is followed."""
        return self._followed_since if self._observe is not None else None

    @property
    def unconfirmed(self) -> int:
        """Number of published, unconfirmed lines."""
        return self._window.messages

    def _reopen(self) -> None:
        """Accept lines again if nothing prevents it. Waiting connections resume first, in order."""
        self.accepting = (
            self._client is not None and not self._blocked and not self._refusing and not self._window.full
        )
        self._resume_soon()

    def _resume_soon(self) -> None:
        if self.accepting and self._waiting and not self._resuming:
            self._resuming = True
            self._clock.callLater(0, self._resume)

    def _resume(self) -> None:
        self._resuming = False
        end = self._clock.seconds() + RESUMED_WITHIN
        for source in list(islice(self._waiting, RESUMED_AT_ONCE)):
            if not self.accepting:
                return
            if self._clock.seconds() > end:
                break
            if source in self._waiting:
                del self._waiting[source]
                try:
                    source.resume()
                except Exception:
                    source.failed(Failure())
        self._resume_soon()

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        if isinstance(self._queue, topology.Exchange):
            await topology.find_exchange(client, SCRATCH, self._queue)
        else:
            await topology.declare(client, SCRATCH, self._queue, self._warn)
        channel = await client.open_channel(LINES, self)
        await channel.confirm_select()
        smaller = None
        if client.frame_max != self._frame_max:
            if client.frame_max < self._frame_max:
                smaller = client.frame_max
            self._frame_max = client.frame_max
            self._packer.limit(client.frame_max)
        self._client = client
        self._proven = False
        self._refusals.channel_opened()
        self._returned.clear()
        self._refusing = False
        if self._stalls is not None:
            self._waiting.update(dict.fromkeys(self._stalls.clear()))
        self._choose_direct()
        self._stop_retrying()
        again = self._window.restart((lambda packed: refit(packed, smaller)) if smaller else None)
        if again:
            client.write(b"".join(again))
        self._reopen()

    def down(self) -> None:
        self._client = None
        self._choose_direct()
        self._blocked = False
        self.accepting = False
        self._stop_retrying()

    def blocked(self, reason: str) -> None:
        self._blocked = True
        self.accepting = False

    def unblocked(self) -> None:
        self._blocked = False
        self._reopen()

    def closed(self, reason: Failure) -> None:
        # A channel error: the broker rejected something. Close the whole connection, which reconnects with back-off.
        if isinstance(reason.value, BrokerError) and (too_large := TOO_LARGE.search(reason.value.text)):
            self._limit(int(too_large[1]))
        if self._client is not None and not self._client.closed:
            self._client.abort(reason.value or BrokerError(0, "the channel was closed", scope="channel"))

    def _limit(self, largest: int) -> None:
        """Give up lines above the size limit of the broker, and close their connections.

        RabbitMQ closes the channel for such a line. Without this, each republication would fail at the same line forever.
        """
        self._packer.largest(largest)
        hopeless = self._window.give_up(lambda packed: body_size(packed) > largest)
        if hopeless:
            self._warn(
                f"RabbitMQ accepts messages of at most {largest} bytes, and devices may send longer lines: lower --max-line, "
                "or raise RabbitMQ's max_message_size and restart Owsla"
            )
        self.given_up_lines += len(hopeless)
        if hopeless and self._observe is not None:
            # The count of the followed line included these. Follow the next published line.
            self._followed = math.inf
            self._followed_since = None
        if self._outstanding is not None:
            self._settle(self._outstanding, hopeless)
        self._grant_shares()
        for entry in hopeless:
            size = body_size(entry.packed)
            try:
                self._reject(entry.source, LineTooLarge(f"a line of {size} bytes, and the limit of the broker is {largest}"))
            except Exception:
                entry.source.failed(Failure())

    def _warn(self, text: str) -> None:
        self._emit(BrokerWarning(text))

    # -- confirms --------------------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        try:
            entries = self._window.confirm(tag, multiple)
        except UnknownTag as error:
            self._protest(error)
            return
        if self._returned:
            entries = self._without_returned(entries)
        self.confirmed_lines += len(entries)
        if not self._proven and entries:
            self._proven = True
            self._refusals.accepted(self._queue.name)
        if self.confirmed_lines >= self._followed:
            self._record_latency()
        if self._shares and self._shares[0][0] <= self._left:
            self._grant_shares()
        if self._outstanding is not None:
            self._settle(self._outstanding, entries)
        if self._acknowledge:
            for entry in entries:
                try:
                    entry.source.confirmed(entry.seq)
                except Exception:
                    entry.source.failed(Failure())  # an error in one connection must not affect the others
        if self._refusing and entries and not self._window.refused:
            self._refusing = False
            self._choose_direct()
            self._retry_wait.reset()
        if self._stalls:
            self._resume_stalled(self._stalls, entries)
        if self._refusal_reported and entries and not self._window.refused and not self._stalls:
            self._refusal_reported = False
            self._emit(LinesAccepted(self._where()))
        if not self.accepting and self._window.roomy:
            self._reopen()

    def refused(self, tag: int, multiple: bool) -> None:
        try:
            entries = self._window.refuse(tag, multiple)
        except UnknownTag as error:
            self._protest(error)
            return
        if entries:  # else all of them have been republished under other tags
            self._refusals.refused(self._queue.name)
            self._refuse(entries, self._full())

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        # RabbitMQ sends basic.return before the basic.ack of the same message. The ack has the tag, so remember the line until
        # then.
        try:
            headers = wire.decode_table(wire.split_properties(header, 12)["headers"])[0]
            key = str(headers["connection_id"]).encode(), int(headers[self._seq_header])
        except (WireError, KeyError, ValueError, TypeError, OverflowError):
            self._protest(WireError("the broker returned a message that Owsla did not publish"))
            return
        self._returned[key] = routing_key
        self._missing_queue = True

    def _without_returned(self, entries: list[Entry]) -> list[Entry]:
        safe: list[Entry] = []
        back: list[Entry] = []
        keys: dict[str, list[Entry]] = {}
        for entry in entries:
            key = self._returned.pop((entry.source.connection_id, entry.seq), None)
            if key is None:
                safe.append(entry)
            else:
                back.append(entry)
                keys.setdefault(key, []).append(entry)
        if back:
            self._window.put_back(back)
            for key, returned in keys.items():
                self._refuse(returned, self._nowhere(key))
        return safe

    def _report_refusal(self, lines: int, reason: str) -> None:
        self._refusal_reported = True
        self._emit(LinesRefused(lines, reason))

    def _where(self) -> str:
        kind = "exchange" if isinstance(self._queue, topology.Exchange) else "queue"
        return f"{kind} {self._queue.name}"

    def _full(self) -> str:
        if isinstance(self._queue, topology.Exchange):
            return f"a queue behind the exchange {self._queue.name} is full or unavailable"
        return f"the queue {self._queue.name} is full or unavailable"

    def _nowhere(self, routing_key: str) -> str:
        if isinstance(self._queue, topology.Exchange):
            return f"the exchange {self._queue.name} has no queue for the routing key {routing_key!r}"
        return f"there is no queue {self._queue.name}"

    def _protest(self, error: Exception) -> None:
        if self._client is not None:
            self._client.abort(WireError(str(error)))

    # -- refusals --------------------------------------------------------------------------------------------------------

    def _refuse(self, entries: list[Entry], reason: str) -> None:
        """Pause devices, and schedule the republication of refused lines."""
        if self._stalls is None:
            self.accepting = False
            if not self._refusing:
                self._refusing = True
                self._report_refusal(len(entries), reason)
        else:
            self._stall(self._stalls, entries, reason)
        self._choose_direct()
        self._retry_soon()

    def _retry_soon(self) -> None:
        if self._retry_call is None:
            self._retry_call = self._clock.callLater(self._retry_wait.next(), self._retry)

    def _stall(self, stalls: Stalls[LineSource], entries: list[Entry], reason: str) -> None:
        """Pause the connections of refused lines."""
        for entry in entries:
            source = entry.source
            stalled, tell = stalls.refuse(source, reason)
            if tell:
                self._report_refusal(len(entries), reason)
            if not stalled:
                continue
            if source in self._waiting or source in self._sharing:
                self._waiting.pop(source, None)
                self._sharing.pop(source, None)
                stalls.wait(source)
            else:
                try:
                    source.stall()
                except Exception:
                    source.failed(Failure())

    def _resume_stalled(self, stalls: Stalls[LineSource], safe: Iterable[Entry]) -> None:
        """Resume stalled connections that have a confirmed line."""
        freed = stalls.safe(entry.source for entry in safe)
        if freed:
            self._waiting.update(dict.fromkeys(freed))
            self._reopen()
        if not stalls:
            self._choose_direct()
            self._retry_wait.reset()

    def _retry(self) -> None:
        if self._client is not None:
            self._client.run(self._publish_again())

    async def _publish_again(self) -> None:
        client = self._client
        if client is not None and self._missing_queue and isinstance(self._queue, topology.Queue):
            self._missing_queue = False
            try:
                await topology.declare(client, SCRATCH, self._queue, self._warn)
            except (BrokerError, Closed) as error:
                self._missing_queue = True
                if client is self._client:
                    client.abort(as_failure(error).value or error)
                return
        if client is None or client is not self._client:
            return
        self._retry_call = None
        if self._refusals.needs_new_channel():
            client.abort(BrokerError(0, f"{self._full()}, or only on this channel: trying another", scope="channel"))
            return
        client.write(b"".join(self._window.retry()))
        # Devices resume when the first of these is confirmed; with stalls, each connection when one of its own is.
        if self._stalls is not None:
            self._stalls.published_again()

    def _stop_retrying(self) -> None:
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        self._retry_call = None
