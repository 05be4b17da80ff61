"""The whole of a node as one service: what starts when, and how it stops without losing anything.

Starting: connect to the broker, declare the queues, consume; then open the device port.

Stopping: the port closes. The devices are closed one after another, their turns spread over a while, so that a fleet does not
come back in one instant; until its turn each is served. At its turn a device is read no more (without --device-ack: it is told
that the connection ends, and read until it closes), what it sent is published and confirmed, it is told so, what waits for it
is written, and it is closed. Messages are consumed until the last device is gone.
When back ends have been told of every connection the node takes leave of the others, and the connections to the broker close.
All of it within a bound, past which what is left is given up, and counted.

The node's own queue is left to the other nodes. Back ends may still be sending to it, and RabbitMQ confirms a message that it
routes to a classic queue in the instant in which that is deleted. So the registrar deletes it, when nothing has come into it
for a while (`broker.cleanup`). A node that is alone does so itself, if the queue is silent in time; otherwise the next one to
start does. Each wait for the broker ends at the deadline, also for one that has logged us in and answers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..broker.client import BrokerError
from ..broker.connection import BrokerConnection, explain
from ..cluster.cleanup import SILENCE as CLEANUP_SILENCE
from ..device.port import Listener
from ..device.protocol import Endpoint
from ..events import Event, NodeStopped
from ..interfaces import Clock
from ..log import pluralize
from ..routing import Registry
from ..supervision import EXIT_STATUS, Supervisor, TreeNode

HAND_BACK: Final = CLEANUP_SILENCE - 1.0
"""Seconds that a stop waits for records once its own queue has no consumer, where another node cleans up after it."""

PACE = 0.05
LONGEST_SPREAD = 10.0
"""Seconds for each device, and for all of them at most, where --drain-spread is auto: a few that come back are no burst."""

STEP = 0.05
"""Seconds between two looks at whether something is settled."""

SILENCE: Final = 1.0
"""Seconds without a message after which a node that is alone deletes its own queue. Back ends answer within less, and were told
by then that the devices are gone."""

T = TypeVar("T")


class Sink(Protocol):
    """The producer, as stopping sees it."""

    @property
    def unconfirmed(self) -> int: ...

    def settled(self, source: Any) -> bool: ...


class Losses(Protocol):
    """The hub of the devices, as stopping sees it."""

    def take_discards(self) -> tuple[int, int]:
        """Return how many lines and unread bytes of devices were thrown away since the last call."""


class Parcels(Protocol):
    """The courier, or presence, as stopping sees them."""

    @property
    def unconfirmed(self) -> int: ...


class Goodbye(Protocol):
    """The roster, as stopping sees it."""

    def leave(self) -> None:
        """Tell the other nodes that this one stops in order."""

    @property
    def unconfirmed(self) -> int:
        """Whether the broker does not have the goodbye yet."""

    @property
    def listed(self) -> bool:
        """Whether this node is the registrar, and has itself on the roll."""

    @property
    def alone(self) -> bool:
        """Whether this node is the registrar, and has nobody else on the roll."""


class Consuming(Protocol):
    """The consumers, as stopping sees them."""

    @property
    def connected(self) -> bool: ...

    @property
    def handled(self) -> int:
        """A number that changes when messages of the node's own queue are dealt with."""

    async def stop_consuming(self, *, own: bool) -> None:
        """Take no more messages of the shared queue, or of the node's own. Those that came can still be acknowledged."""

    async def delete_own_queue(self) -> bool:
        """Delete the node's own queue if nothing is in it. Whether it is gone."""


