"""The clean-up after a dead node: the messages in its queue are recorded, and the queue is deleted.

Theory of operation
===================

RabbitMQ may route a message to a classic queue, and confirm it, in the instant in which that queue is deleted: the message is
lost, and its sender does not know. No condition of `queue.delete` excludes this, nor does the expiry of a queue. So a queue is
deleted only when back ends have stopped sending to it:

    1. Unbind the queue from the exchange of all nodes, or it would never be silent. Take the messages in the queue, and have
    them recorded. A consumer is the node itself, which has come back: stop, and leave the rest to it. It binds its queue again
    (`broker.binding`).
    2. Announce that the node is lost, so that back ends stop sending.
    3. Go on as in 1 until no message has come for `SILENCE` seconds.
    4. Delete the queue, if it is still empty and unused.

A back end that never stops keeps the queue, and finds its messages on record. Each clean-up has two channels of its own, so
that no other dead node waits for such a queue.

RabbitMQ has no `basic.get` for a quorum queue with a single active consumer (405). Such a queue is consumed instead, and
deleted without conditions, which quorum queues do not have either (540).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..broker import headers as delivery
from ..broker import queues as topology
from ..broker.binding import unbind
from ..broker.client import BrokerClient, BrokerError, Getter, channel_refusal
from ..broker.consumer import letter, node_notice
from ..broker.own_queue import NodeNotice
from ..broker.queue_state import QueueState, inspect_queue, is_missing
from ..interfaces import Clock
from ..letter import DeliverySource, Letter

SILENCE: Final = 5.0
"""Seconds without a message after which a queue is deleted. The deletion takes some milliseconds. At the worst rate, one
message in five seconds, one clean-up in thousands loses a message."""

PERSISTENT: Final = 60.0
"""Seconds after which the operator is warned of back ends that go on sending to a dead node."""

INSPECT_INTERVAL: Final = 0.2
"""Seconds between two inspections of an empty queue."""

LEAVING: Final = 5.0
"""Seconds for which the broker may still count our cancelled consumer."""

AT_ONCE: Final = 200
"""Limit of the messages of one queue that are in memory at once."""

LOCKED: Final = 405
"""Reply code of RabbitMQ for a basic.get on a quorum queue with a single active consumer."""


class Receiver(Protocol):
    """Receiver of what is in the queue of a dead node: `left_behind.LeftBehind`."""

    def message(self, letter: Letter, node: bytes) -> None:
        """Route a message from the queue of a node, or record it, and acknowledge it."""

    def notice(self, notice: NodeNotice) -> None:
        """Process a notice."""

    def forget(self, source: DeliverySource) -> None:
        """Forget messages that are not settled: their channel is closed."""

    def lost(self, queue: str) -> None:
        """Note that the node of this queue is dead, and its queue deleted."""


class Cleanup(Getter):
    """The clean-up of the queue of one node, from the first inspection to the deletion."""

    open = True
    prefetch = 2 * AT_ONCE
    """Half of it may wait for answers of other nodes. That are all messages: nothing else has to go on meanwhile."""
    own = True

    def __init__(
        self,
        client: BrokerClient,
        channel: int,
        queue: str,
        exchange: str,
        clock: Clock,
        receiver: Receiver,
        announce: Callable[[int], None],
        warn: Callable[[str], None],
    ) -> None:
        """Use `channel` and the number after it. The queue may be bound to `exchange`. `announce` is called once, with the
        number of messages that were taken by then, before the queue is deleted.
        """
        self._client = client
        self._channel = channel
        self._queue = queue
        self._exchange = exchange
        self._bound = True
        self._clock = clock
        self._receiver = receiver
        self._announce: Callable[[int], None] | None = announce
        self._warn = warn
        self._consuming = False
        self._abandoned = False
        self._asked = 0
        self._held = 0
        self._settled: Deferred[None] | None = None
        self._end: Failure | None = None
        self._messages = 0

    async def run(self, *, plain: bool) -> bool:
        """Return whether the queue is gone; if not, the node is back. `plain`: the queue has no conditional deletion.

        Raises `BrokerError` if the broker refuses something, and `Closed` when the connection ends.
        """
        backlog: int | None = None
        seen = 0
        quiet_since = self._clock.seconds()
        warn_at: float | None = None
        await self._open()
        while True:
            found = await self._inspect()
            if found is None:
                break
            if found.consumers > self._consuming:
                return False
            if self._bound:
                self._bound = False
                await unbind(self._client, self._channel + 1, self._queue, self._exchange)
            if not await self._take(found.messages):
                break
            now = self._clock.seconds()
            if found.messages or self._held or self._messages != seen:
                seen, quiet_since = self._messages, now
            backlog = found.messages if backlog is None else backlog
            if warn_at is None and (self._messages >= backlog or not found.messages):
                self._announced()
                warn_at = now + PERSISTENT
            if now - quiet_since >= SILENCE:
                gone = await self._delete(plain or self._consuming)
                if gone is not None:
                    return gone
                quiet_since = self._clock.seconds()
            if warn_at is not None and now >= warn_at:
                warn_at = math.inf
                self._warn(
                    f"back ends still send to {self._queue}, whose node is gone: {self._messages} messages so far, recorded as "
                    "undeliverable unless they are for devices by name; the queue is deleted when they stop"
                )
            if self._consuming or found.messages < AT_ONCE:
                # Inspections of a queue that is consumed do not wait for messages: without a delay they would follow each
                # other.
                await self._wait()
        self._announced()
        return True

    def abandon(self) -> None:
        """Stop: the channel of the register is gone, and the next registrar begins the clean-up again."""
        self.open = False
        self._receiver.forget(self)
        self._abandoned = True

    async def end(self) -> None:
        """Close the channels."""
        self.open = False
        for number in (self._channel, self._channel + 1):
            await self._client.end_channel(number)

    def _announced(self) -> None:
        announce, self._announce = self._announce, None
        if announce is not None and not self._abandoned:
            announce(self._messages)

    # -- the queue -------------------------------------------------------------------------------------------------------

    async def _inspect(self) -> QueueState | None:
        if self._abandoned:
            raise Closed(ConnectionDone("abandoned"))
        return await inspect_queue(self._client, self._channel + 1, self._queue)

    async def _open(self) -> Any:
        await self._client.end_channel(self._channel)
        self._end = None
        self.open = True
        return await self._client.open_channel(self._channel, self)

    async def _take(self, messages: int) -> bool:
        """Have some messages of the queue recorded. Return `False` if the queue does not exist any longer.

        Messages are requested one by one: on a queue with a single active consumer, a consumer here would keep a node that
        comes back from consuming.
        """
        try:
            if not self._consuming:
                self._asked = min(messages, AT_ONCE)
                for _ in range(self._asked):
                    self._client.get(self._channel, self._queue)
                await self._all_settled()
            elif self._end is not None:
                self._raise_end(self._end)
        except BrokerError as error:
            if is_missing(error):
                return False
            if error.code != LOCKED or self._consuming:
                raise
            await self._consume()
        return True

    async def _consume(self) -> None:
        channel = await self._open()
        await channel.basic_qos(prefetch_count=AT_ONCE)
        self._consuming = True
        await channel.basic_consume(queue=self._queue, consumer_tag="owsla-cleanup")

    async def _delete(self, plain: bool) -> bool | None:
        """Return whether the queue is gone, or `None` to go on, since a message came after all."""
        if self._consuming:
            # Cancel, do not close: messages that are delivered meanwhile are recorded, and a quorum queue counts no return of
            # them.
            await self._client.channels[self._channel].basic_cancel(consumer_tag="owsla-cleanup")
            await self._all_settled()
            self._consuming = False
        found = await self._inspect_without_own_consumer()
        if found is None:
            return True
        if found.consumers:
            return False
        if found.messages:
            return None
        try:
            await self._client.channels[self._channel].queue_delete(queue=self._queue, if_unused=not plain, if_empty=not plain)
        except Closed as closed:
            error = channel_refusal(closed)
            if error.code != topology.PRECONDITION_FAILED:
                raise error from None
            await self._open()
            return None
        return True

    async def _inspect_without_own_consumer(self) -> QueueState | None:
        """Inspect the queue without our own consumer.

        A busy broker may still count our cancelled consumer of a quorum queue. Wait it out, or we would mistake ourselves for
        the node and stop the clean-up.
        """
        patience = self._clock.seconds() + LEAVING
        while True:
            found = await self._inspect()
            if found is None or not found.consumers or self._clock.seconds() >= patience:
                return found
            await self._wait()

    async def _wait(self) -> None:
        waiting: Deferred[None] = Deferred()
        self._clock.callLater(INSPECT_INTERVAL, waiting.callback, None)
        await waiting

    # -- messages --------------------------------------------------------------------------------------------------------

    def got(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._answered()
        self.deliver(tag, redelivered, header, body)

    def got_nothing(self) -> None:
        self._answered()
        self._check()

    def _answered(self) -> None:
        if not self._asked:
            raise WireError("the broker answers a basic.get that was not sent")
        self._asked -= 1

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._held += 1
        try:
            connection_id, seq, _ = delivery.read(header)
            address = delivery.details(header)
        except WireError:
            one = Letter(self, tag, header, body, None, None)
        else:
            if address.notice is not None:
                self._receiver.notice(node_notice(address.notice, address, body))
                self.done(tag)
                return
            one = letter(self, tag, header, body, connection_id, seq, address, self._clock)
        self._messages += 1
        self._receiver.message(one, self._queue[-8:].encode())

    def written(self, header: bytes, body: bytes) -> None:
        """Do nothing: no message goes to a device from here."""

    def done(self, tag: int) -> None:
        self._held -= 1
        if self.open:
            self._client.ack(self._channel, tag, False)
        self._check()

    def closed(self, reason: Failure) -> None:
        self.open = False
        self._receiver.forget(self)
        self._end = reason
        self._check()

    def _check(self) -> None:
        waiting = self._settled
        if waiting is not None and (self._end is not None or not (self._asked or self._held)):
            self._settled = None
            waiting.callback(None)

    async def _all_settled(self) -> None:
        if self._end is None and (self._asked or self._held):
            self._settled = Deferred()
            await self._settled
        if self._end is not None:
            self._raise_end(self._end)

    def _raise_end(self, end: Failure) -> NoReturn:
        self._asked = self._held = 0
        raise end.value if isinstance(end.value, BrokerError) else Closed(end.value)
