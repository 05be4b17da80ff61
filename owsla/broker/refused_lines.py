"""Refused and returned lines of devices: which connections they pause, and when they are republished.

Theory of operation. States of the destination: *accepting*; *refusing*, from the first refused line until a republished one is
confirmed and none is refused. If all lines have one route, refusing pauses all devices (`pausing_all`). If connections have
their own routing keys, only their connections are paused (`Stalls`). In both cases a timer republishes the refused lines, with
a growing delay.

`watching` is true while a confirm can change any of this. It keeps the confirms of normal operation free of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.wire import WireError
from ..events import Event, LinesAccepted, LinesRefused
from ..interfaces import Clock, LineSource
from .batch_packing import first_line
from .destination import Destination
from .publisher import Retry
from .retry_delay import RetryDelay
from .stalls import Stalls
from .waiting import WaitingConnections
from .window import Entry, Window


class RefusedLines:
    """The consequences of refused lines: pauses, reports and the timer of the republication."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        destination: Destination,
        window: Window,
        waiting: WaitingConnections,
        *,
        door: str,
        route: Callable[[LineSource], Any] | None,
        republish: Callable[[bool], None],
    ) -> None:
        """`route` returns the route of a connection (`Stalls`); `None`: all lines have the same routing key. `republish` is
        called when refused lines should be republished, with `True` if that needs a new channel.
        """
        self._emit = emit
        self._destination = destination
        self._window = window
        self._waiting = waiting
        self._door = door
        self._reported = False
        self._suspended_for: str | None = None
        self._route = route or _no_route
        self._stalls: Stalls[Any, LineSource] | None = None if route is None else Stalls()
        self._retry = Retry(clock, republish, RetryDelay(first=0.1, most=5.0))
        self._proven = False  # the broker confirmed a line on this channel
        self.pausing_all = False
        """True while lines are refused, and all devices paused."""
        self.watching = True
        """True while `confirmed` must be called."""

    @property
    def pending(self) -> bool:
        """True while refused lines must be written before new ones."""
        return self.pausing_all or bool(self._stalls)

    def holds(self, source: LineSource) -> bool:
        """Return whether new lines of a connection must wait behind refused ones."""
        return self.refuses(self._route(source))

    def refuses(self, route: Any) -> bool:
        """Return whether new lines of a route must wait behind refused ones."""
        return self.pausing_all or (self._stalls is not None and route in self._stalls.stalled)

    def wait(self, source: LineSource) -> bool:
        """Register a connection if it is stalled. Return whether it is.

        A connection without lines is not, whatever others of its route are: with its identity its device may get another one.
        """
        if self._stalls is None or not source.seq or (route := self._route(source)) not in self._stalls:
            return False
        self._stalls.wait(route, source)
        return True

    def leave(self, source: LineSource) -> None:
        """Remove the registration of a connection."""
        if self._stalls is not None:
            self._stalls.leave(source)

    # -- the channel -----------------------------------------------------------------------------------------------------

    def channel_opened(self) -> None:
        """Reset for a new channel, on which all lines are republished."""
        self._proven = False
        self._retry.refusals.channel_opened()
        self.pausing_all = False
        self.watching = True
        if self._stalls is not None:
            self._waiting.add(self._stalls.clear())
        self.stop()

    def confirmed(self, entries: list[Entry]) -> bool:
        """Process confirmed lines. Return whether connections have been resumed from a stall."""
        if entries and not self._proven:
            self._proven = True
            self._retry.refusals.accepted(self._destination.name)
        if self.pausing_all and entries and not self._window.refused:
            self.pausing_all = False
            self._retry.reset_delay()
        freed = self._resume_stalled(self._stalls, entries) if self._stalls else False
        if self._reported and entries and not self._window.refused and not self._stalls:
            self._reported = False
            self._emit(LinesAccepted(self._destination.describe(), self._door))
        self.watching = self.pending or self._reported or not self._proven
        return freed

    def _resume_stalled(self, stalls: Stalls[Any, LineSource], safe: Iterable[Entry]) -> bool:
        """Register stalled connections that have a confirmed line as waiting. Return whether there are any."""
        freed = stalls.safe(entry.source for entry in safe)
        self._waiting.add(freed)
        if not stalls:
            self._retry.reset_delay()
        return bool(freed)

    # -- refusals --------------------------------------------------------------------------------------------------------

    def nacked(self, entries: list[Entry]) -> None:
        """Process lines that the broker refused with basic.nack."""
        self._retry.refusals.refused(self._destination.name)
        self.refuse(entries, self._destination.full())

    def refuse(self, entries: list[Entry], reason: str) -> None:
        """Pause devices, and schedule the republication of refused lines."""
        self.watching = True
        if self._stalls is not None:
            self._stall(self._stalls, entries, reason)
        elif not self.pausing_all:
            self.pausing_all = True
            self._report(self._window.count(entries), reason)
        self._retry.schedule()

    def _report(self, lines: int, reason: str) -> None:
        self._reported = True
        self._emit(LinesRefused(lines, reason, self._door))

    def _stall(self, stalls: Stalls[Any, LineSource], entries: list[Entry], reason: str) -> None:
        """Pause the connections of refused lines."""
        for entry in entries:
            stalled, tell = stalls.refuse(entry.source, reason)
            if tell:
                self._report(self._window.count(entries), reason)
            if stalled or entry.batch is not None:
                self._pause(stalls, entry)

    def _pause(self, stalls: Stalls[Any, LineSource], entry: Entry) -> None:
        """Pause the connections of an entry of a stalled route, unless they wait already."""
        for source in entry.connections:
            if stalls.waits(source):
                continue
            if self._waiting.remove(source):
                stalls.wait(entry.source, source)
            else:
                try:
                    source.stall()
                except Exception:
                    source.failed(Failure())

    def defer(self, source: LineSource, seq: int, packed: bytes) -> None:
        """Keep a new line behind the refused ones of its connection."""
        self._window.defer(source, seq, packed)
        self._wait_behind(source)

    def deferred(self, entry: Entry) -> None:
        """Note that a new batch waits behind the refused ones of its route. Pause its connections: it may be their first."""
        self._wait_behind(entry.source)
        if self._stalls is not None:
            self._pause(self._stalls, entry)

    def _wait_behind(self, route: Any) -> None:
        if self._stalls is not None:
            self._stalls.refuse(route, "")  # it stays stalled until this line is republished, too
        self._retry.schedule()

    # -- republication ---------------------------------------------------------------------------------------------------

    def published_again(self) -> None:
        """Note that all refused lines have been republished.

        Devices resume when the first of these is confirmed; with stalls, each connection when one of its own is.
        """
        self._retry.done()
        if self._stalls is not None:
            self._stalls.published_again()

    def suspended(self, reason: str) -> None:
        """Report that no lines can be published for now, once for each reason until the broker has confirmed a line again."""
        self.watching = True
        if not self._reported or reason != self._suspended_for:
            self._suspended_for = reason
            self._report(0, reason)

    def stop(self) -> None:
        """Stop the timer of the republication."""
        self._retry.cancel()


