"""The way of a message from RabbitMQ to a device, up to the router: consumed, read, and acknowledged when its fate is known."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import DeferredLock
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..boundaries import Clock, DelayedCall, Letter, Router
from ..events import BrokerWarning, Event
from ..turn import Turn
from . import delivery, topology
from .acks import AckTracker
from .backoff import Backoff
from .protocol import BaseHandler, BrokerError, BrokerProtocol, as_failure

SCRATCH = 1
"""The channel for declarations."""

SHARED = 2
"""The channel that consumes the shared queue."""

OWN = 3
"""The channel that consumes the node's own queue."""


class Consumer(BaseHandler):
    """One channel that consumes one queue, for as long as the channel lasts.

    It may have several consumers of the queue on it. RabbitMQ gives what is in a queue to a channel in the order of the queue,
    whichever of its consumers it is for; on a channel of its own each, they would overtake each other.
    """

    __slots__ = ("_acks", "_channel", "_client", "_flushing", "_lost", "_now", "_router", "_turn", "open", "prefetch", "queue")

    def __init__(
        self,
        client: BrokerProtocol,
        channel: int,
        queue: topology.Queue,
        router: Router,
        turn: Turn,
        now: Callable[[], float],
        lost: Callable[[Consumer, str], None],
    ) -> None:
        """`now()` is in seconds since the epoch; `lost` is told when the channel ends, or the consumer is cancelled."""
        self._client = client
        self._channel = channel
        self.queue = queue
        self._router = router
        self._turn = turn
        self._now = now
        self._lost = lost
        self._acks = AckTracker()
        self._flushing = False
        self.prefetch = 0
        self.open = True
        """Whether messages still come and can be acknowledged."""

    async def start(self, count: int, prefetch: int) -> None:
        """Open the channel, and consume with so many consumers; `prefetch` messages of each may be unacknowledged."""
        self.prefetch = count * prefetch
        channel = await self._client.open_channel(self._channel, self)
        await channel.basic_qos(prefetch_count=prefetch)
        for number in range(count):
            await channel.basic_consume(queue=self.queue.name, consumer_tag=f"owsla-{number}")

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        try:
            connection_id, seq, more = delivery.read(header)
            if not more:
                self._router.route(self, tag, connection_id, seq, header, body)
                return
            address = delivery.details(header)
        except WireError:
            # The headers are no field table: nothing in them can be relied on.
            self._router.refuse(Letter(self, tag, header, body, None, None), "bad-connection-id")
            return
        expires_at = None if address.expires_at is None else address.expires_at / 1000
        if address.expiration is not None:
            counted = self._now() + address.expiration / 1000
            expires_at = counted if expires_at is None else min(expires_at, counted)
        self._router.route_letter(
            Letter(
                self,
                tag,
                header,
                body,
                connection_id,
                seq,
                close=address.close,
                expires_at=expires_at,
                reply_to=address.reply_to,
                correlation_id=address.correlation_id,
            )
        )

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


class Consumers:
    """The consumers of a node: so many of `to_device`, and one of its own queue, on one connection.

    The own queue comes last: a back end that uses both routes has its numbers in both, and the shared one holds more.
    """

    name = "consumers"

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        emit: Callable[[Event], None],
        router: Router,
        *,
        shared: topology.Queue,
        own: topology.Queue,
        count: int,
        prefetch: int,
        now: Callable[[], float],
        flowing: Callable[[bool], None],
    ) -> None:
        """`now()` is in seconds since the epoch; `flowing` is told whether messages come."""
        self._clock = clock
        self._turn = turn
        self._emit = emit
        self._router = router
        self._queues = {SHARED: shared, OWN: own}
        self._counts = {SHARED: count, OWN: 1}
        self._prefetch = prefetch
        self._now = now
        self._flowing = flowing
        self._client: BrokerProtocol | None = None
        self._consumers: dict[int, Consumer] = {}
        self._restart_call: DelayedCall | None = None
        self._declaring = DeferredLock()  # one at a time on the channel for declarations
        self._wait = Backoff(first=0.2, most=10.0)

    async def up(self, client: BrokerProtocol) -> None:
        self._client = client
        for queue in self._queues.values():
            await self._declare(client, queue)
        for number in self._queues:
            await self._start(client, number)
        self._wait.reset()
        self._flowing(True)

    async def _declare(self, client: BrokerProtocol, queue: topology.Queue) -> None:
        await self._declaring.acquire()
        try:
            await topology.declare(client, SCRATCH, queue, lambda text: self._emit(BrokerWarning(text)))
        finally:
            self._declaring.release()

    async def _start(self, client: BrokerProtocol, number: int) -> None:
        consumer = Consumer(client, number, self._queues[number], self._router, self._turn, self._now, self._lost)
        self._consumers[number] = consumer
        await consumer.start(self._counts[number], self._prefetch)

    def down(self) -> None:
        self._client = None
        self._flowing(False)
        if self._restart_call is not None and self._restart_call.active():
            self._restart_call.cancel()
        self._restart_call = None
        self._consumers.clear()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to consume on."""
        return self._client is not None

    async def give_up_own_queue(self) -> bool:
        """Delete the node's own queue if nothing is in it. Whether it is gone.

        Fails with `Closed` where the broker refuses that, or goes away.
        """
        client = self._client
        if client is None:
            return False
        own = self._queues[OWN]
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
        self._router.forget(consumer)
        client = self._client
        if client is None or client.closed or not any(one is consumer for one in self._consumers.values()):
            return
        if self._restart_call is None:
            self._flowing(False)
            self._emit(BrokerWarning(f"a consumer of {consumer.queue.name} ended: {reason}; consuming again"))
            self._restart_call = self._clock.callLater(self._wait.next(), self._restart)

    def _restart(self) -> None:
        if self._client is not None:
            self._client.run(self._restart_lost())

    async def _restart_lost(self) -> None:
        """Begin again with every consumer that ended; with those that end meanwhile after another wait."""
        client = self._client
        if client is None:
            return
        try:
            for number in self._ended():
                await self._declare(client, self._queues[number])
                await client.end_channel(number)
                await self._start(client, number)
        except (BrokerError, Closed) as error:
            if client is self._client and not client.closed:
                client.abort(as_failure(error).value or error)
            return
        if client is not self._client:
            return
        if self._ended():
            self._restart_call = self._clock.callLater(self._wait.next(), self._restart)
        else:
            self._restart_call = None
            self._wait.reset()
            self._flowing(True)

    def _ended(self) -> list[int]:
        return [number for number, consumer in self._consumers.items() if not consumer.open]
