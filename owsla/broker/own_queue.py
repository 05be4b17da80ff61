"""The queue of the node: the claim of a name whose queue nobody else consumes, and the probes that verify it.

Theory of operation. The name of a node is random, and its queue could belong to somebody else: another node with that name, or
a back end that consumes it by mistake. A *claim* decides that. For a new name, the broker's answer to the declaration tells: a
queue with consumers is taken. For a name that the node had before a reconnect, the other consumer may be its own former
connection, a *ghost*, until the broker notices that it is dead. So the node then publishes a *probe* to its own queue. With a
single active consumer, the probe arrives when the ghost has gone. If it does not arrive within the time for a ghost, and there
still is another consumer, the node gives the name up and claims another. A node becomes known under a new name only after its
queue exists, because back ends conclude from a missing queue that the node is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import DeferredLock

from ..events import BrokerWarning, Event
from ..interfaces import Clock, DelayedCall
from . import headers as delivery
from . import queues as topology
from .client import BaseHandler, BrokerClient, BrokerError
from .queue_state import QueueState, inspect_queue

SCRATCH = 1
"""Channel for declarations."""

INSPECT = 4
"""Channel on which the queue of the node is inspected."""

NAMES_TRIED = 8
"""Names that a node tries in a row. The chance that a random name is taken is one in 4,000 million."""

PROBE = "probe"
"""Notice of a node to itself on its own queue, followed by a number: the queue still reaches the node."""


@dataclass(frozen=True, slots=True)
class OwnQueueSettings:
    """Settings of the queue of the node; times in seconds."""

    users: Collection[str]
    """Names that nodes log in with."""
    grace: float
    """Time after which others may take a node for dead that no longer consumes its queue."""
    ghost: float
    """Time within which the broker notices that a connection is dead."""
    patience: float
    """Time to wait for a queue that the broker cannot reach."""


@dataclass(frozen=True, slots=True)
class NodeNotice:
    """A notice on the queue of a node: a message with the header `owsla_notice`, and without a connection id."""

    text: str
    """Value of that header."""
    user: str | None
    """User that published the notice, if the message says so. The broker validates that."""
    device_id: str | None
    """Header `device_id`; empty if it cannot be one."""
    reply_to: bytes | None
    correlation_id: bytes | None
    """Property `correlation_id` as encoded in the content header."""
    body: bytes


class NoticeReceiver(Protocol):
    """Receiver of the notices about devices."""

    def notice(self, notice: NodeNotice, *, trusted: bool) -> bool:
        """Process a notice. `trusted`: a node has published it. Return `False` if it is not one of its kinds."""


class NodeMembership(Protocol):
    """The interface of the node's place in the cluster, for its consumers."""

    def queue(self) -> topology.Queue:
        """Return the queue of the node under its present name."""

    def other(self) -> topology.Queue:
        """Return the queue of another name that the node could take."""

    def rename(self, reason: str) -> None:
        """Take the other name: the queue of the present one is used by others or unreachable."""

    def here(self, *, missed: bool) -> None:
        """Note that the own queue is consumed. `missed`: other nodes may have declared this node dead meanwhile."""

    def away(self) -> None:
        """Note that the connection that consumed the own queue was lost."""

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Publish a probe to the own queue; call `arrived` when the broker has confirmed it."""

    def lost(self) -> None:
        """Note that another node has announced this one as lost."""

    def listed(self, nodes: bytes) -> None:
        """Learn the nodes of the register from the registrar's list."""


