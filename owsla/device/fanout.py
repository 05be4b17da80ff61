"""Spreading of a message over many connections of this node, at a limited rate.

Theory of operation
===================

A `Group` is a message for many devices on this node. It is the `DeliverySource` of the messages to each of them: a connection
acknowledges such a message to its group, and the group counts. Nothing is published for one device, neither a record nor a
report (`GroupCourier`).

A group passes through these states:

    selecting ──all connections looked at──▶ spreading ──all served──▶ settling ──all settled──▶ ended
        (the snapshot is made)                  └────────── expired ──────┴──────────────────────▶ ended

- *Selecting*: the snapshot of the connections that are open now is looked at, in slices. Those that match are kept by id, so
  that a connection that closes meanwhile costs no memory.
- *Spreading*: the message is posted to one connection after the other. Groups take turns, and share the rate.
- *Settling*: some connections still hold the message, because their socket takes no more.

Each connection of the snapshot is in exactly one of four places: not served yet, waiting (posted and not settled), handed over
(`devices`) or `missed`. A connection that has closed, or that cannot be sent this body, is missed. At the expiry all that are
not handed over are missed, and the group ends.

The rate is that of connections that are written to. Those that are skipped are limited by the time of a slice only. All writes
happen at the end of the reactor turn, outside of the slice that caused them. Therefore a slice is limited in writes as well as
in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import islice
from typing import Final

from twisted.python.failure import Failure

from ..interfaces import Clock, Courier, DelayedCall
from ..letter import Letter
from ..routing import Registry
from .connections import Connection
from .selectors import Selector

SLICE: Final = 0.002
"""Seconds of a reactor turn that selecting and spreading take."""

SLICE_WRITES: Final = 100
"""Limit of the connections that are written to in a reactor turn. A write through TLS takes some 15 to 30 us."""

AT_ONCE: Final = 500
"""Connections that are looked at between two looks at the clock; some 0.2 us each."""

INTERVAL: Final = 0.01
"""Seconds of the rate that one slice may use in advance, so that one timer serves several devices."""

BURST: Final = 0.1
"""Seconds of the rate that may be caught up with after the reactor was busy."""

LOOK: Final = 0.1
"""Seconds between two looks whether a group that waits for slow devices is settled or has expired."""

UNLIMITED: Final = 2**62
"""Prefetch of a group. The messages that wait for slow devices share one body, and use nothing of the prefetch of a queue."""


class Step(Enum):
    """Result of a step of a group."""

    SKIPPED = auto()
    """Connections were skipped that cannot be served. There are more."""
    POSTED = auto()
    """The message was posted to a connection."""
    WAITING = auto()
    """The next connection is open, and may not be written to yet."""
    SERVED = auto()
    """No connection is left to serve."""


class Group:
    """A message for many devices of this node, and the source of the messages to each of them.

    It counts what becomes of them.
    """

    __slots__ = ("_candidates", "_find", "_left", "_selector", "_waiting", "devices", "letter", "missed")

    open = True
    own = True
    prefetch = UNLIMITED

    def __init__(self, letter: Letter, selector: Selector, registry: Registry[Connection]) -> None:
        """Take a snapshot of the open connections. `letter` is the message of the back end."""
        self.letter: Final = letter
        self._selector = selector
        self._find = registry.find
        self._candidates: Iterator[Connection] = iter(registry)
        self._left: deque[bytes] = deque()  # ids of the connections that are not served yet
        self._waiting: set[int] = set()  # delivery tags of the messages that were posted and are not settled
        self.devices = 0
        """Number of connections that the message was handed over to."""
        self.missed = 0
        """Number of connections that it was not handed over to."""

    @property
    def unsettled(self) -> int:
        """Number of selected connections that are neither served nor missed."""
        return len(self._left) + len(self._waiting)

    # -- DeliverySource ----------------------------------------------------------------------------------------------------

    def done(self, tag: int) -> None:
        """Count a connection that the message was handed over to."""
        if tag in self._waiting:
            self._waiting.remove(tag)
            self.devices += 1

    def written(self, header: bytes, body: bytes) -> None:
        """Do nothing. The broker delivers the whole message again, and none of the messages to one device."""

    def miss(self, tag: int) -> None:
        """Count a connection that the message was not handed over to."""
        if tag in self._waiting:
            self._waiting.remove(tag)
            self.missed += 1

    # -- progress ----------------------------------------------------------------------------------------------------------

    def select(self) -> bool:
        """Look at some connections of the snapshot. Return `False` once all were looked at."""
        looked_at = list(islice(self._candidates, AT_ONCE))
        for connection in looked_at:
            if not connection.closing and self._selector.selects(connection.device_id, connection.factory.door):
                self._left.append(connection.connection_id)
        return len(looked_at) == AT_ONCE

    def step(self, *, write: bool) -> Step:
        """Skip some connections, or post the message to one. `write`: one may be written to now."""
        left, body, close = self._left, self.letter.body, self.letter.close
        for _ in range(min(AT_ONCE, len(left))):
            connection_id = left[0]
            recipient = self._find(connection_id)
            # A message that only closes the connection has no body to be sent.
            if recipient is None or recipient.closing or ((body or not close) and recipient.body_fault(body) is not None):
                left.popleft()
                self.missed += 1
            elif not write:
                return Step.WAITING
            else:
                left.popleft()
                self._post(recipient, connection_id)
                return Step.POSTED
        return Step.SKIPPED if left else Step.SERVED

    def _post(self, connection: Connection, connection_id: bytes) -> None:
        letter = self.letter
        tag = self.devices + self.missed + len(self._waiting) + 1  # the number of this connection in the snapshot
        self._waiting.add(tag)
        try:
            connection.post(
                Letter(
                    self,
                    tag,
                    letter.header,
                    letter.body,
                    connection_id,
                    None,
                    close=letter.close,
                    expires_at=letter.expires_at,
                    deadline=letter.deadline,
                )
            )
        except Exception:
            connection.failed(Failure())
            self.miss(tag)

    def expire(self) -> None:
        """Count all connections as missed that the message was not handed over to so far. Selecting must be over."""
        self.missed += self.unsettled
        self._left.clear()
        self._waiting.clear()


class GroupCourier:
    """Courier of the device connections. Of a message for many, the group counts what otherwise would be recorded."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self.forward = courier.forward
        self.report = courier.report

    def record(self, letter: Letter, reason: str) -> None:
        """Record a message as undeliverable, or count it as missed if it is that of a group."""
        if isinstance(letter.source, Group):
            letter.source.miss(letter.tag)
        else:
            self._courier.record(letter, reason)


