"""The destination of device lines: a queue, which is declared, or an exchange, which must exist."""

from __future__ import annotations

from collections.abc import Callable

from . import queues as topology
from .client import BrokerClient


class Destination:
    """The queue or exchange of the lines, with its declaration and the descriptions of its faults."""

    def __init__(self, target: topology.Queue | topology.Exchange, warn: Callable[[str], None], channel: int) -> None:
        """`channel` is the number of the temporary channel for declarations."""
        self._target = target
        self._channel = channel
        self._warn = warn
        self._missing = False

    @property
    def name(self) -> str:
        """Name of the queue or exchange."""
        return self._target.name

    async def prepare(self, client: BrokerClient) -> None:
        """Declare the queue, or find the exchange."""
        if isinstance(self._target, topology.Exchange):
            await topology.find_exchange(client, self._channel, self._target)
        else:
            await topology.declare(client, self._channel, self._target, self._warn)

    def unroutable(self) -> None:
        """Note that the broker returned a line as unroutable: the queue may have been deleted."""
        self._missing = True

    @property
    def missing(self) -> bool:
        """True if the queue may have been deleted. An exchange has its queues from others, so nothing can be declared."""
        return self._missing and isinstance(self._target, topology.Queue)

    async def restore(self, client: BrokerClient) -> None:
        """Declare the missing queue again."""
        self._missing = False
        try:
            await self.prepare(client)
        except BaseException:
            self._missing = True
            raise

    # -- descriptions ----------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        kind = "exchange" if isinstance(self._target, topology.Exchange) else "queue"
        return f"{kind} {self.name}"

    def full(self) -> str:
        if isinstance(self._target, topology.Exchange):
            return f"a queue behind the exchange {self.name} is full or unavailable"
        return f"the queue {self.name} is full or unavailable"

    def nowhere(self, routing_key: str) -> str:
        if isinstance(self._target, topology.Exchange):
            return f"the exchange {self.name} has no queue for the routing key {routing_key!r}"
        return f"there is no queue {self.name}"
