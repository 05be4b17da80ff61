"""What all connections of a node have in common: where lines go, the limits over all of them, and the one clock that ticks.

No connection has a timer of its own. What waits for a time is in one of the small collections here, and looked at by `tick`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from ..events import DeviceContested, DeviceReplaced, Event, GapSkipped, SlowDevice
from ..interfaces import Clock, LineSink
from ..letter import DeliverySource, Letter
from ..routing import Registry
from ..runtime.end_of_turn import Turn
from ..supervision import DynamicSupervisor
from .framing import Framing
from .held_messages import Holdings
from .ordering import PausableClock
from .repeats import ClosedConnections, HandedOver
from .rivals import Rivals
from .timers import Timers

if TYPE_CHECKING:
    from ..interfaces import Courier
    from .dialect_protocol import SpokenEndpoint
    from .hangup import HangupWatch
    from .protocol import Endpoint

TOLD_EVERY: Final = 10.0
"""Seconds, at the least, between two warnings of lines that were thrown away."""

TICK: Final = 0.1
"""Seconds between two looks at what waits for a time."""

CATCHING_UP: Final = 1.0
"""Seconds after an outage in which devices may hold as many messages as come: the queues are full then, and those of one
device are read from one queue before they are read from the other."""

LONG: Final = 32768
"""Bytes of an unfinished line past which it is collected in a buffer that grows in place."""


class Hub:
    """Shared by the endpoints of a node."""

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        emit: Callable[[Event], None],
        *,
        framing: Framing,
        sink: LineSink,
        registry: Registry[Endpoint],
        courier: Courier,
        endpoints: DynamicSupervisor[Endpoint],
        now: Callable[[], float],
        gap_timeout: float = 2.0,
        reorder_limit: int = 64,
        write_buffer: int = 65536,
        write_timeout: float = 30.0,
        max_rate: float | None = None,
        device_ack: Callable[[int], bytes] | None = None,
        hangups: HangupWatch | None = None,
        replace: bool = False,
    ) -> None:
        """Times are in seconds; `now()` is since the epoch.

        `device_ack(seq)` makes what tells a device that its lines up to that number are safe. `replace`: of the connections of
        one device only the newest stays.
        """
        self.clock = clock
        self.turn = turn
        self.emit = emit
        self.framing = framing
        self.split = framing.split
        self.ending = framing.ending
        self.long = min(LONG, framing.max_line)
        """Bytes of an unfinished line past which it is looked at: too long, or just long."""
        self.sink = sink
        self.registry = registry
        self.now = now
        self.max_rate = max_rate
        self.device_ack = device_ack
        self.write_buffer = write_buffer
        self.quiet_since = 0.0
        """When devices were last not read, whatever they had to say; by the clock."""
        self.gap_clock = PausableClock(clock.seconds)
        self._closed = ClosedConnections()
        self._handed_over = HandedOver()
        self._courier = courier
        self._endpoints = endpoints
        self._hangups = hangups
        self._gap_timeout = gap_timeout
        self._reorder_limit = reorder_limit
        self._write_timeout = write_timeout
        self._catching_up = 0.0  # until then limits on what is held do not count; 0: they do
        self._holding: dict[Endpoint, None] = {}
        self._held: Holdings[Endpoint] = Holdings()
        # Since when each of them has taken nothing, and how many bytes the system still had for it then. In that order.
        self._congested: dict[Endpoint, tuple[float, int]] = {}
        self._queued: Holdings[Endpoint] = Holdings()
        self._rated: list[tuple[float, int, Endpoint]] = []
        self._rated_count = 0
        self.timers: Timers[SpokenEndpoint] = Timers()
        """The time-outs of dialects."""
        self._devices: dict[str, Endpoint] | None = {} if replace else None
        self._rivals: Rivals[Endpoint] = Rivals()
        self.paused_connections = 0
        """Connections that are not read, for whichever reason."""
        self.duplicates = 0
        """Messages with a number that was sent before."""
        self.skips = 0
        """Numbers that were waited for in vain."""
        self.bytes_in = 0
        """Read from devices so far, delimiters included."""
        self.bytes_out = 0
        """Handed over to devices so far, without delimiters."""
        self._lines_out = 0  # to connections that are closed
        self.discarded_lines = 0
        """Lines that were read of devices that then left, and were thrown away since the window could not spare the room."""
        self.discarded_bytes = 0
        """Bytes that such devices had sent and that were not read, those of TLS included."""
        self._discards_told = (0, 0)
        self._discards_due = 0.0

    @property
    def lines_out(self) -> int:
        """Lines handed over so far, to whichever device. Looks at all of them."""
        return self._lines_out + sum([endpoint.lines_out for endpoint in self.registry])

    # -- messages --------------------------------------------------------------------------------------------------------

    def record(self, letter: Letter, reason: str) -> None:
        """Put on record that it was not delivered."""
        self._courier.record(letter, reason)

    def report(self, letter: Letter, outcome: str) -> None:
        """Send the report that it asked for."""
        self._courier.report(letter, outcome)

    def expired(self, letter: Letter) -> bool:
        """Return whether a message is past the moment up to which it may be sent."""
        if letter.deadline is not None and letter.deadline <= self.clock.seconds():
            return True
        return letter.expires_at is not None and letter.expires_at <= self.now()

    def duplicate(self, letter: Letter) -> None:
        """One of its number came before. What became of that is not remembered, so no more than this is said to who asks."""
        self.duplicates += 1
        letter.source.done(letter.tag)
        if letter.reply_to is not None:
            self.report(letter, "duplicate")

    def repeated(self, letter: Letter) -> bool:
        """Settle a message of a closed connection as a duplicate, if its number was written there. Return whether it was."""
        if letter.seq is None or letter.connection_id is None:
            return False
        if not self._closed.written(letter.connection_id, letter.seq, self.gap_clock()):
            return False
        self.duplicate(letter)
        return True

    def recall(self, identity: bytes) -> bool:
        """Return whether a message without a number was handed over before its consumer ended."""
        return self._handed_over.take(identity, self.gap_clock())

    def skipped(self, endpoint: Endpoint, missing: range) -> None:
        """It waits no longer for these numbers."""
        self.skips += missing.stop - missing.start  # len() has no numbers as large as a back end may choose
        self.emit(GapSkipped(endpoint.connection_id.decode(), endpoint.device_id, missing.start, missing.stop - 1))

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes] = ()) -> None:
        """A consumer is gone, and what it brought comes again; `handed_over`: as do these, which had no number."""
        self._handed_over.add(handed_over, self.gap_clock())
        for endpoint in dict.fromkeys(self._held.holders(source) + self._queued.holders(source)):
            endpoint.forget(source)

    def flowing(self, flows: bool) -> None:
        """Whether messages come to this node. While they do not, none is missed."""
        if flows:
            if self.gap_clock.paused:
                self._catching_up = self.clock.seconds() + min(self._gap_timeout, CATCHING_UP)
            self.gap_clock.resume()
        else:
            self.gap_clock.pause()

    # -- held for a missing number ---------------------------------------------------------------------------------------

    def hold(self, endpoint: Endpoint, letter: Letter) -> None:
        """It keeps this message until one before it comes."""
        self._held.add(letter.source, endpoint)
        self._holding[endpoint] = None

    def check_held(self, endpoint: Endpoint, source: DeliverySource) -> None:
        """A message of this consumer's came and was kept. Past a limit, whoever holds most of them waits no longer."""
        if self._catching_up:
            # What is missing is likely to be there, on the queue that is read later. It cannot come any more when a consumer
            # has all that it may have.
            if self._held.count(source) >= source.prefetch:
                self._held.greatest(source).skip()
            return
        if endpoint.holding > self._reorder_limit:
            endpoint.skip()
        self._share(source)

    def _share(self, source: DeliverySource) -> None:
        while self._held.count(source) > max(1, source.prefetch // 2):
            self._held.greatest(source).skip()

    def _caught_up(self) -> None:
        """The limits hold again, for what came meanwhile, too."""
        self._catching_up = 0.0
        for endpoint in list(self._holding):
            while endpoint.holding > self._reorder_limit:
                endpoint.skip()
        for source in self._held.sources():
            self._share(source)

    def release(self, endpoint: Endpoint, letters: Iterable[Letter]) -> None:
        """It keeps these no more."""
        for letter in letters:
            self._held.remove(letter.source, endpoint)
        if not endpoint.holding:
            self._holding.pop(endpoint, None)

    # -- slow devices ----------------------------------------------------------------------------------------------------

    def congested(self, endpoint: Endpoint) -> None:
        """Its socket does not take what was written, or took only some of it just now."""
        self._congested.pop(endpoint, None)
        self._congested[endpoint] = (self.clock.seconds(), endpoint.transport.unsent)

    def queue(self, endpoint: Endpoint, letter: Letter) -> None:
        """This message waits for its socket. Such must not use up the prefetch of the others."""
        self._queued.add(letter.source, endpoint)
        while self._queued.count(letter.source) > max(1, letter.source.prefetch // 4):
            self._queued.greatest(letter.source).close_slow(
                "too many messages wait for slow devices, most of them for this one"
            )

    def unqueue(self, endpoint: Endpoint, letters: Iterable[Letter]) -> None:
        """These wait for it no more."""
        for letter in letters:
            self._queued.remove(letter.source, endpoint)

    def relieved(self, endpoint: Endpoint) -> None:
        """Its socket has taken everything, or it is closed."""
        self._congested.pop(endpoint, None)

    # -- paused reading --------------------------------------------------------------------------------------------------

    def paused(self, endpoint: Endpoint) -> None:
        self.paused_connections += 1
        if self._hangups is not None:
            self._hangups.watch(endpoint.transport)

    def unpaused(self, endpoint: Endpoint) -> None:
        self.paused_connections -= 1
        if self._hangups is not None and endpoint.transport is not None:
            self._hangups.unwatch(endpoint.transport)

    def discarded(self, lines: int, unread: int) -> None:
        """Count what was thrown away of a device that has left: lines that were read, and bytes that were not."""
        self.discarded_lines += lines
        self.discarded_bytes += unread

    def take_discards(self) -> tuple[int, int]:
        """Return how many lines and unread bytes were thrown away since the last call."""
        lines, unread = self._discards_told
        self._discards_told = (self.discarded_lines, self.discarded_bytes)
        return self.discarded_lines - lines, self.discarded_bytes - unread

    def _tell_of_discards(self) -> None:
        lines, unread = self.take_discards()
        if lines or unread:
            self._log.warn(
                "Threw away {lines} lines and {unread} unread bytes of devices that closed their connections while lines could "
                "not be published: the window had no room for them. Raise `--window` and `--window-bytes` to keep more",
                lines=lines,
                unread=unread,
            )

    def rated(self, endpoint: Endpoint, until: float) -> None:
        """It talks too fast, and is not read until then."""
        self._rated_count += 1
        heapq.heappush(self._rated, (until, self._rated_count, endpoint))

    # -- coming and going ------------------------------------------------------------------------------------------------

    def identified(self, endpoint: Endpoint, peer: str) -> None:
        """Register the identified device. With --on-duplicate replace, close its previous connection."""
        devices, device_id = self._devices, endpoint.device_id
        if devices is None or device_id is None:
            return
        earlier = devices.get(device_id)
        devices[device_id] = endpoint
        if earlier is not None and earlier is not endpoint and not earlier.closing:
            self.emit(DeviceReplaced(earlier.connection_id.decode(), device_id, endpoint.connection_id.decode()))
            closing, replacements = self._rivals.replaced(device_id, earlier, self.clock.seconds())
            if replacements:
                self.emit(DeviceContested(device_id, replacements, (earlier.transport.peer, peer)))
            for each in closing:
                each.close("replaced")

    def unidentified(self, endpoint: Endpoint) -> None:
        """This is no connection of its device's any more."""
        devices, device_id = self._devices, endpoint.device_id
        if devices is not None and device_id is not None and devices.get(device_id) is endpoint:
            del devices[device_id]

    def failed(self, endpoint: Endpoint, failure: Failure) -> None:
        """It is gone, and this was raised in its name: by its dialect, or by us."""
        self._endpoints.ended(endpoint, failure)

    def slow(self, endpoint: Endpoint, why: str) -> None:
        self.emit(SlowDevice(endpoint.connection_id.decode(), endpoint.device_id, why))

    def closed(self, endpoint: Endpoint, failure: Failure | None) -> None:
        """Its connection is gone; `failure` is an exception of our own that ended it."""
        self.registry.remove(endpoint.connection_id)
        self._closed.add(endpoint.connection_id, endpoint.numbers, self.gap_clock())
        self._lines_out += endpoint.lines_out
        self._congested.pop(endpoint, None)
        if self._devices:
            self.unidentified(endpoint)
        self._endpoints.ended(endpoint, failure)

    def tick(self) -> None:
        """Look at what waits for a time."""
        now = self.clock.seconds()
        if self._hangups is not None:
            self._hangups.tick()
        if now >= self._discards_due:
            self._discards_due = now + TOLD_EVERY
            self._tell_of_discards()
        if self._catching_up and now >= self._catching_up:
            self._caught_up()
        while self._rated and self._rated[0][0] <= now:
            rated = heapq.heappop(self._rated)[2]
            self._by_itself(rated, rated.unrate)
        if self._rivals:
            for endpoint in self._rivals.due(now):
                self._by_itself(endpoint, endpoint.close, "replaced")
        if self.timers:
            for waiter in self.timers.due(now):
                waiter.timed_out()
        if self._holding:
            due = self.gap_clock() - self._gap_timeout
            for endpoint in list(self._holding):
                missed_since = endpoint.missed_since
                if missed_since is not None and missed_since <= due:
                    self._by_itself(endpoint, endpoint.skip)
        if self._congested:
            for endpoint, (since, unsent) in list(self._congested.items()):
                if now - since < self._write_timeout:
                    break
                if endpoint.transport.unsent < unsent:
                    self.congested(endpoint)  # slow, but it reads: the system asks for more only when a good part has gone
                else:
                    self._by_itself(endpoint, endpoint.close_slow, f"it took nothing for {self._write_timeout:g} s")

    def _by_itself(self, endpoint: Endpoint, act: Callable[..., object], *args: object) -> None:
        """An error of ours in dealing with one connection costs that one, and not all of them their time."""
        try:
            act(*args)
        except Exception:
            endpoint.failed(Failure())
