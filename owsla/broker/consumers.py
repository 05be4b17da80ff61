"""The way of a message from RabbitMQ to a device, up to the router: consumed, read, and acknowledged when its fate is known."""

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
from .client import BaseHandler, BrokerError, BrokerProtocol, as_failure
from .queue_state import QueueState, inspect_queue
from .recent_writes import RecentWrites
from .retry_delay import RetryDelay

SCRATCH = 1
"""The channel for declarations."""

SHARED = 2
"""The channel that consumes the shared queue."""

OWN = 3
"""The channel that consumes the node's own queue."""

LOOK = 4
"""The channel on which the node's own queue is looked at."""

NAMES_TRIED = 8
"""How often a node takes another name in a row. One that is taken has a chance of one in four thousand million by itself."""

PROBE = "probe"
"""What a node says to itself on its own queue, with a number behind it, to learn whether the queue still reaches it."""


class Place(Protocol):
    """This node among the others, as its consumers see it."""

    def queue(self) -> topology.Queue:
        """The node's own queue, by the name that it has now."""

    def other(self) -> topology.Queue:
        """The queue of another name, that this node might take."""

    def rename(self, reason: str) -> None:
        """The queue is somebody else's, or cannot be had; but the other one can: that is this node's name now."""

    def here(self, *, missed: bool) -> None:
        """The own queue is consumed. `missed`: others may have taken this node for dead meanwhile."""

    def away(self) -> None:
        """The connection that consumed the own queue is gone."""

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Send this to the own queue; `arrived` is called when it is in there."""

    def lost(self) -> None:
        """Another node has told everybody that this one was lost."""


class Consumer(BaseHandler):
    """One channel that consumes one queue, for as long as the channel lasts.

    It may have several consumers of the queue on it. RabbitMQ gives what is in a queue to a channel in the order of the queue,
    whichever of its consumers it is for; on a channel of its own each, they would overtake each other.
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
        client: BrokerProtocol,
        channel: int,
        queue: topology.Queue,
        router: MessageSink,
        turn: Turn,
        clock: Clock,
        lost: Callable[[Consumer, str], None],
        told: Callable[[str, str | None], bool] | None = None,
    ) -> None:
        """`lost` is told when the channel ends, or the consumer is cancelled.

        `told`: this is the node's own queue, and here go messages that are for the node itself, with the user who wrote them.
        Whether they were believed.
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
        """Whether messages still come and can be acknowledged."""

    async def start(self, count: int, prefetch: int, wanted: Callable[[], bool]) -> None:
        """Open the channel, and consume with so many consumers; `prefetch` messages of each may be unacknowledged. Begin no
        consumer once `wanted` is false: the node stops.
        """
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
        """Take no more messages. Those that came are still acknowledged when their fate is known."""
        channel = self._client.channels[self._channel]
        while self.open and self._tags:
            await channel.basic_cancel(consumer_tag=self._tags.pop())

    @property
    def handled(self) -> int:
        """The highest delivery tag that was dealt with."""
        return self._acks.high

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        try:
            connection_id, seq, more = delivery.read(header)
            if not more and (not redelivered or seq is not None):
                self._router.route(self, tag, connection_id, seq, header, body)
                return
            address = delivery.details(header)
        except WireError:
            # The headers are no field table: nothing in them can be relied on.
            self._router.refuse(Letter(self, tag, header, body, None, None), "bad-connection-id")
            return
        if address.notice is not None and self._told is not None and self._told(address.notice, address.user_id):
            self.done(tag)
            return
        one = letter(self, tag, header, body, connection_id, seq, address, self._clock)
        if seq is None and (redelivered or address.redelivered):
            one.identity = message_properties.identity(header, body)
        self._router.route_letter(one)

    def written(self, header: bytes, body: bytes) -> None:
        self._written.add(header, body)

    def forgotten(self) -> None:
        """Tell those who hold messages that this consumer is gone."""
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
    address: delivery.Address,
    clock: Clock,
) -> Letter:
    """A message with all that its headers say."""
    expires_at = None if address.expires_at is None else address.expires_at / 1000 if address.expires_at != BAD else BAD
    return Letter(
        source,
        tag,
        header,
        body,
        connection_id,
        seq,
        close=address.close,
        expires_at=expires_at,
        deadline=None if address.expiration is None else clock.seconds() + address.expiration / 1000,
        reply_to=address.reply_to,
        correlation_id=address.correlation_id,
    )


class Consumers:
    """The consumers of a node: so many of `to_device`, and one of its own queue, on one connection.

    The own queue comes last: a back end that uses both routes has its numbers in both, and the shared one holds more.

    A node's name is random, and its queue could be somebody else's: another node of that name, or a back end that consumes what
    it should not. For a name that is new to us, the broker's answer to the declaration tells. After a reconnect there may be
    another consumer that is only our own ghost, until the broker notices that its connection is dead. So the node sends itself
    a message then: it comes when the ghost goes. If it does not, and there still is another consumer, the name is given up.
    """

    name = "consumers"

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        emit: Callable[[Event], None],
        router: MessageSink,
        *,
        shared: topology.Queue,
        place: Place,
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
        self._place = place
        self._users = users
        self._counts = {SHARED: count, OWN: 1}
        self._prefetch = prefetch
        self._grace = grace
        self._ghost = ghost
        self._patience = patience
        self._flowing = flowing
        self._name: str | None = None  # the own queue's that was declared last
        self._away_since: float | None = None
        self._unreachable_since: float | None = None
        self._probes = 0
        self._probe_call: DelayedCall | None = None
        self._client: BrokerProtocol | None = None
        self._consumers: dict[int, Consumer] = {}
        self._restart_call: DelayedCall | None = None
        self._stopping = False
        self._declaring = DeferredLock()  # one at a time on the channel for declarations
        self._replacing = DeferredLock()
        self._wait = RetryDelay(first=0.2, most=10.0)

    async def up(self, client: BrokerProtocol) -> None:
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
            self._settled(again, gone)

    async def _claim(self, client: BrokerProtocol, reason: str = "") -> tuple[bool, bool]:
        """Declare the node's own queue; if this one cannot be had, or there is a reason against it, take another name. That is
        not this node's before its queue is there: a back end that answers to a queue takes its absence for this node's.

        Whether the queue was this node's before, and whether it was not there any more.
        """
        for _ in range(NAMES_TRIED):
            queue = self._place.other() if reason else self._place.queue()
            again = queue.name == self._name
            try:
                found = await self._look(client, queue.name) if again else None
                await self._declare(client, queue)
                taken = None if again else await self._look(client, queue.name)
            except BrokerError as error:
                if reason or error.code != topology.NOT_FOUND or not self._out_of_reach():
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
                self._place.rename(reason)
            return again, again and found is None
        raise BrokerError(0, f"no free name for this node in {NAMES_TRIED} attempts", scope="connection")

    def _out_of_reach(self) -> bool:
        """A classic queue cannot be declared while its broker node is down. Whether that has been so for too long."""
        now = self._clock.seconds()
        if self._unreachable_since is None:
            self._unreachable_since = now
        return now - self._unreachable_since >= self._patience

    async def _look(self, client: BrokerProtocol, queue: str) -> QueueState | None:
        await self._declaring.acquire()
        try:
            return await inspect_queue(client, LOOK, queue)
        finally:
            self._declaring.release()

    def _settled(self, again: bool, gone: bool) -> None:
        """The own queue is consumed. It was this node's before, or had gone meanwhile."""
        away, self._away_since = self._away_since, None
        self._place.here(missed=gone or (again and away is not None and self._clock.seconds() - away >= self._grace))
        if again:
            self._probe()

    async def _declare(self, client: BrokerProtocol, queue: topology.Queue) -> None:
        await self._declaring.acquire()
        try:
            await topology.declare(client, SCRATCH, queue, lambda text: self._emit(BrokerWarning(text)))
        finally:
            self._declaring.release()

    async def _start(self, client: BrokerProtocol, number: int) -> None:
        if self._stopping:
            return  # a stop that came while the broker was asked something
        own = number == OWN
        queue = self._place.queue() if own else self._shared
        told = self._told if own else None
        consumer = Consumer(client, number, queue, self._router, self._turn, self._clock, self._lost, told)
        self._consumers[number] = consumer
        await consumer.start(self._counts[number], self._prefetch, lambda: not self._stopping)

    # -- whose the own queue is ------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Send ourselves a message, and look into it if that does not come."""
        self._stop_probing()
        self._probes += 1
        number = self._probes
        assert self._name is not None
        self._place.probe(self._name, f"{PROBE} {number}", lambda: self._probe_sent(number))

    def _probe_sent(self, number: int) -> None:
        if number == self._probes and self._probe_call is None and self._client is not None:
            self._probe_call = self._clock.callLater(self._ghost, self._unanswered)

    def _stop_probing(self) -> None:
        self._probes += 1  # what is under way is not waited for
        if self._probe_call is not None and self._probe_call.active():
            self._probe_call.cancel()
        self._probe_call = None

    def _told(self, notice: str, user: str | None) -> bool:
        """A message on the own queue that is for the node itself, if a node has written it."""
        if user not in self._users:
            return False
        if notice == f"{PROBE} {self._probes}":
            self._stop_probing()
        elif notice == delivery.LOST_NOTICE:
            self._place.lost()
        return True

    def _unanswered(self) -> None:
        self._probe_call = None
        client, consumer = self._client, self._consumers.get(OWN)
        if client is not None and consumer is not None and consumer.open:
            client.run(self._check_own(client, consumer))

    async def _check_own(self, client: BrokerProtocol, consumer: Consumer) -> None:
        found = await self._look(client, consumer.queue.name)
        if client is not self._client or not consumer.open:
            return
        if found is None or found.consumers < 2:
            self._probe()  # nobody else is there: the message was lost, to a purge or another's basic.get
            return
        await self._own_again(client, consumer, "its queue is consumed by somebody else")

    async def _own_again(self, client: BrokerProtocol, consumer: Consumer, reason: str = "") -> None:
        """Begin again with the consumer of the own queue, in place of this one: of another queue, if there is a reason."""
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
                    self._settled(again, gone)
        finally:
            self._replacing.release()

    def down(self) -> None:
        self._client = None
        self._flowing(False)
        self._stop_probing()
        self._place.away()
        if self._away_since is None and self._name is not None:
            self._away_since = self._clock.seconds()
        if self._restart_call is not None and self._restart_call.active():
            self._restart_call.cancel()
        self._restart_call = None
        self._consumers.clear()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to consume on."""
        return self._client is not None

    @property
    def handled(self) -> int:
        """The highest delivery tag of the own queue that was dealt with."""
        own = self._consumers.get(OWN)
        return own.handled if own is not None else 0

    async def stop_consuming(self, *, own: bool) -> None:
        """Take no more messages of the shared queue, or of the node's own, for good: also after a reconnect.

        Fails with `Closed` where the broker goes away meanwhile.
        """
        self._stopping = True
        consumer = self._consumers.get(OWN if own else SHARED)
        if consumer is not None:
            await consumer.stop()

    async def delete_own_queue(self) -> bool:
        """Delete the node's own queue if nothing is in it. Whether it is gone.

        Fails with `Closed` where the broker refuses that, or goes away.
        """
        client = self._client
        if client is None:
            return False
        own = self._place.queue()
        await self._declaring.acquire()
        try:
            channel = await client.open_channel(SCRATCH, BaseHandler())
            declared = await channel.queue_declare(queue=own.name, passive=True)
            if not declared.message_count:
                # Its consumer is ours; the broker cancels it with the queue, and that is no surprise now.
                consumer = self._consumers.pop(OWN, None)
                if consumer is not None:
                    consumer.open = False
                await channel.queue_delete(queue=own.name)
            await client.end_channel(SCRATCH)
        finally:
            self._declaring.release()
        return not declared.message_count

    def blocked(self, reason: str) -> None:
        """A connection that only consumes and acknowledges is not blocked."""

    def unblocked(self) -> None: ...

    def _lost(self, consumer: Consumer, reason: str) -> None:
        """One consumer is gone. With its connection: it comes back with it. Alone: declare its queue and begin again."""
        consumer.forgotten()
        client = self._client
        if self._stopping or client is None or client.closed or not any(one is consumer for one in self._consumers.values()):
            return
        if self._restart_call is None:
            self._flowing(False)
            self._emit(BrokerWarning(f"a consumer of {consumer.queue.name} ended: {reason}; consuming again"))
            self._restart_call = self._clock.callLater(self._wait.next(), self._restart)

    def _restart(self) -> None:
        if self._client is not None and not self._stopping:
            self._client.run(self._restart_lost())

    async def _restart_lost(self) -> None:
        """Begin again with every consumer that ended; with those that end meanwhile after another wait."""
        client = self._client
        if client is None:
            return
        try:
            for number in self._ended():
                if self._stopping:
                    return
                if number == OWN:
                    await self._own_again(client, self._consumers[OWN])
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
