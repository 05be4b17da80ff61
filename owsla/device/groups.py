"""Messages for many devices (header `owsla_to`).

Theory of operation
===================

A message for many devices arrives in one of two ways:

- *From the shared queue*: one node takes it, and publishes it on the exchange of the nodes (`Broadcast.spread`), with an id of
  the group, so that the own queue of each node gets a copy. It is acknowledged when the broker has confirmed that.
- *From the own queue*, where a node or a back end has sent it: this node spreads it over those of its own connections that the
  selector selects (`fanout`). It is acknowledged at the end. So a node that dies in the middle leaves it in its queue, and its
  fate is on record.

A message from the own queue is a `_Task`. Its states:

    waiting ──begun──▶ running ──all served, or expired──▶ ended ──forgotten──▶ (`REMEMBERED` others have ended since)
       └──consumer ended──▶ (dropped: the broker delivers it again)

When a consumer ends, the broker delivers its messages again. A task that runs then goes on without a delivery, and the repeat
becomes its delivery. A task that has ended without a delivery is settled with the repeat.

Repeats. A node publishes a message again if it does not know whether the broker has it, with the same id of the group. If that
node loses its consumer, another one may take the same message from the shared queue and give it another id. Then the copies are
marked as redelivered, and have the same identity (`message_properties.identity`). The identity is compared until the message
has expired: a back end may send the same bytes every hour.

Limits. `RUNNING` tasks are spread at once, in turn; others wait. All of them are at most a sixteenth of the prefetch of the
own queue, and those that wait for the exchange are at most a sixteenth of that of the shared queue: the rest is left to
messages for one device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol
from uuid import uuid4

from ..events import Event, FannedOut
from ..interfaces import Clock, Courier
from ..letter import DeliverySource, Letter, Reached
from ..log import escaped
from ..routing import Handover, Registry
from .connections import Connection
from .fanout import Fanout, Group
from .selectors import Selector, read_selector

SHARE: Final = 16
"""Divisor of the prefetch of a consumer: as many of its messages may be for many devices."""

RUNNING: Final = 8
"""Limit of the messages that are spread at once. Each has a list of the ids of its connections."""

LONGEST_SELECTOR: Final = 100
"""Characters of a selector in an event. A back end may send anything."""

REMEMBERED: Final = 1000
"""Limit of the messages that have ended and are recognized if they arrive again, at some 600 bytes each."""


class Broadcast(Protocol):
    """Publisher of messages on the exchange of the nodes."""

    @property
    def state(self) -> str:
        """`"up"`, `"away"`, `"blocked"`, or `"refused"` while the broker does not let this node use the exchange."""

    @property
    def waiting(self) -> int:
        """Number of messages for many that the broker has not confirmed."""

    def spread(self, letter: Letter, group_id: str) -> None:
        """Publish a message for all nodes, and acknowledge it when the broker has confirmed that."""


class _Ended:
    """Source of a message that has ended."""

    __slots__ = ()
    open = own = False
    prefetch = 0

    def done(self, tag: int) -> None: ...

    def written(self, header: bytes, body: bytes) -> None: ...


class _Task:
    """A message for many devices from the own queue."""

    __slots__ = ("began", "delivery", "group_id", "identity", "late", "letter", "reached", "selector", "settled")

    def __init__(self, letter: Letter, selector: Selector, identity: bytes) -> None:
        self.letter = letter
        self.selector = selector
        self.began = 0.0
        """Time at which it began to be spread."""
        self.group_id = letter.group_id
        self.identity = identity
        self.delivery: Letter | None = letter
        """Delivery to be acknowledged at the end; `None` while its consumer has ended."""
        self.reached: Reached | None = None
        """Connections that it was handed over to, and others, once it has ended."""
        self.late = False
        """True if it expired before all connections were served."""
        self.settled = False
        """True once a delivery was acknowledged, or recorded."""

    def end(self, reached: Reached, late: bool) -> Letter | None:
        """Note the end, and drop the message. Return its delivery, if there is one."""
        letter, delivery = self.letter, self.delivery
        self.reached, self.late, self.delivery = reached, late, None
        # What is needed to tell whether the message has expired. The source would keep a former consumer in memory.
        self.letter = Letter(_Ended(), 0, b"", b"", None, None, expires_at=letter.expires_at, deadline=letter.deadline)
        return delivery


class Groups:
    """Route of the messages for many devices."""

    def __init__(
        self,
        clock: Clock,
        registry: Registry[Connection],
        courier: Courier,
        broadcast: Broadcast,
        handover: Handover,
        identity: Callable[[bytes, bytes], bytes],
        emit: Callable[[Event], None],
        rate: float,
    ) -> None:
        """`identity(header, body)` is the same for all copies of a message. `rate` is in devices a second (`--fanout-rate`)."""
        self._clock = clock
        self._registry = registry
        self._courier = courier
        self._broadcast = broadcast
        self._handover = handover
        self._identity = identity
        self._emit = emit
        self._fanout = Fanout(clock, rate, handover.expired, self._ended)
        self._running: dict[Group, _Task] = {}
        self._waiting: deque[_Task] = deque()
        self._by_id: dict[str, _Task] = {}
        self._by_identity: dict[bytes, _Task] = {}
        self._remembered: deque[_Task] = deque()  # tasks that have ended, in that order
        self.messages = 0
        """Number of messages for many that this node has spread over its own connections."""
        self._devices = 0  # of messages that have ended
        self._missed = 0
        self.repeats = 0
        """Number of messages for many that arrived more than once."""

    def configure(self, rate: float) -> None:
        """Change the rate. It applies at once."""
        self._fanout.configure(rate)

    @property
    def spreading(self) -> int:
        """Number of messages that are being spread, or wait for their turn."""
        return len(self._running) + len(self._waiting)

    @property
    def devices(self) -> int:
        """Number of connections that messages for many were handed over to."""
        return self._devices + sum(group.devices for group in self._running)

    @property
    def missed(self) -> int:
        """Number of connections that were selected, and that a message for many was not handed over to."""
        return self._missed + sum(group.missed for group in self._running)

    # -- LetterRoute -------------------------------------------------------------------------------------------------------

    def route(self, letter: Letter) -> None:
        """Spread a message over the nodes, or over the connections of this one. Record it if that cannot be done."""
        if letter.source.own:
            known = self._find(letter)
            if known is not None:
                self.repeats += 1
                self._join(known, letter)
                return
        selector = read_selector(letter.selector or "")
        fault = "bad-selector" if selector is None else self._fault(letter)
        if selector is None or fault is not None:
            self._courier.record(letter, fault or "bad-selector")
        elif not letter.source.own and self._broadcast.state == "refused":
            self._courier.record(letter, "refused")
        elif self._held(letter.source) >= max(1, letter.source.prefetch // SHARE):
            self._courier.record(letter, "busy")
        elif letter.source.own:
            self._take(letter, selector)
        else:
            self._broadcast.spread(letter, str(uuid4()))

    def forget(self, source: DeliverySource) -> None:
        """Drop the messages that wait of a consumer that has ended. Those that are being spread wait for their repeats."""
        for task in [task for task in self._waiting if task.letter.source is source]:
            self._waiting.remove(task)
            self._forget(task)
        for task in self._running.values():
            if task.delivery is not None and task.delivery.source is source:
                task.delivery = None

    # -- arrivals ----------------------------------------------------------------------------------------------------------

    def _fault(self, letter: Letter) -> str | None:
        if letter.seq is not None:
            return "bad-seq"  # a number belongs to one connection
        if letter.expires_at is None and letter.deadline is None:
            return "bad-expires-at"
        self._handover.prepare(letter, None)
        return letter.fault

    def _held(self, source: DeliverySource) -> int:
        """Return the number of messages for many of a consumer that are unacknowledged."""
        if not source.own:
            return self._broadcast.waiting
        tasks = [*self._running.values(), *self._waiting]
        return sum(task.delivery is not None and task.delivery.source is source for task in tasks)

    def _find(self, letter: Letter) -> _Task | None:
        """Return the task of which a message is a repeat."""
        known = self._by_id.get(letter.group_id) if letter.group_id is not None else None
        if known is not None or letter.identity is None:
            return known
        known = self._by_identity.get(letter.identity)
        if known is None or (known.reached is not None and self._handover.expired(known.letter)):
            return None
        return known

    def _join(self, task: _Task, letter: Letter) -> None:
        """Make a repeat the delivery of its task, or settle it."""
        if task.reached is None:
            if task.delivery is None:
                task.delivery = letter
            else:
                letter.source.done(letter.tag)
        elif task.late and task.settled and letter.identity is None:
            letter.source.done(letter.tag)  # a copy: the first one is on record
        else:
            # The record may have been dropped with the consumer of the first delivery, so it is made again.
            self._settle(task, task.reached, letter)

    def _take(self, letter: Letter, selector: Selector) -> None:
        task = _Task(letter, selector, letter.identity or self._identity(letter.header, letter.body))
        if task.group_id is not None:
            self._by_id[task.group_id] = task
        self._by_identity[task.identity] = task
        self._waiting.append(task)
        self._begin()

    # -- tasks -------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin to spread the messages that wait, while there is room."""
        while self._waiting and len(self._running) < RUNNING:
            task = self._waiting.popleft()
            group = Group(task.letter, task.selector, self._registry)
            self._running[group] = task
            task.began = self._clock.seconds()
            self.messages += 1
            self._fanout.begin(group)

    def _ended(self, group: Group, late: bool) -> None:
        """Acknowledge a message that was spread, and send its report; record it if it was too late."""
        task = self._running.pop(group)
        reached = Reached(group.devices, group.missed)
        self._devices += reached.devices
        self._missed += reached.missed
        letter = task.letter
        selector, seconds = escaped(letter.selector or "", LONGEST_SELECTOR), self._clock.seconds() - task.began
        self._emit(FannedOut(selector, reached.devices, reached.missed, seconds, late, letter.close))
        delivery = task.end(reached, late)
        if delivery is not None:
            self._settle(task, reached, delivery)
        self._remembered.append(task)
        if len(self._remembered) > REMEMBERED:
            self._forget(self._remembered.popleft())
        self._begin()

    def _settle(self, task: _Task, reached: Reached, delivery: Letter) -> None:
        task.settled = True
        delivery.reached = reached
        if task.late:
            self._courier.record(delivery, "expired")
        else:
            delivery.source.done(delivery.tag)
            self._courier.report(delivery, "fanned-out")

    def _forget(self, task: _Task) -> None:
        if task.group_id is not None:
            del self._by_id[task.group_id]
        if self._by_identity.get(task.identity) is task:  # not if an equal message came later
            del self._by_identity[task.identity]
