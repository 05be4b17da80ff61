"""The consumers of a node: messages from RabbitMQ are read, routed, and acknowledged when their outcome is certain.

Theory of operation. A node consumes two queues on one connection: the shared queue `to_device`, with several consumers on one
channel, and its own queue, with one. The shared one starts first: a back end that uses both routes has its numbers in both, and
the shared queue holds more of them.

`OwnQueue` claims the queue of the node, and verifies with probes that no other client consumes it.

A consumer that ends alone (its queue was deleted, its channel closed) is restarted with back-off on the same connection;
`_replacing` ensures that only one replacement of the own queue's consumer runs at a time.

`Binding` keeps the queue of the node bound to the exchange of all nodes, on this connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import DeferredLock
from txamqp.client import Closed

from ..events import BrokerWarning, Event
from ..interfaces import Clock, DelayedCall, MessageSink
from ..runtime.end_of_turn import EndOfTurn
from . import queues as topology
from .binding import Binding
from .client import BrokerClient, BrokerError, as_failure
from .consumer import Consumer
from .own_queue import Declarations, NodeMembership, NoticeReceiver, OwnQueue, OwnQueueSettings
from .retry_delay import RetryDelay

SHARED = 2
"""Channel that consumes the shared queue."""

OWN = 3
"""Channel that consumes the queue of the node."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Settings of the consumers of a node."""

    shared: topology.Queue
    """Queue that all nodes consume."""
    count: int
    """Number of consumers of the shared queue."""
    prefetch: int
    """Limit on unacknowledged messages of each consumer."""
    own_queue: OwnQueueSettings


@dataclass(frozen=True, slots=True)
class OwnQueueParts:
    """Parts of a node that its own queue serves."""

    membership: NodeMembership
    binding: Binding
    """Binding of the queue to the exchange of all nodes, while the queue is consumed."""
    receiver: NoticeReceiver | None = None
    """Receiver of the notices about devices."""


class Consumers:
    """Role of the connection that consumes the shared queue and the queue of the node."""

    name = "consumers"

    def __init__(
        self,
        clock: Clock,
        turn: EndOfTurn,
        emit: Callable[[Event], None],
        router: MessageSink,
        *,
        own: OwnQueueParts,
        settings: ConsumerSettings,
        flowing: Callable[[bool], None],
    ) -> None:
        """`flowing` is told whether messages come."""
        self._clock = clock
        self._turn = turn
        self._emit = emit
        self._router = router
        self._settings = settings
        self._binding = own.binding
        self._flowing = flowing
        self._declarations = Declarations(emit)
        self._own = OwnQueue(
            clock, own.membership, self._declarations, settings.own_queue, self._probe_missing, own.receiver
        )
        self._client: BrokerClient | None = None
        self._consumers: dict[int, Consumer] = {}
        self._restart_call: DelayedCall | None = None
        self._stopping = False
        self._replacing = DeferredLock()
        self._wait = RetryDelay(first=0.2, most=10.0)

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        if self._stopping:
            return
        await self._declarations.declare(client, self._settings.shared)
        again, gone = await self._own.claim(client)
        for number in (SHARED, OWN):
            await self._start(client, number)
        await self._bind(client)
        if not self._stopping:
            self._wait.reset()
            self._flowing(True)
            self._own.consumed(again, gone)

    async def _start(self, client: BrokerClient, number: int) -> None:
        if self._stopping:
            return  # the stop came during a call to the broker
        own = number == OWN
        queue = self._own.queue if own else self._settings.shared
        told = self._own.told if own else None
        consumer = Consumer(client, number, queue, self._router, self._turn, self._clock, self._lost, told)
        self._consumers[number] = consumer
        await consumer.start(1 if own else self._settings.count, self._settings.prefetch, lambda: not self._stopping)

    async def _bind(self, client: BrokerClient) -> None:
        """Bind the own queue before devices connect, so that other nodes find them from the beginning."""
        if not self._stopping:
            await self._binding.begin(client, self._own.queue.name)

    # -- the owner of the own queue ------------------------------------------------------------------------------------------

    def _probe_missing(self) -> None:
        client, consumer = self._client, self._consumers.get(OWN)
        if client is not None and consumer is not None and consumer.open:
            client.run(self._check_own(client, consumer))

    async def _check_own(self, client: BrokerClient, consumer: Consumer) -> None:
        found = await self._declarations.inspect(client, consumer.queue.name)
        if client is not self._client or not consumer.open:
            return
        if found is None or found.consumers < 2:
            self._own.probe()  # no other consumer: the probe was lost, to queue.purge or a basic.get
            return
        await self._replace_own(client, consumer, "another client consumes its queue")

    async def _replace_own(self, client: BrokerClient, consumer: Consumer, reason: str = "") -> None:
        """Replace the consumer of the own queue; with `reason`, by one of another name's queue."""
        await self._replacing.acquire()
        try:
            if self._consumers.get(OWN) is not consumer or self._stopping:
                return
            again, gone = await self._own.claim(client, reason)
            if consumer.open:
                consumer.open = False
                consumer.forgotten()
            await client.end_channel(OWN)
            if self._consumers.get(OWN) is consumer:
                await self._start(client, OWN)
                await self._bind(client)
                if not self._stopping:
                    self._own.consumed(again, gone)
        finally:
            self._replacing.release()

    def down(self) -> None:
        self._client = None
        self._flowing(False)
        self._own.away()
        self._binding.end()
        if self._restart_call is not None and self._restart_call.active():
            self._restart_call.cancel()
        self._restart_call = None
        self._consumers.clear()

    @property
    def client(self) -> BrokerClient | None:
        """The connection, while there is one."""
        return self._client

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

    async def unbind_own_queue(self) -> None:
        """Unbind the own queue permanently: no more messages to all nodes arrive.

        Raise `Closed` if the connection is lost meanwhile.
        """
        await self._binding.remove()

    async def delete_own_queue(self) -> bool:
        """Delete the own queue if it is empty, and no message from it is unacknowledged. Return whether it was deleted.

        Raise `Closed` if the broker refuses that or the connection is lost.
        """
        client = self._client
        if client is None:
            return False
        return await self._declarations.delete_empty(client, self._own.queue.name, self._own_is_settled, self._drop_own)

    def _own_is_settled(self) -> bool:
        """Return whether all messages that arrived from the own queue are finished. The broker does not count those that are
        not, and would delete them with the queue.
        """
        consumer = self._consumers.get(OWN)
        return consumer is None or consumer.settled

    def _drop_own(self) -> None:
        """Remove the consumer of the own queue. The broker cancels it with the queue, and it must not be restarted."""
        consumer = self._consumers.pop(OWN, None)
        if consumer is not None:
            consumer.open = False

    def blocked(self, reason: str) -> None:
        """Do nothing: RabbitMQ blocks only connections that publish."""

    def unblocked(self) -> None: ...

    def _lost(self, consumer: Consumer, reason: str) -> None:
        """Handle the end of a consumer. If its connection lives, declare its queue and restart it.

        One that could not be started has raised an error, which ends the connection.
        """
        consumer.forgotten()
        if not consumer.started:
            return
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
                    await self._declarations.declare(client, self._settings.shared)
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
