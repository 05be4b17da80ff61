"""The consumers of a node: messages from RabbitMQ are read, routed, and acknowledged when their outcome is certain.

Theory of operation. A node consumes two queues on one connection: the shared queue `to_device`, with several consumers on one
channel, and its own queue, with one. The shared one starts first: a back end that uses both routes has its numbers in both, and
the shared queue holds more of them.

The name of a node is random, and its queue could belong to somebody else: another node with that name, or a back end that
consumes it by mistake. A *claim* decides that. For a new name, the broker's answer to the declaration tells: a queue with
consumers is taken. For a name that the node had before a reconnect, the other consumer may be its own former connection, a
*ghost*, until the broker notices that it is dead. So the node then publishes a *probe* to its own queue. With a single active
consumer, the probe arrives when the ghost has gone. If it does not arrive within the time for a ghost, and there still is
another consumer, the node gives the name up and claims another. A node becomes known under a new name only after its queue
exists, because back ends conclude from a missing queue that the node is dead.

A consumer that ends alone (its queue was deleted, its channel closed) is restarted with back-off on the same connection;
`_replacing` ensures that only one replacement of the own queue's consumer runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from twisted.internet.defer import DeferredLock
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..events import BrokerWarning, Event
from ..interfaces import Clock, DelayedCall, MessageSink
from ..letter import BAD, DeliverySource, Letter
from ..runtime.end_of_turn import Turn
from . import headers as delivery
from . import message_properties
from . import queues as topology
from .acks import AckTracker
from .client import BaseHandler, BrokerClient, BrokerError, as_failure
from .queue_state import QueueState, inspect_queue
from .recent_writes import RecentWrites
from .retry_delay import RetryDelay

SCRATCH = 1
"""Channel for declarations."""

SHARED = 2
"""Channel that consumes the shared queue."""

OWN = 3
"""Channel that consumes the queue of the node."""

INSPECT = 4
"""Channel on which the queue of the node is inspected."""

NAMES_TRIED = 8
"""Names that a node tries in a row. The chance that a random name is taken is one in 4,000 million."""

PROBE = "probe"
"""Notice of a node to itself on its own queue, followed by a number: the queue still reaches the node."""


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


class Consumer(BaseHandler):
    """A channel that consumes a queue, with one or several AMQP consumers.

    RabbitMQ delivers the messages of a queue to a channel in the order of the queue, whichever consumer of the channel they are
    for. On separate channels, the consumers would overtake each other.
    """

    __slots__ = (
        "_acks",
        "_channel",
        "_client",
        "_clock",
        "_flushing",
        "_lost",
        "_router",
        "_tags",
        "_told",
        "_turn",
        "_written",
        "open",
        "own",
        "prefetch",
        "queue",
    )

    def __init__(
        self,
        client: BrokerClient,
        channel: int,
        queue: topology.Queue,
        router: MessageSink,
        turn: Turn,
        clock: Clock,
        lost: Callable[[Consumer, str], None],
        told: Callable[[str, str | None], bool] | None = None,
    ) -> None:
        """`lost(consumer, reason)` is called when the channel ends or the consumer is cancelled.

        `told(notice, user)` receives the notices of nodes, if the queue is the node's own. It returns whether it accepted the
        notice.
        """
        self._client = client
        self._channel = channel
        self.queue = queue
        self._router = router
        self._turn = turn
        self._clock = clock
        self._lost = lost
        self._told = told
        self.own = told is not None
        self._acks = AckTracker()
        self._flushing = False
        self._tags: list[str] = []
        self._written = RecentWrites(0)
        self.prefetch = 0
        self.open = True
        """True while messages arrive and can be acknowledged."""

    async def start(self, count: int, prefetch: int, wanted: Callable[[], bool]) -> None:
        """Open the channel and start `count` consumers, each with `prefetch`. Stop starting them once `wanted()` is false."""
        self.prefetch = count * prefetch
        self._written = RecentWrites(self.prefetch)
        channel = await self._client.open_channel(self._channel, self)
        await channel.basic_qos(prefetch_count=prefetch)
        for number in range(count):
            if not wanted():
                return
            self._tags.append(f"owsla-{number}")
            await channel.basic_consume(queue=self.queue.name, consumer_tag=self._tags[-1])

    async def stop(self) -> None:
        """Cancel the consumers. Delivered messages are still acknowledged when their outcome is certain."""
        channel = self._client.channels[self._channel]
        while self.open and self._tags:
            await channel.basic_cancel(consumer_tag=self._tags.pop())

    @property
    def handled(self) -> int:
        """Highest finished delivery tag."""
        return self._acks.high

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        try:
            connection_id, seq, more = delivery.read(header)
            if not more and (not redelivered or seq is not None):
                self._router.route(self, tag, connection_id, seq, header, body)
                return
            details = delivery.details(header)
        except WireError:
            # The headers are not a field table, so nothing in them is reliable.
            self._router.refuse(Letter(self, tag, header, body, None, None), "bad-connection-id")
            return
        if details.notice is not None and self._told is not None and self._told(details.notice, details.user_id):
            self.done(tag)
            return
        one = letter(self, tag, header, body, connection_id, seq, details, self._clock)
        if seq is None and (redelivered or details.redelivered):
            one.identity = message_properties.identity(header, body)
        self._router.route_letter(one)

    def written(self, header: bytes, body: bytes) -> None:
        self._written.add(header, body)

    def forgotten(self) -> None:
        """Tell the router that the messages of this consumer will be redelivered."""
        self._router.forget(self, self._written.identities())

    def done(self, tag: int) -> None:
        self._acks.done(tag)
        if not self._flushing:
            self._flushing = True
            self._turn.broker(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.open:
            top, alone = self._acks.take()
            if top:
                self._client.ack(self._channel, top, True)
            for tag in alone:
                self._client.ack(self._channel, tag, False)

    def cancelled(self, consumer_tag: str) -> None:
        self._end("the broker cancelled the consumer: the queue was deleted or moved")

    def closed(self, reason: Failure) -> None:
        self._end(str(reason.value))

    def _end(self, reason: str) -> None:
        if self.open:
            self.open = False
            self._lost(self, reason)


def letter(
    source: DeliverySource,
    tag: int,
    header: bytes,
    body: bytes,
    connection_id: bytes | None,
    seq: int | None,
    details: delivery.MessageDetails,
    clock: Clock,
) -> Letter:
    """Return a `Letter` with all values from the headers of a message."""
    expires_at = None if details.expires_at is None else details.expires_at / 1000 if details.expires_at != BAD else BAD
    return Letter(
        source,
        tag,
        header,
        body,
        connection_id,
        seq,
        close=details.close,
        expires_at=expires_at,
        deadline=None if details.expiration is None else clock.seconds() + details.expiration / 1000,
        reply_to=details.reply_to,
        correlation_id=details.correlation_id,
    )


class Consumers:
    """Role of the connection that consumes the shared queue and the queue of the node."""

    name = "consumers"

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        emit: Callable[[Event], None],
        router: MessageSink,
        *,
        shared: topology.Queue,
        membership: NodeMembership,
        users: Collection[str],
        count: int,
        prefetch: int,
        grace: float,
        ghost: float,
        patience: float,
        flowing: Callable[[bool], None],
    ) -> None:
        """`users` are the names that nodes log in with; `flowing` is told whether messages come.

        In seconds: `grace`, after which others may take a node for dead that consumes its queue no more; `ghost`, within which
        the broker notices that a connection is dead; `patience`, for an own queue that the broker cannot reach.
        """
        self._clock = clock
        self._turn = turn
        self._emit = emit
        self._router = router
        self._shared = shared
        self._membership = membership
        self._users = users
        self._counts = {SHARED: count, OWN: 1}
        self._prefetch = prefetch
        self._grace = grace
        self._ghost = ghost
        self._patience = patience
        self._flowing = flowing
        self._name: str | None = None  # of the own queue that was declared last
        self._away_since: float | None = None
        self._unreachable_since: float | None = None
        self._probes = 0
        self._probe_call: DelayedCall | None = None
        self._client: BrokerClient | None = None
        self._consumers: dict[int, Consumer] = {}
        self._restart_call: DelayedCall | None = None
        self._stopping = False
        self._declaring = DeferredLock()  # for the channels SCRATCH and INSPECT
        self._replacing = DeferredLock()
        self._wait = RetryDelay(first=0.2, most=10.0)

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        if self._stopping:
            return
        await self._declare(client, self._shared)
        again, gone = await self._claim(client)
        for number in (SHARED, OWN):
            await self._start(client, number)
        if not self._stopping:
            self._wait.reset()
            self._flowing(True)
            self._own_consumed(again, gone)

    async def _claim(self, client: BrokerClient, reason: str = "") -> tuple[bool, bool]:
        """Declare the queue of the node. Take another name if this one is taken or unreachable, or `reason` speaks against it.

        Return whether the node had this queue before, and whether it had been deleted.
        """
        for _ in range(NAMES_TRIED):
            queue = self._membership.other() if reason else self._membership.queue()
            again = queue.name == self._name
            try:
                found = await self._inspect(client, queue.name) if again else None
                await self._declare(client, queue)
                taken = None if again else await self._inspect(client, queue.name)
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
        return now - self._unreachable_since >= self._patience

    async def _inspect(self, client: BrokerClient, queue: str) -> QueueState | None:
        await self._declaring.acquire()
        try:
            return await inspect_queue(client, INSPECT, queue)
        finally:
            self._declaring.release()

    def _own_consumed(self, again: bool, gone: bool) -> None:
        """Report that the own queue is consumed. `again`: the node had it before; `gone`: it had been deleted."""
        away, self._away_since = self._away_since, None
        self._membership.here(missed=gone or (again and away is not None and self._clock.seconds() - away >= self._grace))
        if again:
            self._probe()

    async def _declare(self, client: BrokerClient, queue: topology.Queue) -> None:
        await self._declaring.acquire()
        try:
            await topology.declare(client, SCRATCH, queue, lambda text: self._emit(BrokerWarning(text)))
        finally:
            self._declaring.release()

    async def _start(self, client: BrokerClient, number: int) -> None:
        if self._stopping:
            return  # the stop came during a call to the broker
        own = number == OWN
        queue = self._membership.queue() if own else self._shared
        told = self._told if own else None
        consumer = Consumer(client, number, queue, self._router, self._turn, self._clock, self._lost, told)
        self._consumers[number] = consumer
        await consumer.start(self._counts[number], self._prefetch, lambda: not self._stopping)

    # -- the owner of the own queue ------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Publish a probe to the own queue. Check the consumers of the queue if it does not arrive."""
        self._stop_probing()
        self._probes += 1
        number = self._probes
        assert self._name is not None
        self._membership.probe(self._name, f"{PROBE} {number}", lambda: self._probe_sent(number))

    def _probe_sent(self, number: int) -> None:
        if number == self._probes and self._probe_call is None and self._client is not None:
            self._probe_call = self._clock.callLater(self._ghost, self._probe_missing)

    def _stop_probing(self) -> None:
        self._probes += 1  # a probe in flight has an old number
        if self._probe_call is not None and self._probe_call.active():
            self._probe_call.cancel()
        self._probe_call = None

    def _told(self, notice: str, user: str | None) -> bool:
        """Process a notice on the own queue. Return `False` if its user is not one of the nodes'."""
        if user not in self._users:
            return False
        if notice == f"{PROBE} {self._probes}":
            self._stop_probing()
        elif notice == delivery.LOST_NOTICE:
            self._membership.lost()
        return True

    def _probe_missing(self) -> None:
        self._probe_call = None
        client, consumer = self._client, self._consumers.get(OWN)
        if client is not None and consumer is not None and consumer.open:
            client.run(self._check_own(client, consumer))

    async def _check_own(self, client: BrokerClient, consumer: Consumer) -> None:
        found = await self._inspect(client, consumer.queue.name)
        if client is not self._client or not consumer.open:
            return
        if found is None or found.consumers < 2:
            self._probe()  # no other consumer: the probe was lost, to queue.purge or a basic.get
            return
        await self._replace_own(client, consumer, "another client consumes its queue")

    async def _replace_own(self, client: BrokerClient, consumer: Consumer, reason: str = "") -> None:
        """Replace the consumer of the own queue; with `reason`, by one of another name's queue."""
        await self._replacing.acquire()
        try:
            if self._consumers.get(OWN) is not consumer or self._stopping:
                return
            again, gone = await self._claim(client, reason)
            if consumer.open:
                consumer.open = False
                consumer.forgotten()
            await client.end_channel(OWN)
            if self._consumers.get(OWN) is consumer:
                await self._start(client, OWN)
                if not self._stopping:
                    self._own_consumed(again, gone)
        finally:
            self._replacing.release()

    def down(self) -> None:
        self._client = None
        self._flowing(False)
        self._stop_probing()
        self._membership.away()
        if self._away_since is None and self._name is not None:
            self._away_since = self._clock.seconds()
        if self._restart_call is not None and self._restart_call.active():
            self._restart_call.cancel()
        self._restart_call = None
        self._consumers.clear()

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._client is not None

    @property
    def handled(self) -> int:
        """Highest finished delivery tag of the own queue."""
        own = self._consumers.get(OWN)
        return own.handled if own is not None else 0

    async def stop_consuming(self, *, own: bool) -> None:
        """Stop consuming the shared queue, or the own one, permanently: also after a reconnect.

        Raise `Closed` if the connection is lost meanwhile.
        """
        self._stopping = True
        consumer = self._consumers.get(OWN if own else SHARED)
        if consumer is not None:
            await consumer.stop()

    async def delete_own_queue(self) -> bool:
        """Delete the own queue if it is empty. Return whether it was deleted.

        Raise `Closed` if the broker refuses that or the connection is lost.
        """
        client = self._client
        if client is None:
            return False
        own = self._membership.queue()
        await self._declaring.acquire()
        try:
            channel = await client.open_channel(SCRATCH, BaseHandler())
            declared = await channel.queue_declare(queue=own.name, passive=True)
            if not declared.message_count:
                # The broker cancels our consumer with the queue. Remove it first, so that it is not restarted.
                consumer = self._consumers.pop(OWN, None)
                if consumer is not None:
                    consumer.open = False
                await channel.queue_delete(queue=own.name)
            await client.end_channel(SCRATCH)
        finally:
            self._declaring.release()
        return not declared.message_count

    def blocked(self, reason: str) -> None:
        """Do nothing: RabbitMQ blocks only connections that publish."""

    def unblocked(self) -> None: ...

    def _lost(self, consumer: Consumer, reason: str) -> None:
        """Handle the end of a consumer. If its connection lives, declare its queue and restart it."""
        consumer.forgotten()
        client = self._client
        if self._stopping or client is None or client.closed or not any(one is consumer for one in self._consumers.values()):
            return
        if self._restart_call is None:
            self._flowing(False)
            self._emit(BrokerWarning(f"a consumer of {consumer.queue.name} ended: {reason}; restarting it"))
            self._restart_call = self._clock.callLater(self._wait.next(), self._restart)

    def _restart(self) -> None:
        if self._client is not None and not self._stopping:
            self._client.run(self._restart_lost())

    async def _restart_lost(self) -> None:
        """Restart all consumers that ended; those that end meanwhile after another delay."""
        client = self._client
        if client is None:
            return
        try:
            for number in self._ended():
                if self._stopping:
                    return
                if number == OWN:
                    await self._replace_own(client, self._consumers[OWN])
                else:
                    await self._declare(client, self._shared)
                    await client.end_channel(number)
                    await self._start(client, number)
        except (BrokerError, Closed) as error:
            if client is self._client and not client.closed:
                client.abort(as_failure(error).value or error)
            return
        if client is not self._client or self._stopping:
            return
        if self._ended():
            self._restart_call = self._clock.callLater(self._wait.next(), self._restart)
        else:
            self._restart_call = None
            self._wait.reset()
            self._flowing(True)

    def _ended(self) -> list[int]:
        return [number for number, consumer in self._consumers.items() if not consumer.open]