class Fanout:
    """Spreads several groups in turn, at a limited rate."""

    def __init__(
        self, clock: Clock, rate: float, expired: Callable[[Letter], bool], ended: Callable[[Group, bool], None]
    ) -> None:
        """`rate` is in devices a second. `expired` returns whether a message is too old to be sent. `ended(group, late)` is
        called at the end of a group; `late` is true if it expired before all its connections were served.
        """
        self._clock = clock
        self._rate = rate
        self._expired = expired
        self._ended = ended
        self._selecting: deque[Group] = deque()
        self._spreading: deque[Group] = deque()  # the first one has its turn
        self._settling: list[Group] = []
        self._due = 0.0  # time at which the next connection may be written to
        self._call: DelayedCall | None = None

    def configure(self, rate: float) -> None:
        """Change the rate, also that of groups that are being spread."""
        self._rate = rate

    def __len__(self) -> int:
        """Return the number of groups that have not ended."""
        return len(self._selecting) + len(self._spreading) + len(self._settling)

    def begin(self, group: Group) -> None:
        """Begin to spread a group."""
        self._due = max(self._due, self._clock.seconds())
        self._selecting.append(group)
        if self._call is not None and self._call.active():
            self._call.cancel()  # it may wait for the rate, and selecting does not
        self._call = self._clock.callLater(0, self._slice)

    def _slice(self) -> None:
        self._call = None
        delay = LOOK
        try:
            self._expire()
            delay = self._spread()
            self._end_settled()
        finally:
            if self._call is None and len(self):
                self._call = self._clock.callLater(delay, self._slice)

    def _spread(self) -> float:
        """Select and serve for a while. Return the seconds until the next slice."""
        now = self._clock.seconds()
        end = now + SLICE
        while self._selecting and now < end:
            if not self._selecting[0].select():
                self._spreading.append(self._selecting.popleft())
            now = self._clock.seconds()
        writes = 0
        while self._spreading and now < end:
            group = self._spreading[0]
            step = group.step(write=self._due < now + INTERVAL and writes < SLICE_WRITES)
            if step is Step.POSTED:
                writes += 1
                self._due = max(self._due, now - BURST) + 1 / self._rate
                self._spreading.rotate(-1)
            elif step is Step.SERVED:
                self._settling.append(self._spreading.popleft())
            elif step is Step.WAITING:
                return 0.0 if self._due < now + INTERVAL else min(self._due - now, LOOK)
            now = self._clock.seconds()
        return 0.0 if self._selecting or self._spreading else LOOK

    def _expire(self) -> None:
        """End the groups that have expired. Those that select finish that first: it takes some milliseconds."""
        for group in [*self._spreading, *self._settling]:
            if group.unsettled and self._expired(group.letter):
                group.expire()
                if group in self._spreading:
                    self._spreading.remove(group)
                else:
                    self._settling.remove(group)
                self._ended(group, True)

    def _end_settled(self) -> None:
        for group in [group for group in self._settling if not group.unsettled]:
            self._settling.remove(group)
            self._ended(group, False)
