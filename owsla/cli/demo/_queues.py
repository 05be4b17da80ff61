"""The removal of the demo's queues from a RabbitMQ of the user."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from txamqp.client import Closed

from ...broker.client import BaseHandler, BrokerClient
from ...broker.queues import broadcast_exchange
from ...config.sources import load_settings
from ...runtime.end_of_turn import EndOfTurn
from .._running import Session, run
from ._plan import PREFIX

CHANNEL: Final = 1

TIMEOUT: Final = 5.0
"""Seconds for the broker."""


class RemoveQueues:
    """The `Role` that deletes the queues and the exchange, unless another demo uses them."""

    name = "demo"

    def __init__(self, reactor: Any, turn: EndOfTurn, session: Session, *, node: str) -> None:
        self._session = session
        self._node = node
        reactor.callLater(TIMEOUT, session.finish, 1, "the queues of the demo could not be deleted")

    async def up(self, client: BrokerClient) -> None:
        to_device = f"{PREFIX}to_device"
        channel = await client.open_channel(CHANNEL, BaseHandler())
        try:
            if self._node:
                await channel.queue_delete(queue=f"{to_device}.{self._node}")
            # First those that another demo consumes: the channel closes there, and the others stay.
            for queue in (to_device, f"{PREFIX}from_device"):
                await channel.queue_delete(queue=queue, if_unused=True)
            for queue in (f"{to_device}.nodes", f"{to_device}.undeliverable"):
                await channel.queue_delete(queue=queue)
            await channel.exchange_delete(exchange=broadcast_exchange(to_device))
        except Closed:
            pass
        self._session.finish(0)

    def down(self) -> None: ...

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...


def main(url: str, password_file: str, node: str) -> int:
    """Delete the queues at a broker. Return the exit status."""
    settings = load_settings([f"--broker={url}", f"--broker-password-file={password_file}"], {})
    return run("demo", settings, partial(RemoveQueues, node=node), patient=False)
