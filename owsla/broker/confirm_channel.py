"""The channel with publisher confirms on which the lines of a door are published."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from txamqp.client import Closed

from ..amqp.wire import WireError
from .client import BrokerClient, BrokerError, ChannelHandler, as_failure
from .destination import Destination

ChannelFailed: TypeAlias = Callable[[str, BrokerClient, BaseException], None]
"""Function that gets the publisher of a door another channel: the broker closed the present one, or a refusal may be its fault
alone. It is called with the name of the door. The publisher goes on with the next `up`.
"""


def end_connection(door: str, client: BrokerClient, reason: BaseException) -> None:
    """Get a publisher another channel with another connection, which the connection makes with back-off."""
    client.abort(reason)


class ConfirmChannel:
    """The channel of a publisher, with its destination: open from `open` until `close`, whether the broker blocks or not."""

    __slots__ = ("_blocked", "_destination", "_door", "_failed", "_number", "client")

    def __init__(self, number: int, destination: Destination, *, door: str, failed: ChannelFailed) -> None:
        self._number = number
        self._destination = destination
        self._door = door
        self._failed = failed
        self.client: BrokerClient | None = None
        """Connection of the channel; `None` while it is not open."""
        self._blocked = False

    @property
    def serving(self) -> bool:
        """True if the channel is open, and the broker reads from it."""
        return self.client is not None and not self._blocked

    async def open(self, client: BrokerClient, handler: ChannelHandler) -> None:
        """Declare or find the destination, and open the channel with confirms."""
        await self._destination.prepare(client)
        channel = await client.open_channel(self._number, handler)
        await channel.confirm_select()
        self.client = client

    def close(self) -> None:
        """Note that the channel has ended."""
        self.client = None

    def block(self) -> None:
        """Note that the broker blocks connections that publish: it reads nothing from this one."""
        self._blocked = True

    def unblock(self) -> None:
        """Note that the broker reads from this connection again, or that it has ended."""
        self._blocked = False

    def protest(self, error: Exception) -> None:
        """End the connection: the broker has violated the protocol."""
        if self.client is not None:
            self.client.abort(WireError(str(error)))

    def fail(self, reason: BaseException) -> None:
        """Get another channel, unless the connection has ended and brings one anyway."""
        if self.client is not None and not self.client.closed:
            self._failed(self._door, self.client, reason)

    async def prepare_again(self, new_channel: bool) -> BrokerClient | None:
        """Prepare for lines that were refused: restore the destination if it may be missing.

        Return the connection to publish on. It is `None` if the lines are published on another channel: the caller asks for a
        `new_channel`, the destination cannot be restored, or the connection has ended meanwhile.
        """
        client = self.client
        if client is None:
            return None
        if new_channel:
            text = f"{self._destination.full()}, or only on this channel: trying another"
            self.fail(BrokerError(0, text, scope="channel"))
            return None
        if self._destination.missing:
            try:
                await self._destination.restore(client)
            except (BrokerError, Closed) as error:
                if client is self.client:
                    self.fail(as_failure(error).value or error)
                return None
        return client if client is self.client else None