class ReturnedLines:
    """Lines that the broker returned as unroutable, until their basic.ack.

    RabbitMQ sends basic.return before the basic.ack of the same message. The ack has the tag, so the line is remembered until
    then.
    """

    __slots__ = ("_seq_header", "routing_keys")

    def __init__(self, seq_header: str) -> None:
        self._seq_header = seq_header
        self.routing_keys: dict[tuple[bytes, int], str] = {}
        """Routing key of each returned message, by connection id and number of its first line."""

    def add(self, routing_key: str, header: bytes, body: bytes) -> None:
        """Remember a returned message. Raise `WireError` if it is not a line of Owsla."""
        try:
            line = self._first_line(header, body)
        except (WireError, KeyError, ValueError, TypeError, OverflowError):
            raise WireError("the broker returned a message that Owsla did not publish") from None
        self.routing_keys[line] = routing_key

    def _first_line(self, header: bytes, body: bytes) -> tuple[bytes, int]:
        """Return the connection id and the number of the first line of a message. Raise various errors if it has none."""
        headers = wire.decode_table(wire.split_properties(header, 12)["headers"])[0]
        return str(headers["connection_id"]).encode(), int(headers[self._seq_header])

    def split(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry], dict[str, list[Entry]]]:
        """Return the lines that were not returned, the returned ones, and these by routing key."""
        safe: list[Entry] = []
        returned: list[Entry] = []
        by_key: dict[str, list[Entry]] = {}
        for entry in entries:
            key = self.routing_keys.pop(entry.first_line, None)
            if key is None:
                safe.append(entry)
            else:
                returned.append(entry)
                by_key.setdefault(key, []).append(entry)
        return safe, returned, by_key

    def clear(self) -> None:
        """Forget all: a new channel has other tags."""
        self.routing_keys.clear()


class ReturnedBatches(ReturnedLines):
    """Batches that the broker returned as unroutable, until their basic.ack."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("")

    def _first_line(self, header: bytes, body: bytes) -> tuple[bytes, int]:
        return first_line(body)


def _no_route(source: LineSource) -> None:
    return None