class Declarations:
    """The declarations and inspections of queues on one connection, one at a time because they share channels."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._lock = DeferredLock()  # for the channels SCRATCH and INSPECT

    async def declare(self, client: BrokerClient, queue: topology.Queue) -> None:
        """Declare a queue."""
        await self._lock.acquire()
        try:
            await topology.declare(client, SCRATCH, queue, lambda text: self._emit(BrokerWarning(text)))
        finally:
            self._lock.release()

    async def inspect(self, client: BrokerClient, queue: str) -> QueueState | None:
        """Return the state of a queue; `None` if it does not exist."""
        await self._lock.acquire()
        try:
            return await inspect_queue(client, INSPECT, queue)
        finally:
            self._lock.release()

    async def delete_empty(
        self, client: BrokerClient, queue: str, settled: Callable[[], bool], deleting: Callable[[], None]
    ) -> bool:
        """Delete a queue if it is empty and all messages from it are `settled()`; call `deleting` just before. Return whether
        it was deleted.
        """
        await self._lock.acquire()
        try:
            channel = await client.open_channel(SCRATCH, BaseHandler())
            declared = await channel.queue_declare(queue=queue, passive=True)
            empty = not declared.message_count and settled()
            if empty:
                deleting()
                await channel.queue_delete(queue=queue)
            await client.end_channel(SCRATCH)
        finally:
            self._lock.release()
        return empty


class OwnQueue:
    """The claim of the node's own queue, and its verification with probes."""

    def __init__(
        self,
        clock: Clock,
        membership: NodeMembership,
        declarations: Declarations,
        settings: OwnQueueSettings,
        probe_missing: Callable[[], None],
        receiver: NoticeReceiver | None = None,
    ) -> None:
        """`probe_missing` is called when a probe has not arrived within the time for a ghost. `receiver` gets the notices about
        devices.
        """
        self._clock = clock
        self._membership = membership
        self._declarations = declarations
        self._settings = settings
        self._report_missing = probe_missing
        self._receiver = receiver
        self._name: str | None = None  # of the queue that was declared last
        self._away_since: float | None = None
        self._unreachable_since: float | None = None
        self._probes = 0
        self._probe_call: DelayedCall | None = None

    @property
    def queue(self) -> topology.Queue:
        """Queue of the node under its present name."""
        return self._membership.queue()

    async def claim(self, client: BrokerClient, reason: str = "") -> tuple[bool, bool]:
        """Declare the queue of the node. Take another name if this one is taken or unreachable, or `reason` speaks against it.

        Return whether the node had this queue before, and whether it had been deleted.
        """
        for _ in range(NAMES_TRIED):
            queue = self._membership.other() if reason else self._membership.queue()
            again = queue.name == self._name
            try:
                found = await self._declarations.inspect(client, queue.name) if again else None
                await self._declarations.declare(client, queue)
                taken = None if again else await self._declarations.inspect(client, queue.name)
            except BrokerError as error:
                if reason or error.code != topology.NOT_FOUND or not self._is_unreachable():
                    raise
                reason = f"the broker cannot reach its queue: {error}"
                continue
            if taken is not None and taken.consumers:
                reason = reason or "another node has this name"
                continue
            self._unreachable_since = None
            self._name = queue.name
            if reason:
                self._stop_probing()
                self._membership.rename(reason)
            return again, again and found is None
        raise BrokerError(0, f"no free name for this node in {NAMES_TRIED} attempts", scope="connection")

    def _is_unreachable(self) -> bool:
        """Return whether the queue has been unreachable for too long: a classic queue whose broker node is down cannot be
        declared."""
        now = self._clock.seconds()
        if self._unreachable_since is None:
            self._unreachable_since = now
        return now - self._unreachable_since >= self._settings.patience

    def consumed(self, again: bool, gone: bool) -> None:
        """Report that the own queue is consumed. `again`: the node had it before; `gone`: it had been deleted."""
        away, self._away_since = self._away_since, None
        too_long = away is not None and self._clock.seconds() - away >= self._settings.grace
        self._membership.here(missed=gone or (again and too_long))
        if again:
            self.probe()

    def away(self) -> None:
        """Note that the connection that consumed the queue was lost."""
        self._stop_probing()
        self._membership.away()
        if self._away_since is None and self._name is not None:
            self._away_since = self._clock.seconds()

    def probe(self) -> None:
        """Publish a probe to the own queue. `probe_missing` is called if it does not arrive."""
        self._stop_probing()
        self._probes += 1
        number = self._probes
        assert self._name is not None
        self._membership.probe(self._name, f"{PROBE} {number}", lambda: self._probe_sent(number))

    def _probe_sent(self, number: int) -> None:
        if number == self._probes and self._probe_call is None:
            self._probe_call = self._clock.callLater(self._settings.ghost, self._probe_missing)

    def _stop_probing(self) -> None:
        self._probes += 1  # a probe in flight has an old number
        if self._probe_call is not None and self._probe_call.active():
            self._probe_call.cancel()
        self._probe_call = None

    def told(self, notice: NodeNotice) -> bool:
        """Process a notice on the own queue. Return `False` if it is of no known kind, or its user is not one of the nodes'."""
        trusted = notice.user in self._settings.users
        if self._receiver is not None and self._receiver.notice(notice, trusted=trusted):
            return True
        if trusted:
            if notice.text == f"{PROBE} {self._probes}":
                self._stop_probing()
            elif notice.text == delivery.LOST_NOTICE:
                self._membership.lost()
            elif notice.text == delivery.NODES:
                self._membership.listed(notice.body)
        return trusted

    def _probe_missing(self) -> None:
        self._probe_call = None
        self._report_missing()