class Gateway(MultiService):
    """A node: its supervision tree, and how that stops."""

    def __init__(
        self,
        clock: Clock,
        *,
        listener: Listener,
        registry: Registry[Endpoint],
        producer: Sink,
        losses: Losses,
        courier: Parcels,
        presence: Parcels | None,
        consumers: Consuming,
        roster: Goodbye,
        connections: Sequence[BrokerConnection],
        root: Supervisor,
        emit: Callable[[Event], None],
        fail: Callable[[str, int], None],
        drain_timeout: float,
        drain_spread: float | None,
    ) -> None:
        """`connections` are those to the broker. Times are in seconds; a `drain_spread` of `None` is `PACE` for each device.
        `fail` ends the process with a line and a status.
        """
        super().__init__()
        self._log = Logger(namespace="owsla")
        self._clock = clock
        self._listener = listener
        self._registry = registry
        self._producer = producer
        self._losses = losses
        self._courier = courier
        self._presence = presence
        self._consumers = consumers
        self._roster = roster
        self._connections = connections
        self._root = root
        self._emit = emit
        self._fail = fail
        self._drain_timeout = drain_timeout
        self._drain_spread = drain_spread
        self._deadline = 0.0
        self._hurried = False
        self.draining = False
        """Whether it is stopping."""
        root.setServiceParent(self)

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self.draining = True
        self._deadline = 0.0 if self._hurried else self._clock.seconds() + self._drain_timeout
        return ensureDeferred(self._stop())

    def hurry(self) -> None:
        """Wait for nothing more."""
        self._hurried = True
        self._deadline = 0.0
        for connection in self._connections:
            connection.hurry()

    def shorten(self, drain_timeout: float) -> None:
        """Stop within this time, in seconds, if a stop would take longer."""
        self._drain_timeout = min(self._drain_timeout, drain_timeout)

    def give_up(self, reason: str) -> None:
        """The root of the tree gave up: end the process, so that whatever runs it begins afresh."""
        self.hurry()
        self._fail(reason, EXIT_STATUS)

    def tree(self) -> TreeNode:
        """The supervision tree as it is now, or as planned."""
        return self._root.tree()

    async def _stop(self) -> None:
        devices = len(self._registry)
        self._log.info("Stopping: {devices} connected", devices=pluralize(devices, "device is", "devices are"))
        self._listener.stop_accepting()
        await self._drain(list(self._registry), "the gateway stops", lambda: self._deadline)
        cut = len(self._registry)
        for endpoint in self._registry:
            endpoint.close("the gateway stops")
        await self._answer(self._consumers.stop_consuming(own=False))
        await self._until(lambda: not self._producer.unconfirmed and not self._untold())
        if not self._untold() and not len(self._registry):
            # Back ends were told of every connection. Otherwise it is the others' part to say that this node is gone.
            self._roster.leave()
            if self._roster.alone and await self._silent() and await self._answer(self._consumers.delete_own_queue()):
                await self._until(lambda: not self._roster.listed)
        await self._answer(self._consumers.stop_consuming(own=True))
        # From here on the registrar may delete the node's own queue. A deletion does not look at what is held unacknowledged.
        # What is not on record in time goes back into the queue while that is there.
        await self._until(lambda: not self._on_their_way(), math.inf if self._roster.alone else HAND_BACK)
        if not self._on_their_way():
            await self._until(lambda: not self._roster.unconfirmed)
        for endpoint in list(self._registry):
            if endpoint.transport is not None:
                endpoint.transport.abortConnection()  # past the deadline nobody's goodbye is waited for
        await self._pause(0)  # what was read of them is published, and counted, when they are closed
        discarded, unread = self._losses.take_discards()
        lines, messages = self._producer.unconfirmed + discarded, self._on_their_way()
        left = max(0.0, self._deadline - self._clock.seconds())
        for connection in self._connections:
            connection.close_within(left / len(self._connections))
        self._emit(NodeStopped(devices))  # before the handlers of events stop
        await self._root.stopService()
        if lines or messages or cut or unread:
            self._log.warn(
                "Stopped at the deadline: gave up {lines} that the broker has not confirmed, {messages} "
                "on their way to other queues (they come again), left {unread} of devices unread, "
                "and closed {cut} before their turn",
                lines=pluralize(lines, "line"),
                messages=pluralize(messages, "message"),
                unread=pluralize(unread, "byte"),
                cut=pluralize(cut, "device"),
            )
        else:
            self._log.info("Stopped: {devices} closed, everything confirmed", devices=pluralize(devices, "device"))

    def _on_their_way(self) -> int:
        """Messages to other queues that are not confirmed."""
        return self._courier.unconfirmed + self._untold()

    def _untold(self) -> int:
        """Announcements to back ends that are not confirmed."""
        return self._presence.unconfirmed if self._presence is not None else 0

    def let_go(self, reason: str) -> Deferred[None]:
        """Close all devices that are connected now, each in its turn, as if the gateway stopped. Others may come meanwhile."""
        letting_go = ensureDeferred(self._let_go(list(self._registry), reason))
        letting_go.addErrback(lambda failure: self._log.failure("Closing devices in order failed", failure))
        return letting_go

    async def _let_go(self, endpoints: list[Endpoint], reason: str) -> None:
        deadline = self._clock.seconds() + self._drain_timeout
        await self._drain(endpoints, reason, lambda: self._deadline if self.draining else deadline)
        for endpoint in endpoints:
            if endpoint.transport is not None:
                endpoint.close(reason)

    async def _drain(self, waiting: list[Endpoint], reason: str, deadline: Callable[[], float]) -> None:
        """Close devices, each when it is its turn and everything of it is settled."""
        devices = len(waiting)
        began = self._clock.seconds()
        wanted = min(PACE * (devices - 1), LONGEST_SPREAD) if self._drain_spread is None else self._drain_spread
        spread = min(wanted, self._drain_timeout / 2)
        leaving: list[Endpoint] = []
        while (waiting or leaving) and self._clock.seconds() < deadline():
            elapsed = self._clock.seconds() - began + STEP
            due = devices if elapsed >= spread else int(devices * elapsed / spread)
            share = due - (devices - len(waiting))
            turn, waiting = waiting[:share], waiting[share:]
            for endpoint in turn:
                endpoint.drain()
            leaving += turn
            still = []
            for endpoint in leaving:
                if endpoint.transport is None:
                    continue
                if not endpoint.backlog and (not endpoint.acknowledges or self._producer.settled(endpoint)):
                    endpoint.close(reason)
                still.append(endpoint)
            leaving = still
            await self._pause(STEP)

    async def _silent(self) -> bool:
        """Wait until nothing has come into the own queue for a while, and what came is settled. Whether that was in time."""
        handled, since = self._consumers.handled, self._clock.seconds()
        while self._consumers.connected and self._clock.seconds() < self._deadline:
            if self._clock.seconds() - since >= SILENCE:
                return True
            await self._pause(STEP)
            if self._consumers.handled != handled or self._courier.unconfirmed:
                handled, since = self._consumers.handled, self._clock.seconds()
        return False

    async def _answer(self, asking: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the broker's answer, until the deadline at most; `None` where there is none, or the broker refuses."""
        answers: list[T | Failure] = []
        ensureDeferred(asking).addBoth(answers.append)
        await self._until(lambda: answers)
        answer = answers[0] if answers else None
        if not isinstance(answer, Failure):
            return answer
        if answer.check(BrokerError, Closed):
            self._log.info("The broker did not do what a stop asks for: {error}", error=explain(answer))
        else:
            self._log.failure("Stopping went wrong, and goes on", answer)
        return None

    async def _until(self, settled: Any, longest: float = math.inf) -> None:
        """Wait until something is settled, for `longest` seconds and to the deadline of the stop at most."""
        end = self._clock.seconds() + longest
        while not settled() and self._clock.seconds() < min(self._deadline, end):
            await self._pause(STEP)

    async def _pause(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        self._clock.callLater(seconds, waiting.callback, None)
        await waiting
