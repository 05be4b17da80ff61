"""The binding of the node's own queue to the exchange of all nodes, `<to-device>.all`.

Theory of operation
===================

All nodes hear what one node publishes on the exchange: each declares it, and binds its own queue to it. That happens on the
connection of the consumers, which never publishes, so that an alarm of the broker does not stop it. It has a channel of its
own: a refusal closes only that channel, and the node consumes as before.

    AWAY ──bound──▶ BOUND ──exchange or queue missing──▶ AWAY
    AWAY ──no permission, or an exchange of another type──▶ REFUSED ──bound──▶ BOUND             (after a delay, again)
    each ──connection lost, or own queue not consumed──▶ AWAY

The broker does not tell when somebody deletes the exchange or the binding. A node that is not bound misses the questions of the
other nodes, and they take its devices for absent. So the queue is bound again every `CHECK_INTERVAL`: to bind what is bound
changes nothing, and costs the broker one look into a table. A publisher that misses the exchange asks for a check at once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import DeferredLock
from txamqp.client import Closed

from ..interfaces import Clock, DelayedCall
from . import queues as topology
from .client import BaseHandler, BrokerClient, BrokerError, channel_refusal
from .retry_delay import RetryDelay

CHANNEL: Final = 5
"""Channel on the connection of the consumers."""

CHECK_INTERVAL: Final = 5.0
"""Seconds between two checks of the binding: devices of a node that lost its binding cannot be found for as long."""


class BindingState(enum.Enum):
    """States of the binding."""

    AWAY = enum.auto()
    """The own queue is not consumed, or not bound yet."""
    BOUND = enum.auto()
    """The own queue is bound to the exchange."""
    REFUSED = enum.auto()
    """The broker does not let this node declare or bind, or the exchange has another type."""


class Binding:
    """Keeps the own queue bound, from `begin` to `end` or `remove`."""

    def __init__(self, clock: Clock, exchange: str, *, changed: Callable[[], None], warn: Callable[[str], None]) -> None:
        """`changed` is called after each change of `state`, and `warn` for what the operator should know."""
        self._clock = clock
        self._exchange = exchange
        self._changed = changed
        self._warn = warn
        self._lock = DeferredLock()  # for the channel
        self._client: BrokerClient | None = None
        self._queue: str | None = None
        self._check_call: DelayedCall | None = None
        self._delay = RetryDelay(first=2.0, most=60.0)
        self.state = BindingState.AWAY
        self.refusal: BrokerError | None = None
        """Refusal of the broker, in the state `REFUSED`."""

    # -- requests --------------------------------------------------------------------------------------------------------

    async def begin(self, client: BrokerClient, queue: str) -> None:
        """Bind the own queue, which exists and is consumed, and keep it bound. Return when the broker has answered.

        A refusal is no error here. Raise `Closed` when the connection ends.
        """
        self._client = client
        self._queue = queue
        self._cancel_check()
        self._move(BindingState.AWAY)
        await self._bind(client)

    def end(self) -> None:
        """Note that the own queue is not consumed any more, or that the connection is lost."""
        self._client = None
        self._queue = None
        self._cancel_check()
        self._move(BindingState.AWAY)

    def check(self) -> None:
        """Check the binding now: a message to the exchange did not arrive."""
        client = self._client
        if client is not None and self.state is not BindingState.REFUSED:
            self._cancel_check()
            self._move(BindingState.AWAY)
            client.run(self._bind(client))

    async def remove(self) -> None:
        """Unbind the own queue permanently, so that it can become silent."""
        client, queue = self._client, self._queue
        bound = self.state is BindingState.BOUND
        self.end()
        if client is None or queue is None or not bound:
            return
        await self._lock.acquire()
        try:
            await unbind(client, CHANNEL, queue, self._exchange)
        finally:
            self._lock.release()

    # -- binding ---------------------------------------------------------------------------------------------------------

    async def _bind(self, client: BrokerClient) -> None:
        await self._lock.acquire()
        try:
            queue = self._queue
            if client is not self._client or queue is None:
                return
            refusal = None
            try:
                await self._ask_broker(client, queue)
            except BrokerError as error:
                refusal = error
            if client is self._client and queue == self._queue:
                self._answered(refusal)
        finally:
            self._lock.release()

    async def _ask_broker(self, client: BrokerClient, queue: str) -> None:
        """Bind the queue; declare the exchange before, if it is not known to exist. Raise `BrokerError` for a refusal."""
        if self.state is BindingState.BOUND:
            try:
                await self._queue_bind(client, queue)
                return
            except BrokerError as error:
                if error.code != topology.NOT_FOUND:
                    raise
        await client.end_channel(CHANNEL)
        await topology.declare_fanout(client, CHANNEL, self._exchange, self._warn)
        await self._queue_bind(client, queue)

    async def _queue_bind(self, client: BrokerClient, queue: str) -> None:
        channel = client.channels.get(CHANNEL)
        try:
            if channel is None or channel.closed:
                channel = await client.open_channel(CHANNEL, BaseHandler())
            await channel.queue_bind(queue=queue, exchange=self._exchange, routing_key="")
        except Closed as closed:
            raise channel_refusal(closed) from None

    def _answered(self, refusal: BrokerError | None) -> None:
        if refusal is None:
            self._delay.reset()
            self._schedule(CHECK_INTERVAL)
            self._move(BindingState.BOUND)
        elif refusal.code == topology.NOT_FOUND:
            # Deleted in this instant: the exchange is declared again, and the consumers declare the queue again.
            self._schedule(self._delay.next())
            self._move(BindingState.AWAY)
        elif refusal.code == topology.ACCESS_REFUSED and self.state is BindingState.BOUND:
            self._schedule(CHECK_INTERVAL)  # the permission was taken away, and the binding was not
        else:
            self._schedule(self._delay.next())
            self._move(BindingState.REFUSED, refusal)

    def _move(self, state: BindingState, refusal: BrokerError | None = None) -> None:
        before, self.state, self.refusal = self.state, state, refusal
        if state is not before:
            self._changed()

    # -- the time --------------------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float) -> None:
        self._cancel_check()
        self._check_call = self._clock.callLater(seconds, self._check_due)

    def _cancel_check(self) -> None:
        if self._check_call is not None and self._check_call.active():
            self._check_call.cancel()
        self._check_call = None

    def _check_due(self) -> None:
        self._check_call = None
        if self._client is not None:
            self._client.run(self._bind(self._client))


async def unbind(client: BrokerClient, channel: int, queue: str, exchange: str) -> None:
    """Remove the binding of a queue to an exchange, on a temporary channel of this number.

    A refusal is ignored: without permission to unbind, nothing was bound either. Raise `Closed` if the connection ends.
    """
    await client.end_channel(channel)
    opened = await client.open_channel(channel, BaseHandler())
    try:
        await opened.queue_unbind(queue=queue, exchange=exchange, routing_key="")
    except Closed as closed:
        channel_refusal(closed)
        return
    await client.end_channel(channel)
