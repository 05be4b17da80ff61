"""Refused and returned lines of devices: which connections they pause, and when they are republished.

Theory of operation. States of the destination: *accepting*; *refusing*, from the first refused line until a republished one is
confirmed and none is refused. If all lines have one route, refusing pauses all devices (`pausing_all`). If connections have
their own routing keys, only their connections are paused (`Stalls`). In both cases a timer republishes the refused lines, with
a growing delay.

Some lines come although devices are paused: those of devices that leave, and of batches that were open. They wait behind the
refused lines (`holds`) until these are republished, and not until the confirm. If they did, devices that leave, because they
are not read, would keep lines refused, and so the others paused.

RabbitMQ returns an unroutable line, and then confirms it. Such a line is refused when its confirm comes.

`watching` is true while a confirm can change any of this. It keeps the confirms of normal operation free of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.python.failure import Failure

from ..amqp.wire import WireError
from ..events import Event, LinesAccepted, LinesRefused
from ..interfaces import Clock, LineSource
from .client import BrokerError
from .destination import Destination
from .packing import MessagePacker
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
        packer: MessagePacker,
        republish: Callable[[bool], None],
    ) -> None:
        """`republish` is called when refused lines should be republished, with `True` if that needs a new channel."""
        self._emit = emit
        self._destination = destination
        self._window = window
        self._waiting = waiting
        self._door = door
        self._reported = False
        self._suspended_for: str | None = None
        self._route = packer.route_of
        self._stalls: Stalls[Any, LineSource] | None = None if packer.one_route else Stalls()
        self._returned = ReturnedLines(packer.first_line)
        self._retry = Retry(clock, republish, RetryDelay(first=0.1, most=5.0))
        self._proven = False  # the broker confirmed a line on this channel
        self.pausing_all = False
        """True while lines are refused, and all devices paused."""
        self.watching = True
        """True while `keep_returned` and `confirmed` must be called with confirmed lines."""

    @property
    def pending(self) -> bool:
        """True while lines are refused, and none was confirmed since: new lines may have to wait behind them (`holds`)."""
        return self.pausing_all or bool(self._stalls)

    def refuses(self, source: LineSource) -> bool:
        """Return whether lines of the route of a connection are refused, and none was confirmed since."""
        return self.pausing_all or (self._stalls is not None and self._route(source) in self._stalls)

    def holds(self, route: Any) -> bool:
        """Return whether new lines of a route must wait behind refused ones that are not republished yet."""
        return self._window.refused if self._stalls is None else self._stalls.holds(route)

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
        self._returned.clear()
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
        self.watching = self.pending or self._reported or not self._proven or bool(self._returned)
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
        self._refuse(entries, self._destination.full())

    def returned(self, routing_key: str, header: bytes, body: bytes) -> None:
        """Remember a returned message until its confirm. Raise `WireError` if Owsla did not publish it."""
        self._returned.add(routing_key, header, body)
        self._destination.unroutable()
        self.watching = True

    def keep_returned(self, entries: list[Entry]) -> list[Entry]:
        """Put returned lines back into the window, as refused ones. Return the others, which are safe."""
        if not self._returned:
            return entries
        safe, returned, by_key = self._returned.split(entries)
        if returned:
            self._window.put_back(returned)
            for key, lines in by_key.items():
                self._refuse(lines, self._destination.nowhere(key))
        return safe

    def _refuse(self, entries: list[Entry], reason: str) -> None:
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

    def suspended(self, fault: BrokerError) -> None:
        """Report that no lines can be published for now, once for each fault until the broker has confirmed a line again."""
        self.watching = True
        reason = f"{self._destination.describe()}: {fault}"
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

    __slots__ = ("_first_line", "_routing_keys")

    def __init__(self, first_line: Callable[[bytes, bytes], tuple[bytes, int]]) -> None:
        """`first_line` identifies a message by its header and body (`MessagePacker.first_line`)."""
        self._first_line = first_line
        self._routing_keys: dict[tuple[bytes, int], str] = {}  # by connection id and number of the first line

    def __bool__(self) -> bool:
        return bool(self._routing_keys)

    def add(self, routing_key: str, header: bytes, body: bytes) -> None:
        """Remember a returned message. Raise `WireError` if it is not a line of Owsla."""
        try:
            line = self._first_line(header, body)
        except (WireError, KeyError, ValueError, TypeError, OverflowError):
            raise WireError("the broker returned a message that Owsla did not publish") from None
        self._routing_keys[line] = routing_key

    def split(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry], dict[str, list[Entry]]]:
        """Return the lines that were not returned, the returned ones, and these by routing key."""
        safe: list[Entry] = []
        returned: list[Entry] = []
        by_key: dict[str, list[Entry]] = {}
        for entry in entries:
            key = self._routing_keys.pop(entry.first_line, None)
            if key is None:
                safe.append(entry)
            else:
                returned.append(entry)
                by_key.setdefault(key, []).append(entry)
        return safe, returned, by_key

    def clear(self) -> None:
        """Forget all: a new channel has other tags."""
        self._routing_keys.clear()
